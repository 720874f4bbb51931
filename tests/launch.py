"""Starts runs of several real processes on this machine, as a cluster would (CPU, Gloo)."""

import importlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent
SECONDS = 10  # of silence after which a process counts as dead, in these runs
FLAGS = "--xla_force_host_platform_device_count=1 --xla_backend_optimization_level=0"


def start(count, commands, logs, together=True):
    """Starts `count` processes of one device; each calls the programs of `commands` in turn.

    Args:
      count: processes.
      commands: lists of a module's name and its arguments.
      logs: folder for `RANK.log`, what a process says.
      together: whether the environment tells them of each other.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    logs = pathlib.Path(logs)
    logs.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": FLAGS}
    started = []
    for rank in range(count):
        if together:
            env |= {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(count)}
            env |= {"JAX_PROCESS_ID": str(rank)}
        with (logs / f"{rank}.log").open("wb") as log:
            arguments = json.dumps([[str(part) for part in command] for command in commands])
            started.append(
                subprocess.Popen(
                    [sys.executable, __file__, arguments],
                    cwd=ROOT,
                    env=env,
                    stdout=log,
                    stderr=log,
                )
            )
    return started


def finish(started, timeout=240):
    """Waits until all have ended; returns their exit statuses."""
    ends = time.monotonic() + timeout
    try:
        return [process.wait(max(0, ends - time.monotonic())) for process in started]
    finally:
        for process in started:
            process.kill()


def wait_for(condition, started, timeout=240):
    """Waits until `condition()` is true while all processes live."""
    ends = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < ends, "waited for too long"
        assert all(process.poll() is None for process in started), "a process has ended"
        time.sleep(0.05)


def main():
    """Runs the programs given as JSON."""
    from cavmae_sync_jax import processes

    processes.HEARTBEAT_SECONDS = processes.SHUTDOWN_SECONDS = SECONDS
    for module, *arguments in json.loads(sys.argv[1]):
        sys.argv = [module, *arguments]
        importlib.import_module(module).main()


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
