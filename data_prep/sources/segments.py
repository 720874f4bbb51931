"""Labelled segments of videos, as AudioSet and VGGSound publish them, to clips."""

import collections
import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from cavmae_sync_jax.media import decoding
from cavmae_sync_jax.utils import clip_names
from cavmae_sync_jax.utils.errors import UserError
from data_prep.pipeline.clips import VideoClip, clip_name
from data_prep.sources import csv_files, video_files
from data_prep.sources.csv_files import EVAL, TRAIN, Classes, Lines
from data_prep.sources.segment_files import Found, SegmentFiles
from data_prep.sources.video_files import Video

_LATEST = 1e7  # seconds; a time beyond this is a mistake
_COLUMNS = ("video", "start", "end", "label", "split")
# AudioSet's and VGGSound's segments last so many seconds where their lists give no end.
_PUBLISHED = 10.0
SMALLEST_TAIL = 0.5  # seconds; files end so raggedly that less is no rest
NAMED = 5  # of the files that may hold a segment


class Segment(NamedTuple):
    """A span of a video, in seconds, that should become a clip.

    `end` and `split` are None where the file doesn't tell. `youtube` says that `video` is YouTube's
    id, of which files have various names; else it is a file's name. `where` is the file and line.
    """

    video: str
    start: float
    end: float | None
    labels: tuple[str, ...]
    split: str | None
    youtube: bool
    where: str


def read_segments(path: str | Path, split: str | None) -> list[Segment]:
    """Reads a CSV of labelled segments, in one of three formats.

    AudioSet's, as published: lines of `YTID, start, end, "mid,mid"` under comments with "#".
    VGGSound's, as published: lines of `YTID,start,label,split` without a header. Our own: the
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


class SegmentClips(NamedTuple):
    """The clips of segments.

    Attributes:
      splits: the clips of each split.
      unused: the files that no segment names.
      tails: how long the rests are, in seconds, that were too short for a clip.
    """

    splits: dict[str, list[VideoClip]]
    unused: list[Video]
    tails: list[float]


def segment_clips(
    videos: Sequence[Video],
    segments: Sequence[Segment],
    classes: Classes,
    *,
    trimmed: bool,
    seconds: decoding.Seconds,
    eval_share: float,
    rest: decoding.Seconds = 0.0,
    pattern: re.Pattern[str] | None = None,
) -> SegmentClips:
    """Returns the clips of segments; one without a file, or with several, is refused.

    A segment longer than `seconds` gives consecutive clips. A clip's id is its video's with the
    start in six digits, VGGSound's own way of naming; clips that would share it have the whole name
    of the video, and the end, too.

    Args:
      videos: the files.
      segments: of `read_segments`, of all lists.
      classes: of the segments' labels.
      trimmed: whether a file without a span in its name holds nothing but its segment.
      seconds: length of a clip.
      eval_share: share of the videos for the split eval, where a segment has no split.
      rest: the shortest rest of a segment, in seconds, that gives a clip after others.
      pattern: of `segment_files.read_pattern`.

    Raises:
      UserError: a label is not a class, or a segment is in two splits.
    """
    segments = _merge(segments)
    names = (segment.video for segment in segments)
    files = SegmentFiles(videos, names, trimmed=trimmed, pattern=pattern)
    splits, used, tails = collections.defaultdict(list), set(), []
    made = [(segment, files.find(*_wanted(segment))) for segment in segments]
    often = collections.Counter(
        clip_names.with_start(_stem(segment), start)
        for segment in segments
        for start, _ in _spans(segment, seconds, rest)
    )
    for segment, found in made:
        used.update(one.video for one in found)
        labels = tuple(classes.named(label, segment.where) for label in segment.labels)
        split = segment.split or hashed_split(Path(segment.video), eval_share)
        spans = _spans(segment, seconds, rest)
        left = 0.0 if segment.end is None else segment.end - spans[-1][1]
        tails += [left] if left >= SMALLEST_TAIL else []
        for start, end in spans:
            clip_id = clip_names.with_start(_stem(segment), start)
            if often[clip_id] > 1:
                clip_id = clip_names.with_start(clip_name(segment.video), start)
                clip_id = clip_names.with_start(clip_id, end)
            splits[split].append(_clip(clip_id, segment, found, start, end, labels))
    unused = [video for video in videos if video not in used]
    return SegmentClips(dict(splits), unused, tails)


def _merge(segments: Sequence[Segment]) -> list[Segment]:
    """Returns each span of a video once, with the labels of all its rows."""
    merged: dict[tuple[str, float, float | None], Segment] = {}
    for segment in segments:
        key = segment.video, segment.start, segment.end
        before = merged.setdefault(key, segment)
        if before.split != segment.split:
            raise UserError(
                f"{segment.where}: {segment.video!r} is in {before.split} already, by "
                f"{before.where}"
            )
        labels = dict.fromkeys([*before.labels, *segment.labels])
        merged[key] = before._replace(labels=tuple(labels))
    return list(merged.values())


def _wanted(segment: Segment) -> tuple[str, float, float | None, bool]:
    end = segment.end
    if end is None and segment.youtube:
        end = segment.start + _PUBLISHED
    return segment.video, segment.start, end, segment.youtube


def _stem(segment: Segment) -> str:
    name = segment.video
    return clip_name(name if segment.youtube else clip_names.without_extension(name))


def _spans(
    segment: Segment, seconds: decoding.Seconds, rest: decoding.Seconds
) -> list[tuple[float, float]]:
    """Returns start and end of a segment's clips, in seconds of the video."""
    start, end = segment.start, segment.end
    if end is None:
        return [(start, start + seconds)]
    count = video_files.clip_count(end - start, seconds, rest)
    edges = [start + index * seconds for index in range(count + 1)]
    return [(edges[index], min(end, edges[index + 1])) for index in range(count)]


def _clip(
    clip_id: str,
    segment: Segment,
    found: Sequence[Found],
    start: float,
    end: float,
    labels: tuple[str, ...],
) -> VideoClip:
    if len(found) > 1 and _are_copies(found):
        found = found[:1]
    if len(found) != 1:
        why = "missing", f"{segment.where}: there is no file of {segment.video!r}."
        if found:
            some = " or ".join(str(one.video.path) for one in found[:NAMED])
            why = (
                "ambiguous",
                f"{segment.where}: {segment.video!r} may be {some}; keep one of them.",
            )
        return VideoClip(clip_id, segment.where, start, end, labels=labels, refusal=why)
    (file,) = found
    first = file.start + start - segment.start
    listed = segment.youtube and file.cut_to is None
    _, begin, until, _ = _wanted(segment)
    return VideoClip(
        clip_id,
        str(file.video.path),
        first,
        first + end - start,
        labels=labels,
        cut_to=file.cut_to,
        listed=(begin, until) if listed else None,
    )


def _are_copies(found: Sequence[Found]) -> bool:
    """Returns whether files have one name and one size, as where each label has a folder."""
    if len({one.video.name.name for one in found}) > 1:
        return False
    with contextlib.suppress(OSError):
        return len({one.video.path.stat().length for one in found}) == 1
    return False


def hashed_split(name: Path, eval_share: float) -> str:
    """Returns "eval" for about `eval_share` of all names, and "train" for the others."""
    digest = hashlib.sha256(os.fsencode(name.as_posix())).digest()
    return EVAL if int.from_bytes(digest[:8]) < eval_share * 2**64 else TRAIN
