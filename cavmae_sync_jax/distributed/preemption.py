"""SIGTERM: the processes of a training agree on the step at which all save and stop."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from cavmae_sync_jax.utils import console

# About how often a training's processes ask each other whether one got a signal to stop.
POLL_SECONDS = 5.0


class PreemptionGuard:
    """Whether the processes of a training are to save and stop, the same answer on all of them.

    SIGTERM, which clusters send before they take a machine away, says so to any of them, and so
    does Ctrl-C.
    """

    def __init__(self) -> None:
        self.signalled = threading.Event()
        self.status = 143
        self._at_once = False
        self._polled: int | None = None  # the step of the last poll
        self._next, self._stride, self._since = 0, 1, time.monotonic()

    def __call__(self, step: int) -> bool:
        """Call it after every step.

        Processes ask each other at the same steps, about every `POLL_SECONDS`. A poll waits for
        the devices, so that the time between two polls is that of the steps between them. The
        first poll comes at once, at whatever step a run begins, and strides at most double.
        """
        if jax.process_count() == 1:
            return self.signalled.is_set()
        if step < self._next:
            return False
        now = time.monotonic()
        wanted = 1.0
        if self._polled is not None:
            seconds_per_step = (now - self._since) / (step - self._polled)
            wanted = min(POLL_SECONDS / max(seconds_per_step, 1e-3), 2.0 * self._stride)
        mine = np.array([float(self.signalled.is_set()), wanted])
        answers = multihost_utils.process_allgather(mine)
        self._polled, self._since = step, time.monotonic()
        self._stride = max(1, int(answers[:, 1].min()))  # as all have the same answers
        self._next = step + self._stride
        return bool(answers[:, 0].any())

    @contextlib.contextmanager
    def nothing_to_save(self) -> Iterator[None]:
        """Within it, a signal raises `KeyboardInterrupt` at once, also one that came before.

        Several processes stay together and hear it at the next step.
        """
        self._at_once = jax.process_count() == 1
        try:
            if self._at_once and self.signalled.is_set():
                raise KeyboardInterrupt
            yield
        finally:
            self._at_once = False

    def signal(self, number: int, frame: Any = None) -> None:
        """Handles a signal; a second Ctrl-C ends the program at once."""
        del frame
        again = self.signalled.is_set()
        self.signalled.set()
        if number == signal.SIGINT:
            if again:
                # Threads that wait for a bucket would keep a program that ends in good order.
                os.write(2, b"\nstopped at once by a second Ctrl-C\n")
                os._exit(130)
            self.status = 130
            if not self._at_once:
                console.log("Ctrl-C: saving after this step; press it again to end at once")
        if self._at_once:
            raise KeyboardInterrupt


@contextlib.contextmanager
def preemption_guard() -> Iterator[PreemptionGuard]:
    """Listens to SIGTERM and Ctrl-C, instead of ending at once, until the context ends."""
    guard = PreemptionGuard()
    if threading.current_thread() is not threading.main_thread():  # which alone may handle signals
        yield guard
        return
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(number, guard.signal) for number in numbers]
    try:
        yield guard
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def init_worker(index: int, workers: int) -> None:
    """Starts a worker of the input pipeline: signals do not end it, but its parent's end does.

    The parent answers a signal to the whole process group, and it needs data until then. A parent
    that was killed can't stop its workers.
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
