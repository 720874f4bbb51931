"""When the device finished each step, as a thread of the host sees it."""

import contextlib
import queue
import threading
import time
from typing import Any

import jax

AHEAD = 4  # steps that the host may dispatch before the device has finished the first of them


class DeviceClock:
    """Watches dispatched steps, to bound their number and to measure how long the device idles."""

    def __init__(self, ahead: int = AHEAD):
        """Starts the watching thread; `close` ends it."""
        self._slots = threading.Semaphore(ahead)
        self._steps: queue.SimpleQueue = queue.SimpleQueue()
        self._dispatched = self._finished = 0
        self._finished_at = time.perf_counter()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while (outputs := self._steps.get()) is not None:
            with contextlib.suppress(Exception):  # whoever reads the outputs meets the error
                jax.block_until_ready(outputs)
            self._finished_at = time.perf_counter()
            self._finished += 1
            self._slots.release()

    def wait_for_slot(self) -> None:
        """Waits while `ahead` steps are unfinished; each holds its batch in memory."""
        self._slots.acquire()

    def dispatched(self, outputs: Any) -> None:
        """Notes the outputs of a step for which `wait_for_slot` was called."""
        self._dispatched += 1
        self._steps.put(outputs)

    def idle(self, began: float, ended: float) -> float:
        """Seconds between two moments, the later one now, in which the device had nothing to do."""
        if self._finished < self._dispatched:
            return 0.0
        return max(0.0, ended - max(began, self._finished_at))

    def close(self) -> None:
        """Ends the thread once the dispatched steps are finished."""
        self._steps.put(None)
