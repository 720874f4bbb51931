"""Times the train step in several settings, beside the same step in PyTorch, on one device.

    pip install -e ".[convert]"                  # PyTorch; on a GPU a build of it that has CUDA
    python -m benchmarks.training.train_step --config=configs/demo.py --config.batch_size=32
    python -m benchmarks.training.train_step --config=configs/pretrain.py --batch=8 --repeats=3
    python -m benchmarks.training.train_step --config=configs/pretrain.py --batch 64 256 \\
        --settings scan unrolled remat_dots remat_full --steps=10                # a large GPU

Before anything is timed, every setting and every peer computes the loss and the norm of its
gradients from the same weights, batch and masks; where they differ by more than `TOLERANCE`, the
program stops. Then all take turns. A step is the whole of it: masks are drawn, raw input is
normalised, weights are updated; the batch lies on the device, the state is donated.

Matrix rate: that of one large matrix product in the same precision, which takes its turns, too; a
step's share of it counts the model's arithmetic (`flops.model_flops`), not what is computed twice.
Memory: on a CPU what the compiled program's own analysis says; else the process's peak after the
setting's first step, settings in the order of their analyses (PyTorch: its own peak).
"""

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

# Before JAX: PyTorch needs a part of the same memory.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks import timing
from benchmarks.training import flops
from cavmae_sync_jax.distributed import sharding
from cavmae_sync_jax.models import attention, cavmae_sync
from cavmae_sync_jax.training import config_checks, train_step
from cavmae_sync_jax.utils import cli, console
from cavmae_sync_jax.utils.errors import UserError
from cavmae_sync_jax.utils.modalities import AUDIO, MODALITIES, VISUAL

SETTINGS = {
    "scan": {"model.unroll": False, "model.remat": "none"},
    "unrolled": {"model.unroll": True, "model.remat": "none"},
    "remat_dots": {"model.unroll": False, "model.remat": "dots"},
    "remat_full": {"model.unroll": False, "model.remat": "full"},
    # On every device with the attention that CPUs have, in place of a GPU's fused kernel.
    "lean_attention": {"model.unroll": False, "model.remat": "none"},
}
PEERS = ("eager", "compiled")
# Relative, of the loss and of the gradients' norm. bfloat16 has 8 bits: two orders of the same sums
# differ by percents in gradients.
TOLERANCE = {"float32": (1e-3, 1e-3), "bfloat16": (2e-2, 1e-1)}
COLUMNS = ("batch", "step", "samples/s", "matrix rate", "GiB", "compiled in s")
GIB = 2**30


class Row(NamedTuple):
    """One line of the table: seconds of a step in each repeat, bytes or None, seconds or None."""

    batch: int
    name: str
    seconds: Sequence[float]
    memory: int | None
    compiling: float | None


class Program(NamedTuple):
    """A compiled step of ours."""

    name: str
    step: Callable[..., Any]
    memory: int
    compiling: float


def random_batch(module: cavmae_sync.CavMaeSync, size: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Noise of a dataset's types and of AudioSet's mean and spread."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((size, *module.raw_shape(AUDIO)), np.float32)
    image = rng.integers(1, 256, (size, *module.raw_shape(VISUAL)), np.uint8)
    fbank = np.clip(module.audio_mean + module.audio_std * noise, -15.9, 12)  # -15.9: silence
    return {AUDIO: fbank.astype(np.float16), VISUAL: image}


def chosen(config: ConfigDict, overrides: dict[str, Any]) -> ConfigDict:
    """The config with dotted keys set."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.update_from_flattened_dict(overrides)
    return config


class Ours:
    """Our side: one train state, which all compiled steps take and return."""

    def __init__(self, config: ConfigDict) -> None:
        self.mesh = sharding.make_mesh(devices=jax.devices()[:1])
        self.module = cavmae_sync.from_config(config.model)
        self.optimizer, _ = train_step.make_optimizer(config, 1000, 100.0)
        shapes = jax.eval_shape(self._draw)
        self.shardings = sharding.state_shardings(shapes, self.mesh)
        self.state = jax.jit(self._draw, out_shardings=self.shardings)()

        def orders(batch: dict[str, jax.Array], step: jax.Array) -> dict[str, jax.Array]:
            ratio = config.mask.ratios[0]
            drawn = train_step._samples(self.module, config, batch, step, ratio)
            return {m: jnp.concatenate([drawn.keep[m], drawn.masked[m]], 1) for m in MODALITIES}

        self._masks = jax.jit(orders)

    def _draw(self) -> train_step.TrainState:
        return train_step.init_state(self.module, self.optimizer, jax.random.key(0))

    def put(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """A batch on the device."""
        return jax.device_put(batch, sharding.batch_sharding(self.mesh))

    def compile(self, name: str, config: ConfigDict) -> Program:
        """The train step of a setting."""
        module, began = cavmae_sync.from_config(config.model), time.perf_counter()
        kernel = attention.fused_attention
        if name == "lean_attention":
            kernel = attention.lean_attention
        with jax.set_mesh(self.mesh), mock.patch.object(attention, "fused_attention", kernel):
            compiled = train_step.lowered(module, self.optimizer, config, self.mesh).compile()
        seconds, about = time.perf_counter() - began, compiled.memory_analysis()
        memory = about.temp_size_in_bytes + about.argument_size_in_bytes
        memory += about.output_size_in_bytes - about.alias_size_in_bytes
        return Program(name, compiled, memory, seconds)

    def masks(self, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
        """The order of all patches that the next step will draw, the kept ones first."""
        return self._masks(batch, self.state.step)

    def step(self, program: Program, batch: dict[str, jax.Array], steps: int = 1) -> dict[str, Any]:
        """Some steps one after the other; waits for the last and returns its scalars."""
        for _ in range(steps):
            self.state, scalars = program.step(self.state, batch)
        return jax.block_until_ready((self.state, scalars))[1]

    def peak_bytes(self, program: Program) -> int:
        """See the module's text; the CPU's allocator tells nothing."""
        stats = self.mesh.devices.flat[0].memory_stats() or {}
        return stats.get("peak_bytes_in_use", program.memory)


def agree(name: str, dtype: str, ours: Sequence[float], theirs: Sequence[float]) -> None:
    """Compares losses and gradients' norms of one step of both sides.

    Raises:
      UserError: if they differ by more than `TOLERANCE`.
    """
    pairs = zip(("loss", "gradients' norm"), ours, theirs, TOLERANCE[dtype], strict=True)
    for what, mine, other, tolerance in pairs:
        if not math.isclose(mine, other, rel_tol=tolerance):
            raise UserError(
                f"{name}: the {what} is {mine:.6g} and PyTorch's {other:.6g}, in {dtype}: "
                f"they must agree to {tolerance:g} before it makes sense to time them"
            )


def measure(
    config: ConfigDict,
    names: Sequence[str],
    peers: Sequence[str],
    repeats: int,
    steps: int,
    profile: Path | None = None,
) -> tuple[list[Row], float]:
    """Checks, then times all settings and peers at `config.batch_size`.

    With `profile`, five more steps of each setting are traced into `PROFILE/BATCH/SETTING`.

    Returns:
      Their rows, and the rate of a matrix product in FLOP/s, the median of as many repeats.
    """
    config_checks.check(config, 1)
    config_checks.check_pretraining(config, cavmae_sync.from_config(config.model))
    ours = Ours(config)
    dtype = ours.module.compute_dtype
    batch = random_batch(ours.module, config.batch_size)
    on_device = ours.put(batch)
    programs = [ours.compile(name, chosen(config, SETTINGS[name])) for name in names]
    trainer, calls, memory, compiling, first = None, {}, {}, {}, {}
    if peers:
        torch_baseline = _torch_baseline(config)
        device = torch_baseline.prepare(jax.default_backend())
        trainer = torch_baseline.Trainer(config, dtype.name, device)
        raw, orders = trainer.put(batch), trainer.put(ours.masks(on_device))
        for how in peers:
            first[how] = _seconds(lambda how=how: trainer.gradients(how, raw, orders).item())
    for program in sorted(programs, key=lambda program: program.memory):
        if trainer:
            # The step will update these weights, and draw these masks from its number.
            torch_baseline.load_params(trainer.model, ours.state.params)
            orders = trainer.put(ours.masks(on_device))
            theirs = {
                how: (trainer.gradients(how, raw, orders).item(), trainer.gradient_norm())
                for how in peers
            }
        scalars = ours.step(program, on_device)
        for how in peers:
            found = float(scalars["loss"]), float(scalars["grad_norm"])
            agree(f"{program.name} and {how}", dtype.name, found, theirs[how])
        memory[program.name] = ours.peak_bytes(program)
        compiling[program.name] = program.compiling
        calls[program.name] = lambda program=program: ours.step(program, on_device, steps)
    for how in peers:

        def call(how: str = how, count: int = steps) -> None:
            for _ in range(count):
                trainer.step(how, raw, trainer.draw(orders))
            trainer.wait()

        name = f"PyTorch {how}"
        trainer.peak_bytes()
        later = _seconds(lambda call=call: call(count=1))
        memory[name], calls[name] = trainer.peak_bytes(), call
        compiling[name] = first[how] - later if how == "compiled" else None
    product, operations = flops.matrix_product(dtype)
    calls = {"": product, **calls}
    with console.progress("time", len(calls) * (1 + repeats), "call") as bar:
        seconds = timing.interleaved(
            {name: _counted(call, bar) for name, call in calls.items()}, repeats
        )
    rate = operations / statistics.median(seconds.pop(""))
    for program in programs if profile else ():
        with jax.profiler.trace(profile / str(config.batch_size) / program.name):
            ours.step(program, on_device, 5)
    order = [*names, *(f"PyTorch {how}" for how in peers)]
    return [
        Row(config.batch_size, n, [s / steps for s in seconds[n]], memory[n], compiling[n])
        for n in order
    ], rate


def _seconds(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def _counted(call: Callable[[], object], bar: Any) -> Callable[[], None]:
    def counted() -> None:
        call()
        bar.update()

    return counted


def _torch_baseline(config: ConfigDict) -> Any:
    if config.data.augment_audio:
        raise UserError("the peers don't augment audio: --config.data.augment_audio=False")
    try:
        from benchmarks.training import torch_baseline
    except ImportError as error:
        raise UserError(
            f"{error.name} is missing: pip install '.[convert]', or give --peers without names"
        ) from error
    return torch_baseline


def cells(row: Row, per_sample: float, rate: float, peers: Sequence[Row]) -> list[str]:
    """A row's cells: `COLUMNS`, then how many times as fast as each peer, repeat by repeat.

    Args:
      row: what was measured.
      per_sample: FLOPs of a sample's training step.
      rate: of a matrix product, FLOP/s.
      peers: rows of the same repeats.
    """
    speed = timing.Spread.of([row.batch / s for s in row.seconds])
    digits = 1 if speed.median >= 10 else 3
    return [
        str(row.batch),
        row.name,
        speed.text(digits),
        f"{speed.median * per_sample / rate:.0%}",
        f"{row.memory / GIB:.2f}" if row.memory is not None else "–",
        f"{row.compiling:.1f}" if row.compiling is not None else "–",
        *(
            "–"
            if row.name.startswith("PyTorch")
            else timing.Spread.of(
                [p / s for p, s in zip(peer.seconds, row.seconds, strict=True)]
            ).text()
            for peer in peers
        ),
    ]


def run(
    config: ConfigDict,
    batches: Sequence[int],
    names: Sequence[str],
    peers: Sequence[str],
    repeats: int,
    steps: int,
    output: Path | None = None,
    profile: Path | None = None,
) -> None:
    """Prints the machine and the table.

    Args:
      config: of a training.
      batches: batch sizes; none: the config's.
      names: keys of `SETTINGS`.
      peers: of `PEERS`.
      repeats: turns of each.
      steps: in a turn.
      output: a JSON file for what is printed, with every repeat.
      profile: see `measure`.

    Raises:
      UserError: if the sides do not compute the same, or PyTorch is missing or has no such device.
    """
    packages = ("jax", "torch") if peers else ("jax",)
    dtype = cavmae_sync.from_config(config.model).compute_dtype
    per_sample = 3 * flops.model_flops(config)
    rows, rates, stored = [], [], []
    for batch in batches or [config.batch_size]:
        sized = chosen(config, {"batch_size": batch})
        found, rate = measure(sized, names, peers, repeats, steps, profile)
        stored += [{**row._asdict(), "matrix_rate": rate} for row in found]
        theirs = [row for row in found if row.name.startswith("PyTorch")]
        rows += [cells(row, per_sample, rate, theirs) for row in found]
        rates.append(rate)
    machine = f"{timing.machine(*packages)}, {jax.devices()[0].device_kind}, {jax.devices()}"
    if output:
        about = {"machine": machine, "dtype": dtype.name, "flops_per_sample": per_sample}
        output.write_text(json.dumps({**about, "steps": steps, "rows": stored}, indent=1) + "\n")
    print(machine)
    print(
        f"{dtype.name}, {per_sample / 1e9:.3g} GFLOP per sample, matrices at "
        f"{max(rates) / 1e12:.3g} TFLOP/s, median (lowest–highest) of {repeats} repeats of "
        f"{steps} steps\n"
    )
    print(timing.table([*COLUMNS, *(f"× PyTorch {how}" for how in peers)], rows), flush=True)


def main() -> None:
    """Runs the command line."""
    arguments = cli.parser(__doc__)
    arguments.add_argument(
        "--batch", type=int, nargs="*", help="batch sizes; without it, the config's"
    )
    arguments.add_argument(
        "--settings",
        nargs="+",
        choices=SETTINGS,
        default=["scan", "unrolled"],
        help="settings of our step to time",
    )
    arguments.add_argument(
        "--peers", nargs="*", choices=PEERS, default=PEERS, help="PyTorch versions to compare with"
    )
    arguments.add_argument("--repeats", type=int, default=5, help="turns of each candidate")
    arguments.add_argument(
        "--steps", type=int, default=1, help="steps per turn, without waiting in between"
    )
    arguments.add_argument("--output", type=Path, help="JSON file to write all turns to")
    arguments.add_argument("--profile", type=Path, help="folder to write traces of five steps to")

    def start(args: argparse.Namespace, config: ConfigDict) -> None:
        jax.config.update("jax_enable_compilation_cache", False)  # compiling is timed
        names, peers, files = args.settings, args.peers, (args.output, args.profile)
        run(config, args.batch, names, peers, args.repeats, args.steps, *files)

    cli.main(arguments, start, config=True)


if __name__ == "__main__":
    main()
