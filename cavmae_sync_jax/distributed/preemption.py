"""SIGTERM: the processes of a training agree on the step at which all save and stop."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

# About how often a training's processes ask each other whether one was told to stop.
POLL_SECONDS = 5.0


class PreemptionGuard:
    """Whether the processes of a training are to save and stop, the same answer on all of them.

    SIGTERM, which clusters send before they take a machine away, says so to any of them.
    """

    def __init__(self) -> None:
        self.signalled = threading.Event()
        self._asked, self._next, self._since = 0, 0, time.monotonic()

    def __call__(self, step: int) -> bool:
        """Call it after every step; processes ask each other every `POLL_SECONDS` or so."""
        if jax.process_count() == 1:
            return self.signalled.is_set()
        if step < self._next:
            return False
        pace = (time.monotonic() - self._since) / max(1, step - self._asked)
        mine = np.array([float(self.signalled.is_set()), POLL_SECONDS / max(pace, 1e-3)])
        answers = multihost_utils.process_allgather(mine)
        self._asked, self._since = step, time.monotonic()
        self._next = step + max(1, int(answers[:, 1].min()))  # as all have the same answers
        return bool(answers[:, 0].any())


@contextlib.contextmanager
def preemption_guard() -> Iterator[PreemptionGuard]:
    """Listens to SIGTERM, instead of ending at once, until the context ends."""
    told = PreemptionGuard()
    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        yield told
        return
    before = signal.signal(signal.SIGTERM, lambda *_: told.signalled.set())
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before)


def init_worker(index: int, workers: int) -> None:
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
