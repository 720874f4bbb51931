"""Where a shard's records lie in its file, and what the bytes there hold.

ArrayRecord's own reader asks a bucket for everything from a record to the end of the shard, and
then cuts the connection. With this module a reader asks for a single record and keeps connections.

A file is a sequence of Riegeli's chunks. Headers of 24 bytes interrupt them at multiples of 64 kB.
A chunk has a header of 40 bytes: hash, data size, hash, type and number of records, decoded size.
The last 64 kB say where the footer is. The footer's records say where all other chunks are
(ArrayRecord's `cpp/layout.proto`, Riegeli's `doc/riegeli_records_file_format.md`).
"""

import itertools
import struct
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

BLOCK = 2**16  # bytes
_BLOCK_HEADER = 24
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
    return Index(np.array(begins, np.int64), np.cumsum(counts, dtype=np.int64))


def records(data: bytes, begin: int) -> list[bytes]:
    """The records of the chunk whose bytes are at the beginning of `data`.

    Args:
      data: the chunk as it lies in the file, or more.
      begin: its place in the file.

    Raises:
      ValueError: it is damaged, or compressed.
    """
    body = _without_block_headers(data, begin)
    try:
        _, size, _, kind, decoded = _CHUNK.unpack_from(body)
        chunk = memoryview(body)[_CHUNK.size : _CHUNK.size + size]
        if kind & 0xFF != _RECORDS or len(chunk) != size:
            raise ValueError("there is no whole chunk of records")
        if chunk[0] != _UNCOMPRESSED:
            raise ValueError("its records are compressed")
        length, place = _varint(chunk, 1)
        sizes = list(_varints(chunk[place : place + length]))
    except (struct.error, IndexError) as error:
        raise ValueError("there is no whole chunk of records") from error
    place += length
    if len(sizes) != kind >> 8 or sum(sizes) != decoded or place + decoded != size:
        raise ValueError("the sizes of its records disagree")
    ends = itertools.accumulate(sizes, initial=place)
    return [bytes(chunk[start:end]) for start, end in itertools.pairwise(ends)]


def _without_block_headers(data: bytes, begin: int) -> bytes:
    view = memoryview(data)
    parts = [view[: -begin % BLOCK]]
    parts += [
        view[start + _BLOCK_HEADER : start + BLOCK]
        for start in range(-begin % BLOCK, len(view), BLOCK)
    ]
    return b"".join(parts)


def _varint(data: memoryview | bytes, place: int) -> tuple[int, int]:
    """The number at a place, and the place after it."""
    value = shift = 0
    while True:
        byte = data[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7


def _varints(data: memoryview | bytes) -> Iterator[int]:
    place = 0
    while place < len(data):
        value, place = _varint(data, place)
        yield value


def _fields(message: bytes) -> dict[int, int]:
    """The fields of a protocol buffer that has numbers only."""
    numbers = list(_varints(message))
    return {key >> 3: value for key, value in zip(numbers[::2], numbers[1::2], strict=True)}
