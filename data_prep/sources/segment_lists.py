"""Lists of labelled segments of videos, as AudioSet, VGGSound, VGGSounder, Kinetics publish."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cavmae_sync_jax.data.dataset_dir import MODALITIES
from cavmae_sync_jax.utils import clip_names
from cavmae_sync_jax.utils.errors import UserError
from data_prep.sources import csv_files
from data_prep.sources.csv_files import EVAL, TRAIN, Lines

_LATEST = 1e7  # seconds; a time beyond this is a mistake
_COLUMNS = ("video", "start", "end", "label", "split")
# What the headers of VGGSounder's, Kinetics' and AudioCaps' lists hold, besides further columns.
_VGGSOUNDER = ("video_id", "label", "modality")
_KINETICS = ("label", "youtube_id", "time_start", "time_end")
_AUDIOCAPS = ("youtube_id", "start_time")


class Segment(NamedTuple):
    """A span of a video, in seconds, that should become a clip.

    `end` and `split` are None where the file doesn't tell. `youtube` says that `video` is YouTube's
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
    VGGSound's, as published: lines of `YTID,start,label,split` without a header. VGGSounder's, with
    the header `video_id,label,modality,…` and a row for each label of a test clip of VGGSound.
    Kinetics', with the header `label,youtube_id,time_start,time_end,split,…`. AudioCaps', with the
    header `audiocap_id,youtube_id,start_time,caption`, whose captions are not read. Our own: the
    header video,start,end,label,split, of which end, label and split may be left out, and several
    rows of the same span give it several labels.

    Args:
      path: the file.
      split: of all its segments; None takes it from the file.

    Raises:
      UserError: the file or a row of it is malformed, or it has no row.
    """
    with csv_files.lines_of(path, skipinitialspace=True) as lines:
        rows = iter(lines)
        first = next((cells for cells in rows if not cells[0].startswith("#")), None)
        if first is None:
            raise UserError(f"{path} has no segment")
        if first[0] == "video":
            segments = _own(lines, rows, first)
        elif set(_VGGSOUNDER) <= set(first):
            segments = _vggsounder(lines, rows, first)
        elif set(_KINETICS) <= set(first):
            segments = [_kinetics(row, lines.where) for row in _under(lines, rows, first)]
        elif set(_AUDIOCAPS) <= set(first):
            segments = [_audiocaps(row, lines.where) for row in _under(lines, rows, first)]
        elif len(first) == 4 and csv_files.SPLITS.get(first[3].strip()):
            segments = _published(lines, first, rows, _vggsound)
        else:
            segments = _published(lines, first, rows, _audioset)
    if split is not None:
        segments = [segment._replace(split=split) for segment in segments]
    return segments


def _seconds(text: str, where: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= (value := float(text)) < _LATEST:
            return value
    raise UserError(f"{where}: {text!r} is no time in seconds")


def _published(lines: Lines, first: list[str], rows, parse) -> list[Segment]:
    segments = [parse(first, lines.where)]
    return segments + [parse(cells, lines.where) for cells in rows]


def _vggsound(cells: list[str], where: str) -> Segment:
    if len(cells) != 4 or cells[3].strip() not in csv_files.SPLITS:
        raise UserError(f"{where}: need YTID,start,label,split with train or test as the split")
    video, start, label, split = (cell.strip() for cell in cells)
    return Segment(
        video, _seconds(start, where), None, (label,), csv_files.SPLITS[split], True, where
    )


def _audioset(cells: list[str], where: str) -> Segment:
    if len(cells) != 4:
        raise UserError(f'{where}: need YTID, start, end, "mid,mid" (or the header video,start …)')
    video, start, end, labels = (cell.strip() for cell in cells)
    mids = tuple(dict.fromkeys(mid.strip() for mid in labels.split(",") if mid.strip()))
    return _span(
        Segment(video, _seconds(start, where), _seconds(end, where), mids, None, True, where)
    )


def _span(segment: Segment) -> Segment:
    if segment.end is not None and segment.end <= segment.start:
        raise UserError(f"{segment.where}: the end {segment.end:g} is not after {segment.start:g}")
    return segment


def _own(lines: Lines, rows: Iterator[list[str]], header: list[str]) -> list[Segment]:
    known = {"video", "start"} <= set(header) <= set(_COLUMNS)
    if not known or len(set(header)) < len(header):
        raise UserError(f"{lines.where}: the header may have {','.join(_COLUMNS)}")
    segments: dict[tuple[str, float, float | None], Segment] = {}
    for cells in rows:
        if len(cells) != len(header):
            raise UserError(f"{lines.where}: need {len(header)} cells, not {len(cells)}")
        row, where = dict(zip(header, cells, strict=True)), lines.where
        if not Path(row["video"]).name:
            raise UserError(f"{where}: {row['video']!r} is no name of a file")
        start = _seconds(row["start"], where)
        end = _seconds(row["end"], where) if row.get("end") else None
        if (split := row.get("split") or None) not in (None, *csv_files.SPLITS):
            raise UserError(f"{where}: split must be {TRAIN} or {EVAL}, not {split!r}")
        split = csv_files.SPLITS.get(split) if split else None
        new = _span(Segment(row["video"], start, end, (), split, False, where))
        segment = segments.setdefault((row["video"], start, end), new)
        if segment.split != split:
            raise UserError(f"{where}: {row['video']!r} is in {segment.split} already")
        labels = [*segment.labels, *([row["label"]] if row.get("label") else [])]
        key = row["video"], start, end
        segments[key] = segment._replace(labels=tuple(dict.fromkeys(labels)))
    if not segments:
        raise UserError(f"{lines.where}: there is no segment under the header")
    return list(segments.values())


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
    if not found:
        raise UserError(f"{lines.where}: there is no label under the header")
    return list(found.values())


def _kinetics(row: dict[str, str], where: str) -> Segment:
    label, video, start, end = (row[column] for column in _KINETICS)
    if (split := row.get("split") or None) not in (None, *csv_files.SPLITS):
        raise UserError(f"{where}: split must be one of {', '.join(csv_files.SPLITS)}: {split!r}")
    split = csv_files.SPLITS[split] if split else None
    times = _seconds(start, where), _seconds(end, where)
    labels = (label,) if label else ()
    return _span(Segment(video, *times, labels, split, True, where, selectable=True))


def _audiocaps(row: dict[str, str], where: str) -> Segment:
    video, start = (row[column] for column in _AUDIOCAPS)
    return Segment(video, _seconds(start, where), None, (), None, True, where)
