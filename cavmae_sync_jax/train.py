"""Pre-trains CAV-MAE Sync on a prepared dataset; started again on a workdir, it resumes.

Example:
  python -m cavmae_sync_jax.train --config=configs/pretrain.py:registers_4 \\
      --config.data.dir=DATASET --config.batch_size=256 --workdir=runs/registers_4

The workdir gets config.json, metrics.jsonl, TensorBoard files and checkpoints/. On several hosts
every process runs this command. SIGTERM makes it save and stop with status 143.
"""

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator

import jax
from etils import epath
from ml_collections import ConfigDict

from cavmae_sync_jax.checkpoints import manager
from cavmae_sync_jax.checkpoints.pretrained import Pretrained, initial_params
from cavmae_sync_jax.data import loader
from cavmae_sync_jax.distributed import multihost, preemption, sharding
from cavmae_sync_jax.evals import in_training
from cavmae_sync_jax.models import cavmae_sync
from cavmae_sync_jax.training import config_checks, metric_writer, train_step
from cavmae_sync_jax.utils import cli, console, modalities
from cavmae_sync_jax.utils.errors import Terminated, UserError

PROFILED_STEPS = 5


def resume(
    checkpoints: manager.Checkpoints,
    step: int,
    config: ConfigDict,
    identity: str,
    abstract: train_step.TrainState,
) -> tuple[train_step.TrainState, int]:
    """A checkpoint's state and the position of the next example.

    Raises:
      UserError: if there is no such checkpoint, it was trained with another dataset, or settings
        that are not `FREE`, or is damaged.
    """
    stored = checkpoints.stored(step)
    if not stored.position:
        raise UserError(
            f"{checkpoints.directory.parent} is a conversion, not a training: begin with its "
            "weights by --config.init_from, in another --workdir"
        )
    changed = config_checks.changed(stored.config, config)
    if stored.position["dataset"] != identity:
        changed.append(f"the dataset was {stored.position['dataset']} and is now {identity}")
    if changed:
        raise UserError(
            f"{checkpoints.directory.parent} can't be resumed: {'; '.join(changed)}: "
            "use the old settings or another --workdir"
        )
    return stored.restore(abstract), stored.position["examples"]


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
      cli.Terminated: if told to stop; all steps are saved.
    """
    workdir = epath.Path(workdir)
    config = config_checks.with_statistics(config)
    mesh = sharding.make_mesh(**config.mesh)
    module = cavmae_sync.from_config(config.model)
    config_checks.check(config, module, mesh.size)
    framing = loader.Framing.of(config)
    records = loader.Records(config.data.dir, config.data.train_split)
    held_out = None
    if config.data.eval_split:
        held_out = loader.Records(config.data.dir, config.data.eval_split)
        in_training.check(config.evaluations, module, held_out)
    for split in filter(None, (records, held_out)):
        split.pairs(0, framing, [0])  # refuses sizes that don't fit before anything is written
    given = None
    if config.init_from and not multihost.first_says(manager.exists(workdir)):
        given = initial_params(config.init_from, module, mesh)
    cli.make_folder(workdir)
    steps_per_epoch = len(records) / config.batch_size
    steps = max(1, round(config.epochs * steps_per_epoch))
    eval_every = round(config.eval_every * steps_per_epoch) or steps

    optimizer, rate = train_step.make_optimizer(config, steps, steps_per_epoch)
    key = jax.random.key(config.seed)
    shapes = jax.eval_shape(lambda key: train_step.init_state(module, optimizer, key), key)
    shardings = sharding.state_shardings(shapes, mesh)
    checkpoints = manager.Checkpoints(workdir, config.keep_checkpoints)
    writer = metric_writer.Writer(workdir)
    newest = checkpoints.latest if resume_step is None else resume_step
    if newest is None:
        draw = jax.jit(
            lambda key: train_step.init_state(module, optimizer, key), out_shardings=shardings
        )
        state, examples = draw(key), 0
        if given is not None:
            state = state.replace(params=given)
    else:
        abstract = sharding.laid_out(shapes, shardings)
        state, examples = resume(checkpoints, newest, config, records.identity, abstract)
        checkpoints.set_aside_after(newest)
        console.tell(f"resuming {workdir} at step {newest}")
    writer.drop_after(newest or 0)
    if jax.process_index() == 0:
        (workdir / "config.json").write_text(config.to_json_best_effort(indent=2) + "\n")

    def evaluate(step: int) -> dict[str, float]:
        if held_out is None:
            return {}
        model = Pretrained(module, state.params, config, step, str(workdir))
        scores = in_training.run(config.evaluations, model, held_out, mesh)
        if not writer.has(step, config.data.eval_split):
            writer.write(step, config.data.eval_split, scores)
        return scores

    def flush() -> dict[str, float]:
        try:
            return history.flush(config.batch_size)
        except metric_writer.NotFiniteError as error:
            start = examples - (step - error.step + 1) * config.batch_size
            clips = records.ids(loader.order(len(records), config.seed, start, config.batch_size))
            last_good = max(checkpoints.finished, default=None)
            raise _diverged(error, clips, workdir, last_good) from error

    first, scores = int(state.step), {}
    step_fn = train_step.make_train_step(module, optimizer, config, shardings)
    data = config.data
    batches = loader.to_device(
        loader.train_batches(
            records, framing, config.batch_size, config.seed, examples, data.workers, data.prefetch
        ),
        mesh,
    )
    history = metric_writer.History()
    with (
        preemption.termination() as told_to_stop,
        contextlib.closing(checkpoints),  # whatever happens, a save that has begun is finished
        contextlib.closing(writer),
        contextlib.closing(batches),
        jax.set_mesh(mesh),
        console.progress("train", steps, "step", initial=first) as bar,
        _profiler(workdir, config.profile_step) as profile,
    ):
        if first % eval_every == 0 and multihost.first_says(
            0 < first < steps and not writer.has(first, data.eval_split)
        ):
            evaluate(first)  # as the run was stopped between saving and evaluating
            history.restart()
        for step in range(first + 1, steps + 1):
            profile(step)
            began = time.perf_counter()
            with jax.transfer_guard("disallow"):
                arrays = next(batches)[0]
                history.waited(time.perf_counter() - began)
                batch = {modality: arrays[modality] for modality in modalities.MODALITIES}
                ratio = train_step.batch_ratio(tuple(config.mask.ratios), config.seed, step)
                state, scalars = step_fn(state, batch, ratio)
            history.add(step, scalars)
            if step == first + 1:
                jax.block_until_ready(scalars)
                history.restart()
            examples += config.batch_size
            bar.update()
            stopping, scoring = told_to_stop(step), step % eval_every == 0 or step == steps
            due = stopping or scoring or step % config.checkpoint_every == 0
            if due or step % config.log_every == 0:
                means = flush()
                means |= {"learning_rate": float(rate(step - 1)), "epoch": step / steps_per_epoch}
                writer.write(step, data.train_split, means)
                bar.set_postfix(loss=f"{means['loss']:.3f}", nce=f"{means['nce_accuracy']:.2f}")
            if due:
                position = {"examples": examples, "dataset": records.identity}
                checkpoints.save(step, state, config, position)
            if stopping:
                raise Terminated(f"step {step} is saved; start again on {workdir} to go on")
            if scoring:
                scores = evaluate(step)
                history.restart()
        return scores or evaluate(steps)


def _diverged(
    error: metric_writer.NotFiniteError,
    clips: list[str],
    workdir: epath.Path,
    last_good: int | None,
) -> UserError:
    path = workdir / f"clips_of_step_{error.step}.txt"
    if jax.process_index() == 0:
        path.write_text("".join(f"{clip}\n" for clip in clips))
    return UserError(
        f"{error}; its batch began with the clips {', '.join(clips[:8])} (all are in {path}); the "
        f"last good checkpoint is of step {last_good}: lower config.learning_rate or look at these "
        "clips, then start again on this workdir"
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

    cli.main(arguments, start, config=True, within=multihost.joined)


if __name__ == "__main__":
    main()
