"""The processes of one run: how they find each other, agree, and stop together.

Every process runs the same program on its own devices, of which JAX makes one mesh. On TPU pods,
under Slurm, MPI or Kubernetes JAX finds out by itself who belongs together. Elsewhere three
variables say it: JAX_COORDINATOR_ADDRESS (HOST:PORT of process 0), JAX_NUM_PROCESSES and
JAX_PROCESS_ID.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from cavmae_sync_jax.cli import UserError

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# A process that is silent for so long counts as dead, and all others stop with a message.
HEARTBEAT_SECONDS = 60
# So long one that ends waits for the others to end, too.
SHUTDOWN_SECONDS = 60


def join() -> None:
    """Joins the run's other processes, if the environment tells of any; call it before computing.

    Raises:
      UserError: if only some of the variables are set, or they make no sense.
    """
    if jax.distributed.is_initialized():
        return
    seconds = {
        "heartbeat_timeout_seconds": HEARTBEAT_SECONDS,
        "shutdown_timeout_seconds": SHUTDOWN_SECONDS,
    }
    given = {name: os.environ[name] for name in VARIABLES if os.environ.get(name)}
    if not given:
        # Without a cluster around, JAX lacks a value; once it computes, it is too late to join.
        with contextlib.suppress(ValueError, RuntimeError):
            jax.distributed.initialize(**seconds)
        return
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
    try:
        jax.distributed.initialize(address, processes, rank, **seconds)
    except RuntimeError as error:
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"process {rank} of {processes} can't join {address}: {reason}") from error


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Joins the run's other processes; if one of them is lost, ends this one with a sentence."""
    join()
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        reason = str(error).strip().split("\n")[0][:300]
        print(
            f"error: process {jax.process_index()} can't work on with the others ({reason}): if "
            "nothing is wrong here, one of them has stopped, see their logs; start all of them "
            "again to go on",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)  # because a normal end would wait for the lost process


def first_says(flag: bool) -> bool:
    """Process 0's `flag`, on every process, where each might see another state of the files."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.broadcast_one_to_all(np.array(flag)))


def all_say(flag: bool) -> bool:
    """Whether `flag` holds on every process."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).all())


def wait(name: str) -> None:
    """Waits until every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


@contextlib.contextmanager
def termination() -> Iterator[Callable[[int], bool]]:
    """Yields `told(step)`: whether to save and stop after this step; call it after every step.

    SIGTERM, which clusters send before they take a machine away, says so. Every process gets the
    same answer at the same step, whichever was told.
    """
    if jax.distributed.is_initialized():
        yield multihost_utils.reached_preemption_sync_point  # JAX has its own handler then
        return
    signalled = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        yield lambda step: False
        return
    before = signal.signal(signal.SIGTERM, lambda *_: signalled.set())
    try:
        yield lambda step: signalled.is_set()
    finally:
        signal.signal(signal.SIGTERM, before)


def look_after_worker(index: int, workers: int) -> None:
    """Begins a worker of the input pipeline: it outlives signals, but not its parent.

    A signal to the whole process group is the parent's to answer, who still needs data until then;
    a parent that was killed can't stop its workers.
    """
    del index, workers  # grain's signature
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
