"""The records of a split's shards on a disk, by number; few shards are open at a time."""

import bisect
import collections
import itertools
import resource
import threading
from collections.abc import Generator, Iterable, Sequence
from typing import Any, Protocol, runtime_checkable

from array_record.python.array_record_module import ArrayRecordReader

# Of the files that a process may open: other splits and the rest of the program want some, too.
_SHARE_OF_FILES = 4
_FEWEST_OPEN = 8
# Those of random access to single records.
_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_BUFFER = 2**15  # bytes


class Places:
    """Which shard holds a record of a split, and where."""

    def __init__(self, paths: Sequence[str], lengths: Sequence[int]):
        self.paths = tuple(paths)
        self.lengths = tuple(lengths)
        self._ends = list(itertools.accumulate(lengths))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def find(self, index: int) -> tuple[int, int]:
        """The number of the shard, and that of the record in it.

        Raises:
          IndexError: there is no such record.
        """
        if not 0 <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        shard = bisect.bisect_right(self._ends, index)
        return shard, index - (self._ends[shard] - self.lengths[shard])


@runtime_checkable
class Shards(Protocol):
    """A source of records by number."""

    def read(self, index: int) -> bytes:
        """The bytes of a record."""

    def ahead(self, indices: Iterable[int]) -> Generator[int, None, None]:
        """Yields the indices, while the records after each are being read."""


class DiskShards:
    """Reads with ArrayRecord, which checks a hash of every record."""

    def __init__(self, places: Places):
        """Opens nothing yet."""
        self._places = places
        self._start()

    def _start(self) -> None:
        self._open: collections.OrderedDict[int, Any] = collections.OrderedDict()
        self._lock = threading.Lock()
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        endless = limit == resource.RLIM_INFINITY
        self._most = len(self._places.paths) if endless else limit // _SHARE_OF_FILES
        self._most = max(_FEWEST_OPEN, self._most)

    def __getstate__(self) -> Places:
        return self._places

    def __setstate__(self, places: Places) -> None:
        self._places = places
        self._start()

    def read(self, index: int) -> bytes:
        """The bytes of a record.

        Raises:
          Exception: what ArrayRecord raises for a file that is missing or damaged.
        """
        shard, position = self._places.find(index)
        return self._reader(shard).read([position])[0]

    def ahead(self, indices: Iterable[int]) -> Generator[int, None, None]:
        """Yields the indices: a disk answers at once, and need not be asked ahead."""
        yield from indices

    def _reader(self, shard: int) -> Any:
        """The shard's reader; the one that has not been used for longest makes place for it.

        It is not closed then, for another thread may be reading with it; the last to forget it
        closes its file.
        """
        with self._lock:
            if shard in self._open:
                self._open.move_to_end(shard)
                return self._open[shard]
            while len(self._open) >= self._most:
                self._open.popitem(last=False)
            path = self._places.paths[shard]
            reader = ArrayRecordReader(path, options=_OPTIONS, file_reader_buffer_size=_BUFFER)
            self._open[shard] = reader
            return reader
