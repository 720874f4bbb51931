"""Iterators that run ahead of their consumer, in threads."""

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, Generic, TypeVar

_Value = TypeVar("_Value")
_Item = TypeVar("_Item")
_POLL = 0.1  # seconds after which a thread that waits asks whether anybody still reads


def run(
    function: Callable[[_Value], Generator[_Item, None, None]],
    values: Iterable[_Value],
    at_once: int,
) -> Iterator[tuple[_Value, Iterator[_Item]]]:
    """Yields every value with the items that a function yields for it, in order.

    Meanwhile the function runs for later values. For each of them, one item waits at most. What the
    function raises is raised where its items are taken. Items that nobody took when the next value
    is asked for are dropped.

    Args:
      function: of a value. It runs in a thread.
      values: in the order wanted.
      at_once: how many of them are worked on at the same time.
    """
    rest, started = iter(values), deque[tuple[_Value, _Items[_Item]]]()

    def start_another() -> None:
        for value in rest:
            items = _Items[_Item]()
            # A program that ends for another reason must not wait for it.
            threading.Thread(target=items.fill, args=(function, value), daemon=True).start()
            started.append((value, items))
            return

    try:
        for _ in range(at_once):
            start_another()
        while started:
            value, items = started[0]
            yield value, iter(items)
            items.stop()
            started.popleft()
            start_another()
    finally:
        for _, items in started:
            items.stop()


class _Items(Generic[_Item]):
    """The items of one value: a thread puts them, and the consumer takes them."""

    def __init__(self) -> None:
        # An item, an error, or None for the end.
        self._queue: queue.Queue[tuple[_Item] | BaseException | None] = queue.Queue(1)
        self._stopped = threading.Event()

    def fill(self, function: Callable[[_Value], Any], value: _Value) -> None:
        """Puts all items of the value, as long as somebody wants them."""
        end = None
        try:
            with contextlib.closing(function(value)) as items:
                for item in items:
                    if not self._put((item,)):
                        return
        except BaseException as error:
            end = error
        self._put(end)

    def _put(self, entry: tuple[_Item] | BaseException | None) -> bool:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(entry, timeout=_POLL)
                return True
        return False

    def __iter__(self) -> Iterator[_Item]:
        while (entry := self._get()) is not None:
            if isinstance(entry, BaseException):
                raise entry
            yield entry[0]

    def _get(self) -> tuple[_Item] | BaseException | None:
        while not self._stopped.is_set():
            with contextlib.suppress(queue.Empty):
                return self._queue.get(timeout=_POLL)
        raise RuntimeError("these items were dropped: the next value was asked for")

    def stop(self) -> None:
        """Nobody takes the rest."""
        self._stopped.set()
