"""Pre-trains CAV-MAE Sync on a prepared dataset; started again on a workdir, it resumes.

Example:
  python -m cavmae_sync_jax.train --config=configs/pretrain.py:registers_4 \\
      --config.data.dir=DATASET --config.batch_size=256 --workdir=runs/registers_4

The workdir gets config.json, metrics.jsonl, TensorBoard files and checkpoints/.
"""

import contextlib
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from absl import logging
from etils import epath
from jaxtyping import Int
from ml_collections import ConfigDict

from cavmae_sync_jax import checkpoint, cli, dataset, losses, masking, metrics, optim, sharding
from cavmae_sync_jax import model as modeling
from cavmae_sync_jax import step as stepping
from cavmae_sync_jax.cli import UserError
from cavmae_sync_jax.evals import retrieval

PROFILED_STEPS = 5


def check(config: ConfigDict, devices: int) -> None:
    """Refuses settings that no later stage would understand.

    Raises:
      UserError: naming the key and what it takes.
    """
    for key, allowed in (
        ("schedule", optim.SCHEDULES),
        ("mask.audio_structure", masking.STRUCTURES),
        ("loss.contrast_direction", losses.DIRECTIONS),
    ):
        value = config
        for part in key.split("."):
            value = value[part]
        if value not in allowed:
            raise UserError(f"config.{key}={value!r} must be one of {', '.join(allowed)}")
    if config.batch_size % devices:
        raise UserError(
            f"config.batch_size={config.batch_size} must be a multiple of {devices} devices"
        )
    if config.batch_size % config.loss.contrast_groups:
        raise UserError("config.loss.contrast_groups must divide config.batch_size")
    if not config.mask.ratios or not all(0 < ratio < 1 for ratio in config.mask.ratios):
        raise UserError(f"config.mask.ratios={config.mask.ratios} must be ratios between 0 and 1")
    for key in ("batch_size", "epochs", "learning_rate", "log_every", "checkpoint_every"):
        if config[key] <= 0:
            raise UserError(f"config.{key}={config[key]} must be positive")


class History:
    """Scalars of the steps since the last look, kept on the device so that no step waits."""

    def __init__(self) -> None:
        self._pending: list[tuple[int, stepping.Metrics, np.ndarray]] = []
        self._began, self._waited = time.perf_counter(), 0.0

    def waited(self, seconds: float) -> None:
        """Adds time that the loop spent waiting for data."""
        self._waited += seconds

    def add(self, step: int, scalars: stepping.Metrics, clips: Int[np.ndarray, " share"]) -> None:
        """Remembers a step's scalars and the records it read."""
        self._pending.append((step, scalars, clips))

    def flush(self, records: dataset.Records, batch_size: int, last_good: int | None):
        """Means over the steps since the last flush, with examples/s and the data-wait share.

        Raises:
          UserError: if the loss of one of them is not finite, naming the step and its clips.
        """
        fetched = jax.device_get([scalars for _, scalars, _ in self._pending])
        for (step, _, clips), scalars in zip(self._pending, fetched, strict=True):
            if not np.isfinite(scalars["loss"]):
                ids = ", ".join(records.ids(clips[:8].tolist()))
                raise UserError(
                    f"the loss of step {step} is {scalars['loss']}; its batch began with the clips "
                    f"{ids}; the last good checkpoint is of step {last_good}: lower "
                    "config.learning_rate or look at these clips, then start again on this workdir"
                )
        now = time.perf_counter()
        elapsed = now - self._began
        means = {name: float(np.mean([s[name] for s in fetched])) for name in fetched[0]}
        means["examples_per_second"] = batch_size * len(fetched) / elapsed
        means["data_wait"] = self._waited / elapsed
        self._pending, self._began, self._waited = [], now, 0.0
        return means


def resume(
    checkpoints: checkpoint.Checkpoints,
    config: ConfigDict,
    identity: str,
    abstract: stepping.TrainState,
) -> tuple[stepping.TrainState, int]:
    """The newest checkpoint's state and the position of the next example.

    Raises:
      UserError: if it was trained with another model, seed or dataset.
    """
    meta = checkpoints.meta()
    stored, position = ConfigDict(meta["config"]), meta["position"]
    changed = [
        f"config.{key} was {stored[section][name]!r} and is now {value!r}"
        for section in ("model",)
        for name, value in config[section].items()
        if stored[section].get(name) != value and (key := f"{section}.{name}")
    ]
    if stored.seed != config.seed:
        changed.append(f"config.seed was {stored.seed} and is now {config.seed}")
    if position["dataset"] != identity:
        changed.append(f"the dataset was {position['dataset']} and is now {identity}")
    if changed:
        raise UserError(
            f"{checkpoints.directory.parent} can't be resumed: {'; '.join(changed)}: "
            "use the old settings or another --workdir"
        )
    return checkpoints.restore(abstract), position["examples"]


def train_and_evaluate(config: ConfigDict, workdir: epath.PathLike) -> dict[str, float]:
    """Trains to the end of `config`, resuming if `workdir` holds checkpoints.

    Returns:
      The scores of the evaluation after the last step.

    Raises:
      UserError: for settings, data or a workdir that don't fit, or a loss that is not finite.
    """
    workdir = epath.Path(workdir)
    mesh = sharding.make_mesh(**config.mesh)
    check(config, mesh.size)
    module = modeling.from_config(config.model)
    framing = dataset.Framing.of(config)
    records = dataset.Records(config.data.dir, config.data.train_split)
    held_out = dataset.Records(config.data.dir, config.data.eval_split)
    for split in (records, held_out):
        framing.pair(split[0], 0)  # refuses sizes that don't fit before anything is written
    steps_per_epoch = len(records) / config.batch_size
    steps = max(1, round(config.epochs * steps_per_epoch))
    eval_every = round(config.eval_every * steps_per_epoch) or steps

    optimizer, rate = stepping.make_optimizer(config, steps, steps_per_epoch)
    key = jax.random.key(config.seed)
    shapes = jax.eval_shape(lambda key: stepping.init_state(module, optimizer, key), key)
    shardings = sharding.state_shardings(shapes, mesh)
    checkpoints = checkpoint.Checkpoints(workdir, config.keep_checkpoints)
    writer = metrics.Writer(workdir)
    if checkpoints.latest is None:
        draw = jax.jit(
            lambda key: stepping.init_state(module, optimizer, key), out_shardings=shardings
        )
        state, examples = draw(key), 0
    else:
        abstract = jax.tree.map(
            lambda leaf, layout: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout),
            shapes,
            shardings,
        )
        state, examples = resume(checkpoints, config, records.identity, abstract)
        logging.info("resuming %s at step %d", workdir, checkpoints.latest)
        writer.drop_after(checkpoints.latest)
    if jax.process_index() == 0:
        (workdir / "config.json").write_text(config.to_json_best_effort(indent=2) + "\n")

    def evaluate(step: int) -> dict[str, float]:
        scores = retrieval.evaluate(module, state.params, held_out, framing, mesh)
        flat = {f"{d}/{name}": v for d, score in scores.items() for name, v in score.items()}
        writer.write(step, config.data.eval_split, flat)
        return flat

    first, scores = int(state.step), {}
    step_fn = stepping.make_train_step(module, optimizer, config, shardings)
    batches = dataset.to_device(
        dataset.train_batches(
            records,
            framing,
            config.batch_size,
            config.seed,
            examples,
            config.data.workers,
            config.data.prefetch,
        ),
        mesh,
    )
    history = History()
    with (
        contextlib.closing(checkpoints),  # whatever happens, a save that has begun is finished
        contextlib.closing(writer),
        contextlib.closing(batches),
        jax.set_mesh(mesh),
        metrics.progress("train", steps, "step", initial=first) as bar,
        _profiler(workdir, config.profile_step) as profile,
    ):
        for step in range(first + 1, steps + 1):
            profile(step)
            began = time.perf_counter()
            batch, host = next(batches)
            history.waited(time.perf_counter() - began)
            ratio = stepping.batch_ratio(tuple(config.mask.ratios), config.seed, step)
            with jax.transfer_guard("disallow"):
                state, scalars = step_fn(state, batch, ratio)
            history.add(step, scalars, host["clip"])
            examples += config.batch_size
            bar.update()
            due = step == steps or step % config.checkpoint_every == 0
            if due or step % config.log_every == 0:
                means = history.flush(records, config.batch_size, checkpoints.latest)
                means |= {"learning_rate": float(rate(step - 1)), "epoch": step / steps_per_epoch}
                writer.write(step, config.data.train_split, means)
                bar.set_postfix(loss=f"{means['loss']:.3f}", nce=f"{means['nce_accuracy']:.2f}")
            if due:
                position = {"examples": examples, "dataset": records.identity}
                checkpoints.save(step, state, config, position)
            if step % eval_every == 0 or step == steps:
                scores = evaluate(step)
        return scores or evaluate(steps)


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

    yield before
    if tracing:
        jax.profiler.stop_trace()


def main() -> None:
    """Runs the command line."""
    arguments = cli.parser(__doc__)
    arguments.add_argument(
        "--workdir", required=True, help="folder of the run; resumed if it has checkpoints"
    )
    cli.main(arguments, lambda args, config: train_and_evaluate(config, args.workdir), config=True)


if __name__ == "__main__":
    main()
