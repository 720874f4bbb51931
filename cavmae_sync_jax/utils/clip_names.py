"""What the names of clips and of their files say: the kind, YouTube's id, and a file's span."""

import itertools
import re
from collections.abc import Callable, Container, Iterator
from typing import NamedTuple

VIDEOS = (
    *(".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".m2t", ".m2ts", ".m4v"),
    *(".mkv", ".mod", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mts", ".mxf", ".ogm", ".ogv"),
    *(".qt", ".rm", ".rmvb", ".tod", ".ts", ".vob", ".webm", ".wmv"),
)
SOUNDS = (
    *(".aac", ".ac3", ".aif", ".aifc", ".aiff", ".amr", ".ape", ".au", ".caf", ".flac", ".m4a"),
    *(".m4b", ".mka", ".mp2", ".mp3", ".oga", ".ogg", ".opus", ".spx", ".tta", ".w64", ".wav"),
    *(".weba", ".wma", ".wv"),
)
PICTURES = (
    *(".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pgm", ".png"),
    *(".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
_MEDIA = (*VIDEOS, *SOUNDS, *PICTURES, ".npy")
YOUTUBE = re.compile(r"[\w-]{11}", re.ASCII)
# Of a page of YouTube's.
ADDRESS = re.compile(r"youtu(?:be\.com|\.be)/(?:\S*[?&]v=|\w+/)?([\w-]{11})(?![\w-])", re.ASCII)
_LENGTH = 11
# A clock's time, or seconds, or milliseconds.
_UNIT = r"(?:ms|s|secs?|seconds?)?"
_NUMBER = rf"(\d{{1,2}}:\d{{2}}(?::\d{{2}})?(?:\.\d+)?|\d+(?:\.\d+)?){_UNIT}"
_GLUE = r"[\s_\-–—.,()\[\]~@#=+]*"
_BEGIN = r"(?:(?:from|start|begin|ss|s|t)[_\-=]?)?"
_END = r"(?:(?:to|until|end|e|t)[\s_\-=]*)?"
# A number that a letter or a digit follows is none of a time: 1080p, 2nd.
_SECOND = rf"[\s_\-–—.,]+{_END}{_NUMBER}(?![A-Za-z0-9])"
_SPAN = re.compile(
    rf"{_GLUE}{_BEGIN}{_NUMBER}(?:{_SECOND})?(?![A-Za-z0-9])", re.ASCII | re.IGNORECASE
)
_PAIR = re.compile(rf"(?<![A-Za-z0-9.])(?=({_NUMBER}{_SECOND}))", re.ASCII | re.IGNORECASE)
# A clock's time and decimals as file systems and countries have them: 00-00-30, 0m30s, 30,5.
_CLOCKS = (
    re.compile(r"(?<![0-9])(\d{1,2})[-_.：](\d{2})[-_.：](\d{2})(?![0-9])", re.ASCII),
    re.compile(
        r"(?<![0-9])(?:(\d+)h)?(\d+)m(?:in)?(\d+(?:\.\d+)?)s(?:ec)?(?![A-Za-z0-9])",
        re.ASCII | re.IGNORECASE,
    ),
)
_DECIMAL_COMMA = re.compile(r"(?<![0-9,])([0-9]+),([0-9]+)(?![0-9,])")
# A browser's mark of a file that it has loaded again.
_COPY = re.compile(r"\s*\(\d\)$", re.ASCII)
_CLIP = re.compile(r"(.+)_([0-9]{6,}(?:\.[0-9]+)?)", re.DOTALL)
# Nobody cuts at less than so many milliseconds, but for 0: a smaller number counts seconds.
_FEWEST_MILLISECONDS = 100


class Span(NamedTuple):
    """The numbers of a name, in seconds or milliseconds; `end` is None where there is only one."""

    start: float
    end: float | None

    def in_milliseconds(self) -> "Span | None":
        """Returns the span in seconds as if it counted milliseconds; None if it can't do so."""
        if 0 < self.start < _FEWEST_MILLISECONDS:
            return None
        return Span(self.start / 1000, None if self.end is None else self.end / 1000)


def without_extension(name: str) -> str:
    """Returns a file's name without its extension, if that is a media file's."""
    stem, dot, extension = name.rpartition(".")
    return stem if dot and f".{extension.lower()}" in _MEDIA else name


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


def spans_behind(text: str) -> list[Span]:
    """Returns what the text behind an id may say of a span, such as `_30_40` or `-30000`.

    It is one span for each way to read the text, the most literal first.
    """
    return _spans(_SPAN.match, without_copy(text))


def spans_alone(name: str) -> list[Span]:
    """Returns what a name, such as 000030 or 30_40, may say of a span; nothing of any other."""
    return _spans(_SPAN.fullmatch, without_copy(name))


def pairs_within(text: str) -> list[Span]:
    """Returns all that may be the two ends of a span in a text, wherever they stand in it."""
    pairs = (_PAIR.finditer(one) for one in _writings(without_copy(text)))
    found = (Span(_time(match[2]), _time(match[3])) for match in itertools.chain(*pairs))
    return list(dict.fromkeys(found))


def _spans(match: Callable[[str], re.Match[str] | None], text: str) -> list[Span]:
    found = [one for one in map(match, _writings(text)) if one]
    spans = (Span(_time(one[1]), None if one[2] is None else _time(one[2])) for one in found)
    return list(dict.fromkeys(spans))


def _writings(text: str) -> Iterator[str]:
    """Yields a text as it is, and as it would be with other clocks' times and decimal commas."""
    yield text
    for clock in _CLOCKS:
        if (other := clock.sub(_seconds_of, text)) != text:
            yield other
    if (other := _DECIMAL_COMMA.sub(r"\1.\2", text)) != text:
        yield other


def _seconds_of(clock: re.Match[str]) -> str:
    hours, minutes, seconds = clock.groups(default="0")
    return f"{int(hours) * 3600 + int(minutes) * 60 + float(seconds):.3f}"


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
