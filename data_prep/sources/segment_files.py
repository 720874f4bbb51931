"""Finds the file of a segment, by the names that downloaders give to videos and pieces of them."""

import collections
import contextlib
import re
from collections.abc import Collection, Container, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from cavmae_sync_jax.utils import clip_names
from cavmae_sync_jax.utils.clip_names import Span
from cavmae_sync_jax.utils.errors import UserError
from data_prep.sources import video_files
from data_prep.sources.video_files import Video

# Seconds by which two starts may differ and be the same: names are rounded to milliseconds.
_SAME = 0.01
# Seconds by which a piece may end before its segment.
_SHORT = 1.0
# yt-dlp's names of what it has not merged or finished.
_UNMERGED = re.compile(r"\.(f\d+(-\w+)?|temp)$")


class Found(NamedTuple):
    """A file that may hold a segment.

    Attributes:
      video: the file.
      start: the segment's start in the file, in seconds.
      cut_to: how long the file is by its name, in seconds; None for a whole video.
    """

    video: Video
    start: float
    cut_to: float | None


class _File(NamedTuple):
    """A file of an id, and what its name may say of the span that it holds.

    `aside` are numbers elsewhere in the name, which are a span only if a segment has the same.
    """

    video: Video
    spans: tuple[Span, ...]
    aside: tuple[Span, ...] = ()


def read_pattern(text: str) -> re.Pattern[str]:
    """Returns the regular expression of `--name_pattern`.

    Raises:
      UserError: it is none, or has no group `id`.
    """
    try:
        pattern = re.compile(text)
    except re.error as error:
        raise UserError(f"--name_pattern={text} is not a regular expression: {error}") from error
    if "id" not in pattern.groupindex:
        raise UserError(
            f"--name_pattern={text} needs a group (?P<id>…), and may have (?P<start>…), (?P<end>…)"
        )
    return pattern


class SegmentFiles:
    """Finds the files of segments among videos."""

    def __init__(
        self,
        videos: Sequence[Video],
        starts: Mapping[str, Collection[float]],
        *,
        trimmed: bool = False,
        pattern: re.Pattern[str] | None = None,
    ):
        """Looks at all names once.

        Args:
          videos: the files.
          starts: of the segments of each video, by its name, in seconds.
          trimmed: whether a file without a span in its name holds nothing but its segment.
          pattern: of `read_pattern`, searched in a file's path without its extension; None finds
            an id of YouTube's form wherever it stands.
        """
        self._trimmed = trimmed
        self._names = video_files.Names(videos) if pattern is None else video_files.Names([])
        self._files: dict[str, list[_File]] = collections.defaultdict(list)
        self._starts = starts
        for video in videos:
            for name in video.names:
                match = _by_pattern(name, pattern) if pattern else _by_id(name, starts)
                if match is not None and (file := _File(video, *match[1:])) not in (
                    files := self._files[match[0]]
                ):
                    files.append(file)

    def find(self, name: str, start: float, end: float | None, youtube: bool) -> list[Found]:
        """Returns the files that may hold the segment of a video; one file is the right outcome.

        Args:
          name: YouTube's id, or a file's name or path, with or without its extension.
          start: of the segment, in seconds of the whole video.
          end: None if it is unknown.
          youtube: whether `name` can't be a file's name.
        """
        if not youtube and (named := self._names.called(name)):
            return [self._whole(video, start, end) for video in named]
        files, starts = self._files.get(name, []), self._starts.get(name, ())
        fits = {file: _fit(file, start, end, starts) for file in files}
        if found := [fit for fit in fits.values() if fit is not None]:
            least = min(fit[0] for fit in found)
            return [fit[1] for fit in found if fit[0] == least]
        whole = [file.video for file in files if not file.spans]
        merged = [video for video in whole if not _UNMERGED.search(video.name.stem)]
        return [self._whole(video, start, end) for video in merged or whole]

    def _whole(self, video: Video, start: float, end: float | None) -> Found:
        if self._trimmed:
            return Found(video, 0.0, None if end is None else end - start)
        return Found(video, start, None)


_Named = tuple[str, tuple[Span, ...], tuple[Span, ...]]  # an id, and the spans of a `_File`


def _by_pattern(file: Path, pattern: re.Pattern[str]) -> _Named | None:
    match = pattern.search(file.with_suffix("").as_posix())
    groups = {} if match is None else match.groupdict()
    if not groups.get("id"):
        return None
    with contextlib.suppress(TypeError, ValueError):  # no group, or no number
        end = groups.get("end")
        span = Span(float(groups.get("start")), None if end is None else float(end))
        return groups["id"], (span,), ()
    return groups["id"], (), ()


def _by_id(file: Path, known: Container[str]) -> _Named | None:
    """Looks into the file's name, then into its folders' from the innermost on.

    In a folder called by an id, a file's name may be its span alone.
    """
    stem = file.stem
    for part in (stem, *reversed(file.parts[:-1])):
        if found := clip_names.find_id(part, known):
            name, behind = found
            inside = part is not stem and not behind
            spans = clip_names.spans_alone(stem) if inside else clip_names.spans_behind(behind)
            around = (file.with_suffix("").as_posix().partition(name)[::2]) if not spans else ()
            aside = [span for text in around for span in clip_names.pairs_within(text)]
            return name, tuple(spans), tuple(aside)
    return None


_Fit = tuple[tuple[bool, float], Found]  # how bad it is, and the file


def _fit(file: _File, start: float, end: float | None, starts: Collection[float]) -> _Fit | None:
    """Returns how a file's name fits a segment, one of those with `starts`; None if not at all."""
    video, fits = file.video, []
    for reading in _readings(file.spans, starts):
        exact = abs(reading.start - start) <= _SAME
        if reading.end is None:
            # Some write whole seconds of a start that has a fraction, if no other begins there.
            if exact or (reading.start == int(start) and not _is_listed(reading, starts)):
                lasts = None if end is None else end - start
                fits.append(((not exact, 0.0), Found(video, 0.0, lasts)))
            continue
        early = max(0.0, start - reading.start)
        holds = reading.start - _SAME <= start < reading.end
        if holds and (end is None or end <= reading.end + _SHORT):
            miss = early + (0.0 if end is None else abs(reading.end - end))
            found = Found(video, early, reading.end - reading.start)
            fits.append(((not exact, miss), found))
        elif exact and end is not None and abs(reading.end - (end - start)) <= _SAME:
            fits.append(((False, 0.0), Found(video, 0.0, reading.end)))  # how long it is
    for reading in _readings(file.aside, starts):
        ends = end is not None and reading.end is not None and abs(reading.end - end) <= _SHORT
        if ends and abs(reading.start - start) <= _SAME:
            fits.append(((False, 0.0), Found(video, 0.0, reading.end - reading.start)))
    return min(fits, key=lambda fit: fit[0], default=None)


def _readings(spans: Iterable[Span], starts: Collection[float]) -> Iterator[Span]:
    """Yields what spans say if they count seconds, and if they count milliseconds.

    They count seconds where a segment begins at that second.
    """
    for span in spans:
        yield span
        is_listed = span.start > 0 and _is_listed(span, starts)
        if not is_listed and (milliseconds := span.in_milliseconds()) is not None:
            yield milliseconds


def _is_listed(span: Span, starts: Collection[float]) -> bool:
    """Whether a segment begins where a span does."""
    return any(abs(span.start - one) <= _SAME for one in starts)
