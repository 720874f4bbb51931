"""The processes of one run: how they find each other, agree, and stop together.

Every process runs the same program on its own devices. JAX makes one mesh of all devices. On TPU
pods, under Slurm, MPI or Kubernetes, JAX itself finds the processes of a run. Elsewhere three
variables name them: JAX_COORDINATOR_ADDRESS (HOST:PORT of process 0), JAX_NUM_PROCESSES and
JAX_PROCESS_ID.
"""

import contextlib
import os
import re
import sys
import traceback
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from cavmae_sync_jax.distributed import hardware
from cavmae_sync_jax.utils import console
from cavmae_sync_jax.utils.errors import UserError

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# A process that is silent for so long counts as dead, and all others stop with a message.
HEARTBEAT_SECONDS = 60
# So long one that ends waits for the others to end, too.
SHUTDOWN_SECONDS = 60


def initialize() -> None:
    """Joins the run's other processes, if the environment names any; call it before computing.

    Raises:
      UserError: if only some of the variables are set, they make no sense, or joining fails.
    """
    # One process of Slurm or MPI is alone, and would get but one of its machine's GPUs.
    alone = "1" in (os.environ.get("SLURM_NTASKS"), os.environ.get("OMPI_COMM_WORLD_SIZE"))
    if jax.distributed.is_initialized() or (alone and not os.environ.get(VARIABLES[0])):
        return
    # JAX's own answer to SIGTERM loses the signals that come before a resumed run's first step.
    jax.config.update("jax_enable_preemption_service", False)
    described = _described()
    address, processes, rank = described or (None, None, None)
    try:
        jax.distributed.initialize(
            address,
            processes,
            rank,
            local_device_ids=hardware.slurm_devices(os.environ),
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=SHUTDOWN_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        # So it says where no cluster is around, and where this process computes already.
        if described or not re.search("should be defined|must be called before", reason):
            who = f"process {rank} of {processes}" if described else "this process"
            raise UserError(f"{who} can't join the others: {reason}") from error


def _described() -> tuple[str, int, int] | tuple[()]:
    """The address, the number of processes and the rank in the variables, if they are set."""
    given = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    if not given:
        return ()
    if missing := [name for name in VARIABLES if name not in given]:
        raise UserError(f"{', '.join(given)} set, but not {', '.join(missing)}: set all three")
    address, *numbers = given.values()
    try:
        processes, rank = map(int, numbers)
        if not 0 <= rank < processes or ":" not in address:
            raise ValueError
    except ValueError:
        texts = ", ".join(f"{name}={value}" for name, value in given.items())
        raise UserError(f"{texts}: must be HOST:PORT, a number, and a rank below it") from None
    return address, processes, rank


@contextlib.contextmanager
def connected() -> Iterator[None]:
    """Joins the run's other processes; if one of them is lost, ends this one with a sentence."""
    initialize()
    if idle := hardware.idle_accelerator():
        console.log(idle)
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        traceback.print_exc()
        reason = str(error).strip().split("\n")[0][:300]
        sys.stdout.flush()
        print(
            f"error: process {jax.process_index()} can't work on with the others ({reason}): if "
            "nothing is wrong here, one of them has stopped, see their logs; start all of them "
            "again to go on",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # because a normal end would wait for the lost process


def broadcast_from_first(value: int) -> int:
    """Process 0's `value`, on every process, where each might see another state of the files."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.array(value)))


def all_agree(flag: bool) -> bool:
    """Whether `flag` holds on every process."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).all())


def barrier(name: str) -> None:
    """Waits until every process has reached this call."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)
