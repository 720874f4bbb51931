"""The one train loop: steps, logs, checkpoints, evaluations, and how a run resumes and stops.

A `Task` says what is trained, and on what. Pre-training, fine-tuning and the probe are tasks.
"""

import abc
import contextlib
import os
import time
from collections.abc import Callable, Generator, Iterator
from typing import Any

import jax
import optax
from etils import epath
from jax.sharding import Mesh
from ml_collections import ConfigDict

from cavmae_sync_jax.checkpoints import manager, places
from cavmae_sync_jax.distributed import multihost, preemption, sharding
from cavmae_sync_jax.training import config_checks, device_clock, metric_writer
from cavmae_sync_jax.utils import buckets, cli, console, locks
from cavmae_sync_jax.utils.errors import Terminated, UserError

PROFILED_STEPS = 5


class Task(abc.ABC):
    """What is trained. `train` does what all trainings share.

    Attributes:
      name: of the progress bar.
      config: what the checkpoints carry.
      mesh: the devices.
      batch_size: examples of a step, of all processes.
      steps: length of the training.
      steps_per_epoch: for the logs.
      log_every: steps.
      checkpoint_every: steps.
      eval_every: steps; the end always counts.
      keep_checkpoints: how many stay.
      profile_step: traces five steps from this one on; 0 never.
      split: name of the training's lines in the metrics.
      eval_split: name of the evaluations' lines; empty if there are none. If it is `split`, they
        are named `SPLIT_scores`.
      dataset: what the position in the data belongs to; empty if that is unknown.
      contents: a hash of what is in that dataset.
      rate: the learning rate of each step.
      shown: scalars that stand beside the progress bar.
    """

    name: str
    config: ConfigDict
    mesh: Mesh
    batch_size: int
    steps: int
    steps_per_epoch: float
    log_every: int
    checkpoint_every: int
    eval_every: int
    keep_checkpoints: int
    profile_step: int = 0
    split: str
    eval_split: str = ""
    dataset: str
    contents: str = ""
    rate: optax.Schedule
    shown: tuple[str, ...] = ("loss",)

    @abc.abstractmethod
    def init(self) -> Any:
        """Draws the state of a new run; it is traced."""

    def initial_params(self) -> Any | None:
        """Weights to begin with instead of those that `init` draws.

        Raises:
          UserError: if a new run can't begin.
        """
        return None

    @abc.abstractmethod
    def changed(self, stored: ConfigDict) -> list[str]:
        """How this training differs from one that it would resume, in a user's words."""

    @abc.abstractmethod
    def batches(self, examples: int) -> Generator[Any, None, None]:
        """Batches on the mesh from a position on; closing it ends the workers."""

    @abc.abstractmethod
    def step_function(self, shardings: Any) -> Callable[[Any, Any, int], tuple[Any, Any]]:
        """A function of (state, batch, number of the step), which returns a state and scalars."""

    def evaluate(self, state: Any, step: int, workdir: str) -> dict[str, float]:
        """The scores of the held-out clips; nothing without held-out clips."""
        del state, step, workdir
        return {}

    def clips(self, examples: int, count: int) -> list[str]:
        """The names of `count` clips from a position on, as far as they are known."""
        del examples, count
        return []


def train(
    task: Task, workdir: epath.PathLike | None, resume_step: int | None = None
) -> tuple[Any, dict[str, float]]:
    """Trains to the end of `task`, resuming if `workdir` holds checkpoints.

    Args:
      task: what to train.
      workdir: folder of the run; None keeps nothing.
      resume_step: of the checkpoint to resume from; newer ones are set aside. None: the newest.

    Returns:
      The state and the scores of the evaluation after the last step.

    Raises:
      UserError: for a workdir that doesn't fit, is beyond the end or is being trained already, a
        loss that is not finite, or a checkpoint that can't be written.
      Terminated: after SIGTERM or Ctrl-C; all steps are saved.
    """
    if workdir is not None and not os.fspath(workdir):
        raise UserError("--workdir is empty: name a folder")
    run = _Run(task, None if workdir is None else epath.Path(workdir))
    with contextlib.ExitStack() as unless_begun:
        unless_begun.callback(run.close)  # else whoever keeps the error keeps the workdir's lock
        run.begin(resume_step)
        step_function, batches = task.step_function(run.shardings), task.batches(run.examples)
        unless_begun.pop_all()
    scores: dict[str, float] | None = None
    with (
        preemption.preemption_guard() as should_stop,
        contextlib.closing(run),  # whatever happens, a save that has begun is finished
        contextlib.closing(device_clock.DeviceClock()) as clock,
        contextlib.closing(batches),
        jax.set_mesh(task.mesh),
        console.progress(task.name, task.steps, "step", initial=run.first) as bar,
        _profiler(run.workdir, task.profile_step) as profile,
    ):
        if run.lacks_evaluation():
            _evaluate(run, run.first, should_stop)
        for step in range(run.first + 1, task.steps + 1):
            profile(step)
            began = time.perf_counter()
            with jax.transfer_guard("disallow"):
                batch = next(batches)
                run.history.waited(clock.idle(began, time.perf_counter()))
                clock.wait_for_slot()
                run.state, scalars = step_function(run.state, batch, step)
            clock.dispatched(scalars)
            run.history.add(step, scalars)
            if step == run.first + 1:
                jax.block_until_ready(scalars)
                run.history.restart()  # so that the compilation does not count
            run.examples += task.batch_size
            bar.update()
            stopping = should_stop(step)
            scoring = step % task.eval_every == 0 or step == task.steps
            saving = stopping or scoring or step % task.checkpoint_every == 0
            if saving or step % task.log_every == 0:
                means = run.log(step)
                bar.set_postfix({name: f"{means[name]:.3f}" for name in task.shown})
            if saving:
                run.save(step)
            if stopping:
                state = f"loss {means['loss']:.3f}"
                raise Terminated(_stopped(run, step, state), should_stop.status)
            if scoring:
                scores = _evaluate(run, step, should_stop)
        if scores is None:
            scores = _evaluate(run, task.steps, should_stop)
    return run.state, scores


class _Run:
    """A training from its beginning or resumption on, and what it leaves behind."""

    def __init__(self, task: Task, workdir: epath.Path | None):
        self.task, self.workdir = task, workdir
        self._shapes = jax.eval_shape(task.init)
        self.shardings = sharding.state_shardings(self._shapes, task.mesh)
        self.history = metric_writer.History()
        self.checkpoints: manager.Checkpoints | None = None
        self._writer: metric_writer.Writer | None = None
        self._held = contextlib.ExitStack()
        self._scored = task.eval_split
        if self._scored == task.split:  # else the training's own lines would pass for scores
            self._scored += "_scores"

    def begin(self, resume_step: int | None) -> None:
        """Makes the workdir and the state of the step that the run goes on from."""
        resumable = self.workdir is not None and manager.exists(self.workdir)
        resumable = multihost.broadcast_from_first(resumable)
        given = None if resumable else self.task.initial_params()
        newest = None
        if self.workdir is not None:
            self._hold(self.workdir)
            self.checkpoints = manager.Checkpoints(self.workdir, self.task.keep_checkpoints)
            self._writer = metric_writer.Writer(self.workdir)
            newest = self.checkpoints.latest if resume_step is None else resume_step
        if newest is None or self.checkpoints is None:
            self.state = jax.jit(self.task.init, out_shardings=self.shardings)()
            self.examples = 0
            if given is not None:
                self.state = self.state.replace(params=given)
        else:
            self._resume(self.checkpoints.stored(newest))
            self.checkpoints.set_aside_after(newest)
            console.log(f"resuming {self.workdir} at step {newest}")
        self.first = int(self.state.step)
        if self.workdir is None or self._writer is None:
            return
        self._writer.drop_after(newest or 0)
        if jax.process_index() == 0:
            text = self.task.config.to_json_best_effort(indent=2) + "\n"
            (self.workdir / "config.json").write_text(text)

    def _hold(self, workdir: epath.Path) -> None:
        """Makes the workdir and holds its lock; one in a bucket would outlive a killed process."""
        free = True
        if jax.process_index() == 0:
            folder = cli.make_folder(places.to_write(workdir))
            if not buckets.in_bucket(workdir):
                try:
                    self._held.enter_context(locks.held(folder / "lock"))
                except locks.Busy:
                    free = False
        if not multihost.all_agree(free):
            raise UserError(
                f"another program trains on {workdir}: wait until it is done, or name another "
                "--workdir"
            )

    def _resume(self, stored: manager.Stored) -> None:
        if not stored.position and not stored.step:
            raise UserError(
                f"{self.workdir} is a conversion, not a training: begin with its weights by "
                "--config.init_from, in another --workdir"
            )
        changed = self.task.changed(stored.config)
        now = self.task.dataset, self.task.contents
        changed += config_checks.changed_data(stored.position, *now)
        if changed:
            raise UserError(
                f"{self.workdir} can't be resumed: {'; '.join(changed)}: "
                "use the old settings or another folder"
            )
        if stored.step > self.task.steps:  # its scores would count as those of the shorter run
            before = [step for step in self._finished() if step <= self.task.steps]
            older = f"resume from an older one by --resume_step={max(before)}, " if before else ""
            raise UserError(
                f"{self.workdir} is at step {stored.step}, but these settings end at step "
                f"{self.task.steps}: raise --config.epochs, {older}or use another folder"
            )
        self.state = stored.restore(sharding.laid_out(self._shapes, self.shardings))
        # Probes of version 0.1.0 stored no position.
        self.examples = stored.position.get("examples", stored.step * self.task.batch_size)

    def _finished(self) -> list[int]:
        return self.checkpoints.finished if self.checkpoints is not None else []

    def log(self, step: int) -> dict[str, float]:
        """Writes the means since the last call.

        Raises:
          UserError: if a loss or norm is not finite; the workdir gets the list of its clips.
        """
        try:
            means = self.history.flush(self.task.batch_size)
        except metric_writer.NotFiniteError as error:
            raise self._diverged(error, step) from error
        means |= {
            "learning_rate": float(self.task.rate(step - 1)),
            "epoch": step / self.task.steps_per_epoch,
        }
        if self._writer is not None:
            self._writer.write(step, self.task.split, means)
        return means

    def _diverged(self, error: metric_writer.NotFiniteError, step: int) -> UserError:
        size, rate = self.task.batch_size, float(self.task.rate(error.step - 1))
        clips = self.task.clips(self.examples - (step - error.step + 1) * size, size)
        good = max(self._finished(), default=None)
        where = f"the last good checkpoint is of step {good}" if good else "nothing was saved yet"
        lower = "with half the learning rate"
        if "learning_rate" in self.task.config:
            lower = f"with --config.learning_rate={self.task.config.learning_rate / 2:g}"
        if not clips or self.workdir is None:
            return UserError(f"{error} at a learning rate of {rate:.2g}: start again {lower}")
        path = self.workdir / f"clips_of_step_{error.step}.txt"
        if jax.process_index() == 0:
            path.write_text("".join(f"{clip}\n" for clip in clips))
        return UserError(
            f"{error}; its batch began with the clips {', '.join(clips[:8])} (all are in {path}); "
            f"{where}: look at these clips, or start again on this workdir {lower}"
        )

    def save(self, step: int) -> None:
        """Starts to save the state and the position of the next example."""
        if self.checkpoints is not None:
            position = {
                "examples": self.examples,
                "dataset": self.task.dataset,
                "contents": self.task.contents,
            }
            self.checkpoints.save(step, self.state, self.task.config, position)

    def evaluate(self, step: int) -> dict[str, float]:
        """The scores of the held-out clips, written once."""
        scores = self.task.evaluate(self.state, step, str(self.workdir))
        if self._writer is not None:
            written = self._writer.names(step, self._scored)
            if new := {name: value for name, value in scores.items() if name not in written}:
                self._writer.write(step, self._scored, new)
        self.history.restart()
        return scores

    def lacks_evaluation(self) -> bool:
        """Whether the run was stopped between a save and the evaluation that belonged to it."""
        if self._writer is None or not self.task.eval_split:
            return False
        due = 0 < self.first < self.task.steps and self.first % self.task.eval_every == 0
        written = due and self._writer.names(self.first, self._scored)
        return bool(multihost.broadcast_from_first(due and not written))

    def close(self) -> None:
        """Ends the logs and waits for the last save."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._held.close)
            if self.checkpoints is not None:
                stack.callback(self.checkpoints.close)
            if self._writer is not None:
                stack.callback(self._writer.close)


def _evaluate(run: _Run, step: int, should_stop: preemption.PreemptionGuard) -> dict[str, float]:
    """The scores of a step that is saved, so that a signal need not wait for them."""
    try:
        with should_stop.nothing_to_save():
            return run.evaluate(step)
    except KeyboardInterrupt:
        raise Terminated(_stopped(run, step, "not evaluated"), should_stop.status) from None


def _stopped(run: _Run, step: int, state: str) -> str:
    if run.workdir is None:
        return f"after step {step}; nothing is kept"
    return f"step {step} is saved ({state}); start again on {run.workdir} to go on"


@contextlib.contextmanager
def _profiler(workdir: epath.Path | None, first: int) -> Iterator[Callable[[int], None]]:
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
