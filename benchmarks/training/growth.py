"""How a training step and the scoring of clips grow with batch, audio, width, registers and clips.

    python -m benchmarks.training.growth --config=configs/pretrain.py
    python -m benchmarks.training.growth --config=configs/demo.py --time --batch 16 32 64 128 256

Operations are XLA's own count of the whole step, layers unrolled, before it optimises; memory is
what the compiled step says it needs beside the weights and their moments. Neither runs anything.
With --time, steps are run as well, rows taking turns. A row differs from the config in the one
thing that it names. "×" columns are a row over the first of its kind: a thing that a step is linear
in stays at 1.00 a sample.
"""

import argparse
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import timing
from benchmarks.training.tpu_aot import lowered, step_flops
from benchmarks.training.train_step import GIB, Ours, chosen, random_batch
from cavmae_sync_jax.distributed import sharding
from cavmae_sync_jax.evals.metrics import ranking
from cavmae_sync_jax.utils import cli

# ViT-S, B and L: width, heads, and as many blocks in all; the decoder stays.
WIDTHS = {
    "S": {"model.width": 384, "model.heads": 6, "model.depth": 11},
    "B": {"model.width": 768, "model.heads": 12, "model.depth": 11},
    "L": {"model.width": 1024, "model.heads": 16, "model.depth": 23},
}
AUDIO_ROWS = {1: 96, 2: 192, 4: 416, 7: 720, 10: 1024}  # of seconds, as in configs/pretrain.py
REGISTERS = (0, 4, 8, 16)
FRAMES, DIM = 16, 768  # of the clips that are scored


class Row(NamedTuple):
    """A setting: the kind of thing that grows, its value, and what it changes in the config."""

    kind: str
    value: str
    overrides: dict[str, Any]


def settings(config: ConfigDict, batches: Sequence[int]) -> Iterator[Row]:
    """The rows of the table that fit the config's patches."""
    for size in batches:
        yield Row("batch", str(size), {"batch_size": size})
    for seconds, rows in AUDIO_ROWS.items():
        yield Row("audio", f"{seconds} s", {"model.audio_rows": rows})
    for name, overrides in WIDTHS.items():
        yield Row("width", f"ViT-{name}", overrides)
    for count in REGISTERS:
        yield Row("registers", str(count), {"model.registers": count})


def run(config: ConfigDict, batches: Sequence[int], timed: bool, clips: Sequence[int]) -> None:
    """Prints the tables."""
    print(timing.machine("jax"))
    rows = list(settings(config, batches))
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    sizes = [chosen(config, row.overrides).batch_size for row in rows]
    flops, memory, seconds = [], [], {}
    for row, size in zip(rows, sizes, strict=True):
        changed = chosen(config, row.overrides)
        flops.append(step_flops(changed) / size)
        memory.append(lowered(changed, mesh).compile().memory_analysis().temp_size_in_bytes)
    if timed:
        calls = {f"{row.kind} {row.value}": step(chosen(config, row.overrides)) for row in rows}
        seconds = timing.interleaved(calls, repeats=3)
    cells, first = [], {}
    for row, size, count, bytes_ in zip(rows, sizes, flops, memory, strict=True):
        base = first.setdefault(row.kind, (count, bytes_ / size))
        line = [row.kind, row.value, f"{count / 1e9:.4g}", f"{count / base[0]:.2f}"]
        line += [f"{bytes_ / GIB:.2f}", f"{bytes_ / size / base[1]:.2f}"]
        if timed:
            spread = timing.Spread.of(seconds[f"{row.kind} {row.value}"])
            each = first.setdefault((row.kind, "time"), spread.median / size)
            line += [spread.text(), f"{spread.median / size / each:.2f}"]
        cells.append(line)
    head = ["", "", "GFLOP per sample", "×", "GiB of activations", "× per sample"]
    print(timing.table(head + ["s per step", "× per sample"] * timed, cells), flush=True)
    if clips:
        score(clips)


def step(config: ConfigDict) -> Any:
    """A call that runs one step of a setting, which is compiled now."""
    ours = Ours(config)
    program = ours.compile("", config)
    batch = ours.put(random_batch(ours.module, config.batch_size))
    return lambda: ours.step(program, batch)


def score(counts: Sequence[int]) -> None:
    """Prints how long it takes to rank clips, both directions, diagonal mean."""
    rng, cells, first = np.random.default_rng(0), [], None
    for count in counts:
        audio, visual = (rng.standard_normal((count, FRAMES, DIM), np.float32) for _ in range(2))

        def call(pair: Any = (audio, visual)) -> None:
            ranking.ranks(*pair, strategy="diagonal_mean")

        spread = timing.Spread.of(timing.interleaved({"": call}, repeats=3)[""])
        first = first or spread.median / count**2
        cells.append([f"{count:,}", spread.text(), f"{spread.median / count**2 / first:.2f}"])
    print(timing.table(["evaluated clips", "s to rank them", "× per pair"], cells))


def main() -> None:
    """Runs the command line."""
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--batch",
        type=int,
        nargs="+",
        default=[64, 256, 1024, 4096],
        help="batch sizes to compile for",
    )
    parser.add_argument("--time", action="store_true", help="also run and time the steps")
    parser.add_argument(
        "--clips",
        type=int,
        nargs="*",
        default=[500, 1545, 5000, 20000],
        help="numbers of clips to score",
    )

    def start(arguments: argparse.Namespace, config: ConfigDict) -> None:
        run(config, arguments.batch, arguments.time, arguments.clips)

    cli.main(parser, start, config=True)


if __name__ == "__main__":
    main()
