"""CSV files: their lines, labels of whole videos, lists of classes.

Every mistake in them is a UserError that names the file and the line.
"""

import collections
import contextlib
import csv
import difflib
import io
import re
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from cavmae_sync_jax.utils import tables
from cavmae_sync_jax.utils.errors import UserError

TRAIN, EVAL = "train", "eval"
# What lists call the splits. VGGSound's held-out split is test.
SPLITS = {
    **{TRAIN: TRAIN, "training": TRAIN, EVAL: EVAL, "test": EVAL},
    **dict.fromkeys(("val", "valid", "validate", "validation"), "val"),
}
_COLUMNS = ("video", "label", "split")
_CLASS_COLUMNS = ("index", "mid", "display_name")


class LabelRow(NamedTuple):
    """What a CSV of labels says about one video; `split` is None without such a column."""

    labels: tuple[str, ...]
    split: str | None


@contextlib.contextmanager
def lines_of(path: epath.PathLike) -> Iterator["Lines"]:
    """Opens a CSV file in UTF-8, or as spreadsheets write it: in UTF-16, with tabs or semicolons.

    Accents come as one character each (NFC), so that a label is the same from every machine.

    Raises:
      UserError: it can't be read, here or while its lines are.
    """
    try:
        text = unicodedata.normalize("NFC", tables.text_of(path))
        stream = io.StringIO(text, newline="")
        reader = csv.reader(
            stream, strict=True, skipinitialspace=True, delimiter=tables.delimiter_of(text)
        )
        lines = Lines(str(path), reader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} can't be read as a CSV file: {error}; save it as CSV in UTF-8"
        ) from error
    try:
        yield lines
    except csv.Error as error:
        raise UserError(f"{lines.where}, can't be read as CSV: {error}") from error


def under(header: Sequence[str], cells: Sequence[str]) -> dict[str, str]:
    """Returns a row's cells by the names of their columns, without those that have none."""
    row = {name: cell.strip() for name, cell in zip(header, cells, strict=False)}
    row.pop("", None)
    return row


def check_columns(header: Sequence[str], known: Sequence[str], where: str) -> None:
    """Refuses columns that are not known or come twice, but for those without a name.

    Raises:
      UserError: naming them.
    """
    often = collections.Counter(name for name in header if name)
    wrong = [name for name, count in often.items() if name not in known or count > 1]
    if wrong:
        raise UserError(
            f"{where}: the header may have {','.join(known)}, each once: leave out the column "
            f"{wrong[0]!r}"
        )


def read_split(text: str) -> str | None:
    """Returns the split that a list's word means, None for an unknown word."""
    return SPLITS.get(text.strip().lower())


class Lines:
    """The lines of a CSV file that are not empty; knows where it is."""

    def __init__(self, path: str, reader: Any):
        """Wraps a `csv.reader`."""
        self._path, self._reader = path, reader

    def __iter__(self) -> Iterator[list[str]]:
        return (cells for cells in self._reader if any(cell.strip() for cell in cells))

    @property
    def where(self) -> str:
        """The file and the line that was read last, for an error."""
        return f"{self._path}, line {self._reader.line_num}"


class Labels(NamedTuple):
    """A CSV of labels.

    Attributes:
      rows: what it says about each video that it names.
      absent: the names of which there is no video.
      ambiguous: why the row of a video may be another's.
    """

    rows: dict[Any, LabelRow]
    absent: list[str]
    ambiguous: dict[Any, str]


def read_labels(path: str | Path, named: Callable[[str], Sequence[Any]]) -> Labels:
    """Reads a CSV with the columns video, label and split, a row for each label.

    The columns may be in any order. Either of the last two may be left out, and a row may have no
    label. See `tables.labels_of` for several labels in one row.

    Args:
      path: the file.
      named: returns the videos that are called by a name.

    Raises:
      UserError: the file or a row of it is malformed, or none of its rows names a video.
    """
    labels = Labels({}, [], {})
    with lines_of(path) as lines:
        names = tables.header_of(next(iter(lines), []))
        header, several = tables.columns_of(names), tables.has_several_labels(names)
        if "video" not in header or len(header) < 2:
            raise UserError(f"{path} must begin with the header video,label or video,label,split")
        check_columns(header, _COLUMNS, lines.where)
        for cells in lines:
            row = under(header, cells)
            if len(cells) != len(header) or not row.get("video"):
                raise UserError(f"{lines.where}: need {len(header)} cells, the video's not empty")
            name, split = row["video"], read_split(row["split"]) if "split" in row else None
            if "split" in row and split is None:
                raise UserError(
                    f"{lines.where}: split must be one of {', '.join(SPLITS)}, not {row['split']!r}"
                )
            found = named(name)
            if not found:
                labels.absent.append(name)
            elif len(found) > 1:
                files = " or ".join(str(video.path) for video in found)
                why = f"{lines.where}: {name!r} may be {files}; give the path inside of SOURCE."
                labels.ambiguous.update(dict.fromkeys(found, why))
            for video in found:
                before = labels.rows.get(video, LabelRow((), split))
                if before.split != split:
                    raise UserError(
                        f"{lines.where}: {name!r} is in {before.split} already, by this or another "
                        "name of the same file: give it one split, or remove the copy or link"
                    )
                new = tables.labels_of(row.get("label", ""), several)
                labels.rows[video] = LabelRow(tuple(dict.fromkeys(before.labels + new)), split)
    if labels.absent and not labels.rows:
        raise UserError(
            f"no row of {path} names one of the videos, such as {labels.absent[0]!r}: give a "
            "file's name, or its path inside of SOURCE, with or without the extension"
        )
    labels.absent[:] = dict.fromkeys(labels.absent)
    return labels


class Classes(NamedTuple):
    """Class names in the order of their indices, and the name of each mid."""

    names: tuple[str, ...]
    by_mid: dict[str, str]

    def named(self, label: str, where: str) -> str:
        """Returns the class name of a mid or name.

        VGGSound's list of segments has commas where its list of classes has underscores.

        Raises:
          UserError: it is neither; `where` says whose label it is.
        """
        for name in (self.by_mid.get(label, label), label.replace(",", "_")):
            if name in self.names:
                return name
        near = difflib.get_close_matches(label, [*self.by_mid, *self.names], 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise UserError(f"{where}: {label!r} is not in the list of classes{hint}")


def read_classes(path: epath.PathLike) -> Classes:
    """Reads a CSV with the columns index, mid and display_name, as AudioSet's authors publish it.

    The lines may be in any order. A display name that comes twice gets its mid behind it.

    Raises:
      UserError: the CSV is missing or malformed, a mid or an index comes twice, or the indices
        are not 0 to n - 1.
    """
    found: dict[int, tuple[str, str, str]] = {}  # where, mid and name by index
    with lines_of(path) as lines:
        header = tables.header_of(next(iter(lines), []))
        missing = [name for name in _CLASS_COLUMNS if name not in header]
        if missing:
            raise UserError(f"{lines.where}: the header lacks {', '.join(missing)}")
        mids: set[str] = set()
        for cells in lines:
            if len(cells) != len(header):
                raise UserError(f"{lines.where}: need {len(header)} cells, not {len(cells)}")
            row = dict(zip(header, cells, strict=True))
            number, mid, name = (row[column].strip() for column in _CLASS_COLUMNS)
            if not re.fullmatch("[0-9]{1,9}", number):
                raise UserError(f"{lines.where}: the index {number!r} is not a whole number")
            if not mid or "," in mid:
                raise UserError(f"{lines.where}: {mid!r} can't be a mid")
            if len(name.splitlines()) != 1:
                raise UserError(f"{lines.where}: the display_name must be one line of text")
            if mid in mids:
                raise UserError(f"{lines.where}: the mid {mid!r} comes a second time")
            if int(number) in found:
                raise UserError(f"{lines.where}: the index {number} comes a second time")
            mids.add(mid)
            found[int(number)] = lines.where, mid, name
    if not found:
        raise UserError(f"{path} has no class")
    last = max(found)
    if last != len(found) - 1:
        numbers = f"0 to {len(found) - 1}"
        raise UserError(f"{found[last][0]}: the indices of the classes must be {numbers}: {last}")
    often = collections.Counter(name for _, _, name in found.values())
    by_mid = {
        mid: f"{name} ({mid})" if often[name] > 1 else name
        for _, (_, mid, name) in sorted(found.items())
    }
    return Classes(tuple(by_mid.values()), by_mid)


def classes_of(labels: Sequence[str]) -> Classes:
    """Returns the classes that occur among labels, in their order."""
    names = tuple(sorted(set(labels)))
    return Classes(names, {})
