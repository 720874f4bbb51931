"""Trains from, evaluates from and prepares into an emulated bucket, while everything goes wrong.

    python -m benchmarks.data.bucket_faults --workdir=runs/bucket_faults

The bucket's server is `bucket_emulator`, reached by real requests. A tiny model is trained from the
disk, and then from the bucket: with errors in 5 % of the requests, with the server gone for 20 s,
and in two processes that get SIGTERM and `kill -9` at random. The losses must be the same, to the
last bit. Evaluations and a probe must give the same scores. A preparation into the bucket is killed
at random requests, and must end with the same bytes; no half of it may pass for a dataset.
"""

import argparse
import json
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.data import bucket_emulator
from benchmarks.data.bucket_emulator import Emulator
from benchmarks.training import faults, launch
from benchmarks.training.faults import Run, expect
from cavmae_sync_jax.data import dataset_dir
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError

BUCKET = "bucket"
OUTAGE = 20  # seconds
EVALS = ("retrieval", "reconstruction", "probe")


def trained(run: Run, reference: dict[int, float], count: int) -> None:
    """Trains to the end; its losses must be those of the reference."""
    statuses = run.ended(run.start(count), timeout=1200)
    expect(statuses == [0] * count, run.said()[-800:])
    same(run, reference)


def same(run: Run, reference: dict[int, float]) -> None:
    """Ends the benchmark if any loss differs in any bit."""
    losses = run.losses()
    different = [step for step, loss in reference.items() if losses.get(step) != loss]
    expect(not different and len(losses) == len(reference), f"the losses of {different} differ")


def failing(emulator: Emulator, run: Run, reference: dict[int, float]) -> str:
    """Every twentieth request fails."""
    emulator.turn(errors=0.05, latency_ms=5)
    trained(run, reference, 1)
    counts = emulator.counts()
    emulator.turn(errors=0, latency_ms=0)
    return f"same losses; {counts['faults']} of {counts['requests']} requests failed"


def gone(emulator: Emulator, run: Run, reference: dict[int, float]) -> str:
    """The server is away for a while in the middle of a training."""
    started = run.start()
    run.reach(5, started)
    emulator.stop()
    timer = threading.Timer(OUTAGE, emulator.start)
    timer.start()
    statuses = run.ended(started, timeout=1200)
    timer.join()
    expect(statuses == [0], run.said()[-800:])
    same(run, reference)
    return f"same losses; the server was away for {OUTAGE} s"


def killed(run: Run, reference: dict[int, float], times: int) -> str:
    """Two processes are ended at random, by SIGTERM to one or `kill -9` to one."""
    ends = {"SIGTERM": 0, "kill -9": 0}
    for number in range(times):
        started = run.start(2)
        run.reach(random.randint(1, 2 * faults.SAVED), started)
        victim = started[random.randrange(2)]
        if number % 2:
            victim.kill()
            run.ended(started)
            ends["kill -9"] += 1
        else:
            victim.send_signal(signal.SIGTERM)
            statuses = run.ended(started)
            expect(statuses == [143, 143], f"SIGTERM ended with {statuses}")
            ends["SIGTERM"] += 1
    trained(run, reference, 2)
    counted = ", ".join(f"{count} times by {name}" for name, count in ends.items())
    return f"same losses; ended {counted}"


def evaluated(workdir: pathlib.Path, checkpoint: pathlib.Path, disk: Any, bucket: str) -> str:
    """The programs that read a dataset give the same scores of both."""
    found = []
    for name, data in (("disk", disk), ("bucket", bucket)):
        output = workdir / f"evals_{name}"
        flags = [f"--checkpoint={checkpoint}", f"--data={data}", f"--output={output}"]
        probe = ["--config=configs/probe.py:demo", "--config.batch_size=8", "--config.epochs=2"]
        probe += ["--config.average_from=1", "--config.train_split=train"]
        commands = [
            [f"cavmae_sync_jax.evals.{eval_}", *flags, *(probe if eval_ == "probe" else [])]
            for eval_ in EVALS
        ]
        started = launch.start(1, commands, workdir / f"logs_{name}", together=False)
        statuses = launch.finish(started, 1200)
        log = (workdir / f"logs_{name}/0.log").read_text(errors="replace")
        expect(statuses == [0], log[-800:])
        results = [json.loads((output / f"{eval_}.json").read_text()) for eval_ in EVALS]
        found.append([result.get("scores", result.get("errors")) for result in results])
    expect(found[0] == found[1], "the scores differ")
    return f"same scores of {', '.join(EVALS)}"


def prepare(videos: pathlib.Path, output: str) -> list[str]:
    """The command that prepares some videos."""
    sizes = ["--num_frames=4", "--image_size=32", "--workers=1", "--eval_share=0"]
    return [sys.executable, "-m", "data_prep.videos", str(videos), f"--output={output}", *sizes]


def contents(store: bucket_emulator.Store, prefix: str) -> dict[str, bytes]:
    """What a preparation wrote, without the output's own name, which the summary has."""
    names, own = store.names(BUCKET, f"{prefix}/"), f"gs://{BUCKET}/{prefix}/".encode()
    found = {name.removeprefix(prefix): store.read(BUCKET, name, None)[0] for name in names}
    return {name: data.replace(own, b"") for name, data in found.items()}


def preparations(emulator: Emulator, videos: pathlib.Path, kills: int) -> str:
    """Kills a preparation into the bucket at random requests, each time of a new output."""
    store = bucket_emulator.Store(emulator.folder)
    emulator.turn()
    subprocess.run(prepare(videos, f"gs://{BUCKET}/whole"), check=True, cwd=launch.ROOT)
    requests = emulator.counts()["requests"]
    whole = contents(store, "whole")
    accepted = locked = remnants = 0
    for number in range(kills):
        output = f"killed{number}"
        at, done = random.randint(1, requests), random.randrange(2)
        process = subprocess.Popen(prepare(videos, f"gs://{BUCKET}/{output}"), cwd=launch.ROOT)
        emulator.turn(kill=process.pid, kill_at=at, kill_when_done=done)
        status = process.wait(600)
        emulator.turn(kill=0)
        expect(status in (-signal.SIGKILL, 0), f"killed at request {at}, it ended with {status}")
        accepted += readable(output, whole, store)
        # A lock of a killed process is another's for ten minutes; its message says to delete it.
        lock = store.path(BUCKET, f"{output}/.preparing")
        locked += lock.exists()
        lock.unlink(missing_ok=True)
        if not complete(output):
            again = prepare(videos, f"gs://{BUCKET}/{output}")
            subprocess.run(again, check=True, cwd=launch.ROOT)
        there = contents(store, output)
        # Killed after the dataset was whole: what it was made of may still lie beside it.
        rest = {name for name in there if name.startswith("/.incomplete/")}
        remnants += bool(rest)
        found = {name: data for name, data in there.items() if name not in rest}
        expect(found == whole, f"killed at request {at}, it has other bytes")
    return (
        f"same bytes each time, killed at any of {requests} requests; {accepted} were whole "
        f"already, {remnants} of these with remnants in .incomplete, {locked} had left their lock"
    )


def complete(output: str) -> bool:
    """Whether there is what passes for a dataset."""
    try:
        dataset_dir.find(f"gs://{BUCKET}/{output}")
    except UserError:
        return False
    return True


def readable(output: str, whole: dict[str, bytes], store: bucket_emulator.Store) -> int:
    """1 for a dataset, which then must be a whole one, 0 for none."""
    if not complete(output):
        return 0
    there = contents(store, output)
    expected = {name: data for name, data in whole.items() if "/1.0.0/" in name}
    different = [name for name, data in expected.items() if there.get(name) != data]
    expect(not different, f"{different} are not whole, but there is a dataset")
    return 1


def rows(
    workdir: pathlib.Path, emulator: Emulator, kills: int, preparation_kills: int
) -> Iterator[tuple[str, str]]:
    """Does it all; yields what was done and what came of it."""
    disk = faults.prepare(workdir / "data")
    place = bucket_emulator.upload(disk, emulator.folder, BUCKET, "data")

    def fresh(name: str, data: Any) -> Run:
        shutil.rmtree(workdir / name, ignore_errors=True)
        return Run(workdir / name, data)

    if kills:
        references = {}
        for count in (1, 2):
            run = fresh(f"disk{count}", disk)
            statuses = run.ended(run.start(count), timeout=1200)
            expect(statuses == [0] * count, run.said()[-800:])
            references[count] = run.losses()
        errors = fresh("errors", place)
        yield (
            "trained from the bucket, 5 % of its answers are errors",
            failing(emulator, errors, references[1]),
        )
        yield (
            f"trained, the server gone for {OUTAGE} s",
            gone(emulator, fresh("gone", place), references[1]),
        )
        yield (
            f"trained in two processes, ended at {kills} random steps",
            killed(fresh("killed", place), references[2], kills),
        )
        yield "evaluated", evaluated(workdir, workdir / "disk1", disk, place)
    if preparation_kills:
        yield (
            f"prepared into the bucket, `kill -9` at {preparation_kills} requests",
            preparations(emulator, disk / "videos", preparation_kills),
        )


def main() -> None:
    """Runs the command line."""
    arguments = cli.parser(__doc__)
    arguments.add_argument("--workdir", required=True, help="folder for the trainings")
    arguments.add_argument(
        "--kills", type=int, default=10, help="kills of trainings; 0 trains nothing"
    )
    arguments.add_argument(
        "--preparation_kills", type=int, default=30, help="kills of preparations"
    )
    arguments.add_argument("--steps", type=int, default=faults.STEPS, help="steps of each training")
    arguments.add_argument("--seed", type=int, default=0, help="seed of the random moments")

    def start(args: argparse.Namespace) -> Any:
        random.seed(args.seed)
        faults.STEPS = args.steps
        workdir = pathlib.Path(args.workdir).resolve()
        began = time.monotonic()
        shutil.rmtree(workdir / "bucket", ignore_errors=True)
        with bucket_emulator.running(workdir / "bucket") as emulator, emulator.pointed_at():
            print("| what was done | what came of it |\n|---|---|", flush=True)
            for done, result in rows(workdir, emulator, args.kills, args.preparation_kills):
                print(f"| {done} | {result} |", flush=True)
        print(f"\n{time.monotonic() - began:.0f} s")

    cli.main(arguments, start)


if __name__ == "__main__":
    main()
