"""Where a shard's records lie in its file, and what the bytes there hold.

ArrayRecord's own reader asks a bucket for everything from a record to the end of the shard, and
then cuts the connection. With this module a reader asks for a single record and keeps connections.

A file is a sequence of Riegeli's chunks. Headers of 24 bytes interrupt them at multiples of 64 kB.
A chunk has a header of 40 bytes: hash, data size, hash, type and number of records, decoded size.
The last 64 kB say where the footer is. The footer's records say where all other chunks are
(ArrayRecord's `cpp/layout.proto`, Riegeli's `doc/riegeli_records_file_format.md`).
"""

import bisect
import itertools
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

BLOCK = 2**16  # bytes
_BLOCK_HEADER = 24
_BLOCK_BODY = BLOCK - _BLOCK_HEADER
_LONGEST_VARINT = 10
_CHUNK = struct.Struct("<QQQQQ")
_RECORDS, _UNCOMPRESSED = ord("r"), 0
_MAGIC = 0x71930E704FDAE05E  # of the postscript


class Index(NamedTuple):
    """A shard's chunks: where they begin, and how many records are before their ends."""

    begins: Int64[np.ndarray, " chunks_and_end"]
    ends: Int64[np.ndarray, " chunks"]

    @property
    def records(self) -> int:
        """The number of records in the shard."""
        return int(self.ends[-1]) if len(self.ends) else 0

    def span(self, position: int) -> tuple[int, int, int]:
        """The bytes [begin, end) of the chunk with a record, and the record's number in it."""
        chunk = int(np.searchsorted(self.ends, position, side="right"))
        before = int(self.ends[chunk - 1]) if chunk else 0
        return int(self.begins[chunk]), int(self.begins[chunk + 1]), position - before


def footer_place(last_block: bytes) -> int:
    """Where the footer begins, from the last 64 kB of a shard.

    Raises:
      ValueError: they are not the end of an ArrayRecord file.
    """
    fields = _fields(records(last_block, 0)[0])
    if len(last_block) != BLOCK or fields.get(2) != _MAGIC:
        raise ValueError("the file does not end as an ArrayRecord file does")
    return fields[1]


def read_footer(data: bytes, begin: int) -> Index:
    """The shard's index, from its bytes from the footer's beginning on.

    Raises:
      ValueError: they are damaged.
    """
    _, *entries = records(data, begin)
    found = [_fields(entry) for entry in entries]
    begins = [entry.get(1, 0) for entry in found] + [begin]
    counts = [entry.get(3, 0) for entry in found]
    if max(begins) > begin or sum(counts) >= 2**63:
        raise ValueError("the places of its records are beyond its end")
    return Index(np.array(begins, np.int64), np.cumsum(counts, dtype=np.int64))


def records(data: bytes, begin: int) -> list[bytes]:
    """The records of the chunk whose bytes are at the beginning of `data`.

    Args:
      data: the chunk as it lies in the file, or more.
      begin: its place in the file.

    Raises:
      ValueError: it is damaged, or compressed.
    """
    try:
        _, size, _, kind, decoded = _CHUNK.unpack(_body(data, begin, 0, _CHUNK.size))
        end = _CHUNK.size + size
        if kind & 0xFF != _RECORDS or not size or _file_place(begin, end - 1) >= len(data):
            raise ValueError("there is no whole chunk of records")
        compression, *length_bytes = _body(
            data, begin, _CHUNK.size, min(end, _CHUNK.size + 1 + _LONGEST_VARINT)
        )
        if compression != _UNCOMPRESSED:
            raise ValueError("its records are compressed")
        length, place = _varint(bytes(length_bytes), 0)
        place += _CHUNK.size + 1
        if place + length > end:
            raise ValueError("the sizes of its records disagree")
        sizes = list(_varints(_body(data, begin, place, place + length)))
    except (struct.error, IndexError) as error:
        raise ValueError("there is no whole chunk of records") from error
    place += length
    if len(sizes) != kind >> 8 or sum(sizes) != decoded or place + decoded != end:
        raise ValueError("the sizes of its records disagree")
    ends = itertools.accumulate(sizes, initial=place)
    return [_body(data, begin, *span) for span in itertools.pairwise(ends)]


def _body(data: bytes, begin: int, start: int, stop: int) -> bytes:
    """The bytes [start, stop) of a chunk, counted without the block headers in it."""
    first = -begin % BLOCK
    edges = range(first, stop, _BLOCK_BODY)
    inside = edges[bisect.bisect_right(edges, start) :]
    view = memoryview(data)
    parts = []
    for left, right in itertools.pairwise((start, *inside, stop)):
        place = _file_place(begin, left)
        parts.append(view[place : place + right - left])
    return b"".join(parts)


def _file_place(begin: int, position: int) -> int:
    """Where a byte of a chunk lies, counted with the block headers in it."""
    first = -begin % BLOCK
    headers = 0 if position < first else 1 + (position - first) // _BLOCK_BODY
    return position + _BLOCK_HEADER * headers


def _varint(data: memoryview | bytes, place: int) -> tuple[int, int]:
    """The number at a place, and the place after it."""
    value = 0
    for shift in range(0, 7 * _LONGEST_VARINT, 7):
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("a number in it is too long")


def _varints(data: memoryview | bytes) -> Iterator[int]:
    place = 0
    while place < len(data):
        value, place = _varint(data, place)
        yield value


def _fields(message: bytes) -> dict[int, int]:
    """The fields of a protocol buffer that has numbers only."""
    numbers = list(_varints(message))
    return {key >> 3: value for key, value in zip(numbers[::2], numbers[1::2], strict=True)}
