"""Reads lists as other programs write them: encoding, delimiter, and names of columns."""

import itertools
import re
from collections.abc import Sequence

from etils import epath

# What other lists call the columns.
_SPELLINGS = {
    "video": ("file", "filename", "filepath", "path", "videoname", "videopath", "videofile"),
    "id": (
        *("videoid", "youtubeid", "youtube", "ytid", "url", "link", "videourl", "youtubeurl"),
        *("clip", "clipid"),
    ),
    "label": ("class", "classname", "category", "displayname", "tag", "eventlabel"),
    "labels": ("classes", "categories", "positivelabels", "displaynames", "tags", "eventlabels"),
    "split": ("set", "subset"),
    "start": (
        *("starttime", "startseconds", "startsec", "starts", "starttimeseconds", "timestart"),
        *("begin", "begintime", "onset"),
    ),
    "end": (
        *("endtime", "endseconds", "endsec", "ends", "endtimeseconds", "timeend", "stop"),
        *("stoptime", "offset"),
    ),
    "duration": ("durationseconds", "durationsec", "cliplength", "length", "lengthseconds"),
    "": ("index", "idx", "unnamed:0"),  # data frames count their rows
}
_MEANT = {other: name for name, others in _SPELLINGS.items() for other in (name, *others)}
# Of a time's column that counts milliseconds.
_MILLISECONDS = re.compile(r"(.+?)(?:in)?(?:ms|msec|millis|milliseconds)")
# Between names in a column of several: a name may have a comma with a space behind it.
_BETWEEN = re.compile(r",(?!\s)|[;|]")
# Spreadsheets write the last two, too.
_DELIMITERS = (",", "\t", ";")
_LOOKED_AT = 50  # lines that tell the delimiter
_QUOTED = re.compile(r'"[^"\n]*"')
_ENCODINGS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


def text_of(path: epath.PathLike) -> str:
    """Returns the text of a file in UTF-8, or in UTF-16 with its mark.

    Raises:
      OSError, UnicodeDecodeError: it can't be read.
    """
    data = epath.Path(path).read_bytes()
    return data.decode(_ENCODINGS.get(data[:2], "utf-8-sig"))


def delimiter_of(text: str) -> str:
    """Returns the delimiter of the cells: the one that lines have most often outside quotes."""
    lines = (line for line in text.splitlines() if line.strip() and not line.startswith("#"))
    some = [_QUOTED.sub("", line) for line in itertools.islice(lines, _LOOKED_AT)]
    # A label has commas now and then, but not in each line.
    return max(_DELIMITERS, key=lambda one: min((line.count(one) for line in some), default=0))


def header_of(cells: Sequence[str]) -> list[str]:
    """Returns a header's names, whose case and spaces don't matter."""
    return [cell.strip().lower() for cell in cells]


def columns_of(header: Sequence[str]) -> list[str]:
    """Returns the columns of users' own lists under our names: `File Name` is video.

    A time in milliseconds is `start_ms`, `end_ms` or `duration_ms`. A column without a name, as
    data frames write their index, stays without. An id is the video, or without a name beside one.
    """
    names = ["label" if one == "labels" else one for one in map(_meant, header)]
    if "onset" not in header:  # beside it an offset is the end; alone it may be the start
        names = [
            "offset" if own == "offset" else name for own, name in zip(header, names, strict=True)
        ]
    ids = "" if "video" in names else "video"
    # One called id alone may count the rows.
    counts = names.count("id") > 1 and [name.strip() for name in header].count("id") == 1
    return [
        ("" if counts and own.strip() == "id" else ids) if name == "id" else name
        for own, name in zip(header, names, strict=True)
    ]


def has_ids(header: Sequence[str]) -> bool:
    """Returns whether a header's videos are called by ids, such as YouTube's, not by files."""
    names = [_meant(name) for name in header]
    return "id" in names and "video" not in names


def has_several_labels(header: Sequence[str]) -> bool:
    """Returns whether a header says that a row has several labels, as `labels` and `tags` do."""
    return "labels" in map(_meant, header)


def labels_of(text: str, several: bool = False) -> tuple[str, ...]:
    """Returns the labels of a cell, each once: mids between commas, or one name.

    A name may have commas, such as "railroad car, train wagon". With `several` there may be more
    names, between semicolons, bars, or commas that no space follows.
    """
    mids = [mid.strip() for mid in text.split(",")]
    are_mids = all(mid.startswith("/") for mid in mids)
    names = _BETWEEN.split(text) if several else [text]
    labels = mids if are_mids else [name.strip() for name in names]
    return tuple(dict.fromkeys(label for label in labels if label))


def _meant(name: str) -> str:
    short = re.sub(r"[\s_\-()\[\]]", "", name)
    match = _MILLISECONDS.fullmatch(short)
    if match and (time := _MEANT.get(match[1])) in ("start", "end", "duration"):
        return f"{time}_ms"
    return _MEANT.get(short, name)
