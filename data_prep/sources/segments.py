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
_DIGITS = 3  # of seconds; ids have no more


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

    A segment longer than `seconds` gives consecutive clips. Segments that have the same clip of a
    file give it once, with the labels of all. A clip's id is its video's with the
    start in six digits, VGGSound's own way of naming; clips that would share it have the whole name
    of the video, and the end, too.

    Args:
      videos: the files.
      segments: of `segment_lists.read_segments`, of all lists.
      classes: of the segments' labels.
      trimmed: whether a file without a span in its name holds nothing but its segment.
      seconds: length of a clip.
      eval_share: share of the videos for the split eval, where no segment of a video has a split.
        The hash is of the first name that the lists give to a file.
      rest: the shortest rest of a segment, in seconds, that gives a clip after others.
      pattern: of `segment_files.read_pattern`.

    Raises:
      UserError: a label is not a class, or a clip is in two splits.
    """
    starts = collections.defaultdict(list)
    for segment in segments:
        starts[segment.video].append(segment.start)
    files = SegmentFiles(videos, starts, trimmed=trimmed, pattern=pattern)
    made = [(segment, files.find(*_wanted(segment))) for segment in segments]
    used = {one.video for _, found in made for one in found}
    made = [(segment, _without_copies(found)) for segment, found in made]
    tagged = any(segment.modalities for segment in segments)
    first_names = _first_names(made)
    merged, tails = _merge(made, classes, seconds, rest)
    often = collections.Counter(_short_id(one) for one in merged)
    splits = collections.defaultdict(list)
    said: dict[str, str] = {}  # of a file, by those of its segments that have a split
    for one in merged:
        if one.split:
            said.setdefault(first_names[one.segment.video], one.split)
    for one in merged:
        name, clip_id = one.segment.video, _short_id(one)
        if often[clip_id] > 1:
            clip_id = clip_names.with_start(clip_name(name), one.start)
            clip_id = clip_names.with_start(clip_id, one.end)
        first = first_names[name]
        split = one.split or said.get(first) or hashed_split(Path(first), eval_share)
        splits[split].append(_clip(clip_id, one, tagged))
    unused = [video for video in videos if video not in used]
    return SegmentClips(dict(splits), unused, tails)


class _Merged(NamedTuple):
    """A clip of one segment or of several, of which `segment` is the first.

    `labels` has how each label is perceived, "" if no list says. `split_by` is where the list is
    that says the split. `rival` is where another segment is that the same seconds may be; "" if
    there is none.
    """

    segment: Segment
    found: list[Found]
    start: float
    end: float
    labels: dict[str, str]
    split: str | None
    split_by: str
    rival: str = ""


_Made = Sequence[tuple[Segment, list[Found]]]  # segments with the files that may hold them


def _merge(
    made: _Made, classes: Classes, seconds: decoding.Seconds, rest: decoding.Seconds
) -> tuple[list[_Merged], list[float]]:
    """Returns each clip once, with the labels of all segments that have it, and the tails.

    A list may call a file a, a.mp4 or x/a.mp4, and leave out the end. Segments may overlap.

    Raises:
      UserError: a label is not a class, or a clip is in two splits.
    """
    merged: dict[tuple[Any, ...], _Merged] = {}
    tails: dict[tuple[Any, ...], float] = {}
    for segment, found in made:
        spans = _spans(segment, seconds, rest)
        for start, end in spans:
            key = _place(segment, found, start, end)
            before = merged.get(key)
            moved = round(before.start - start, _DIGITS) if before else 0.0
            rival = ""
            if before and moved and before.segment.video == segment.video:
                # Its file's name leaves open which of a video's segments it holds.
                merged[key] = before._replace(rival=segment.where)
                key, rival = (*key, start), before.segment.where
            before = merged.setdefault(
                key, _Merged(segment, found, start, end, {}, segment.split, segment.where, rival)
            )
            if before.split and segment.split and before.split != segment.split:
                raise UserError(
                    f"{segment.where}: {before.segment.video!r} is in {before.split} already, by "
                    f"{before.split_by}"
                )
            if segment.split and not before.split:
                merged[key] = before._replace(split=segment.split, split_by=segment.where)
            for label, tag in _tags(segment):
                name = classes.named(label, segment.where)
                before.labels[name] = before.labels.get(name) or tag
        left = 0.0 if segment.end is None else segment.end - spans[-1][1]
        if left >= SMALLEST_TAIL:
            tails[key] = left
    return list(merged.values()), list(tails.values())


def _place(segment: Segment, found: Sequence[Found], start: float, end: float) -> tuple[Any, ...]:
    """Returns what two clips share that are the same seconds of a file."""
    if len(found) != 1:
        return segment.video, start, end
    first = found[0].start + start - segment.start
    return found[0].video, round(first, _DIGITS), round(first + end - start, _DIGITS)


def _first_names(made: _Made) -> dict[str, str]:
    """Returns for each name in the lists the first of all that mean the same files."""
    first: dict[str, str] = {}
    of_file: dict[Video, str] = {}

    def root(name: str) -> str:
        while first[name] != name:
            name = first[name]
        return name

    order = {name: number for number, name in enumerate(dict.fromkeys(s.video for s, _ in made))}
    for segment, found in made:
        first.setdefault(segment.video, segment.video)
        if len(found) == 1:
            other = of_file.setdefault(found[0].video, segment.video)
            early, late = sorted((root(other), root(segment.video)), key=order.__getitem__)
            first[late] = early
    return {name: root(name) for name in first}


def _short_id(one: _Merged) -> str:
    return clip_names.with_start(_stem(one.segment), one.start)


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
        _, _, until, _ = _wanted(segment)
        return [(start, start + seconds if until is None else min(start + seconds, until))]
    count = video_files.clip_count(end - start, seconds, rest)
    edges = [start + index * seconds for index in range(count + 1)]
    return [(edges[index], min(end, edges[index + 1])) for index in range(count)]


def _clip(clip_id: str, one: _Merged, tagged: bool) -> VideoClip:
    """Returns a clip with its labels, and with their modalities where a list has them."""
    segment, found, start, end = one.segment, one.found, one.start, one.end
    kind = TaggedClip if tagged else VideoClip
    fields: dict[str, Any] = {"labels": tuple(one.labels)}
    if tagged:
        fields["modalities"] = tuple(one.labels.values())
    if end <= start:
        why = "too_short", f"{segment.where}: the end {end:g} is not after the start {start:g}."
        return kind(clip_id, segment.where, start, end, refusal=why, **fields)
    if len(found) != 1:
        why = "missing", f"{segment.where}: there is no file of {segment.video!r}."
        if found:
            some = " or ".join(str(each.video.path) for each in found[:NAMED])
            why = (
                "ambiguous",
                f"{segment.where}: {segment.video!r} may be {some}; keep one of them.",
            )
        return kind(clip_id, segment.where, start, end, refusal=why, **fields)
    (file,) = found
    if one.rival:
        why = (
            "ambiguous",
            f"{segment.where}: {file.video.path} may hold this segment or that of {one.rival}: put "
            "the span into its name.",
        )
        return kind(clip_id, segment.where, start, end, refusal=why, **fields)
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


def _without_copies(found: list[Found]) -> list[Found]:
    return found[:1] if len(found) > 1 and _are_copies(found) else found


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
