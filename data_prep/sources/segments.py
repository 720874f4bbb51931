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
from cavmae_sync_jax.utils.errors import UserError
from data_prep.pipeline.clips import VideoClip, clip_name
from data_prep.sources import csv_files, video_files
from data_prep.sources.csv_files import EVAL, TRAIN, Classes, Lines
from data_prep.sources.video_files import Video

# VGGSound calls its held-out split test.
_SPLITS = {TRAIN: TRAIN, EVAL: EVAL, "test": EVAL}
_LATEST = 1e7  # seconds; a time beyond this is a mistake
_COLUMNS = ("video", "start", "end", "label", "split")
# YouTube's id of 11 characters, with the segment's seconds where a file holds nothing else.
_YOUTUBE = re.compile(r"Y?([\w-]{11})(?:_(\d+(?:\.\d+)?)(?:_\d+(?:\.\d+)?)?)?")


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
        elif len(first) == 4 and _SPLITS.get(first[3].strip()):
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
    if len(cells) != 4 or cells[3].strip() not in _SPLITS:
        raise UserError(f"{where}: need YTID,start,label,split with train or test as the split")
    video, start, label, split = (cell.strip() for cell in cells)
    return Segment(video, _seconds(start, where), None, (label,), _SPLITS[split], True, where)


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
        if (split := row.get("split") or None) not in (None, *_SPLITS):
            raise UserError(f"{where}: split must be {TRAIN} or {EVAL}, not {split!r}")
        split = _SPLITS.get(split) if split else None
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


class _Index:
    """Finds the file of a segment by the names that such files have."""

    def __init__(self, videos: Sequence[Video], trimmed: bool):
        self._trimmed = trimmed
        self._whole: dict[str, list[Video]] = collections.defaultdict(list)
        self._cut: dict[tuple[str, float], list[Video]] = collections.defaultdict(list)
        self._named = video_files.by_name(videos)
        for video in videos:
            match = _YOUTUBE.fullmatch(video.name.stem)
            if match and match[2]:
                self._cut[match[1], float(match[2])].append(video)
            elif match:
                self._whole[match[1]].append(video)

    def find(self, segment: Segment) -> tuple[Video | None, bool]:
        """Returns the segment's file, None if there is none, and whether it is the segment alone.

        Raises:
          UserError: there are several such files.
        """
        if not segment.youtube:
            name = str(Path(segment.video))
            return self._only(segment, self._named.get(name, [])), self._trimmed
        cut = self._cut.get((segment.video, segment.start))
        if cut:
            return self._only(segment, cut), True
        return self._only(segment, self._whole.get(segment.video, [])), self._trimmed

    def _only(self, segment: Segment, found: Sequence[Video]) -> Video | None:
        if len(found) > 1:
            files = f"{found[0].path} and {found[1].path}"
            raise UserError(f"{segment.where}: {segment.video!r} may be {files}")
        return found[0] if found else None


def segment_clips(
    videos: Sequence[Video],
    segments: Sequence[Segment],
    classes: Classes,
    *,
    trimmed: bool,
    seconds: decoding.Seconds,
    eval_share: float,
) -> dict[str, list[VideoClip]]:
    """Returns the clip of each segment by split; one without a file is refused as missing.

    A clip's id is its video's with the start in six digits, VGGSound's own way of naming.

    Raises:
      UserError: a label is not a class, or a segment may be one of several files.
    """
    index, clips = _Index(videos, trimmed), collections.defaultdict(list)
    for segment in segments:
        labels = tuple(classes.named(label, segment.where) for label in segment.labels)
        video, alone = index.find(segment)
        start, end = segment.start, segment.end or segment.start + seconds
        first, end = (0.0, end - start) if alone else (start, end)
        number = f"{start:06.0f}" if start == int(start) else f"{start:010.3f}"
        stem = segment.video if segment.youtube else str(Path(segment.video).with_suffix(""))
        name = Path(segment.video)
        clips[segment.split or hashed_split(name, eval_share)].append(
            VideoClip(
                f"{clip_name(stem)}_{number}",
                segment.where if video is None else str(video.path),
                first,
                end,
                labels=labels,
                refusal=None
                if video
                else ("missing", f"{segment.where}: there is no file of {segment.video!r}."),
            )
        )
    return dict(clips)


def hashed_split(name: Path, eval_share: float) -> str:
    """Returns "eval" for about `eval_share` of all names, and "train" for the others."""
    digest = hashlib.sha256(os.fsencode(name.as_posix())).digest()
    return EVAL if int.from_bytes(digest[:8]) < eval_share * 2**64 else TRAIN
