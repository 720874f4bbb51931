"""Pre-trains CAV-MAE Sync on a prepared dataset; started again on a workdir, it resumes.

Example:
  python -m cavmae_sync_jax.train --config=configs/pretrain.py:registers_4 \\
      --config.data.dir=DATASET --config.batch_size=256 --workdir=runs/registers_4

The workdir gets config.json, metrics.jsonl, TensorBoard files and checkpoints/.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath
from jaxtyping import Int
from ml_collections import ConfigDict

from cavmae_sync_jax import checkpoint, cli, dataset, losses, masking, metrics, optim, sharding
from cavmae_sync_jax import model as modeling
from cavmae_sync_jax import step as stepping
from cavmae_sync_jax.cli import UserError
from cavmae_sync_jax.evals import retrieval
from cavmae_sync_jax.pretrained import Pretrained, initial_params

PROFILED_STEPS = 5
# What may change when a run is resumed; a longer run keeps its past and gets a new schedule.
FREE = {
    *("epochs", "log_every", "eval_every", "checkpoint_every", "keep_checkpoints", "profile_step"),
    *("mesh.data", "mesh.fsdp", "data.dir", "data.eval_split", "data.workers", "data.prefetch"),
    *("model.dtype", "model.unroll", "model.remat"),
}


def check(config: ConfigDict, module: modeling.CavMaeSync, devices: int) -> None:
    """Refuses settings that no later stage would understand.

    Raises:
      UserError: naming the key and what it takes.
    """
    for key, allowed in (
        ("schedule", optim.SCHEDULES),
        ("mask.audio_structure", masking.STRUCTURES),
        ("loss.contrast_direction", losses.DIRECTIONS),
    ):
        if cli.value(config, key) not in allowed:
            raise UserError(
                f"config.{key}={cli.value(config, key)!r} must be one of {', '.join(allowed)}"
            )
    for least, keys in (
        (0, "seed data.workers eval_every profile_step learning_rate_floor warmup_share l2"),
        (1, "batch_size log_every checkpoint_every keep_checkpoints loss.contrast_groups"),
        (1, "data.num_frames data.clip_rows data.prefetch"),
    ):
        for key in keys.split():
            if cli.value(config, key) < least:
                raise UserError(f"config.{key}={cli.value(config, key)} must be at least {least}")
    for key in ("epochs", "learning_rate", "loss.temperature"):
        if not cli.value(config, key) > 0:
            raise UserError(f"config.{key}={cli.value(config, key)} must be above 0")
    if config.warmup_share > 1:
        raise UserError(f"config.warmup_share={config.warmup_share} must be at most 1")
    for divisor, name in (
        (devices, f"{devices} devices"),
        (config.loss.contrast_groups, f"config.loss.contrast_groups={config.loss.contrast_groups}"),
    ):
        if config.batch_size % divisor:
            raise UserError(f"config.batch_size={config.batch_size} must be a multiple of {name}")
    fewest = min(grid.patches for grid in module.grids.values())
    ratios = config.mask.ratios
    if not ratios or not all(
        isinstance(ratio, float) and 0 < ratio < 1 and masking.kept_patches(fewest, ratio)
        for ratio in ratios
    ):
        raise UserError(
            f"config.mask.ratios={ratios} must be ratios between 0 and 1 "
            f"that keep some of {fewest} patches"
        )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value  # as JSON stores it


class History:
    """Scalars of the steps since the last look, kept on the device so that no step waits."""

    def __init__(self) -> None:
        self._pending: list[tuple[int, stepping.Metrics, np.ndarray]] = []
        self.restart()

    def restart(self) -> None:
        """Starts the clock anew, so that a compilation or an evaluation does not count."""
        self._began, self._waited = time.perf_counter(), 0.0

    def waited(self, seconds: float) -> None:
        """Adds time that the loop spent waiting for data."""
        self._waited += seconds

    def add(self, step: int, scalars: stepping.Metrics, clips: Int[np.ndarray, " share"]) -> None:
        """Remembers a step's scalars and the records it read."""
        self._pending.append((step, scalars, clips))

    def flush(self, records: dataset.Records, batch_size: int, last_good: int | None) -> dict:
        """Means over the steps since the last flush, with examples/s and the data-wait share.

        Raises:
          UserError: if the loss, gradient or update of one of them is not finite, naming the step
            and its clips.
        """
        fetched = jax.device_get([scalars for _, scalars, _ in self._pending])
        for (step, _, clips), scalars in zip(self._pending, fetched, strict=True):
            bad = [name for name, value in scalars.items() if not np.isfinite(value)]
            if bad:
                ids = ", ".join(records.ids(clips[:8].tolist()))
                raise UserError(
                    f"the {bad[0]} of step {step} is {scalars[bad[0]]}; its batch began with the "
                    f"clips {ids}; the last good checkpoint is of step {last_good}: lower "
                    "config.learning_rate or look at these clips, then start again on this workdir"
                )
        elapsed = time.perf_counter() - self._began
        means = {name: float(np.mean([s[name] for s in fetched])) for name in fetched[0]}
        means["examples_per_second"] = batch_size * len(fetched) / elapsed
        means["data_wait"] = self._waited / elapsed
        self._pending = []
        self.restart()
        return means


def resume(
    checkpoints: checkpoint.Checkpoints,
    config: ConfigDict,
    identity: str,
    abstract: stepping.TrainState,
) -> tuple[stepping.TrainState, int]:
    """The newest checkpoint's state and the position of the next example.

    Raises:
      UserError: if it was trained with another dataset, or settings that are not `FREE`.
    """
    meta = checkpoints.meta()
    stored, position = ConfigDict(meta["config"]), meta["position"]
    changed = [
        f"config.{key} was {cli.value(stored, key)!r} and is now {cli.value(config, key)!r}"
        for key in cli.keys(config)
        if key not in FREE and _plain(cli.value(stored, key)) != _plain(cli.value(config, key))
    ]
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
    module = modeling.from_config(config.model)
    check(config, module, mesh.size)
    framing = dataset.Framing.of(config)
    records = dataset.Records(config.data.dir, config.data.train_split)
    held_out = None
    if config.data.eval_split:
        held_out = dataset.Records(config.data.dir, config.data.eval_split)
    for split in filter(None, (records, held_out)):
        split.pairs(0, framing, [0])  # refuses sizes that don't fit before anything is written
    given = None
    if config.init_from and not checkpoint.exists(workdir):
        given = initial_params(config.init_from, module, mesh)
    cli.make_folder(workdir)
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
        if given is not None:
            state = state.replace(params=given)
        writer.drop_after(0)
    else:
        abstract = jax.tree.map(
            lambda leaf, layout: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=layout),
            shapes,
            shardings,
        )
        state, examples = resume(checkpoints, config, records.identity, abstract)
        metrics.tell(f"resuming {workdir} at step {checkpoints.latest}")
        writer.drop_after(checkpoints.latest)
    if jax.process_index() == 0:
        (workdir / "config.json").write_text(config.to_json_best_effort(indent=2) + "\n")

    def evaluate(step: int) -> dict[str, float]:
        if held_out is None:
            return {}
        model = Pretrained(module, state.params, config, step, str(workdir))
        result = retrieval.run(model, held_out, mesh=mesh, strategies=["diagonal_mean"])
        scores = result["scores"]["diagonal_mean"]
        flat = {f"{d}/{name}": v for d, score in scores.items() for name, v in score.items()}
        if not writer.has(step, config.data.eval_split):
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
            arrays, host = next(batches)
            batch = {modality: arrays[modality] for modality in modeling.MODALITIES}
            history.waited(time.perf_counter() - began)
            ratio = stepping.batch_ratio(tuple(config.mask.ratios), config.seed, step)
            with jax.transfer_guard("disallow"):
                state, scalars = step_fn(state, batch, ratio)
            history.add(step, scalars, host["clip"])
            if step == first + 1:
                jax.block_until_ready(scalars)
                history.restart()
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
                history.restart()
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
    cli.main(arguments, lambda args, config: train_and_evaluate(config, args.workdir), config=True)


if __name__ == "__main__":
    main()
