"""What a preparation of very many clips costs beside the clips themselves: memory, time, files.

    python -m benchmarks.data.many_clips
    python -m benchmarks.data.many_clips --clips 100000 200000 --records 4000

Each count runs in a process of its own. Its files have names as VGGSound's have, but do not exist;
a clip's example is a few bytes that cost nothing. So what is left is the work of the process that
plans, collects and resumes. Memory is the most that the process has held.

A second table has records of 0.5 MB, as real ones are, which two workers return at no cost. It says
how many of them a process passes on per second of its own CPU time: one that writes them itself,
and one whose workers have writers of their own.
"""

import argparse
import contextlib
import functools
import io
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from etils import epath

from benchmarks.timing import machine, table
from cavmae_sync_jax.utils import cli
from data_prep import videos
from data_prep.pipeline import shards, tfds_writer, writers
from data_prep.pipeline.clips import Clip, Preparation, VideoClip
from data_prep.pipeline.executors import Engine
from data_prep.pipeline.shards import Job, Record, Shard
from data_prep.sources import csv_files
from data_prep.sources.video_files import Video

SIZE = 500_000  # bytes of a VGGSound clip's record, less a little
STEPS = ("name the clips", "prepare", "resume")


def measure(count: int) -> dict[str, Any]:
    """Returns seconds by step, files by kind, and GB of memory, of a dataset of `count` clips."""
    seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def timed(step: str) -> Iterator[None]:
        began = time.process_time()
        yield
        seconds[step] = time.process_time() - began

    preparation = Preparation()
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        with timed(STEPS[0]):
            found = [
                Video(epath.Path(f"/videos/{name}"), Path(name))
                for name in (f"{number:011d}_000030.mp4" for number in range(count))
            ]
            splits = videos.assign_splits(found, {}, 0.1)
            labels = csv_files.Labels({}, [], {})
            clips, _ = videos.whole_clips(splits, labels, {}, preparation, 5.0)
            del found, splits
        settings = {"class_names": (), "source": "videos"}
        output, files = Path(scratch), {}
        with mock.patch.object(writers, "prepare", _prepare):
            with timed(STEPS[1]), mock.patch.object(tfds_writer, "publish", _stop):
                try:
                    tfds_writer.write_dataset(output, clips, preparation, **settings)
                except _Stopped:
                    shards_there = list(output.glob(".incomplete/shards/*.array_record"))
                    files["while it is prepared"] = sum(1 for _ in output.rglob("*"))
                    shards_there[0].unlink()  # one shard is not finished
            with timed(STEPS[2]):
                tfds_writer.write_dataset(output, clips, preparation, **settings)
            files["in the end"] = sum(path.is_file() for path in output.rglob("*"))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    return {"seconds": seconds, "files": files, "memory": memory}


class _Stopped(Exception):
    """Stands for a kill right before the dataset gets to its place."""


def _stop(*_: Any) -> None:
    raise _Stopped


def _prepare(todo: Sequence[Shard], job: Job, folder: epath.Path, engine: Any) -> None:
    """Writes shards as `writers.prepare` does, of examples that cost nothing."""

    def results(clips: Iterable[Clip]) -> Iterator[tuple[Clip, Record]]:
        return ((clip, Record(b"example", 998, {"padded_seconds": 0.02})) for clip in clips)

    for shard in todo:
        shards.write_shard(shard, results(shard.clips), folder)


def free_record(clip: Clip, job: Job) -> Record:
    """Returns a record that costs nothing."""
    return Record(_noise(), 998, {"padded_seconds": 0.02})


@functools.cache
def _noise() -> bytes:
    return os.urandom(SIZE)


def records_per_second(count: int, workers_of_a_writer: int) -> tuple[float, float]:
    """Returns records per second of this process's CPU time, and per second, of two workers."""
    job = Job(shards.Schema((), 16, False, "float16"), Preparation())
    todo = shards.plan({"train": [VideoClip(f"{number}", "a.mp4") for number in range(count)]})
    with (
        tempfile.TemporaryDirectory() as folder,
        mock.patch.object(shards, "prepare_record", free_record),
        mock.patch.object(writers, "WORKERS", workers_of_a_writer),
    ):
        began, cpu = time.perf_counter(), time.process_time()
        writers.prepare(todo, job, epath.Path(folder), Engine(workers=2))
        cpu, lasted = time.process_time() - cpu, time.perf_counter() - began
    return count / cpu, count / lasted


def run(counts: Sequence[int], records: int) -> None:
    """Prints the tables."""
    print(machine("array-record", "tensorflow-datasets"))
    rows = []
    for count in counts:
        command = [
            sys.executable,
            "-m",
            "benchmarks.data.many_clips",
            "--clips",
            str(count),
            "--child",
        ]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        measured = json.loads(done.stdout)
        rows.append([f"{count:,}", *(f"{measured['seconds'][step]:.1f} s" for step in STEPS)])
        rows[-1] += [f"{number:,}" for number in measured["files"].values()]
        rows[-1] += [f"{measured['memory']:.2f} GB", f"{measured['memory'] / count * 1e9:,.0f} B"]
    head = ["clips", *STEPS, "files meanwhile", "files in the end", "memory", "per clip"]
    print(table(head, rows))
    rows = []
    for name, workers in (("writes them itself", 2), ("has two writers", 1)):
        by_cpu, by_clock = records_per_second(records, workers)
        rows.append([name, f"{by_cpu:,.0f}", f"{by_clock:,.0f}"])
    print(table(["a process that", "records per second of its CPU", "records per second"], rows))


def main() -> None:
    """Runs the command line."""
    parser = cli.parser(__doc__)
    parser.add_argument(
        "--clips",
        type=int,
        nargs="+",
        default=[100_000, 500_000, 2_000_000],
        help="numbers of clips to prepare",
    )
    parser.add_argument("--records", type=int, default=4000, help="records of 0.5 MB to pass on")
    parser.add_argument(
        "--child", action="store_true", help="measure the first count in this process"
    )

    def start(arguments: argparse.Namespace) -> None:
        if arguments.child:
            print(json.dumps(measure(arguments.clips[0])))
        else:
            run(arguments.clips, arguments.records)

    cli.main(parser, start)


if __name__ == "__main__":
    main()
