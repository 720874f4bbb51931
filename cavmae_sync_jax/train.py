"""Pre-trains CAV-MAE Sync on a prepared dataset; started again on a workdir, it resumes.

Example:
  python -m cavmae_sync_jax.train --config=configs/pretrain.py:registers_4 \\
      --config.data.dir=DATASET --config.batch_size=256 --workdir=runs/registers_4

The workdir gets config.json, metrics.jsonl, TensorBoard files and checkpoints/. On several hosts
every process runs this command. SIGTERM makes it save and stop with status 143, and Ctrl-C with
status 130; a second Ctrl-C ends it at once. `--help_config` lists the keys of a config.
"""

import argparse
import contextlib
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import jax
from etils import epath
from ml_collections import ConfigDict

from cavmae_sync_jax.checkpoints import manager
from cavmae_sync_jax.checkpoints.pretrained import Pretrained, initial_params
from cavmae_sync_jax.data import loader
from cavmae_sync_jax.distributed import hardware, multihost, preemption, sharding
from cavmae_sync_jax.evals import in_training
from cavmae_sync_jax.models import cavmae_sync
from cavmae_sync_jax.training import config_checks, device_clock, metric_writer, train_step
from cavmae_sync_jax.utils import cli, console
from cavmae_sync_jax.utils.errors import Terminated, UserError
from cavmae_sync_jax.utils.modalities import MODALITIES

PROFILED_STEPS = 5


class Run:
    """A training from its settings to its end: what every step needs, and what it leaves behind."""

    def __init__(self, config: ConfigDict, workdir: epath.PathLike):
        """Opens the data and refuses what can't work, before anything is written.

        Raises:
          UserError: for settings or data that don't fit.
        """
        self.workdir = epath.Path(workdir)
        self.config = config = config_checks.with_statistics(config)
        self.mesh = sharding.make_mesh(**config.mesh)
        self.module = cavmae_sync.from_config(config.model)
        config_checks.check(config, self.module, self.mesh.size)
        self.pair_spec = loader.PairSpec.of(config)
        data = config.data
        self.records = loader.Records(data.dir, data.train_split, requests=data.requests)
        self.held_out = None
        if config.data.eval_split:
            self.held_out = loader.Records(config.data.dir, config.data.eval_split)
            in_training.check(config.evaluations, self.held_out)
        for split in filter(None, (self.records, self.held_out)):
            split.pairs(0, self.pair_spec, [0])  # refuses sizes that don't fit

        self.steps_per_epoch = len(self.records) / config.batch_size
        self.steps = max(1, round(config.epochs * self.steps_per_epoch))
        self.eval_every = round(config.eval_every * self.steps_per_epoch) or self.steps
        self.optimizer, self.rate = train_step.make_optimizer(
            config, self.steps, self.steps_per_epoch
        )
        key = jax.random.key(config.seed)
        self._init = lambda: train_step.init_state(self.module, self.optimizer, key)
        self._shapes = jax.eval_shape(self._init)
        self.shardings = sharding.state_shardings(self._shapes, self.mesh)
        self.history = metric_writer.History()

    def begin(self, resume_step: int | None) -> None:
        """Makes the workdir and the state of the step that the run goes on from.

        Raises:
          UserError: if the workdir's checkpoints don't fit, or `config.init_from` can't be read.
        """
        given = None
        resumable = multihost.broadcast_from_first(manager.exists(self.workdir))
        if not resumable:
            self._check_batch_size()
        if self.config.init_from and not resumable:
            given = initial_params(self.config.init_from, self.module, self.mesh)
        cli.make_folder(self.workdir)
        self.checkpoints = manager.Checkpoints(self.workdir, self.config.keep_checkpoints)
        self.writer = metric_writer.Writer(self.workdir)
        newest = self.checkpoints.latest if resume_step is None else resume_step
        if newest is None:
            self.state = jax.jit(self._init, out_shardings=self.shardings)()
            self.examples = 0
            if given is not None:
                self.state = self.state.replace(params=given)
        else:
            self._resume(newest)
            self.checkpoints.set_aside_after(newest)
            console.log(f"resuming {self.workdir} at step {newest}")
        self.first = int(self.state.step)
        self.writer.drop_after(newest or 0)
        if jax.process_index() == 0:
            text = self.config.to_json_best_effort(indent=2) + "\n"
            (self.workdir / "config.json").write_text(text)

    def _check_batch_size(self) -> None:
        batch_size, clips = self.config.batch_size, len(self.records)
        if batch_size > clips:
            raise UserError(
                f"config.batch_size={batch_size} is more than the {clips} clips of split "
                f"{self.config.data.train_split!r}: copies of a clip would be each other's "
                f"negatives; set --config.batch_size={clips} or less"
            )

    def _resume(self, step: int) -> None:
        stored = self.checkpoints.stored(step)
        if not stored.position:
            raise UserError(
                f"{self.workdir} is a conversion, not a training: begin with its weights by "
                "--config.init_from, in another --workdir"
            )
        changed = config_checks.changed(stored.config, self.config)
        if stored.position["dataset"] != self.records.identity:
            changed.append(
                f"the dataset was {stored.position['dataset']} and is now {self.records.identity}"
            )
        if changed:
            raise UserError(
                f"{self.workdir} can't be resumed: {'; '.join(changed)}: "
                "use the old settings or another --workdir"
            )
        self.state = stored.restore(sharding.laid_out(self._shapes, self.shardings))
        self.examples = stored.position["examples"]

    def batches(self) -> Generator[Any, None, None]:
        """The global batches from the run's position on; close it to end the workers."""
        data = self.config.data
        return loader.to_device(
            loader.train_batches(
                self.records,
                self.pair_spec,
                self.config.batch_size,
                self.config.seed,
                self.examples,
                data.workers,
                data.prefetch,
            ),
            self.mesh,
        )

    def step_function(self) -> Callable[..., Any]:
        """The jitted train step."""
        return train_step.make_train_step(self.module, self.optimizer, self.config, self.shardings)

    def log(self, step: int) -> dict[str, float]:
        """Writes the means since the last call.

        Raises:
          UserError: if a loss or norm is not finite; the workdir gets the list of its clips.
        """
        try:
            means = self.history.flush(self.config.batch_size)
        except metric_writer.NotFiniteError as error:
            raise self._diverged(error, step) from error
        means |= {
            "learning_rate": float(self.rate(step - 1)),
            "epoch": step / self.steps_per_epoch,
        }
        self.writer.write(step, self.config.data.train_split, means)
        return means

    def _diverged(self, error: metric_writer.NotFiniteError, step: int) -> UserError:
        size = self.config.batch_size
        start = self.examples - (step - error.step + 1) * size
        order = loader.order(len(self.records), self.config.seed, start, size)
        clips = self.records.ids(order)
        path = self.workdir / f"clips_of_step_{error.step}.txt"
        if jax.process_index() == 0:
            path.write_text("".join(f"{clip}\n" for clip in clips))
        good = max(self.checkpoints.finished, default=None)
        where = f"the last good checkpoint is of step {good}" if good else "nothing was saved yet"
        lower = f"--config.learning_rate={self.config.learning_rate / 2:g}"
        return UserError(
            f"{error}; its batch began with the clips {', '.join(clips[:8])} (all are in {path}); "
            f"{where}: look at these clips, or start again on this workdir with {lower}"
        )

    def save(self, step: int) -> None:
        """Starts to save the state and the position of the next example."""
        position = {"examples": self.examples, "dataset": self.records.identity}
        self.checkpoints.save(step, self.state, self.config, position)

    def evaluate(self, step: int) -> dict[str, float]:
        """The scores of the held-out clips, written once; nothing without held-out clips."""
        if self.held_out is None:
            return {}
        model = Pretrained(self.module, self.state.params, self.config, step, str(self.workdir))
        scores = in_training.run(self.config.evaluations, model, self.held_out, self.mesh)
        if not self.writer.has(step, self.config.data.eval_split):
            self.writer.write(step, self.config.data.eval_split, scores)
        self.history.restart()
        return scores

    def lacks_evaluation(self) -> bool:
        """Whether the run was stopped between a save and the evaluation that belonged to it."""
        due = 0 < self.first < self.steps and self.first % self.eval_every == 0
        written = due and self.writer.has(self.first, self.config.data.eval_split)
        return bool(multihost.broadcast_from_first(due and not written))


def train_and_evaluate(
    config: ConfigDict, workdir: epath.PathLike, resume_step: int | None = None
) -> dict[str, float]:
    """Trains to the end of `config`, resuming if `workdir` holds checkpoints.

    Args:
      config: see configs/pretrain.py.
      workdir: folder of the run.
      resume_step: of the checkpoint to resume from; newer ones are set aside. None: the newest.

    Returns:
      The scores of the evaluation after the last step.

    Raises:
      UserError: for settings, data or a workdir that don't fit, a loss that is not finite, or a
        checkpoint that can't be written.
      Terminated: if told to stop; all steps are saved.
    """
    run = Run(config, workdir)
    console.log(f"training on {hardware.description()}, mesh {dict(run.mesh.shape)}")
    run.begin(resume_step)
    config, step_function, batches = run.config, run.step_function(), run.batches()
    scores: dict[str, float] = {}
    with (
        preemption.preemption_guard() as should_stop,
        contextlib.closing(run.checkpoints),  # whatever happens, a save that has begun is finished
        contextlib.closing(run.writer),
        contextlib.closing(device_clock.DeviceClock()) as clock,
        contextlib.closing(batches),
        jax.set_mesh(run.mesh),
        console.progress("train", run.steps, "step", initial=run.first) as bar,
        _profiler(run.workdir, config.profile_step) as profile,
    ):
        if run.lacks_evaluation():
            run.evaluate(run.first)
        for step in range(run.first + 1, run.steps + 1):
            profile(step)
            began = time.perf_counter()
            with jax.transfer_guard("disallow"):
                arrays = next(batches)[0]
                run.history.waited(clock.idle(began, time.perf_counter()))
                clock.wait_for_slot()
                batch = {modality: arrays[modality] for modality in MODALITIES}
                ratio = train_step.batch_ratio(tuple(config.mask.ratios), config.seed, step)
                run.state, scalars = step_function(run.state, batch, ratio)
            clock.dispatched(scalars)
            run.history.add(step, scalars)
            if step == run.first + 1:
                jax.block_until_ready(scalars)
                run.history.restart()  # so that the compilation does not count
            run.examples += config.batch_size
            bar.update()
            stopping = should_stop(step)
            scoring = step % run.eval_every == 0 or step == run.steps
            saving = stopping or scoring or step % config.checkpoint_every == 0
            if saving or step % config.log_every == 0:
                means = run.log(step)
                bar.set_postfix(loss=f"{means['loss']:.3f}", nce=f"{means['nce_accuracy']:.2f}")
            if saving:
                run.save(step)
            if stopping:
                raise Terminated(
                    f"step {step} is saved (loss {means['loss']:.3f}); "
                    f"start again on {run.workdir} to go on",
                    should_stop.status,
                )
            if scoring:
                scores = run.evaluate(step)
        scores = scores or run.evaluate(run.steps)
    console.log(_what_next(run))
    return scores


def _what_next(run: Run) -> str:
    example = "python -m cavmae_sync_jax.evals.retrieval"
    data, split = run.config.data.dir, run.config.data.eval_split or run.config.data.train_split
    return (
        f"trained to step {run.steps}: {run.workdir}\n"
        f"evaluate it: {example} --checkpoint={run.workdir} --data={data} --split={split} "
        f"--output={run.workdir / 'evals'}"
    )


@contextlib.contextmanager
def _profiler(workdir: epath.Path, first: int) -> Iterator[Callable[[int], None]]:
    """Yields a function to call before each step; it traces `PROFILED_STEPS` steps from `first`."""
    tracing = False

    def before(step: int) -> None:
        nonlocal tracing
        if step == first:
            jax.profiler.start_trace(str(workdir / "profile"))
            tracing = True
        elif tracing and step == first + PROFILED_STEPS:
            jax.profiler.stop_trace()
            tracing = False

    try:
        yield before
    finally:
        if tracing:
            jax.profiler.stop_trace()


def main() -> None:
    """Runs the command line."""
    arguments = cli.parser(__doc__)
    arguments.add_argument(
        "--workdir", required=True, help="folder of the run; resumed if it has checkpoints"
    )
    arguments.add_argument(
        "--resume_step",
        type=int,
        help="resume from this checkpoint once; newer ones are moved to WORKDIR/set_aside_STEP",
    )

    def start(args: argparse.Namespace, config: ConfigDict) -> None:
        train_and_evaluate(config, args.workdir, args.resume_step)

    cli.main(arguments, start, config=True, within=multihost.connected)


if __name__ == "__main__":
    main()
