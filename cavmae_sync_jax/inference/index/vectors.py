"""The vectors of one modality in memory, and how they are read from an index's shards.

Only row groups that hold a wanted row are read. The other columns of a shard are small and kept in
memory, because a shard never changes.
"""

import contextlib
import os
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Bool, Float, Float32, Int, Int64

from cavmae_sync_jax.utils.errors import UserError


class ModalityVectors(NamedTuple):
    """One modality of an index: rows of file `i` are `offsets[i]` to `offsets[i + 1]`."""

    files: list[str]
    kinds: list[str]
    offsets: Int64[np.ndarray, " files_and_1"]
    times: Float[np.ndarray, " rows"]
    padded: Float32[np.ndarray, " rows"]
    vectors: Float32[np.ndarray, "rows dim"]

    def rows(self, place: int) -> slice:
        """The rows of a file."""
        return slice(int(self.offsets[place]), int(self.offsets[place + 1]))


class _Facts(NamedTuple):
    """What a shard says of its rows; `file` is a row's place in `files`."""

    files: list[str]
    file: Int[np.ndarray, " rows"]
    kinds: list[str]  # of the files
    modality: Int[np.ndarray, " rows"]
    modalities: list[str]
    times: Float[np.ndarray, " rows"]
    padded: Float32[np.ndarray, " rows"]

    def of(self, modality: str) -> Bool[np.ndarray, " rows"]:
        """Which rows are of a modality."""
        place = self.modalities.index(modality) if modality in self.modalities else -1
        return self.modality == place


class Reader:
    """Reads sides out of shards."""

    def __init__(self, dim: int):
        """Takes the length of a vector."""
        self._dim = dim
        self._facts: dict[tuple[pathlib.Path, int], _Facts] = {}

    def read(
        self, shards: Sequence[pathlib.Path], modality: str, files: Iterable[str] | None = None
    ) -> ModalityVectors:
        """All vectors of a modality, or those of some files, of which each newest shard counts.

        Raises:
          UserError: if a shard is damaged.
        """
        facts = {shard: self._facts_of(shard) for shard in shards}
        newest = {name: shard for shard, fact in facts.items() for name in fact.files}
        wanted = None if files is None else set(files)
        names, kinds, counts = [], [], []
        times, padded = [np.zeros(0)], [np.zeros(0, np.float32)]
        rows: dict[pathlib.Path, np.ndarray] = {}
        for shard, fact in facts.items():
            counted = [
                newest[name] == shard and (wanted is None or name in wanted) for name in fact.files
            ]
            chosen = np.flatnonzero(fact.of(modality) & np.array(counted, bool)[fact.file])
            if not len(chosen):
                continue
            # A file's rows of one modality follow each other.
            codes = fact.file[chosen]
            begins = np.flatnonzero(np.r_[True, codes[1:] != codes[:-1]])
            names += [fact.files[code] for code in codes[begins]]
            kinds += [fact.kinds[code] for code in codes[begins]]
            counts += np.diff([*begins, len(codes)]).tolist()
            times.append(fact.times[chosen])
            padded.append(fact.padded[chosen])
            rows[shard] = chosen
        # Filled shard by shard, for two copies of a large index may not fit into the memory.
        vectors = np.empty((sum(map(len, rows.values())), self._dim), np.float32)
        filled = 0
        for shard, chosen in rows.items():
            with damage_of(shard):
                vectors[filled : filled + len(chosen)] = _vectors(shard, chosen)
            filled += len(chosen)
        offsets = np.cumsum([0, *counts], dtype=np.int64)
        moments = np.concatenate(times), np.concatenate(padded)
        return ModalityVectors(names, kinds, offsets, *moments, vectors)

    def _facts_of(self, shard: pathlib.Path) -> _Facts:
        key = shard, os.stat(shard).st_mtime_ns
        if key not in self._facts:
            columns = ["file", "kind", "modality", "time", "padded"]
            with damage_of(shard):
                table = pq.read_table(shard, columns=columns, partitioning=None)
            file, kind, modality = (
                table[name].combine_chunks().dictionary_encode() for name in columns[:3]
            )
            codes = file.indices.to_numpy()
            _, first = np.unique(codes, return_index=True)
            self._facts[key] = _Facts(
                file.dictionary.to_pylist(),
                codes,
                kind.take(pa.array(first)).to_pylist(),
                modality.indices.to_numpy(),
                modality.dictionary.to_pylist(),
                table["time"].to_numpy(),
                table["padded"].to_numpy(),
            )
        return self._facts[key]


def _vectors(
    shard: pathlib.Path, rows: Int64[np.ndarray, " rows"]
) -> Float32[np.ndarray, "rows dim"]:
    """The vectors of some rows of a shard, which are sorted."""
    with pq.ParquetFile(shard) as file:
        metadata = file.metadata
        sizes = np.array([metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)])
        ends = np.cumsum(sizes)
        group = np.searchsorted(ends, rows, side="right")
        read = np.unique(group)
        table = file.read_row_groups(read.tolist(), columns=["vector"])
        # Where each group that is read begins among those.
        begins = np.cumsum(np.r_[0, sizes[read][:-1]])
        local = rows - (ends - sizes)[group] + begins[np.searchsorted(read, group)]
        flat = table["vector"].combine_chunks().flatten().to_numpy()
        vectors = flat.reshape(len(table), -1)
        return vectors if len(local) == len(vectors) else vectors[local]


@contextlib.contextmanager
def damage_of(shard: pathlib.Path) -> Iterator[None]:
    """Turns a shard's damage into one sentence."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{shard} is damaged ({str(error).splitlines()[0]}): delete it and embed its "
            "files again"
        ) from error
