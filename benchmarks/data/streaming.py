"""Times training batches out of an emulated bucket, beside those from the disk in the same run.

    python -m benchmarks.data.streaming --config=configs/pretrain.py --config.batch_size=64

Each row is a stream of batches from a bucket whose server waits so many milliseconds before each
answer, with so many requests in flight; rows take turns. "Of the disk" is a row's speed as a share
of the disk's in the same turn. The server runs on the same cores as the reader, which a real bucket
does not: its CPU time is told apart. `--own` adds ArrayRecord's own reader of gs://, with threads.
"""

import argparse
import contextlib
import functools
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
import threadpoolctl
from ml_collections import ConfigDict

from benchmarks import timing
from benchmarks.data import bucket_emulator, input_pipeline
from cavmae_sync_jax.utils import cli, console
from cavmae_sync_jax.utils.errors import UserError

COLUMNS = (
    "",
    "examples/s",
    "of the disk",
    "CPU ms per example",
    "the server's",
    "requests per example",
    "kB per example",
    "most in flight",
)


class Turn(NamedTuple):
    """What a number of examples took, once."""

    seconds: float
    cpu: float
    server_cpu: float
    requests: int
    bytes: int
    most: int


class Row(NamedTuple):
    """A way to read, and what its turns took."""

    name: str
    latency_ms: float
    settle: Callable[[], object]  # uses up what was made ready in the other rows' turns
    call: Callable[[], object]
    turns: list[Turn]

    def cells(self, disk: "Row", examples: int) -> list[str]:
        """The row of the table."""
        speeds = [examples / turn.seconds for turn in self.turns]
        shares = [
            100 * theirs.seconds / ours.seconds
            for ours, theirs in zip(self.turns, disk.turns, strict=True)
        ]
        cpu = [1e3 * turn.cpu / examples for turn in self.turns]
        cells = [self.name, timing.Spread.of(speeds).text(0), timing.Spread.of(shares).text(0)]
        cells.append(timing.Spread.of(cpu).text(2))
        if self is disk:
            return [*cells, "", "", "", ""]
        last = self.turns[-1]
        server = timing.Spread.of([1e3 * turn.server_cpu / examples for turn in self.turns])
        per = (f"{last.requests / examples:.2f}", f"{last.bytes / examples / 1e3:.0f}")
        return [*cells, server.text(2), *per, f"{last.most}"]


def process_seconds(pid: int) -> float:
    """CPU seconds of a process so far."""
    stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    user, system = stat.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def own_reader(place: str, clips: Sequence[int], threads: int) -> None:
    """Reads records with ArrayRecord's own reader of gs://, in threads."""
    builder = tfds.builder_from_directory(place)
    source = builder.as_data_source(
        split="train", deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
    )
    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(source.__getitem__, clips):
            pass


def run(config: ConfigDict, args: argparse.Namespace) -> None:
    """Prints the machine and the table.

    Raises:
      UserError: a number is below 1.
    """
    if min(config.batch_size, args.clips, args.examples, args.repeats, *args.requests) < 1:
        raise UserError("the batch size and all numbers must be at least 1")
    with (
        tempfile.TemporaryDirectory() as scratch,
        threadpoolctl.threadpool_limits(1),
        bucket_emulator.running(Path(scratch) / "bucket") as emulator,
        emulator.pointed_at(),
    ):
        folder = Path(args.data or Path(scratch) / "data")
        if not args.data:
            input_pipeline.generate(folder, config, train=args.clips)
        place = bucket_emulator.upload(folder, emulator.folder, "bucket", "data")
        batches = max(1, args.examples // config.batch_size)
        examples = batches * config.batch_size
        with contextlib.ExitStack() as streams:

            def row(name: str, place: Any, latency: float, requests: int) -> Row:
                emulator.turn(latency_ms=0)
                records = input_pipeline.Records(place, "train", requests=requests)
                stream = input_pipeline.pipeline(records, config, args.workers)
                streams.enter_context(contextlib.closing(stream))
                settle = functools.partial(input_pipeline.take, stream, 3)
                timed = functools.partial(input_pipeline.take, stream, batches)
                return Row(name, latency, settle, timed, [])

            rows = [row("disk", folder, 0, 1)]
            for latency in args.latency_ms:
                rows += [
                    row(f"{latency:g} ms, {count} in flight", place, latency, count)
                    for count in args.requests
                ]
            if args.own:
                version = str(input_pipeline.Records(place, "train").directory)
                few = list(range(max(1, min(args.clips, examples // 8))))
                rows += [
                    Row(
                        f"ArrayRecord's own reader, {latency:g} ms, {args.own} threads "
                        f"(records alone, {len(few)} of them)",
                        latency,
                        lambda: None,
                        functools.partial(own_reader, version, few, args.own),
                        [],
                    )
                    for latency in args.latency_ms
                ]
            measure(rows, emulator, args.repeats)
        emulator.settle()  # what was asked ahead would be asked again and again without the server
        print(timing.machine("grain", "tensorstore", "array_record", "numpy"))
        print(
            f"batches of {config.batch_size}, {args.workers} workers, {examples} "
            f"examples per turn, median (lowest–highest) of {args.repeats} turns\n"
        )
        counts = [len(few) if "own" in row.name else examples for row in rows] if args.own else []
        counts = counts or [examples] * len(rows)
        cells = [row.cells(rows[0], count) for row, count in zip(rows, counts, strict=True)]
        print(timing.table(COLUMNS, cells))


def measure(rows: Sequence[Row], emulator: bucket_emulator.Emulator, repeats: int) -> None:
    """Calls all rows in turns, the first turn for nothing."""
    with console.progress("time", len(rows) * (repeats + 1), "call") as bar:
        for turn in range(repeats + 1):
            for row in rows:
                emulator.settle()  # what the row before asked ahead is not this one's
                emulator.turn(latency_ms=row.latency_ms)
                row.settle()
                emulator.turn()  # its counters
                server, cpu = process_seconds(emulator.pid), input_pipeline.cpu_seconds()
                (seconds,) = timing.interleaved({"": row.call}, 1, 0)[""]
                cpu = input_pipeline.cpu_seconds() - cpu
                server = process_seconds(emulator.pid) - server
                counts = emulator.counts()
                if turn:
                    found = counts["requests"], counts["bytes"], counts["most_in_flight"]
                    row.turns.append(Turn(seconds, cpu, server, *found))
                bar.update()


def main() -> None:
    """Runs the command line."""
    arguments = cli.parser(__doc__)
    arguments.add_argument(
        "--data", help="a dataset with a split train, instead of generated clips"
    )
    arguments.add_argument("--clips", type=int, default=256, help="clips to generate")
    arguments.add_argument("--examples", type=int, default=1024, help="examples per turn")
    arguments.add_argument("--repeats", type=int, default=3, help="turns of each row")
    arguments.add_argument("--workers", type=int, default=0, help="processes that read")
    arguments.add_argument("--own", type=int, default=0, help="threads of ArrayRecord's own reader")
    arguments.add_argument(
        "--latency_ms",
        type=float,
        nargs="+",
        default=[30, 100],
        help="waits before each answer, one row each",
    )
    arguments.add_argument(
        "--requests",
        type=int,
        nargs="+",
        default=[1, 8, 32, 64, 128],
        help="requests in flight, one row each",
    )

    def start(args: argparse.Namespace, config: ConfigDict) -> None:
        run(config, args)

    cli.main(arguments, start, config=True)


if __name__ == "__main__":
    main()
