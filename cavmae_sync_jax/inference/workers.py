"""Processes that decode: a file that crashes or blocks a decoder becomes a `UserError`.

They import no JAX. All times are seconds.
"""

import contextlib
import contextvars
import multiprocessing.context
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import TimeoutError
from typing import Any, NamedTuple

import pebble

from cavmae_sync_jax.media.errors import MediaError
from cavmae_sync_jax.utils.errors import UserError

TIME_LIMIT = 600.0  # for one answer of a worker
AHEAD = 3  # parts of a file that are decoded or wait for it


class Workers(NamedTuple):
    """Processes that decode, how many seconds each may take for one answer, and their answers."""

    pool: pebble.ProcessPool
    limit: float
    answers: weakref.WeakSet[pebble.ProcessFuture]


_WORKERS: contextvars.ContextVar[Workers | None] = contextvars.ContextVar("workers", default=None)


@contextlib.contextmanager
def as_user_errors() -> Iterator[None]:
    """Turns a file's error into the user's: one sentence that names the file."""
    try:
        yield
    except MediaError as error:
        raise UserError(str(error).rstrip(".")) from error


class _Process(multiprocessing.context.SpawnProcess):
    """A process that starts without the program's own module, which would load JAX again."""

    def start(self) -> None:
        """Starts it while the program's own module is hidden."""
        main = sys.modules["__main__"]
        hidden = {name: getattr(main, name, None) for name in ("__spec__", "__file__")}
        for name in hidden:
            setattr(main, name, None)
        try:
            super().start()
        finally:
            for name, value in hidden.items():
                setattr(main, name, value)


class _Context(multiprocessing.context.SpawnContext):
    # Forked, a worker would inherit JAX's threads without what they hold locked.
    Process = _Process


@contextlib.contextmanager
def started(count: int, limit: float = TIME_LIMIT) -> Iterator[Workers | None]:
    """Starts processes that decode, and ends them; 0 gives None.

    Args:
      count: how many.
      limit: seconds that one may take for an answer.
    """
    if not count:
        yield None
        return
    pool = pebble.ProcessPool(count, context=_Context())
    workers = Workers(pool, limit, weakref.WeakSet())
    try:
        yield workers
    finally:
        pool.stop()
        for answer in list(workers.answers):
            answer.cancel()  # nobody else would tell a thread that waits for it
        pool.join()


@contextlib.contextmanager
def within(workers: Workers | None) -> Iterator[None]:
    """Has `call` and `stream` decode in other processes; None means in this one."""
    before = _WORKERS.set(workers)
    try:
        yield
    finally:
        _WORKERS.reset(before)


def call(function: Callable[..., Any], path: str, *rest: Any) -> Any:
    """Calls a function in a worker, or here if there is none; its errors become the user's."""
    workers = _WORKERS.get()
    if workers is None:
        with as_user_errors():
            return function(path, *rest)
    future = _schedule(workers, function, path, *rest)
    return _result(future, path, workers.limit)


def stream(function: Callable[[Any], Any], parts: Sequence[Any]) -> Iterator[Any]:
    """Yields a function's answers for parts of files, in their order; workers are some ahead.

    Args:
      function: of a part; importable by name.
      parts: with the `path` of their file.

    Raises:
      UserError: if one can't be read, takes too long, or makes the decoder crash.
    """
    workers = _WORKERS.get()
    if workers is None:
        with as_user_errors():
            yield from map(function, parts)
        return
    ahead: list[Any] = []
    rest = iter(parts)
    try:
        for part in parts:
            while len(ahead) < AHEAD and (later := next(rest, None)) is not None:
                ahead.append(_schedule(workers, function, later))
            yield _result(ahead.pop(0), part.path, workers.limit)
    finally:
        for future in ahead:
            future.cancel()


def _schedule(workers: Workers, function: Callable[..., Any], *given: Any) -> Any:
    future = workers.pool.schedule(function, args=list(given), timeout=workers.limit)
    workers.answers.add(future)
    return future


def _result(future: Any, path: str, limit: float) -> Any:
    with as_user_errors():
        try:
            return future.result()
        except TimeoutError as error:
            if isinstance(error.errno, int):  # a network disk's, which has the same class
                raise UserError(f"{path} can't be read: {error.strerror}") from error
            raise UserError(f"{path} took longer than {limit:.0f} s to decode") from error
        except pebble.ProcessExpired as error:
            raise UserError(f"{path} made the decoder crash") from error
