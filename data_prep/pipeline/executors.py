"""Clips prepared by processes of this machine, for `pipeline.writers` and `pipeline.beam`.

Each clip is prepared in a separate process. A decoder that crashes or hangs there harms no other
clip.
"""

import collections
import importlib
import itertools
import multiprocessing
import os
import select
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from types import ModuleType
from typing import Any, NamedTuple, TypeVar

import pebble
import threadpoolctl

from cavmae_sync_jax.utils.errors import UserError
from data_prep.pipeline import archives, shards
from data_prep.pipeline.clips import Clip, Reject
from data_prep.pipeline.shards import Job, Record

Item = TypeVar("Item")
_AHEAD = 8  # items in flight for each worker, so that a slow one does not hold up the others


class Engine(NamedTuple):
    """How clips are prepared; nothing of it changes the dataset.

    Attributes:
      workers: processes on this machine; None means one per core.
      time_limit: seconds that one clip may take.
      runner: Apache Beam's runner, such as "DirectRunner" or "DataflowRunner"; "" for processes.
      beam_options: the runner's flags without dashes, such as "direct_num_workers=4".
    """

    workers: int | None = None
    time_limit: float | int = 300.0
    runner: str = ""
    beam_options: tuple[str, ...] = ()

    def check(self) -> None:
        """Refuses numbers that make no sense.

        Raises:
          UserError: naming the flag.
        """
        if self.workers is not None and self.workers < 1:
            raise UserError(f"--workers must be at least 1, not {self.workers}")
        if not self.time_limit > 0:
            raise UserError(f"--time_limit must be above 0, not {self.time_limit:g}")
        if self.beam_options and not self.runner:
            raise UserError("--beam_pipeline_options needs a --runner")


class Failure(NamedTuple):
    """Why a worker has no result; `reason` is a key of `clips.REASONS`."""

    reason: str
    detail: str


class Workers:
    """Processes that call functions, a few items ahead of whoever takes the results."""

    def __init__(self, count: int | None, time_limit: float | int):
        """Starts `count` processes (None: one per core); a call may take `time_limit` s."""
        count = count or os.cpu_count() or 1
        self._scratch = archives.temporary_folder()
        arguments = os.getpid(), self._scratch.name
        self._pool = pebble.ProcessPool(
            count, initializer=start_worker, initargs=arguments, context=context()
        )
        self._ahead, self._time_limit = _AHEAD * count, time_limit

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        self._pool.stop()
        self._pool.join()
        self._scratch.cleanup()

    def results(
        self, function: Callable[..., Any], items: Iterable[Item], *arguments: Any
    ) -> Iterator[tuple[Item, Any]]:
        """Yields each item with `function(item, *arguments)`, or with its `Failure`, in order.

        Raises:
          UserError: whatever the function raises of this class.
        """
        waiting: collections.deque = collections.deque()
        rest = iter(items)
        while True:
            for item in itertools.islice(rest, self._ahead - len(waiting)):
                call = self._pool.schedule(function, (item, *arguments), timeout=self._time_limit)
                waiting.append((item, call))
            if not waiting:
                return
            item, call = waiting.popleft()
            yield item, self._result(call)

    def _result(self, call: pebble.ProcessFuture) -> Any:
        try:
            return call.result()
        except UserError:
            raise
        except TimeoutError as error:
            if isinstance(error.errno, int):  # a network disk's, which has the same class
                return Failure("failed", f"TimeoutError: {error}")
            return Failure("too_slow", f"It took more than {self._time_limit:g} s.")
        except pebble.ProcessExpired as error:
            how = f"with status {error.exitcode}"
            if error.exitcode < 0:
                how = f"by {signal.Signals(-error.exitcode).name}"
            return Failure("crashed", f"The process that worked on it ended {how}.")
        except BrokenProcessPool as error:
            raise UserError(
                "the worker processes can't start, perhaps for lack of memory: try fewer --workers"
            ) from error
        except Exception as error:  # one clip of millions must not end the run
            return Failure("failed", f"{type(error).__name__}: {error}")


def beam() -> ModuleType:
    """Returns `pipeline.beam`, which needs an extra.

    Raises:
      UserError: it is not installed.
    """
    try:
        return importlib.import_module("data_prep.pipeline.beam")
    except ImportError as error:
        raise UserError(
            f"--runner needs Apache Beam, pip install '.[beam]' brings it ({error})"
        ) from error


def context() -> multiprocessing.context.ForkServerContext:
    """Returns what starts processes, which find the modules loaded that prepare clips."""
    chosen = multiprocessing.get_context("forkserver")
    chosen.set_forkserver_preload(["data_prep.pipeline.shards", "cavmae_sync_jax.media.compiled"])
    return chosen


def start_worker(owner: int, folder: str) -> None:
    """Makes this process a worker of the process `owner`, with which it ends.

    Its temporary files go to `folder`, which the owner removes.
    """
    _end_with(owner)
    archives.leave_copies(folder)
    # Ctrl-C is the parent's to handle, and the other cores are the other workers'.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threadpoolctl.threadpool_limits(1)


def _end_with(owner: int) -> None:
    """Ends this process as soon as that of the number `owner` is gone.

    A worker would else decode on until its clip is done, and then wait for ever: its own parent is
    the server that has forked it, which lives as long as any worker.
    """

    def watch() -> None:
        select.select([descriptor], [], [])
        os.kill(os.getpid(), signal.SIGKILL)

    try:
        descriptor = os.pidfd_open(owner)
    except ProcessLookupError:
        os.kill(os.getpid(), signal.SIGKILL)
    threading.Thread(target=watch, daemon=True).start()


def prepared(
    clips: Iterable[Clip], job: Job, workers: Workers, done: Callable[[int], Any]
) -> Iterator[tuple[Clip, Record | Reject]]:
    """Yields each clip, in order, with its record or why there is none.

    Args:
      clips: of any number of shards.
      job: what to prepare.
      workers: that do it.
      done: called with the number of clips that were just finished.
    """
    for clip, result in workers.results(shards.prepare_record, clips, job):
        done(1)
        if isinstance(result, Failure):
            result = Reject(clip.clip_id, clip.path, result.reason, f"{clip.path}: {result.detail}")
        yield clip, result
