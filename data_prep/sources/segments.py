"""Turns labelled segments of videos into clips."""

import collections
import contextlib
import hashlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from etils import epath

from cavmae_sync_jax.media import decoding
from cavmae_sync_jax.utils import clip_names
from cavmae_sync_jax.utils.buckets import in_bucket
from cavmae_sync_jax.utils.errors import UserError
from data_prep.pipeline import archives
from data_prep.pipeline.clips import VideoClip, clip_name
from data_prep.sources import video_files
from data_prep.sources.csv_files import EVAL, TRAIN, Classes
from data_prep.sources.segment_files import Found, SegmentFiles
from data_prep.sources.segment_lists import Segment
from data_prep.sources.video_files import Video

# AudioSet's and VGGSound's segments last so many seconds where their lists give no end.
_PUBLISHED = 10.0
SMALLEST_TAIL = 0.5  # seconds; files end so raggedly that less is no rest
NAMED = 5  # of the files that may hold a segment


@dataclass(frozen=True)
class TaggedClip(VideoClip):
    """A span with `modalities`: how each label is perceived, "" if a list doesn't say."""

    modalities: tuple[str, ...] = field(default=(), kw_only=True)

    @property
    def extras(self) -> tuple[str, ...]:
        """How the labels are perceived."""
        return ("label_modalities",)

    @property
    def label_modalities(self) -> tuple[str, ...]:
        """How each of `labels` is perceived."""
        return self.modalities


def of_classes(segments: Sequence[Segment], classes: Classes) -> tuple[list[Segment], int]:
    """Returns the segments of the chosen classes, and the number of the others.

    Raises:
      UserError: none is left.
    """
    kept = [s for s in segments if not s.selectable or set(s.labels) & set(classes.names)]
    if not kept:
        raise UserError(
            f"no segment has a class of --classes, such as {classes.names[0]!r}; the first: "
            f"{segments[0].where}"
        )
    return kept, len(segments) - len(kept)


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
      segments: of `segment_lists.read_segments`, of all lists.
      classes: of the segments' labels.
      trimmed: whether a file without a span in its name holds nothing but its segment.
      seconds: length of a clip.
      eval_share: share of the videos for the split eval, where a segment has no split.
      rest: the shortest rest of a segment, in seconds, that gives a clip after others.
      pattern: of `segment_files.read_pattern`.

    Raises:
      UserError: a label is not a class, or a segment is in two splits.
    """
    tagged = any(segment.modalities for segment in segments)
    segments, starts = _merge(segments), collections.defaultdict(list)
    for segment in segments:
        starts[segment.video].append(segment.start)
    files = SegmentFiles(videos, starts, trimmed=trimmed, pattern=pattern)
    splits, used, tails = collections.defaultdict(list), set(), []
    made = [(one, files.find(*_wanted(one))) for one in _merge(_one_name_each(segments, files))]
    often = collections.Counter(
        clip_names.with_start(_stem(segment), start)
        for segment in segments
        for start, _ in _spans(segment, seconds, rest)
    )
    for segment, found in made:
        used.update(one.video for one in found)
        fields = {"labels": tuple(classes.named(one, segment.where) for one in segment.labels)}
        if tagged:
            fields["modalities"] = segment.modalities
        split = segment.split or hashed_split(Path(segment.video), eval_share)
        spans = _spans(segment, seconds, rest)
        left = 0.0 if segment.end is None else segment.end - spans[-1][1]
        tails += [left] if left >= SMALLEST_TAIL else []
        for start, end in spans:
            clip_id = clip_names.with_start(_stem(segment), start)
            if often[clip_id] > 1:
                clip_id = clip_names.with_start(clip_name(segment.video), start)
                clip_id = clip_names.with_start(clip_id, end)
            splits[split].append(_clip(clip_id, segment, found, start, end, fields))
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
        labels = dict(_tags(before) + _tags(segment))
        perceived = tuple(labels.values())
        merged[key] = before._replace(labels=tuple(labels), modalities=perceived)
    return list(merged.values())


def _one_name_each(segments: Sequence[Segment], files: SegmentFiles) -> list[Segment]:
    """Returns segments under one name for each file, though lists call it a, a.mp4 and x/a.mp4."""
    first: dict[tuple[Video, float, float | None], str] = {}
    named = []
    for segment in segments:
        found = [] if segment.youtube else files.find(*_wanted(segment))
        if len(found) == 1:
            key = found[0].video, segment.start, segment.end
            segment = segment._replace(video=first.setdefault(key, segment.video))
        named.append(segment)
    return named


def _tags(segment: Segment) -> list[tuple[str, str]]:
    """Returns each label with how it is perceived."""
    unknown = [""] * len(segment.labels)
    return list(zip(segment.labels, segment.modalities or unknown, strict=True))


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
    fields: dict[str, Any],
) -> VideoClip:
    """Returns a clip with the given labels, and with their modalities where a list has them."""
    kind = TaggedClip if "modalities" in fields else VideoClip
    if end <= start:
        why = "too_short", f"{segment.where}: the end {end:g} is not after the start {start:g}."
        return kind(clip_id, segment.where, start, end, refusal=why, **fields)
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
        return kind(clip_id, segment.where, start, end, refusal=why, **fields)
    (file,) = found
    first = file.start + start - segment.start
    _, begin, until, _ = _wanted(segment)
    return kind(
        clip_id,
        str(file.video.path),
        first,
        first + end - start,
        **fields,
        cut_to=file.cut_to,
        listed=None if until is None or file.cut_to is not None else (begin, until),
    )


def _are_copies(found: Sequence[Found]) -> bool:
    """Returns whether files have one name and one size, as where each label has a folder.

    A browser's mark of a second copy, as in `ID (1).mp4`, is no part of a name.
    """
    names = (one.video.name for one in found)
    if len({clip_names.without_copy(name.stem) + name.suffix for name in names}) > 1:
        return False
    with contextlib.suppress(OSError):
        return len({_size(one.video.path) for one in found}) == 1
    return False


def _size(path: epath.Path) -> int:
    return path.stat().length if in_bucket(path) else archives.size(str(path))


def hashed_split(name: Path, eval_share: float) -> str:
    """Returns "eval" for about `eval_share` of all names, and "train" for the others."""
    digest = hashlib.sha256(os.fsencode(name.as_posix())).digest()
    return EVAL if int.from_bytes(digest[:8]) < eval_share * 2**64 else TRAIN
