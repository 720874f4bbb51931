"""What the names of clips and of their files say: the kind, YouTube's id, and a file's span."""

import re
from collections.abc import Container, Iterator
from typing import NamedTuple

VIDEOS = (
    *(".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".m2t", ".m2ts", ".m4v"),
    *(".mkv", ".mod", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".ogm", ".ogv"),
    *(".qt", ".rm", ".rmvb", ".tod", ".ts", ".vob", ".webm", ".wmv"),
)
_OTHERS = (
    ".aac",
    ".flac",
    ".jpeg",
    ".jpg",
    ".m4a",
    ".mp3",
    ".npy",
    ".ogg",
    ".opus",
    ".png",
    ".wav",
)
# What else is taken of a folder where sounds and pictures are wanted, too.
SOUNDS = (
    *(".aac", ".ac3", ".aif", ".aiff", ".amr", ".au", ".caf", ".flac", ".m4a", ".m4b", ".mka"),
    *(".mp2", ".mp3", ".oga", ".ogg", ".opus", ".tta", ".w64", ".wav", ".weba", ".wma", ".wv"),
)
PICTURES = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jpe", ".jpeg", ".jpg", ".png"),
    *(".ppm", ".tif", ".tiff", ".webp"),
)
YOUTUBE = re.compile(r"[\w-]{11}", re.ASCII)
# Of a page of YouTube's.
ADDRESS = re.compile(r"youtu(?:be\.com|\.be)/(?:\S*[?&]v=|\w+/)?([\w-]{11})(?![\w-])", re.ASCII)
_LENGTH = 11
# A clock's time, or seconds, or milliseconds.
_NUMBER = r"(\d{1,2}:\d{2}(?::\d{2})?(?:\.\d+)?|\d+(?:\.\d+)?)(?:ms|s)?"
_GLUE = r"[\s_\-–—.,()\[\]~@#=+]*"
_BEGIN = r"(?:(?:from|start|begin|ss|s|t)[_\-=]?)?"
_END = r"(?:(?:to|until|end|e|t)[\s_\-=]*)?"
# A number that a letter or a digit follows is none of a time: 1080p, 2nd.
_SPAN = re.compile(
    rf"{_GLUE}{_BEGIN}{_NUMBER}(?:[\s_\-–—.,]+{_END}{_NUMBER}(?![A-Za-z0-9]))?(?![A-Za-z0-9])",
    re.ASCII | re.IGNORECASE,
)
# A browser's mark of a file that it has loaded again.
_COPY = re.compile(r"\s*\(\d\)$", re.ASCII)
_CLIP = re.compile(r"(.+)_([0-9]{6,}(?:\.[0-9]+)?)", re.DOTALL)
_UNITS = (1, 1000)  # a second has so many of what names count


class Span(NamedTuple):
    """The numbers of a name, in seconds or milliseconds; `end` is None where there is only one."""

    start: float
    end: float | None

    def readings(self) -> Iterator["Span"]:
        """Yields the span in seconds: as if it counted seconds, then as if milliseconds."""
        for unit in _UNITS:
            yield Span(self.start / unit, None if self.end is None else self.end / unit)


def without_extension(name: str) -> str:
    """Returns a file's name without its extension, if this is one of a medium."""
    stem, dot, extension = name.rpartition(".")
    return stem if dot and f".{extension.lower()}" in (*VIDEOS, *_OTHERS) else name


def find_id(name: str, known: Container[str]) -> tuple[str, str] | None:
    """Returns the one known id of YouTube's form in a name, and the text behind it.

    Of several, an id in brackets counts most, then one at the beginning, then one behind a `Y`.

    Args:
      name: without extension.
      known: the ids to look for.

    Returns:
      None where there is no such id, or no single one.
    """
    found: dict[str, tuple[int, int]] = {}  # how little each id counts, and where it ends
    for begin in range(len(name) - _LENGTH + 1):
        end = begin + _LENGTH
        if (one := name[begin:end]) in known:
            bracketed = name[begin - 1 : begin] == "[" and name[end : end + 1] == "]"
            rank = 0 if bracketed else 1 if begin == 0 else 2 if name[:begin] == "Y" else 3
            found[one] = min(found.get(one, (rank, end)), (rank, end))
    best = min((rank for rank, _ in found.values()), default=None)
    ids = [one for one, (rank, _) in found.items() if rank == best]
    return (ids[0], name[found[ids[0]][1] :]) if len(ids) == 1 else None


def span_behind(text: str) -> Span | None:
    """Returns the span that the text behind an id begins with, such as `_30_40` or `-30000`."""
    match = _SPAN.match(without_copy(text))
    return match and Span(_time(match[1]), None if match[2] is None else _time(match[2]))


def span_alone(name: str) -> Span | None:
    """Returns the span that a name is, such as 000030 or 30_40; None for any other name."""
    return span_behind(name) if _SPAN.fullmatch(without_copy(name)) else None


def without_copy(name: str) -> str:
    """Returns a name, without extension, that lacks the mark of a second copy: `ID (1)`."""
    return _COPY.sub("", name)


def _time(text: str) -> float:
    """Returns a number, or the seconds of a clock's time."""
    seconds = 0.0
    for part in text.split(":"):
        seconds = seconds * 60 + float(part)
    return seconds


def split_start(clip_id: str) -> tuple[str, str | None]:
    """Returns a clip id's file and its start, such as 000030; None where it has none."""
    match = _CLIP.fullmatch(clip_id)
    return (match[1], match[2]) if match else (clip_id, None)


def with_start(stem: str, start: float) -> str:
    """Returns a clip's id: its file's, and the start in six digits, as VGGSound names clips."""
    number = f"{start:06.0f}" if start == int(start) else f"{start:010.3f}"
    return f"{stem}_{number}"
