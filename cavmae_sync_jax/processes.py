"""The processes of one run: how they find each other, agree, and stop together.

Every process runs the same program on its own devices, of which JAX makes one mesh. On TPU pods,
under Slurm, MPI or Kubernetes JAX finds out by itself who belongs together. Elsewhere three
variables say it: JAX_COORDINATOR_ADDRESS (HOST:PORT of process 0), JAX_NUM_PROCESSES and
JAX_PROCESS_ID.
"""

import contextlib
import os
import re
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from cavmae_sync_jax.cli import UserError

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
# A process that is silent for so long counts as dead, and all others stop with a message.
HEARTBEAT_SECONDS = 60
# So long one that ends waits for the others to end, too.
SHUTDOWN_SECONDS = 60
# About how often a training's processes ask each other whether one was told to stop.
ASKING_SECONDS = 5.0


def join() -> None:
    """Joins the run's other processes, if the environment tells of any; call it before computing.

    Raises:
      UserError: if only some of the variables are set, they make no sense, or joining fails.
    """
    # One process of Slurm or MPI is alone, and would get but one of its machine's GPUs.
    alone = "1" in (os.environ.get("SLURM_NTASKS"), os.environ.get("OMPI_COMM_WORLD_SIZE"))
    if jax.distributed.is_initialized() or (alone and not os.environ.get(VARIABLES[0])):
        return
    # JAX's own answer to SIGTERM loses the signals that come before a resumed run's first step.
    jax.config.update("jax_enable_preemption_service", False)
    seconds = {
        "heartbeat_timeout_seconds": HEARTBEAT_SECONDS,
        "shutdown_timeout_seconds": SHUTDOWN_SECONDS,
    }
    described = _described()
    try:
        jax.distributed.initialize(*described, **seconds)
    except (ValueError, RuntimeError) as error:
        reason = str(error).strip().split("\n")[0]
        # So it says where no cluster is around, and where this process computes already.
        if described or not re.search("should be defined|must be called before", reason):
            who = f"process {described[2]} of {described[1]}" if described else "this process"
            raise UserError(f"{who} can't join the others: {reason}") from error


def _described() -> tuple[str, int, int] | tuple[()]:
    """The address, the number of processes and the rank that the variables tell, if set."""
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
def joined() -> Iterator[None]:
    """Joins the run's other processes; if one of them is lost, ends this one with a sentence."""
    join()
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


def first_says(value: int) -> int:
    """Process 0's `value`, on every process, where each might see another state of the files."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.array(value)))


def all_say(flag: bool) -> bool:
    """Whether `flag` holds on every process."""
    if jax.process_count() == 1:
        return flag
    return bool(multihost_utils.process_allgather(np.array(flag)).all())


def wait(name: str) -> None:
    """Waits until every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


class Termination:
    """Whether the processes of a training are to save and stop, the same answer on all of them.

    SIGTERM, which clusters send before they take a machine away, says so to any of them.
    """

    def __init__(self) -> None:
        self.signalled = threading.Event()
        self._asked, self._next, self._since = 0, 0, time.monotonic()

    def __call__(self, step: int) -> bool:
        """Call it after every step; processes ask each other every `ASKING_SECONDS` or so."""
        if jax.process_count() == 1:
            return self.signalled.is_set()
        if step < self._next:
            return False
        pace = (time.monotonic() - self._since) / max(1, step - self._asked)
        mine = np.array([float(self.signalled.is_set()), ASKING_SECONDS / max(pace, 1e-3)])
        answers = multihost_utils.process_allgather(mine)
        self._asked, self._since = step, time.monotonic()
        self._next = step + max(1, int(answers[:, 1].min()))  # as all have the same answers
        return bool(answers[:, 0].any())


@contextlib.contextmanager
def termination() -> Iterator[Termination]:
    """Listens to SIGTERM, instead of ending at once, until the context ends."""
    told = Termination()
    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        yield told
        return
    before = signal.signal(signal.SIGTERM, lambda *_: told.signalled.set())
    try:
        yield told
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
