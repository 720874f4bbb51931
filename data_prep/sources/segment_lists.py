"""Lists of labelled segments, as AudioSet, VGGSound, VGGSounder and Kinetics publish them."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cavmae_sync_jax.data.dataset_dir import MODALITIES
from cavmae_sync_jax.utils import clip_names, tables
from cavmae_sync_jax.utils.errors import UserError
from data_prep.sources import csv_files
from data_prep.sources.csv_files import EVAL, TRAIN, Lines

_LATEST = 1e7  # seconds; a time beyond this is a mistake
_COLUMNS = ("video", "start", "end", "label", "split")
_CLOCK = re.compile(r"(?:(\d+):)?(\d{1,2}):(\d{1,2}(?:\.\d*)?)", re.ASCII)
# A comma before three digits may part thousands, but for a clock's.
_DECIMAL_COMMA = re.compile(r"(?<=\d),(?=\d+$)(?!\d{3}$)|(?<=:\d\d),(?=\d+$)", re.ASCII)
# Five digits or more may count milliseconds, unless zeros fill them up.
_NAMED_SPAN = re.compile(r"([\w-]{11})_(\d{1,4}|0\d{5})(?:_(\d{1,4}|0\d{5}))?", re.ASCII)
# What the headers of VGGSounder's, Kinetics' and AudioCaps' lists hold, besides further columns.
_VGGSOUNDER = ("video_id", "label", "modality")
_KINETICS = ("label", "youtube_id", "time_start", "time_end")
_AUDIOCAPS = ("youtube_id", "start_time")


class Segment(NamedTuple):
    """A span of a video, in seconds, that should become a clip.

    `end` and `split` are None if the file lacks them. `youtube` says that `video` is YouTube's
    id, of which files have various names; else it is a file's name. `where` is the file and line.
    `modalities` says how each label is perceived, of `dataset_dir.MODALITIES`, if the list does.
    `selectable` says that of the list one takes the classes that one wants.
    """

    video: str
    start: float
    end: float | None
    labels: tuple[str, ...]
    split: str | None
    youtube: bool
    where: str
    modalities: tuple[str, ...] = ()
    selectable: bool = False


def read_segments(path: str | Path, split: str | None) -> list[Segment]:
    """Reads a CSV of labelled segments, in one of six formats.

    AudioSet's, as published: lines of `YTID, start, end, "mid,mid"` under comments with "#".
    VGGSound's, as published: lines of `YTID,start,label,split` without a header, or of
    `YTID_start.mp4,label`, or of such names alone. VGGSounder's, with the header
    `video_id,label,modality,…` and a row for each label of a test clip of VGGSound.
    Kinetics', with the header `label,youtube_id,time_start,time_end,split,…`. AudioCaps', with the
    header `audiocap_id,youtube_id,start_time,caption`, whose captions are not read. Our own: the
    header video,start,end,label,split, of which end, label and split may be left out, and start,
    too, where it stands in the name: ID_000030. A duration may stand for the end. Several rows of
    the same span give it several labels, and so does a column that is called `labels` or the like,
    see `tables.labels_of`. An address of YouTube may stand for an id. A time counts seconds, or
    milliseconds in a column such as start_ms, or is a clock's, such as 1:30.

    Args:
      path: the file.
      split: of all its segments; None takes it from the file.

    Raises:
      UserError: the file or a row of it is malformed, or it has no row.
    """
    with csv_files.lines_of(path) as lines:
        rows = iter(lines)
        first = next((cells for cells in rows if not cells[0].startswith("#")), None)
        header = tables.header_of(first or [])
        columns, meant = tables.columns_of(header), {*_COLUMNS[1:], "start_ms"}
        if set(_VGGSOUNDER) <= set(header):
            segments = _vggsounder(lines, rows, header)
        elif set(_KINETICS) <= set(header):
            segments = [_kinetics(row, lines.where) for row in _under(lines, rows, header)]
        elif set(_AUDIOCAPS) <= set(header):
            segments = [_audiocaps(row, lines.where) for row in _under(lines, rows, header)]
        elif "video" in columns and (set(columns) & meant or set(columns) <= {"", "video"}):
            segments = _own(lines, rows, header)
        else:
            segments = _published(lines, first, rows)
    if not segments:
        raise UserError(f"{path} has no segment")
    if split is not None:
        segments = [segment._replace(split=split) for segment in segments]
    return segments


def _seconds(text: str, where: str, units: int = 1) -> float:
    """Returns a time that a list writes as on a clock, or as a number in the list's units.

    Raises:
      UserError: it is none.
    """
    number = _DECIMAL_COMMA.sub(".", text.strip())
    clock = _CLOCK.fullmatch(number)
    with contextlib.suppress(ValueError):
        hours, minutes, rest = clock.groups(default="0") if clock else ("0", "0", number)
        value = int(hours) * 3600 + int(minutes) * 60 + float(rest) / (1 if clock else units)
        if 0 <= value < _LATEST:
            return value
    what = "seconds" if units == 1 else "milliseconds"
    raise UserError(f"{where}: {text!r} is not a time in {what}")


def _is_number(text: str) -> bool:
    with contextlib.suppress(ValueError):
        return bool(text.strip()) and float(text) >= 0
    return False


def _published(lines: Lines, first: list[str] | None, rows: Iterator[list[str]]) -> list[Segment]:
    """Reads rows of the published format that the first of them has."""
    if first is None:
        return []
    if len(first) > 2 and not any(character.isdigit() for character in first[1]):
        raise UserError(
            f"{lines.where}: {first[1]!r} is not a time in seconds, nor is the line a header with "
            f"the columns {', '.join(_COLUMNS)}"
        )
    if len(first) <= 2:
        parse = _named_clip
    elif (len(first) == 3 and not _is_number(first[2])) or (
        len(first) == 4 and csv_files.read_split(first[3])
    ):
        parse = _vggsound
    else:
        parse = _audioset
    segments = [parse(first, lines.where)]
    return segments + [parse(cells, lines.where) for cells in rows]


def _vggsound(cells: list[str], where: str) -> Segment:
    """Takes `YTID,start,label,split`; the split may be left out."""
    split = csv_files.read_split(cells[3]) if len(cells) == 4 else None
    if len(cells) != 3 and split is None:
        raise UserError(f"{where}: need YTID,start,label,split with train or test as the split")
    video, start, label = (cell.strip() for cell in cells[:3])
    labels = (label,) if label else ()
    return Segment(_youtube(video), _seconds(start, where), None, labels, split, True, where)


def _named_clip(cells: list[str], where: str) -> Segment:
    """Takes `YTID_000030.mp4,label`, as VGGSound's authors list what they evaluate on.

    The label may be left out. Behind YouTube's id the start may lack its zeros, and the end may
    follow: YTID_30_40.
    """
    name, end = clip_names.without_extension(cells[0].strip()), None
    stem, start = clip_names.split_start(name)
    last = name.replace("\\", "/").rpartition("/")[2]
    if match := _NAMED_SPAN.fullmatch(last):
        stem, start, end = match.groups()
    if len(cells) > 2 or start is None:
        raise UserError(
            f"{where}: need a start in seconds, or YTID_000030.mp4,label, where 000030 is it"
        )
    labels = tuple(filter(None, map(str.strip, cells[1:])))
    until = None if end is None else _seconds(end, where)
    return Segment(stem, _seconds(start, where), until, labels, None, True, where)


def _audioset(cells: list[str], where: str) -> Segment:
    """Takes `YTID, start, end, "mid,mid"`; without the quotes each mid is a cell of its own."""
    alone = all(cell.startswith("/") for cell in cells[3:])
    if len(cells) < 4 or (len(cells) > 4 and not alone):
        raise UserError(
            f'{where}: need YTID, start, end, "mid,mid" or YTID,start,label,split (or the header '
            "video,start …)"
        )
    start, end = (_seconds(cell, where) for cell in cells[1:3])
    labels = tables.labels_of(",".join(cells[3:]))
    return Segment(_youtube(cells[0].strip()), start, end, labels, None, True, where)


def _youtube(text: str) -> str:
    """Returns the id of what a published list calls a video: an id, a file or an address."""
    match = clip_names.ADDRESS.search(text)
    return match[1] if match else clip_names.without_extension(text)


def _own(lines: Lines, rows: Iterator[list[str]], names: list[str]) -> list[Segment]:
    """Reads rows under a header that has our columns, under whatever names."""
    header, ids = tables.columns_of(names), tables.has_ids(names)
    several = tables.has_several_labels(names)
    known = [f"{name}_ms" if f"{name}_ms" in header else name for name in _COLUMNS]
    if not {"end", "end_ms"} & set(header):  # else it may be the whole video's
        known += [name for name in ("duration", "duration_ms") if name in header]
    csv_files.check_columns(header, known, lines.where)
    segments: dict[tuple[str, float, float | None], Segment] = {}
    for cells in rows:
        if len(cells) != len(header):
            raise UserError(f"{lines.where}: need {len(header)} cells, not {len(cells)}")
        new = _own_row(csv_files.under(header, cells), lines.where, ids, several)
        key = new.video, new.start, new.end
        segment = segments.setdefault(key, new)
        if segment.split != new.split:
            raise UserError(f"{lines.where}: {new.video!r} is in {segment.split} already")
        labels = (*segment.labels, *new.labels)
        segments[key] = segment._replace(labels=tuple(dict.fromkeys(labels)))
    return list(segments.values())


def _own_row(row: dict[str, str], where: str, ids: bool, several: bool) -> Segment:
    """Returns a row's segment; with `ids`, videos are called by YouTube's id."""
    name = row["video"]
    if not Path(name).name:
        raise UserError(f"{where}: {name!r} is not a name of a file")
    split = csv_files.read_split(row.get("split", ""))
    if row.get("split") and split is None:
        raise UserError(f"{where}: split must be {TRAIN} or {EVAL}, not {row['split']!r}")
    labels = tables.labels_of(row.get("label", ""), several)
    if "start" not in row and "start_ms" not in row:
        named = _named_clip([name, ""], where)
        return named._replace(labels=labels, split=split)
    start, end, lasts = (_time(row, column, where) for column in ("start", "end", "duration"))
    if start is None:
        raise UserError(f"{where}: '' is not a time in seconds")
    end = start + lasts if lasts is not None else end
    ids = ids or clip_names.ADDRESS.search(name) is not None
    if youtube := ids and clip_names.YOUTUBE.fullmatch(_youtube(name)) is not None:
        name = _youtube(name)
    return Segment(name, start, end, labels, split, youtube, where)


def _time(row: dict[str, str], column: str, where: str) -> float | None:
    """Returns a row's time in seconds, of a column that may count milliseconds; None if empty."""
    for name, units in ((column, 1), (f"{column}_ms", 1000)):
        if row.get(name):
            return _seconds(row[name], where, units)
    return None


def _under(lines: Lines, rows: Iterator[list[str]], header: list[str]) -> Iterator[dict[str, str]]:
    """Yields the rows under a header by its columns."""
    for cells in rows:
        if len(cells) != len(header):
            raise UserError(f"{lines.where}: need {len(header)} cells, not {len(cells)}")
        yield dict(zip(header, (cell.strip() for cell in cells), strict=True))


def _vggsounder(lines: Lines, rows: Iterator[list[str]], header: list[str]) -> list[Segment]:
    """Returns a segment for each clip, called ID_000030, with all its labels."""
    found: dict[str, Segment] = {}
    for row in _under(lines, rows, header):
        name, label, modality = (row[column] for column in _VGGSOUNDER)
        video, start = clip_names.split_start(clip_names.without_extension(name))
        if start is None or not label:
            raise UserError(f"{lines.where}: need a video_id such as ID_000030, and a label")
        if modality not in MODALITIES:
            known = ", ".join(MODALITIES)
            raise UserError(f"{lines.where}: the modality must be one of {known}, not {modality!r}")
        new = Segment(video, float(start), None, (), EVAL, True, lines.where)
        old = found.setdefault(name, new)
        if label in old.labels:
            raise UserError(f"{lines.where}: {name!r} has the label {label!r} already")
        labels, modalities = (*old.labels, label), (*old.modalities, modality)
        found[name] = old._replace(labels=labels, modalities=modalities)
    return list(found.values())


def _kinetics(row: dict[str, str], where: str) -> Segment:
    label, video, start, end = (row[column] for column in _KINETICS)
    split = csv_files.read_split(row.get("split", ""))
    if row.get("split") and split is None:
        known = ", ".join(csv_files.SPLITS)
        raise UserError(f"{where}: split must be one of {known}: {row['split']!r}")
    times = _seconds(start, where), _seconds(end, where)
    labels = (label,) if label else ()
    return Segment(video, *times, labels, split, True, where, selectable=True)


def _audiocaps(row: dict[str, str], where: str) -> Segment:
    video, start = (row[column] for column in _AUDIOCAPS)
    return Segment(video, _seconds(start, where), None, (), None, True, where)
