"""The records of a split's shards in a bucket (`gs://`), by number, asked for ahead of their use.

TensorStore, which also writes the checkpoints there, sends the requests, and repeats and counts
those that fail. `array_record_format` cuts the records out of the answers.
"""

import collections
import itertools
import os
import threading
import time
from collections.abc import Generator, Iterable
from typing import Any

import tensorstore

from cavmae_sync_jax.data import array_record_format, dataset_dir
from cavmae_sync_jax.data.disk_shards import Places
from cavmae_sync_jax.utils import console
from cavmae_sync_jax.utils.errors import UserError

# Waits between repeats grow from the first to the longest: the limit is some five minutes.
RETRIES = {"max_retries": 32, "initial_delay": "200ms", "max_delay": "10s"}
# A connection over which nothing comes for so long is given up, and its request repeated.
SILENT_SECONDS = 20
# Of TensorStore, per process. More of them wait for each other: see results/streaming.md.
HTTP_THREADS = 1
LOG_EVERY = 10.0  # seconds between two log lines about repeats, or about waiting
LONGEST_WAIT = 900.0  # seconds for one record, with all its repeats
_RETRIES_METRIC = "/tensorstore/kvstore/gcs/retries"


def repeats() -> int:
    """How many requests this process has repeated because they failed."""
    found = tensorstore.experimental_collect_matching_metrics(_RETRIES_METRIC)
    return sum(int(value["value"]) for metric in found for value in metric["values"])


class BucketShards:
    """Reads records by number, with up to `requests` requests in flight for those read next."""

    def __init__(self, places: Places, requests: int):
        """Asks for nothing yet.

        Args:
          places: the shards, whose paths begin with gs://.
          requests: in flight at a time.
        """
        self._places, self._requests = places, requests
        self._start()

    def _start(self) -> None:
        self._indexes: dict[int, tuple[array_record_format.Index, Any]] = {}
        # The garbage collector may end `ahead` while this thread is in `read`.
        self._indexing, self._lock = threading.Lock(), threading.RLock()
        self._asked: dict[int, collections.deque[Any]] = collections.defaultdict(collections.deque)
        self._stores: dict[str, Any] = {}
        self._logged, self._next_log = repeats(), 0.0
        os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_TIME_SECONDS", str(SILENT_SECONDS))
        os.environ.setdefault("TENSORSTORE_CURL_LOW_SPEED_LIMIT_BYTES", "1")
        os.environ.setdefault("TENSORSTORE_HTTP_THREADS", str(HTTP_THREADS))

    def __getstate__(self) -> tuple[Places, int]:
        return self._places, self._requests

    def __setstate__(self, state: tuple[Places, int]) -> None:
        self._places, self._requests = state
        self._start()

    def read(self, index: int) -> bytes:
        """The bytes of a record, which `ahead` may have asked for.

        Raises:
          UserError: the bucket does not give it.
          ValueError: it is damaged.
        """
        with self._lock:
            asked = self._asked.get(index)
            future = asked.popleft() if asked else None
            if not asked:
                self._asked.pop(index, None)
        shard, position = self._places.find(index)
        if future is None:
            self._index([shard])
            future = self._ask(index)
        begin, end, number = self._indexes[shard][0].span(position)
        data = self._answer(shard, future)
        if len(data) != end - begin:
            raise ValueError(f"{len(data)} bytes came instead of {end - begin}")
        return array_record_format.records(data, begin)[number]

    def ahead(self, indices: Iterable[int]) -> Generator[int, None, None]:
        """Yields the indices, of which there may be no end, while those after them are asked for.

        Whoever takes an index must `read` it before the next one. What was asked for and is not
        read is forgotten at the end.
        """
        waiting: collections.deque[int] = collections.deque()
        rest = iter(indices)
        try:
            while block := list(itertools.islice(rest, self._requests)):
                self._index({self._places.find(index)[0] for index in block})
                for index in block:
                    if len(waiting) == self._requests:
                        yield waiting.popleft()
                    future = self._ask(index)
                    with self._lock:
                        self._asked[index].append(future)
                    waiting.append(index)
            while waiting:
                yield waiting.popleft()
        finally:
            with self._lock:
                for index in waiting:
                    if asked := self._asked.get(index):
                        asked.pop()
                    if not asked:
                        self._asked.pop(index, None)
            self._log_repeats()

    def _ask(self, index: int) -> Any:
        shard, position = self._places.find(index)
        begin, end, _ = self._indexes[shard][0].span(position)
        return self._bytes(shard, begin, end)

    def _index(self, shards: Iterable[int]) -> None:
        """Reads the places of the records of shards, unless they are known already."""
        with self._indexing:
            new = sorted(set(shards) - set(self._indexes))
            tails = [self._bytes(shard, -array_record_format.BLOCK, None) for shard in new]
            begins, footers = [], []
            for shard, future in zip(new, tails, strict=True):
                tail = self._answer(shard, future)
                begins.append(self._parsed(shard, array_record_format.footer_place, tail))
                footers.append(self._bytes(shard, begins[-1], None))
            for shard, begin, future in zip(new, begins, footers, strict=True):
                data = self._answer(shard, future)
                index = self._parsed(shard, array_record_format.read_footer, data, begin)
                if index.records != self._places.lengths[shard]:
                    raise self._damaged(shard, f"it has {index.records} records")
                self._indexes[shard] = index, future.result().stamp.generation

    def _parsed(self, shard: int, parse: Any, *given: Any) -> Any:
        try:
            return parse(*given)
        except ValueError as error:
            raise self._damaged(shard, f"{error}") from error

    def _damaged(self, shard: int, why: str) -> UserError:
        return UserError(f"{self._places.paths[shard]} is damaged ({why}): upload it again")

    def _bytes(self, shard: int, begin: int, end: int | None) -> Any:
        bucket, _, name = self._places.paths[shard].removeprefix(dataset_dir.BUCKET).partition("/")
        if bucket not in self._stores:
            limits = {"gcs_request_concurrency": {"limit": self._requests}}
            context = {**limits, "gcs_request_retries": RETRIES}
            spec = {"driver": "gcs", "bucket": bucket, "context": context}
            self._stores[bucket] = tensorstore.KvStore.open(spec).result()
        return self._stores[bucket].read(name, byte_range=slice(begin, end))

    def _answer(self, shard: int, future: Any) -> bytes:
        path, began = self._places.paths[shard], time.monotonic()
        while True:
            try:
                result = future.result(timeout=LOG_EVERY)
                break
            except TimeoutError as error:
                if time.monotonic() - began > LONGEST_WAIT:
                    raise UserError(
                        f"{path} has not been answered for {LONGEST_WAIT:.0f} s: start again when "
                        "the bucket can be reached"
                    ) from error
                console.warn(f"waiting for {path}; {repeats()} requests have been repeated")
            except Exception as error:  # TensorStore has one for each of gRPC's statuses
                raise UserError(f"{path} can't be read: {_first_line(error)}") from error
        self._log_repeats()
        if result.state != "value":
            raise UserError(f"{path} is not there, though the dataset says so: upload it again")
        known = self._indexes.get(shard)
        if known and known[1] != result.stamp.generation:
            raise UserError(f"{path} was replaced while it was read: start again")
        return result.value

    def _log_repeats(self) -> None:
        now, count = time.monotonic(), repeats()
        if now < self._next_log or count == self._logged:
            return
        console.warn(
            f"{count - self._logged} requests to {dataset_dir.BUCKET} failed and were repeated "
            f"({count} in process {os.getpid()})"
        )
        self._logged, self._next_log = count, now + LOG_EVERY


def _first_line(error: Exception) -> str:
    lines = f"{error}".strip().splitlines()
    return lines[0].split(" [")[0] if lines else type(error).__name__
