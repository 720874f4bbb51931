"""Injects real faults into real trainings and prints what became of them, as a Markdown table.

    python -m benchmarks.training.faults --workdir=runs/faults

Renders a small dataset, trains a tiny model without a fault, and then again and again with one:
processes are signalled, killed and frozen, files cut and flipped, a disk filled. A row fails if a
run does not end as it should. It also fails if the resumed run's losses differ from those of the
first one in any bit.
"""

import argparse
import json
import os
import pathlib
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from benchmarks.training import launch
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError

STEPS, CLIPS, SAVED = 600, 24, 10
SIZES = {"image_size": 32, "image_patch": 16, "width": 16, "depth": 1, "decoder_width": 8}


class Run(NamedTuple):
    """One training's workdir and how to start it."""

    workdir: pathlib.Path
    data: pathlib.Path

    def start(
        self, count: int = 1, *flags: str, prepare: Callable[[], None] | None = None
    ) -> list[subprocess.Popen]:
        """Starts it, or resumes it, in `count` processes."""
        settings = {"batch_size": 8, "epochs": STEPS * 8 / CLIPS, "log_every": 1}
        settings |= {"checkpoint_every": SAVED, "data.dir": self.data, "data.num_frames": 4}
        settings |= {"data.eval_split": "", "data.workers": 1}
        settings |= {f"model.{name}": size for name, size in SIZES.items()}
        config = [f"--config.{key}={value}" for key, value in settings.items()]
        program = ["cavmae_sync_jax.train", "--config=configs/demo.py", *config, *flags]
        command = [*program, f"--workdir={self.workdir}"]
        logs = self.workdir / "logs"
        return launch.start(count, [command], logs, together=count > 1, prepare=prepare)

    def said(self, rank: int = 0) -> str:
        """What a process of the last start wrote."""
        return (self.workdir / f"logs/{rank}.log").read_text(errors="replace")

    def losses(self) -> dict[int, float]:
        """The loss of every step so far."""
        path = self.workdir / "metrics.jsonl"
        found = {}
        for line in path.read_text().splitlines() if path.exists() else []:
            try:
                row = json.loads(line)
            except ValueError:  # half a line
                continue
            found[row["step"]] = row.get("loss")
        return found

    def last(self) -> int:
        """The newest step that was logged."""
        return max(self.losses(), default=0)

    def saved(self) -> list[int]:
        """The steps of the finished checkpoints."""
        folder = self.workdir / "checkpoints"
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
        return sorted(int(name) for name in names if name.isdigit())

    def reach(self, steps: int, started: list[subprocess.Popen]) -> None:
        """Waits until the training is `steps` further than now."""
        goal = self.last() + steps
        launch.wait_for(lambda: self.last() >= goal, started, timeout=1200)

    def ended(self, started: list[subprocess.Popen], timeout: float = 240) -> list[int]:
        """Waits for the end; returns the exit statuses."""
        return launch.finish(started, timeout)


def expect(condition: bool, message: str) -> None:
    """Ends the benchmark if what must be is not."""
    if not condition:
        raise UserError(message)


def sigterm(run: Run, reference: dict[int, float], times: int) -> str:
    """SIGTERM at random moments: saved and ended, nothing lost."""
    seconds = []
    for _ in range(times):
        started = run.start()
        run.reach(random.randint(1, 2 * SAVED), started)
        began = time.monotonic()
        started[0].send_signal(signal.SIGTERM)
        statuses = run.ended(started)
        seconds.append(time.monotonic() - began)
        expect(statuses == [143], f"SIGTERM ended with {statuses}: {run.said()[-500:]}")
        expect(run.saved()[-1] == run.last(), "SIGTERM lost steps")
    finish(run, reference)
    return f"ends with 143 after at most {max(seconds):.1f} s, no step lost"


def kill(run: Run, reference: dict[int, float], times: int) -> str:
    """SIGKILL at random moments, most of them with a save under way."""
    lost, partial, before_first = [], 0, 0
    for _ in range(times):
        started = run.start()
        if random.random() < 0.2:
            time.sleep(random.uniform(0, 8))  # while it starts
            before_first += 1
        else:
            run.reach(1, started)
            time.sleep(random.uniform(0, 1.5))
        started[0].kill()
        run.ended(started)
        reached, saved = run.last(), run.saved()
        folder = run.workdir / "checkpoints"
        if folder.is_dir():
            partial += any(not path.name.isdigit() for path in folder.iterdir())
        lost.append(reached - max(saved, default=0))
    expect(max(lost) <= 2 * SAVED, f"killed runs lost {lost} steps")
    finish(run, reference)
    return (
        f"always resumed; {partial} left half a checkpoint, {before_first} were killed while "
        f"starting; at most {max(lost)} steps lost, saved every {SAVED}"
    )


def finish(run: Run, reference: dict[int, float]) -> None:
    """Lets a run end, and compares all its losses with those of the run without a fault."""
    statuses = run.ended(run.start())
    expect(statuses == [0], f"{run.workdir} can't be resumed: {run.said()[-800:]}")
    expect(run.losses() == reference, f"{run.workdir} has other losses than an undisturbed run")


def full_disk(run: Run, reference: dict[int, float]) -> str:
    """No file may grow beyond a limit that a checkpoint exceeds, as if the disk were full."""
    started = run.start()
    run.reach(2 * SAVED, started)
    started[0].send_signal(signal.SIGTERM)
    run.ended(started)
    before = run.saved()
    files = (run.workdir / f"checkpoints/{before[-1]}").rglob("*")
    largest = max(path.stat().st_size for path in files)

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (largest // 2, resource.RLIM_INFINITY))

    # Without workers, whose shared memory the limit would reach, too.
    statuses = run.ended(run.start(1, "--config.data.workers=0", prepare=limit))
    expect("checkpoint can't be written" in run.said(), run.said()[-500:])
    expect(statuses == [2], f"a full disk ended with {statuses}: {run.said()[-500:]}")
    expect(before[-1] in run.saved(), "a full disk cost the last checkpoint")
    sentence = shorten(run.said())
    finish(run, reference)
    return f"status 2, “{sentence}”; the checkpoints before stay"


def damaged(run: Run, reference: dict[int, float], damage: Callable[[pathlib.Path], None]) -> str:
    """The newest checkpoint's largest file is damaged; the one before it is used when asked for."""
    started = run.start()
    run.reach(3 * SAVED, started)
    started[0].send_signal(signal.SIGTERM)
    run.ended(started)
    older, newest = run.saved()[-2:]
    files = [p for p in (run.workdir / f"checkpoints/{newest}/state").rglob("*") if p.is_file()]
    damage(max(files, key=lambda path: path.stat().st_size))
    statuses = run.ended(run.start())
    said = run.said()
    expect(statuses == [2] and f"checkpoints/{newest} is damaged or" in said, said[-500:])
    expect(f"--resume_step={older}" in said, said[-500:])
    statuses = run.ended(run.start(1, f"--resume_step={older}"))
    expect(statuses == [0] and run.losses() == reference, "resume_step gave other losses")
    return f"status 2, “{shorten(said)}”; the flag resumes exactly"


def truncate(path: pathlib.Path) -> None:
    """Cuts a file in half."""
    os.truncate(path, path.stat().st_size // 2)


def flip(path: pathlib.Path) -> None:
    """Changes one bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data)


def lose_one(run: Run, number: int, rank: int) -> str:
    """One of two processes is killed or frozen; how long until the other has ended?"""
    started = run.start(2)
    run.reach(3, started)
    began = time.monotonic()
    started[rank].send_signal(number)
    other = started[1 - rank]
    try:
        status = other.wait(5 * launch.SECONDS)
    finally:
        seconds = time.monotonic() - began
        for process in started:
            process.kill()
    said = run.said(1 - rank)
    noticed = "one of them has stopped" in said or "another task died" in said
    expect(status != 0 and noticed, f"the survivor ended with {status}: {said[-500:]}")
    return f"the other ends with a message after {seconds:.1f} s (limit {launch.SECONDS} s)"


def not_finite(run: Run) -> str:
    """A learning rate that no model survives."""
    statuses = run.ended(run.start(1, "--config.learning_rate=1e15"))
    said = run.said()
    expect(statuses == [2] and "last good checkpoint" in said, said)
    (listed,) = run.workdir.glob("clips_of_step_*.txt")
    expect(len(listed.read_text().split()) == 8, "the batch's clips are not all listed")
    return f"status 2, “{shorten(said)}”"


def shorten(said: str) -> str:
    """The sentence that a program ended with, without its name, folders and long lists."""
    sentence = re.findall(r"^.*?error: (.*)$", said, re.MULTILINE)[-1]
    sentence = re.sub(r"/\S*/", "…/", sentence)
    return re.sub(r"(scene\S+, ){3,}", "…, ", sentence)


def rows(workdir: pathlib.Path, data: pathlib.Path, kills: int) -> Iterator[tuple[str, str]]:
    """What was done and what came of it, one after the other."""

    def fresh(name: str) -> Run:
        shutil.rmtree(workdir / name, ignore_errors=True)
        return Run(workdir / name, data)

    undisturbed = fresh("undisturbed")
    statuses = undisturbed.ended(undisturbed.start())
    expect(statuses == [0], undisturbed.said()[-800:])
    reference = undisturbed.losses()
    expect(len(reference) == STEPS, f"{len(reference)} steps")
    terms = max(1, kills // 4)
    yield f"SIGTERM at {terms} random moments", sigterm(fresh("sigterm"), reference, terms)
    yield f"`kill -9` at {kills} random moments", kill(fresh("kill"), reference, kills)
    yield "a save finds no room (files can't grow)", full_disk(fresh("full"), reference)
    yield "newest checkpoint cut in half", damaged(fresh("cut"), reference, truncate)
    yield "one bit of it flipped", damaged(fresh("flipped"), reference, flip)
    yield "`kill -9` to the second of two", lose_one(fresh("second"), signal.SIGKILL, 1)
    yield "`kill -9` to the first of two", lose_one(fresh("first"), signal.SIGKILL, 0)
    yield "the second of two frozen", lose_one(fresh("frozen"), signal.SIGSTOP, 1)
    yield "a loss that is not finite", not_finite(fresh("nan"))


def prepare(folder: pathlib.Path) -> pathlib.Path:
    """Renders the dataset, once."""
    if not folder.exists():
        sizes = [f"--train={CLIPS}", "--val=0", "--eval=1", "--size=48", "--image_size=32"]
        command = [sys.executable, "-m", "data_prep.scenes", f"--output={folder}", *sizes]
        subprocess.run(command, check=True, cwd=launch.ROOT)
    return folder


def main() -> None:
    """Runs the command line."""
    arguments = cli.parser(__doc__)
    arguments.add_argument("--workdir", required=True, help="folder for the trainings")
    arguments.add_argument("--kills", type=int, default=20, help="number of random kills")
    arguments.add_argument("--seed", type=int, default=0, help="seed of the random moments")

    def start(args: argparse.Namespace) -> Any:
        random.seed(args.seed)
        workdir = pathlib.Path(args.workdir).resolve()
        data = prepare(workdir / "data")
        print("| what was done | what came of it |\n|---|---|", flush=True)
        for done, result in rows(workdir, data, args.kills):
            print(f"| {done} | {result} |", flush=True)

    cli.main(arguments, start)


if __name__ == "__main__":
    main()
