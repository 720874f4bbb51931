"""Times how else an example's bytes could lie: on the disk, and in an emulated bucket.

    python -m benchmarks.data.layouts --data=DATASET --latency_ms=30

A training example needs one JPEG of a clip and a window of its log-mel, and reads the clip's whole
record. Beside it, the same clips are written four more times, with the log-mel in float16 or uint8:

- apart: all JPEGs one after the other, then the log-mel. The JPEG and the window are two reads.
- between: each JPEG lies before the rows that follow its time. A window and its JPEG are one read,
  which has the JPEGs of the window's other frames, too.

An index in memory tells where each part is. Every row only reads; nothing is decoded.
"""

import argparse
import itertools
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tensorstore
from jaxtyping import Shaped

from benchmarks import timing
from benchmarks.data import bucket_emulator
from cavmae_sync_jax.data.disk_shards import DiskShards
from cavmae_sync_jax.data.records import Records
from cavmae_sync_jax.media import audio
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError

BUCKET = "bucket"
Clip = Mapping[str, Any]
Type = type[np.generic]


class Span(NamedTuple):
    """Bytes [begin, end) of a file."""

    begin: int
    end: int


class Layout(NamedTuple):
    """A file, and what to read of it for each example."""

    name: str
    path: Path
    spans: list[list[Span]]

    @property
    def size(self) -> float:
        """Bytes per example."""
        return sum(span.end - span.begin for span in itertools.chain(*self.spans)) / len(self.spans)


def layouts(
    records: Records, folder: Path, chosen: Sequence[tuple[int, int]], rows: int
) -> list[Layout]:
    """Writes the files; `chosen` are the numbers of clips and of their frames."""
    clips = [records[index] for index in range(len(records))]
    wholes = [records.shards.read(index) for index in range(len(records))]
    found = [Layout("whole records", folder / "whole", [])]
    ends = list(itertools.accumulate(map(len, wholes), initial=0))
    found[0].path.write_bytes(b"".join(wholes))
    found[0].spans.extend([Span(ends[clip], ends[clip + 1])] for clip, _ in chosen)
    for dtype in (np.float16, np.uint8):
        name, kind = "JPEGs and {} log-mel apart", np.dtype(dtype).name
        found.append(
            apart(Layout(name.format(kind), folder / kind, []), clips, chosen, rows, dtype)
        )
        name = "JPEGs between the rows of the {} log-mel"
        layout = Layout(name.format(kind), folder / f"between_{kind}", [])
        found.append(between(layout, clips, chosen, rows, dtype))
    return found


def apart(
    layout: Layout, clips: Sequence[Clip], chosen: Sequence[tuple[int, int]], rows: int, dtype: Type
) -> Layout:
    """Writes each clip's JPEGs, then its log-mel."""
    data, frames, windows = bytearray(), [], []
    for record in clips:
        frames.append(list(itertools.accumulate(map(len, record["frames"]), initial=len(data))))
        data += b"".join(record["frames"])
        windows.append(len(data))
        data += log_mel(record, dtype).tobytes()
    layout.path.write_bytes(data)
    row_bytes = audio.BINS * np.dtype(dtype).itemsize
    for clip, frame in chosen:
        ends, (first, last) = frames[clip], window_of(clips[clip], frame, rows)
        window = Span(windows[clip] + first * row_bytes, windows[clip] + last * row_bytes)
        layout.spans.append([Span(ends[frame], ends[frame + 1]), window])
    return layout


def between(
    layout: Layout, clips: Sequence[Clip], chosen: Sequence[tuple[int, int]], rows: int, dtype: Type
) -> Layout:
    """Writes each JPEG before the rows of the log-mel that follow its time."""
    data, jpegs, places = bytearray(), [], []
    for record in clips:
        frames, values = record["frames"], log_mel(record, dtype)
        pictures, row_places = [], []
        for frame, jpeg in enumerate(frames):
            pictures.append(Span(len(data), len(data) + len(jpeg)))
            data += jpeg
            edges = [len(values) * number // len(frames) for number in (frame, frame + 1)]
            for row in values[slice(*edges)]:
                row_places.append(len(data))
                data += row.tobytes()
        jpegs.append(pictures)
        places.append(row_places)
    layout.path.write_bytes(data)
    row_bytes = audio.BINS * np.dtype(dtype).itemsize
    for clip, frame in chosen:
        jpeg, (first, last) = jpegs[clip][frame], window_of(clips[clip], frame, rows)
        begin = min(jpeg.begin, places[clip][first])
        layout.spans.append([Span(begin, max(jpeg.end, places[clip][last - 1] + row_bytes))])
    return layout


def log_mel(record: Clip, dtype: Type) -> Shaped[np.ndarray, "rows bins"]:
    """A clip's log-mel in a type, whose values do not matter here."""
    return audio.dequantize(record["fbank"]).astype(dtype)


def window_of(record: Clip, frame: int, rows: int) -> tuple[int, int]:
    """The first row of a frame's window in its clip, and the row after its last."""
    length = len(record["fbank"])
    first = audio.window_start(frame, len(record["frames"]), length, min(rows, length))
    return first, first + min(rows, length)


def from_disk(layout: Layout) -> None:
    """Reads all of a layout's spans, one after the other."""
    with layout.path.open("rb", buffering=0) as file:
        for span in itertools.chain(*layout.spans):
            file.seek(span.begin)
            file.read(span.end - span.begin)


def from_bucket(layout: Layout, store: Any, requests: int) -> None:
    """Reads all of a layout's spans with so many requests in flight."""
    waiting: list[Any] = []
    for span in itertools.chain(*layout.spans):
        if len(waiting) == requests:
            waiting.pop(0).result()
        waiting.append(store.read(layout.path.name, byte_range=slice(span.begin, span.end)))
    for future in waiting:
        future.result()


def run(args: argparse.Namespace) -> None:
    """Prints the machine and the table.

    Raises:
      UserError: the dataset lies in a bucket.
    """
    records = Records(args.data, args.split)
    if not isinstance(records.shards, DiskShards):
        raise UserError("--data must be a folder on a disk")
    rng, most = np.random.default_rng(0), len(records[0]["frames"])
    chosen = [
        (int(rng.integers(len(records))), int(rng.integers(most))) for _ in range(args.examples)
    ]
    with (
        tempfile.TemporaryDirectory() as scratch,
        bucket_emulator.running(Path(scratch) / "store", latency_ms=args.latency_ms) as emulator,
        emulator.pointed_at(),
    ):
        (Path(scratch) / "files").mkdir()
        found = layouts(records, Path(scratch) / "files", chosen, args.rows)
        bucket_emulator.upload(Path(scratch) / "files", emulator.folder, BUCKET, "")
        limit = {"gcs_request_concurrency": {"limit": args.requests}}
        spec = {"driver": "gcs", "bucket": BUCKET, "path": "/", "context": limit}
        store = tensorstore.KvStore.open(spec).result()
        calls: dict[str, Callable[[], object]] = {}
        for layout in found:
            calls[f"{layout.name}, disk"] = lambda layout=layout: from_disk(layout)
            calls[f"{layout.name}, bucket"] = lambda layout=layout: from_bucket(
                layout, store, args.requests
            )
        seconds = timing.interleaved(calls, args.repeats)
    print(timing.machine("tensorstore", "numpy"))
    print(
        f"{args.rows} rows of {audio.BINS}, {args.examples} examples per turn, median "
        f"(lowest–highest) of {args.repeats} turns; the bucket waits {args.latency_ms:g} ms, "
        f"{args.requests} requests in flight\n"
    )
    header = ("", "kB per example", "reads per example", "disk, examples/s", "bucket, examples/s")
    print(timing.table(header, [_cells(layout, seconds, args.examples) for layout in found]))


def _cells(layout: Layout, seconds: dict[str, list[float]], examples: int) -> list[str]:
    def speed(values: Iterable[float]) -> str:
        return timing.Spread.of([examples / value for value in values]).text(0)

    places = [speed(seconds[f"{layout.name}, {place}"]) for place in ("disk", "bucket")]
    return [layout.name, f"{layout.size / 1e3:.0f}", f"{len(layout.spans[0])}", *places]


def main() -> None:
    """Runs the command line."""
    arguments = cli.parser(__doc__)
    arguments.add_argument("--data", required=True, help="a dataset on a disk")
    arguments.add_argument("--split", default="train", help="split of the dataset")
    arguments.add_argument("--rows", type=int, default=416, help="rows of a window of sound")
    arguments.add_argument("--examples", type=int, default=512, help="examples per turn")
    arguments.add_argument("--repeats", type=int, default=5, help="turns of each layout")
    arguments.add_argument("--requests", type=int, default=64, help="requests in flight")
    arguments.add_argument("--latency_ms", type=float, default=30, help="wait before each answer")
    cli.main(arguments, run)


if __name__ == "__main__":
    main()
