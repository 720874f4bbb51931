"""Starts runs of several real processes on this machine, as a cluster would (CPU, Gloo)."""

import importlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from etils import epath

from cavmae_sync_jax.distributed import multihost, preemption

ROOT = pathlib.Path(__file__).parents[2]
SECONDS = 10  # of silence after which a process counts as dead, in these runs
FLAGS = "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0"


def start(
    count: int,
    commands: Sequence[Sequence[Any]],
    logs: epath.PathLike,
    *,
    together: bool = True,
    prepare: Callable[[], None] | None = None,
) -> list[subprocess.Popen]:
    """Starts `count` processes of one device; each calls the programs of `commands` in turn.

    Args:
      count: processes.
      commands: lists of a module's name and its arguments.
      logs: folder for `RANK.log`, what a process says.
      together: whether the environment tells them of each other.
      prepare: called in each process before it begins.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    logs = pathlib.Path(logs)
    logs.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": FLAGS}
    env = {name: value for name, value in env.items() if name not in multihost.VARIABLES}
    started = []
    for rank in range(count):
        if together:
            env |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
            env |= {"JAX_PROCESS_ID": str(rank)}
        with (logs / f"{rank}.log").open("wb") as log:
            arguments = json.dumps([[str(part) for part in command] for command in commands])
            started.append(
                subprocess.Popen(
                    [sys.executable, "-m", "benchmarks.training.launch", arguments],
                    cwd=ROOT,
                    env=env,
                    stdout=log,
                    stderr=log,
                    preexec_fn=prepare,
                )
            )
    return started


def finish(started: Sequence[subprocess.Popen], timeout: float = 240) -> list[int]:
    """Waits until all have ended; returns their exit statuses."""
    ends = time.monotonic() + timeout
    try:
        return [process.wait(max(0, ends - time.monotonic())) for process in started]
    finally:
        for process in started:
            process.kill()


def wait_for(
    condition: Callable[[], bool], started: Sequence[subprocess.Popen], timeout: float = 240
) -> None:
    """Waits until `condition()` is true while all processes live.

    Raises:
      RuntimeError: if one of them ends, or it takes too long.
    """
    ends = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > ends:
            raise RuntimeError(f"{timeout} s have passed")
        if any(process.poll() is not None for process in started):
            raise RuntimeError("a process has ended")
        time.sleep(0.05)


def main() -> None:
    """Runs the programs that the first argument names, as JSON."""
    multihost.HEARTBEAT_SECONDS = multihost.SHUTDOWN_SECONDS = SECONDS
    preemption.POLL_SECONDS = 0.0  # after every step, as these runs have few
    for module, *arguments in json.loads(sys.argv[1]):
        sys.argv = [module, *arguments]
        importlib.import_module(module).main()


if __name__ == "__main__":
    main()
