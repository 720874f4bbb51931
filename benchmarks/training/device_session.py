"""Measures all that waits for an accelerator, in one command, and leaves JSON.

    pip install -e ".[cuda,convert,test]"        # with a build of PyTorch that has CUDA
    python -m benchmarks.training.device_session --output=runs/device --minutes=60
    python -m benchmarks.training.device_session --output=runs/tiny --tiny  # a trial on a CPU

Every part is a benchmark of this folder in a process of its own. It leaves `PART.log`, most leave
`PART.json`, and the train step leaves traces of five steps for each setting. `session.json` names
the machine and says what became of each part and how long it took. A part that fails does not stop
the others. The same command goes on where an earlier one stopped: parts that are done are skipped,
and no part begins after `--minutes`. Parts that matter most come first.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import timing
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import Unsatisfied, UserError

ROOT = Path(__file__).parents[2]
# XLA's switches that may help a GPU, each against none in the part "train_step".
SWITCHES = {
    "latency_hiding": "--xla_gpu_enable_latency_hiding_scheduler=true",
    "exhaustive_tiling": "--xla_gpu_exhaustive_tiling_search=true",
    "no_triton_gemm": "--xla_gpu_enable_triton_gemm=false",
    "command_buffers": "--xla_gpu_enable_command_buffer=FUSION,CUBLAS,CUBLASLT,CUDNN",
}
SETTINGS = ("scan", "unrolled", "remat_dots", "remat_full", "lean_attention")


class Part(NamedTuple):
    """A benchmark's module and flags, and what its environment has besides."""

    module: str
    flags: tuple[str, ...]
    environment: dict[str, str]
    writes_json: bool


def parts(tiny: bool) -> dict[str, Part]:
    """All parts by name, the most important first."""
    config = "--config=configs/demo.py" if tiny else "--config=configs/pretrain.py"
    batch, batches = ("4", ("4", "8")) if tiny else ("512", ("64", "128", "256", "512", "1024"))
    turns = ("--repeats=1", "--steps=1") if tiny else ("--repeats=5", "--steps=10")

    def step(*flags: str, **environment: str) -> Part:
        return Part("benchmarks.training.train_step", (config, *turns, *flags), environment, True)

    def settings(*names: str) -> tuple[str, ...]:
        return ("--settings", *(names[:2] if tiny else names))

    device = ("cpu",) if tiny else ("h100", "h200")
    clips, pictures, many = ("2", "2", "40") if tiny else ("512", "64", "20000")
    found = {
        # Both peers in the same run.
        "train_step": step("--batch", batch, *settings(*SETTINGS)),
        "on_paper": Part(
            "benchmarks.training.roofline",
            (config, f"--config.batch_size={batch}", "--device", *device),
            {},
            True,
        ),
        "batch_sizes": step("--batch", *batches, *settings("scan", "remat_full"), "--peers"),
        "features": Part(
            "benchmarks.inference.features",
            (config, f"--clips={clips}", f"--maps={pictures}", "--repeats=3"),
            {},
            False,
        ),
        "retrieval": Part(
            "benchmarks.inference.retrieval",
            (f"--clips={many}", "--strategies", "diagonal_mean", "--repeats=1"),
            {},
            False,
        ),
        "memory_fraction": step(
            *("--batch", batch, *settings("scan"), "--peers"),
            XLA_PYTHON_CLIENT_PREALLOCATE="true",
            XLA_PYTHON_CLIENT_MEM_FRACTION="0.95",
        ),
    }
    if not tiny:
        for name, switch in SWITCHES.items():
            flags = ("--batch", batch, *settings("scan", "unrolled"), "--peers")
            found[name] = step(*flags, XLA_FLAGS=switch)
    return found


def run_part(name: str, part: Part, output: Path, seconds: float) -> dict[str, Any]:
    """Runs a part; returns what `session.json` holds of it."""
    command = [sys.executable, "-m", part.module, *part.flags]
    # Under other names until the part is done, so that half of one is never taken for all of it.
    unfinished = output / f"{name}.json.part"
    if part.writes_json:
        command.append(f"--output={unfinished.resolve()}")
    if part.module == "benchmarks.training.train_step" and name == "train_step":
        command.append(f"--profile={(output / 'profile').resolve()}")
    began = time.monotonic()
    with (output / f"{name}.log").open("w") as log:
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                env={**os.environ, **part.environment},
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=seconds,
                check=False,
            )
            status = "done" if done.returncode == 0 else f"failed with status {done.returncode}"
        except subprocess.TimeoutExpired:
            status = "stopped: the time was up"
    if status == "done" and part.writes_json:
        unfinished.rename(output / f"{name}.json")
    outcome = {"status": status, "seconds": round(time.monotonic() - began, 1)}
    return {**outcome, "command": command[1:], "environment": part.environment}


def device_kind() -> str:
    """What JAX finds, asked in a process of its own, so that this one holds no device."""
    code = "import jax; print(jax.devices()[0].device_kind, len(jax.devices()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    return done.stdout.strip() or "none"


def run(output: Path, todo: dict[str, Part], minutes: float) -> dict[str, Any]:
    """Runs the parts that are not done yet, one after the other.

    Returns:
      What `session.json` holds.

    Raises:
      UserError: if `output` holds a `session.json` of something else.
    """
    output.mkdir(parents=True, exist_ok=True)
    path, until = output / "session.json", time.monotonic() + 60 * minutes
    session: dict[str, Any] = {"parts": {}}
    if path.exists():
        try:
            session = json.loads(path.read_text())
            session["parts"].items()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is not a session's: give another --output") from error
    session |= {"machine": timing.machine("jax"), "device": device_kind()}
    for name, part in todo.items():
        left = until - time.monotonic()
        if session["parts"].get(name, {}).get("status") == "done" or left <= 0:
            continue
        print(f"{name}: {part.module} {' '.join(part.flags)}", flush=True)
        session["parts"][name] = run_part(name, part, output, left)
        found = session["parts"][name]
        print(f"{name}: {found['status']} after {found['seconds']:.0f} s", flush=True)
        draft = path.with_suffix(".json.part")
        draft.write_text(json.dumps(session, indent=1) + "\n")
        draft.rename(path)
    return session


def main() -> None:
    """Runs the command line."""
    arguments = cli.parser(__doc__)
    arguments.add_argument("--output", type=Path, required=True, help="folder of the results")
    arguments.add_argument(
        "--minutes", type=float, default=60, help="minutes after which no further part begins"
    )
    arguments.add_argument("--tiny", action="store_true", help="small sizes, to try it on a CPU")
    arguments.add_argument("--only", nargs="+", choices=parts(False), help="run only these parts")

    def start(args: argparse.Namespace) -> None:
        every = parts(args.tiny)
        todo = {name: part for name, part in every.items() if name in (args.only or every)}
        found = run(args.output, todo, args.minutes)["parts"]
        missing = [name for name in todo if found.get(name, {}).get("status") != "done"]
        if missing:
            raise Unsatisfied(f"not done: {', '.join(missing)}; see the logs in {args.output}")

    cli.main(arguments, start)


if __name__ == "__main__":
    main()
