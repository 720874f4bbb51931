"""An index of embedded files on disk: Parquet shards and a manifest, which any program can read.

`INDEX/index.json` names the model, the settings and the code's version.
`INDEX/shards/NNNNNN.parquet` hold a row per vector: `file`, its `size` in bytes, when it was
`modified` in ns, `kind`, `modality` (audio or visual), `time` in seconds, `padded`, and `vector`
(unit length, float32).

A shard appears complete under its name, or not at all. So a program that is killed loses only the
files since the last shard. A file that changed is embedded again, and its newest shard is valid.
"""

import contextlib
import fcntl
import json
import os
import pathlib
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cavmae_sync_jax.inference.index import vectors
from cavmae_sync_jax.inference.index.vectors import ModalityVectors
from cavmae_sync_jax.inference.model import Embedded, Model
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError
from cavmae_sync_jax.utils.modalities import AUDIO, MODALITIES, VISUAL

FORMAT = 1
EXPORTS = (".npz", ".parquet")
COLUMNS = ("file", "kind", "time", "padded")  # of an export, beside the vectors
MANIFEST = "index.json"
# A shard is written when it holds so many vectors, or so many seconds after the one before.
MOST_VECTORS, SECONDS = 16_384, 30.0
ID = b"shard"  # in the metadata of a shard
GROUP = 512  # vectors that are read at once
_REPEATED = ["file", "kind", "modality"]  # columns
_FACTS = "file", "size", "modified"


class Stat(NamedTuple):
    """What shows that a file changed: its size in bytes, and when it was written, in ns."""

    size: int
    modified: int


class Index:
    """An index on disk, see the module."""

    def __init__(self, directory: str | os.PathLike):
        """Opens an index.

        Raises:
          UserError: if there is none.
        """
        self.directory = pathlib.Path(directory)
        try:
            self.manifest = json.loads((self.directory / MANIFEST).read_text())
            self.model = self.manifest["model"]
            self._reader = vectors.Reader(self.model["dim"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{directory} is not an index: make one with python -m cavmae_sync_jax.embed"
            ) from error
        if self.manifest.get("format") != FORMAT:
            raise UserError(f"{directory} was written by another version of this program")
        self._state: list[tuple[pathlib.Path, int]] = []  # the shards of what is held
        # By the modality, and whether they are of some files: of which, and their vectors.
        self._in_memory: dict[tuple[str, bool], tuple[list[str] | None, ModalityVectors]] = {}

    @property
    def shards(self) -> list[pathlib.Path]:
        """The shards, oldest first."""
        return sorted((self.directory / "shards").glob("*.parquet"))

    def check(self, model: Model, every: float | None = None, compare_every: bool = False) -> None:
        """Refuses another model or other settings; the moments' distance only if asked.

        Raises:
          UserError: if they differ.
        """
        if model.fingerprint() != self.model["fingerprint"]:
            raise UserError(
                f"{self.directory} was made by the model of {self.model['directory']}, step "
                f"{self.model['step']}, and vectors of different models can't be compared: "
                f"name that one, not {model.directory}, or begin another index"
            )
        stored, now = self.manifest["settings"], _settings(model, every)
        if not compare_every:
            now["every"] = stored["every"]
        if differing := [name for name in now if stored.get(name) != now[name]]:
            before, after = (
                ", ".join(f"{name}={of.get(name)}" for name in differing) for of in (stored, now)
            )
            raise UserError(
                f"{self.directory} was made with {before}, not {after}: use the same, or begin "
                "another index"
            )

    def known(self) -> dict[str, Stat]:
        """The files that are embedded, and what they were then.

        Raises:
          UserError: if a shard is damaged.
        """
        found = {}
        for shard in self.shards:
            with vectors.damage_of(shard):
                table = pq.read_table(shard, columns=list(_FACTS), partitioning=None)
            rows = table.group_by(list(_FACTS)).aggregate([]).to_pylist()
            found |= {row["file"]: Stat(row["size"], row["modified"]) for row in rows}
        return found

    def vectors(self, modality: str, files: Iterable[str] | None = None) -> ModalityVectors:
        """All vectors of a modality, or those of some files.

        Raises:
          UserError: if a shard is damaged.
        """
        return self._reader.read(self.shards, modality, files)

    def vectors_in_memory(
        self, modality: str, files: Sequence[str] | None = None
    ) -> ModalityVectors:
        """As `vectors`, but they stay in memory for the next call, until the index changes.

        Of each modality, they are those of all files, and those of the files asked for last.

        Raises:
          UserError: if a shard is damaged.
        """
        shards = self.shards
        state = [(shard, shard.stat().st_mtime_ns) for shard in shards]
        if state != self._state:
            self._in_memory.clear()
            self._state = state
        chosen = None if files is None else list(files)
        key = modality, files is None
        if key not in self._in_memory or self._in_memory[key][0] != chosen:
            self._in_memory.pop(key, None)  # before the next ones are read
            self._in_memory[key] = chosen, self._reader.read(shards, modality, files)
        return self._in_memory[key][1]


class Writer:
    """Adds files to an index; one at a time may."""

    def __init__(self, index: Index):
        self._index = index
        self._schema = _schema(index.model["dim"])
        self._waiting: list[pa.Table] = []
        self._written = time.monotonic()

    def add(self, file: str, stat: Stat, kind: str, parts: Iterable[Embedded]) -> int:
        """Adds a file's vectors as they come; returns how many pairs there are.

        A file of which a part fails leaves nothing behind.

        Raises:
          UserError: what the parts raise.
        """
        tables, pairs = [], 0
        with contextlib.ExitStack() as stack:
            large = None
            for part in parts:
                self.flush_if_due()  # so that earlier files do not wait for a long one
                tables += self._tables(file, stat, kind, part)
                pairs += len(part.times)
                if sum(map(len, tables)) >= MOST_VECTORS:
                    # It gets a shard of its own, so memory does not grow with its length.
                    self.flush()  # before it, for two shards at a time would have one name
                    large = large or stack.enter_context(self._shard())
                    large(tables)
                    tables = []
            if large is not None:
                large(tables)
                tables = []
        self._waiting += tables
        self.flush_if_due()
        return pairs

    def flush_if_due(self) -> None:
        """Writes what is waiting if it is much or has waited for long."""
        full = sum(map(len, self._waiting)) >= MOST_VECTORS
        if full or time.monotonic() - self._written >= SECONDS:
            self.flush()

    def flush(self) -> None:
        """Writes what is waiting."""
        if self._waiting:
            with self._shard() as write:
                write(self._waiting)
        self._waiting, self._written = [], time.monotonic()

    def _tables(self, file: str, stat: Stat, kind: str, part: Embedded) -> list[pa.Table]:
        found = []
        for modality in MODALITIES:
            vectors = getattr(part, modality)
            if vectors is None:
                continue
            count, dim = vectors.shape
            flat = pa.array(np.ascontiguousarray(vectors).ravel())
            columns = {
                "file": pa.array([file] * count),
                "size": pa.array([stat.size] * count),
                "modified": pa.array([stat.modified] * count),
                "kind": pa.array([kind] * count),
                "modality": pa.array([modality] * count),
                "time": pa.array(part.times),
                "padded": pa.array(part.padded),
                "vector": pa.FixedSizeListArray.from_arrays(flat, dim),
            }
            found.append(pa.table(columns, schema=self._schema))
        return found

    @contextlib.contextmanager
    def _shard(self) -> Iterator[Callable[[list[pa.Table]], None]]:
        """A shard that appears when the block ends, if it ends well."""
        folder = self._index.directory / "shards"
        number = max((int(path.stem) for path in self._index.shards), default=-1) + 1
        place = folder / f"{number:06d}.parquet"
        partial = folder / f".{number:06d}.partial"
        try:
            options: dict[str, Any] = {"compression": "none", "use_dictionary": _REPEATED}
            with pq.ParquetWriter(partial, self._schema, **options) as writer:

                def write(tables: list[pa.Table]) -> None:
                    # Groups of one modality, and small, so that a search reads what it needs.
                    for modality in MODALITIES:
                        same = [t for t in tables if t["modality"][0].as_py() == modality]
                        if same:
                            writer.write_table(pa.concat_tables(same), GROUP)

                yield write
                # A shard that replaces a damaged one may have its name and its size.
                writer.add_key_value_metadata({ID: uuid.uuid4().hex})
            _replace(partial, place)
        finally:
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(
    directory: str | os.PathLike, model: Model, every: float | None
) -> Iterator[tuple[Index, Writer]]:
    """Opens an index to add to, or begins one; what was added is written at the end.

    Raises:
      UserError: if it is another model's, has other settings, or is being written.
    """
    folder = cli.make_folder(directory)
    place = pathlib.Path(folder)
    if not (place / MANIFEST).exists() and any(not _is_left(p) for p in place.iterdir()):
        raise UserError(f"{directory} is a folder with other things: name a new one")
    with (place / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"another program is adding to {directory}: wait for it") from error
        (place / "shards").mkdir(exist_ok=True)
        for left in (place / "shards").glob(".*.partial"):
            left.unlink()
        if not (place / MANIFEST).exists():
            manifest = {
                "format": FORMAT,
                "model": {
                    "directory": _address(model.directory),
                    "step": model.step,
                    "fingerprint": model.fingerprint(),
                    "dim": int(model.config.model.width),
                },
                "settings": _settings(model, every),
                "version": cli.version(),
            }
            partial = place / ".lock.partial"
            partial.write_text(json.dumps(manifest, indent=2) + "\n")
            _replace(partial, place / MANIFEST)
        index = Index(place)
        index.check(model, every, compare_every=True)
        writer = Writer(index)
        try:
            yield index, writer
        finally:
            writer.flush()


def _is_left(path: pathlib.Path) -> bool:
    """Whether an index that was interrupted before it had its manifest may have left it."""
    if path.name == "shards" and path.is_dir():
        return not any(path.iterdir())
    return path.name in (".lock", ".lock.partial")


def check_export(path: pathlib.Path) -> None:
    """Refuses a file that `export` can't write.

    Raises:
      UserError: its name ends otherwise, it is a folder, or its folder can't be made.
    """
    if path.suffix not in EXPORTS:
        raise UserError(f"{path} must end in {' or '.join(EXPORTS)}")
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a file")
    cli.make_folder(path.parent)


def export(index: Index, path: pathlib.Path) -> None:
    """Writes all vectors into one `.npz` or `.parquet` file.

    An npz holds `audio` and `visual` `[rows, dim]`. Each has the columns of `COLUMNS` `[rows]`, as
    `audio_file`. A Parquet file also has the columns `modality` and `vector`.

    Raises:
      UserError: see `check_export`.
    """
    check_export(path)
    both = {modality: index.vectors(modality) for modality in (AUDIO, VISUAL)}
    arrays: dict[str, np.ndarray] = {}
    for modality, side in both.items():
        files, kinds = (
            np.repeat(np.array(names, dtype=str), np.diff(side.offsets))
            for names in (side.files, side.kinds)
        )
        values = files, kinds, side.times, side.padded
        of_rows = zip(COLUMNS, values, strict=True)
        arrays |= {f"{modality}_{name}": column for name, column in of_rows}
        arrays[modality] = side.vectors
    partial = path.with_name(f".{path.name}.partial")
    try:
        _write(partial, path.suffix, arrays, both, index.model["dim"])
        _replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _write(
    partial: pathlib.Path,
    suffix: str,
    arrays: Mapping[str, np.ndarray],
    both: Mapping[str, ModalityVectors],
    dim: int,
) -> None:
    if suffix == ".npz":
        with partial.open("wb") as file:
            np.savez(file, **arrays)
    else:
        tables = [
            pa.table(
                {
                    **{name: arrays[f"{modality}_{name}"] for name in COLUMNS},
                    "modality": [modality] * len(side.times),
                    "vector": pa.FixedSizeListArray.from_arrays(
                        pa.array(side.vectors.ravel()), dim
                    ),
                }
            )
            for modality, side in both.items()
            if side.files
        ]
        pq.write_table(pa.concat_tables(tables), partial)


def _address(directory: str) -> str:
    """Where a model is from any folder: a `hf://` or `gs://` address, or an absolute path."""
    return directory if "://" in directory else os.path.abspath(directory)


def _settings(model: Model, every: float | None) -> dict[str, Any]:
    framing = model.pair_spec._asdict()
    framing.pop("only_frame")  # an index has every moment
    return {"every": every, **framing}


def _schema(dim: int) -> pa.Schema:
    text = pa.string()
    return pa.schema(
        [
            *(("file", text), ("size", pa.int64()), ("modified", pa.int64()), ("kind", text)),
            *(("modality", text), ("time", pa.float64()), ("padded", pa.float32())),
            ("vector", pa.list_(pa.float32(), dim)),
        ],
        metadata={"version": cli.version()},
    )


def _replace(partial: pathlib.Path, place: pathlib.Path) -> None:
    """Gives a finished file its name, on the disk before the name is."""
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(place)
    folder = os.open(place.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
