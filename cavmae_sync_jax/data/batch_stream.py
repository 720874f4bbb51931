"""Batches that one thread builds in order, while a bucket is asked for the records of later ones.

One thread is enough: while it waits for a record, or decodes one, others are on their way. With a
second thread both would wait for Python's lock.
"""

import collections
import itertools
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any, Protocol, runtime_checkable

import grain

from cavmae_sync_jax.data.pair_spec import Batch
from cavmae_sync_jax.data.records import Records


@runtime_checkable
class Builder(Protocol):
    """How an element of a stream becomes a batch."""

    @property
    def records(self) -> Records:
        """Where the clips are read."""

    def clips(self, element: Any) -> list[int]:
        """The records that the batch is made of, at least one, in the order of their use."""

    def batch(self, element: Any, clips: Iterator[int]) -> Batch:
        """Builds the batch; every one of `clips` must be read before the next one is taken."""


class Batches(grain.IterDataset):
    """A stream of batches, of which a few are built before they are asked for."""

    def __init__(self, elements: grain.IterDataset, builder: Builder, ready: int):
        """Takes a stream of elements, and how many batches to have ready, at least one."""
        super().__init__(elements)
        self._builder, self._ready = builder, ready

    def __iter__(self) -> "_BatchIterator":
        return _BatchIterator(self._parent.__iter__(), self._builder, self._ready)


_Tasks = queue.SimpleQueue[tuple[Future[Batch | None], Callable[[], Batch | None]] | None]


def _work(tasks: _Tasks) -> None:
    while (task := tasks.get()) is not None:
        future, build = task
        del task  # else this thread would keep the stream alive
        try:
            future.set_result(build())
        except BaseException as error:
            future.set_exception(error)
        del future, build


class _BatchIterator(grain.DatasetIterator):
    def __init__(self, elements: grain.DatasetIterator, builder: Builder, ready: int):
        super().__init__(elements)
        self._builder, self._ready = builder, ready
        self._restart()

    def _restart(self) -> None:
        self._begin, self._taken = self._parent.get_state(), 0
        self._elements: collections.deque[Any] = collections.deque()  # of no batch yet
        self._futures: collections.deque[Future[Batch | None]] = collections.deque()
        self._tasks: _Tasks = queue.SimpleQueue()
        # A daemon, for a program that ends must not wait for a bucket.
        self._thread = threading.Thread(target=_work, args=[self._tasks], daemon=True)
        self._thread.start()
        self._clips = self._builder.records.ahead(self._clips_of_all())
        self._error: Exception | None = None
        self._stopped, self._building = False, threading.Lock()

    def _clips_of_all(self) -> Iterator[int]:
        for element in self._parent:
            self._elements.append(element)
            yield from self._builder.clips(element)

    def _build(self) -> Batch | None:
        """The next batch, or None after the last one; after an error, there are no more."""
        try:
            with self._building:
                if self._error is not None:
                    raise self._error
                first = None if self._stopped else next(self._clips, None)
                if first is None:
                    return None
                element = self._elements.popleft()
                rest = itertools.islice(self._clips, len(self._builder.clips(element)) - 1)
                return self._builder.batch(element, itertools.chain([first], rest))
        except Exception as error:
            self._error = error
            raise
        finally:
            if self._stopped:
                self._forget()

    def __next__(self) -> Batch:
        # The one after those that are to be ready is begun before the first of them is used.
        while len(self._futures) <= self._ready:
            future: Future[Batch | None] = Future()
            self._futures.append(future)
            self._tasks.put((future, self._build))
        batch = self._futures.popleft().result()
        if batch is None:
            raise StopIteration
        self._taken += 1
        return batch

    def get_state(self) -> dict[str, Any]:
        """Where the stream began, and how many batches were taken since."""
        return {"begin": self._begin, "taken": self._taken}

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes on after the batch that was the last one then."""
        self._stop()
        self._thread.join()  # until nothing takes elements any more
        self._parent.set_state(state["begin"])
        for _ in range(state["taken"]):
            next(self._parent)
        self._restart()
        self._begin, self._taken = state["begin"], state["taken"]

    def close(self) -> None:
        """Builds no more batches, and forgets what was asked for."""
        self._stop()
        super().close()

    def _stop(self) -> None:
        # The garbage collector may call this anywhere, so it must wait for no lock.
        self._stopped = True
        self._forget()
        self._tasks.put(None)

    def _forget(self) -> None:
        """Forgets what was asked for; a batch that is being built does so at its end."""
        if self._building.acquire(blocking=False):
            try:
                self._clips.close()
            finally:
                self._building.release()
