"""Times a training from its command to the first step's line in metrics.jsonl.

    python -m benchmarks.training.startup --config=configs/demo.py
    python -m benchmarks.training.startup --config=configs/pretrain.py --config.batch_size=4 \\
        --config.data.workers=0 --repeats=2                                      # on a CPU

`python -m cavmae_sync_jax.train` is really started, on a few generated clips: first with an empty
folder for JAX's compilation cache (cold), then with what that start has left there (cached). When
the line is there the process is killed. One more start of each kind is observed to tell the parts:
the program runs in it with marks in its functions and a listener to JAX's own events.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

# A process that is observed has this module, too: it imports no more than the training does.
from benchmarks import timing
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError

PROGRAM = ("-m", "cavmae_sync_jax.train")
OBSERVED = ("-c", "from benchmarks.training import startup; startup.observe()")
BEGAN, TOLD = "STARTUP_BEGAN", "STARTUP_TOLD"  # the environment of a process that is observed
KINDS = ("cold", "cached")
CLIPS_AT_LEAST = 8
PARTS = (
    "Python and imports",
    "command line and devices",
    "dataset, weights drawn",
    "first batch and step",
)
EVENTS = {
    "/jax/core/compile/jaxpr_trace_duration": "in all: tracing",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "in all: lowering",
    "/jax/core/compile/backend_compile_duration": "in all: compiling, or reading the cache",
}


class Start(NamedTuple):
    """Seconds until the first step's line, CPU seconds of the process, seconds of its parts."""

    seconds: float
    cpu_seconds: float
    parts: dict[str, float]


def begin(code: Sequence[str], flags: Sequence[str], folder: Path, cache: Path) -> Start:
    """Starts a training in a new process, waits for its first line, and kills it.

    Args:
      code: what Python is to run, `PROGRAM` or `OBSERVED`; the parts are only told of the latter.
      flags: of the training, but `--workdir`.
      folder: where it may write.
      cache: JAX's compilation cache.

    Raises:
      UserError: if the training refuses what it is given.
      RuntimeError: if it ends in another way before its first step.
    """
    folder.mkdir()
    line, told, words = folder / "run/metrics.jsonl", folder / "parts.json", folder / "stderr"
    command = [sys.executable, *code, *flags, f"--workdir={folder / 'run'}"]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache), TOLD: str(told)}
    with words.open("wb") as stderr:
        began = time.time()
        environment[BEGAN] = str(began)
        process = subprocess.Popen(command, stdout=stderr, stderr=stderr, env=environment)
        ended, status, usage = 0, 0, None
        try:
            while not (there := line.exists() and line.stat().st_size > 0) and not ended:
                time.sleep(0.01)
                ended, status, usage = os.wait4(process.pid, os.WNOHANG)
            seconds = time.time() - began
        finally:
            if not ended:
                process.kill()
                _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
    if not there:
        said = words.read_text(encoding="utf-8", errors="replace").strip()
        if process.returncode == 2:
            raise UserError(said.splitlines()[-1].split("error: ")[-1])
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{said}")
    parts = json.loads(told.read_text(encoding="utf-8")) if told.exists() else {}
    return Start(seconds, usage.ru_utime + usage.ru_stime, parts)


def observe() -> None:
    """Runs the training's command line and tells `begin`, as JSON, what took how long."""
    from cavmae_sync_jax import train
    from cavmae_sync_jax.training import metric_writer

    marks, spans = [float(os.environ[BEGAN]), time.time()], {event: [] for event in EVENTS}

    def listen(event: str, seconds: float, **_: Any) -> None:
        if event in EVENTS:
            now = time.time()
            spans[event].append((now - seconds, now))

    def mark(owner: Any, name: str, tell: bool = False) -> None:
        function = getattr(owner, name)

        def marked(*args: Any, **kwargs: Any) -> Any:
            marks.append(time.time())
            if tell and len(marks) == 1 + len(PARTS):
                lengths = (after - before for before, after in itertools.pairwise(marks))
                parts = dict(zip(PARTS, lengths, strict=True))
                parts |= {EVENTS[event]: covered(spans[event]) for event in EVENTS}
                Path(os.environ[TOLD]).write_text(json.dumps(parts), encoding="utf-8")
            return function(*args, **kwargs)

        setattr(owner, name, marked)

    train.jax.monitoring.register_event_duration_secs_listener(listen)
    mark(train, "train_and_evaluate")
    mark(train.loader, "train_batches")
    mark(metric_writer.Writer, "write", tell=True)
    train.main()


def covered(spans: Iterable[tuple[float, float]]) -> float:
    """The length of a union of (begin, end): events lie within others of their kind."""
    length, reached = 0.0, float("-inf")
    for begins, ends in sorted(spans):
        length += max(0.0, ends - max(begins, reached))
        reached = max(reached, ends)
    return length


def run(config: ConfigDict, flags: Sequence[str], repeats: int) -> None:
    """Prints the machine and the table.

    Args:
      config: of the training.
      flags: which say the same on its command line.
      repeats: cold and cached starts that are timed.

    Raises:
      UserError: if the training refuses its config.
    """
    from benchmarks.data import input_pipeline

    if repeats < 1:
        raise UserError("--repeats must be at least 1")
    starts: dict[str, list[Start]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        clips = max(CLIPS_AT_LEAST, config.batch_size)
        data = input_pipeline.generate(scratch / "data", config, train=clips)
        own = {"data.dir": data, "data.train_split": "train", "data.eval_split": "", "log_every": 1}
        flags = [*flags, *(f"--config.{key}={value}" for key, value in own.items())]
        for repeat in range(repeats + 1):
            code, cache = OBSERVED if repeat == repeats else PROGRAM, scratch / f"cache{repeat}"
            for kind in KINDS:
                starts[kind].append(begin(code, flags, scratch / f"{kind}{repeat}", cache))
    last = [starts[kind].pop() for kind in KINDS]
    print(timing.machine("jax", "flax"))
    print(f"batch of {config.batch_size}, median (lowest–highest) of {repeats} starts\n")
    rows = [
        ["first step after", *(_seconds(s.seconds for s in starts[kind]) for kind in KINDS)],
        ["CPU time", *(_seconds(s.cpu_seconds for s in starts[kind]) for kind in KINDS)],
        ["observed once", *(_seconds([observed.seconds]) for observed in last)],
    ]
    for part in (*PARTS, *EVENTS.values()):
        rows.append([f"– {part}", *(f"{observed.parts[part]:.1f} s" for observed in last)])
    print(timing.table(["", *KINDS], rows), flush=True)


def _seconds(values: Iterable[float]) -> str:
    values = list(values)
    return f"{timing.Spread.of(values).text(1)} s" if len(values) > 1 else f"{values[0]:.1f} s"


def main() -> None:
    """Runs the command line."""
    arguments = cli.parser(__doc__)
    arguments.add_argument("--repeats", type=int, default=3, help="starts of each kind")

    def start(args: argparse.Namespace, config: ConfigDict) -> None:
        flags = [argument for argument in sys.argv[1:] if argument.startswith("--config")]
        run(config, flags, args.repeats)

    cli.main(arguments, start, config=True)


if __name__ == "__main__":
    main()
