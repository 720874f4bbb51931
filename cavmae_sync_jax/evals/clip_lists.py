"""Published lists of clips, and a split's records that are on one.

Lists name clips in many ways: by the dataset's own `clip_id`, by a file's name, by YouTube's id
alone, or by rows of AudioSet's and VGGSound's lists. `select` takes a name if exactly one clip
fits it.
"""

import collections
import contextlib
import csv
import hashlib
import io
import json
import math
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from etils import epath

from cavmae_sync_jax.data import loader
from cavmae_sync_jax.utils import clip_names, console, tables
from cavmae_sync_jax.utils.errors import UserError

_DECIMAL = re.compile(r"^(-?\d+),(\d+)$")  # as Excel writes numbers in many countries
NAMED = 3  # of the clips that are missing
# Columns of a start, and what they count in a second.
_STARTS = {"start": 1, "start_ms": 1000}
_READ = ("video", *_STARTS)


def read(path: epath.PathLike) -> list[str]:
    """The entries of a published list, each once: the ids of CAV-MAE's JSON, or a text's lines.

    A JSON may also have an entry per line.

    A line may be a row of a CSV whose first column names the clip. Comments with "#" are left out.
    With a header any column may name the clip, and another its start; AudioCaps' and Kinetics' do.
    There, several rows may be of one clip, such as one for each caption.

    Raises:
      UserError: if it can't be read, is neither, or names no clip.
    """
    path = epath.Path(path)
    try:
        text = tables.text_of(path)
    except OSError as error:
        raise UserError(f"the list of clips {path} can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the list of clips {path} is neither JSON nor text in UTF-8") from error
    if path.suffix == ".json" or text.lstrip().startswith(("{", "[")):
        try:
            whole = _json(text)
        except ValueError as error:
            raise UserError(f"the list of clips {path} is not valid JSON: {error}") from error
        entries = whole.get("data") if isinstance(whole, dict) else whole
        if not isinstance(entries, list):
            raise UserError(
                f'the list of clips {path} must be {{"data": [{{"video_id": "…"}}, …]}}'
            )
        ids = [_id_of(entry, number, path) for number, entry in enumerate(entries, 1)]
    else:
        lines = (line.strip() for line in text.splitlines())
        ids = [line for line in lines if line and not line.startswith("#")]
        delimiter = tables.delimiter_of(text)
        if delimiter != "," and any(delimiter in line for line in ids):
            ids = [_with_commas(line, delimiter) for line in ids]
            delimiter = ","
        if ids and (columns := _columns(ids[0], delimiter, path)) is not None:
            rows = csv.reader(ids[1:], skipinitialspace=True, delimiter=delimiter)
            ids = list(dict.fromkeys(_rows(path, rows, columns)))
    if not ids:
        raise UserError(f"the list of clips {path} names no clip")
    once = list(dict.fromkeys(ids))
    if len(once) < len(ids):
        again = len(ids) - len(once)
        console.log(f"the list of clips {path} names {again} clips again, which count once")
    return once


def _with_commas(line: str, delimiter: str) -> str:
    """Returns a row with commas between its cells and points in its numbers."""
    cells = next(csv.reader([line], skipinitialspace=True, delimiter=delimiter))
    points = (_DECIMAL.sub(r"\1.\2", cell.strip()) for cell in cells)
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(points)
    return text.getvalue()


def _json(text: str) -> Any:
    """Returns what a JSON holds, or the list of what its lines hold, as a .jsonl has it.

    Raises:
      ValueError: it is neither.
    """
    try:
        return json.loads(text)
    except ValueError as whole:
        try:
            return [json.loads(line) for line in text.splitlines() if line.strip()]
        except ValueError:
            raise whole from None


def _columns(line: str, delimiter: str, path: epath.Path) -> list[str] | None:
    """Returns the columns of a header, see `tables`; None if it is not a header.

    Raises:
      UserError: a column may be a start, but its unit is unknown.
    """
    cells = tables.header_of(next(csv.reader([line], delimiter=delimiter)))
    columns = tables.columns_of(cells)
    # A word alone, such as "video", may be a clip's id.
    if "video" not in columns or (len(cells) < 2 and "_" not in line):
        return None
    unclear = [name for name in columns if "start" in name and name not in ("start", "start_ms")]
    if unclear:
        raise UserError(
            f"the list of clips {path} has the column {unclear[0]!r}: call it start (in seconds) "
            "or start_ms"
        )
    return columns


def _rows(path: epath.Path, rows: Any, columns: Sequence[str]) -> Iterable[str]:
    """Yields the clip of each row under a header, with its start behind a comma if it has one.

    Raises:
      UserError: a row lacks one of these cells, or the start is not a number.
    """
    for cells in rows:
        try:
            row = {
                name: cells[place].strip() for place, name in enumerate(columns) if name in _READ
            }
            entry = _entry(row)
        except (IndexError, ValueError) as error:
            where = f"the list of clips {path}, row {rows.line_num} under the header"
            raise UserError(f"{where}: need a clip, and its start in seconds") from error
        if row["video"]:
            yield entry


def _entry(row: Mapping[str, Any]) -> str:
    """Returns a clip's name, with its start in seconds behind a comma if the row has one.

    Raises:
      ValueError: the start is not a number.
    """
    starts = [
        float(row[name]) / unit for name, unit in _STARTS.items() if row.get(name) is not None
    ]
    text = io.StringIO()
    cells = [row["video"], *(f"{start:.10g}" for start in starts[:1])]
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()


def _id_of(entry: Any, number: int, path: epath.Path) -> str:
    if isinstance(entry, str) and entry:
        return entry
    if isinstance(entry, dict):
        if "video_id" in entry:
            names = [entry["video_id"]]
        else:
            paths = (entry.get(key) for key in ("wav", "video_path"))
            # A video_path that ends with a slash is the folder of all clips.
            files = (p for p in paths if isinstance(p, str) and not p.endswith("/"))
            names = [pathlib.PurePosixPath(file).stem for file in files]
        if names and isinstance(names[0], str) and names[0]:
            columns = zip(
                tables.columns_of(tables.header_of(list(entry))),
                entry.values(),
                strict=True,
            )
            times = {name: value for name, value in columns if name in _STARTS}
            with contextlib.suppress(TypeError, ValueError):  # no numbers
                return _entry({"video": names[0], **times}) if times else names[0]
    raise UserError(
        f"the list of clips {path}, entry {number}, has no video_id, or its start is not a number"
    )


class Selected(loader.Records):
    """Some of a split's records, by their indices."""

    def __init__(self, records: loader.Records, indices: Sequence[int]):
        self.directory, self.split, self.splits = records.directory, records.split, records.splits
        self.features, self.longest_rows = records.features, records.longest_rows
        digest = hashlib.sha256(repr(list(indices)).encode()).hexdigest()[:16]
        self.identity = f"{records.identity}; {len(indices)} of them chosen ({digest})"
        self.contents = records.contents
        self.in_bucket, self.shards = records.in_bucket, records.shards
        self.requests = records.requests
        self._records, self._indices = records, list(indices)

    def __len__(self) -> int:
        return len(self._indices)

    def place(self, index: int) -> int:
        """Which record of the split an element is made of."""
        return self._records.place(self._indices[index])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self._records[self._indices[index]]

    def ids(self, indices: Sequence[int]) -> list[str]:
        """The clip ids of some records."""
        return self._records.ids([self._indices[index] for index in indices])

    def labels(self) -> list[Any]:
        """The indices of each record's classes."""
        whole = self._records.labels()
        return [whole[index] for index in self._indices]

    def pairs(
        self, index: int, pair_spec: loader.PairSpec, frames: Iterable[int]
    ) -> list[loader.Batch]:
        """Some of a clip's frames with their windows, see `PairSpec.pair`."""
        return self._records.pairs(self._indices[index], pair_spec, frames)


class _Clips:
    """Finds a dataset's clips by what lists call them."""

    def __init__(self, ids: Sequence[str]):
        """Takes the clip ids of all records."""
        self._exact = {clip_id: index for index, clip_id in enumerate(ids)}
        self._of_video: dict[str, list[int]] = collections.defaultdict(list)
        for index, clip_id in enumerate(ids):
            self._of_video[clip_names.split_start(clip_id)[0]].append(index)

    def find(self, entry: str) -> list[int]:
        """Returns the records that an entry may mean; one is the right outcome."""
        names = list(_names(entry))
        for name in names:
            if name in self._exact:
                return [self._exact[name]]
        file, own_start = _row(entry)
        spans = [] if own_start is None else [(file, own_start)]
        spans += [(stem, start) for name in names for stem, start in _spans(name)]
        for stem, start in spans:
            if (one := clip_names.with_start(stem, start)) in self._exact:
                return [self._exact[one]]
        for stem, start in spans:  # of a dataset whose ids have no start
            if stem in self._exact and (start == 0 or _is_youtube(stem)):
                return [self._exact[stem]]
        for name in names:
            # A name with a start means no clip that starts elsewhere.
            if (clips := self._of_video.get(name)) and (not spans or _is_youtube(name)):
                return clips
        return []


def _is_youtube(name: str) -> bool:
    return clip_names.YOUTUBE.fullmatch(name) is not None


def _names(entry: str) -> Iterable[str]:
    """Yields what an entry may call its clip, the most literal first."""
    file, start = _row(entry)
    literal = (entry, clip_names.without_extension(entry))
    # With a start of its own, a row means no other clip of its video.
    own = (_cells(entry)[0], file) if start is None else (clip_names.with_start(file, start),)
    return dict.fromkeys((*literal, *own))


def _row(entry: str) -> tuple[str, float | None]:
    """Returns a row's file without its extension, and its start: AudioSet's and VGGSound's do."""
    cells = _cells(entry)
    file = clip_names.without_extension(pathlib.PurePosixPath(cells[0].replace("\\", "/")).name)
    address = clip_names.ADDRESS.search(cells[0])
    file = address[1] if address else file
    # As CAV-MAE names its sounds of AudioSet.
    file = file[1:] if file.startswith("Y") and _is_youtube(file[1:]) else file
    with contextlib.suppress(ValueError, IndexError):
        if math.isfinite(start := float(cells[1])):
            return file, start
    return file, None


def _cells(entry: str) -> list[str]:
    """Returns the cells of a row, which commas part; at least one."""
    with contextlib.suppress(csv.Error, StopIteration):
        reader = csv.reader([entry], skipinitialspace=True)
        return [cell.strip() for cell in next(reader)] or [entry]
    return [entry]


def _spans(name: str) -> Iterable[tuple[str, float]]:
    """Yields the video and the start that a name may mean, in seconds and in milliseconds."""
    stem, start = clip_names.split_start(name)
    if start is not None and not _is_youtube(name):
        yield stem, float(start)
    for begin in (0, 1) if name.startswith("Y") else (0,):
        video, behind = name[begin : begin + 11], name[begin + 11 :]
        for span in clip_names.spans_behind(behind) if _is_youtube(video) else ():
            yield video, span.start
            if (milliseconds := span.in_milliseconds()) is not None:
                yield video, milliseconds.start


def select(records: loader.Records, wanted: Sequence[str], name: str) -> tuple[Selected, list[str]]:
    """The records that a list's entries mean, in the split's order, and the entries without one.

    An entry means the clip whose id it is; else the clip of the same video and start; else, if the
    entry or the dataset has no start, the only clip of the same video.

    Args:
      records: the whole split.
      wanted: of `read`.
      name: of the list, for messages.

    Raises:
      UserError: if there is none of them.
    """
    where = f"{records.directory}, split {records.split}"
    ids = records.ids(range(len(records)))
    clips = _Clips(ids)
    found = {entry: clips.find(entry) for entry in wanted}
    indices = sorted(
        {one for several in found.values() for one in several[:1] if len(several) == 1}
    )
    if not indices:
        raise UserError(
            f"{where} has none of the {len(wanted)} clips of {name}: the list begins with "
            f"{wanted[0]!r}, the dataset with {ids[0]!r}"
        )
    missing = [entry for entry, several in found.items() if len(several) != 1]
    if missing:
        first = ", ".join(missing[:NAMED]) + (", …" if len(missing) > NAMED else "")
        unclear = sum(len(several) > 1 for several in found.values())
        also = f", {unclear} of which may be several clips" if unclear else ""
        console.log(
            f"{len(missing)} of the {len(wanted)} clips of {name} are not in {where} ({first})"
            f"{also}; the scores are of the other {len(indices)}"
        )
    return Selected(records, indices), missing
