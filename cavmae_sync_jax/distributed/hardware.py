"""Which devices this process computes on, and which it leaves idle by mistake."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import jax


def description() -> str:
    """The devices of all processes, such as "16 × TPU v4 in 4 processes"."""
    kinds = sorted({device.device_kind for device in jax.devices()})
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return f"{jax.device_count()} × {', '.join(kinds)}{processes}"


def idle_accelerator(root: Path = Path("/")) -> str | None:
    """A sentence where a machine has an accelerator that JAX does not see, though it may look.

    Args:
      root: of the machine's files.
    """
    if jax.default_backend() != "cpu" or os.environ.get("JAX_PLATFORMS"):
        return None
    if any(root.glob("proc/driver/nvidia/gpus/*")):
        name, extra = "an NVIDIA GPU", "cuda"
    elif any(root.glob("dev/accel[0-9]*")):
        name, extra = "a TPU", "tpu"
    else:
        return None
    return (
        f'this machine has {name}, but JAX computes on the CPU: pip install -e ".[{extra}]", '
        "or set JAX_PLATFORMS=cpu if that is meant"
    )


def slurm_devices(environment: Mapping[str, str]) -> list[int] | None:
    """The GPUs, of those it sees, that a task of Slurm computes on; None leaves it to JAX.

    JAX gives each task the GPU of the task's number on its host. That GPU does not exist where a
    task sees only its own, as by --gpus-per-task. Where a task is alone on its host, the host's
    other GPUs would be idle.

    Args:
      environment: the process's variables.
    """
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    tasks = re.match(r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    if not visible or not tasks:
        return None
    seen, on_host = len(visible.split(",")), int(tasks.group())
    return list(range(seen)) if seen < on_host or on_host == 1 else None
