"""Where the videos are: media files of folders, lists and buckets, and what they are called."""

import collections
import contextlib
import functools
import hashlib
import os
import re
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from etils import epath

from cavmae_sync_jax.utils import clip_names
from cavmae_sync_jax.utils.buckets import bucket_files, in_bucket
from cavmae_sync_jax.utils.errors import UserError
from data_prep.pipeline import archives
from data_prep.pipeline.clips import clip_name

EXTENSIONS = clip_names.VIDEOS


class Video(NamedTuple):
    """A media file and its name: its path inside of the folder or list that it was found by."""

    path: epath.Path
    name: Path


def find_videos(
    sources: Iterable[str], skipped: collections.Counter[str] | None = None
) -> list[Video]:
    """Returns the media files of all sources, each file once.

    Args:
      sources: folders, files, archives of files, or lists of paths (.txt).
      skipped: gets the number of other files in the folders, by extension.

    Raises:
      UserError: a source, a folder in it or a file of a list doesn't exist or can't be read, or a
        source has no media files.
    """
    found: dict[str, Video] = {}
    for source in map(epath.Path, sources):
        try:
            videos = _videos(source, collections.Counter() if skipped is None else skipped)
            places = _places(videos)
        except OSError as error:
            raise UserError(
                f"{error.filename or source} can't be read: {error.strerror or error}"
            ) from error
        except ImportError as error:
            raise UserError(f"{source} needs pip install '.[gcs]' ({error})") from error
        if not videos:
            raise UserError(f"{source} has no media files ({' '.join(EXTENSIONS)})")
        for place, video in zip(places, videos, strict=True):
            found.setdefault(place, video)
    return list(found.values())


def _places(videos: Iterable[Video]) -> list[str]:
    """Returns the paths without links; a folder is resolved once for all of its files."""
    real_folder, places = functools.cache(os.path.realpath), []
    for path in (os.fspath(video.path) for video in videos):
        folder, name = os.path.split(path)
        link = os.path.islink(path)
        places.append(os.path.realpath(path) if link else f"{real_folder(folder)}/{name}")
    return places


def _videos(source: epath.Path, skipped: collections.Counter[str]) -> list[Video]:
    if source.is_dir():
        files = _in_bucket(source) if "://" in str(source) else _in_folder(source)
        found = []
        for path in files:
            if archives.is_archive(path.name) and not in_bucket(path):
                found += _in_archive(path, Path(path.relative_to(source)), skipped)
            elif path.suffix.lower() in EXTENSIONS:
                found.append(Video(path, Path(path.relative_to(source))))
            else:
                skipped[path.suffix.lower() or "none"] += 1
        return sorted(found, key=lambda video: video.path)
    if archives.is_archive(source.name) and source.is_file() and not in_bucket(source):
        return sorted(_in_archive(source, Path(), skipped))
    if source.suffix.lower() == ".txt" and source.is_file():
        return list(_listed(source))
    if source.is_file():
        return [Video(source, Path(source.name))]
    raise UserError(f"there is no file or folder {source}")


def _in_archive(
    archive: epath.Path, name: Path, skipped: collections.Counter[str]
) -> Iterator[Video]:
    """Yields an archive's videos; those that are hidden, or would lie outside, are left out."""
    for member in archives.members(str(archive)):
        parts = [part for part in Path(member).parts if part != "."]
        if any(part.startswith((".", "/")) for part in parts):
            continue
        if Path(member).suffix.lower() in EXTENSIONS:
            yield Video(epath.Path(f"{archive}/{member}"), name.joinpath(*parts))
        else:
            skipped[Path(member).suffix.lower() or "none"] += 1


def _in_bucket(folder: epath.Path) -> Iterator[epath.Path]:
    """Lists everything at once: a question for each of a million objects would take days."""
    scheme, _, place = str(folder).partition("://")
    files, root = bucket_files(folder)
    for name in files.find(root):
        inside = name[len(root) :].strip("/")
        if not any(part.startswith(".") for part in inside.split("/")):
            yield epath.Path(f"{scheme}://{place.rstrip('/')}/{inside}")


def _in_folder(folder: epath.Path) -> Iterator[epath.Path]:
    """Follows links to folders, too, but goes into no folder twice."""
    walked = set()
    for parent, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        place = os.path.realpath(parent)
        if place in walked:
            folders.clear()
            continue
        walked.add(place)
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (epath.Path(parent) / name for name in names if not name.startswith("."))


def _refuse(error: OSError) -> None:
    raise error


def _listed(source: epath.Path) -> Iterator[Video]:
    try:
        lines = source.read_bytes().decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{source} isn't a list of paths in UTF-8") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            path = source.parent / line.strip()
            there = False
            with contextlib.suppress(OSError, ValueError):  # names that no file can have
                there = path.is_file()
            if not there:
                raise UserError(f"{source}, line {number}: there is no file {path}")
            inside = path.resolve().is_relative_to(source.parent.resolve())
            name = path.resolve().relative_to(source.parent.resolve()) if inside else path.name
            yield Video(path, Path(name))


def clip_ids(videos: Sequence[Video]) -> list[str]:
    """Returns for each video the id that its clips' ids begin with.

    This is the file name without its extension. Files that share it, or whose it might be that of a
    clip of another file, get their whole name instead, with "__" for the path separators. Names
    that are still the same in this writing get a hash behind it. An id never has path separators.
    """
    stems = [clip_name(video.name.stem) for video in videos]
    count = collections.Counter(stems)
    ids = [
        stem if count[stem] == 1 and not _is_clip(stem, count) else clip_name(str(video.name))
        for stem, video in zip(stems, videos, strict=True)
    ]
    names: dict[str, set[Path]] = collections.defaultdict(set)
    for one, video in zip(ids, videos, strict=True):
        names[one].add(video.name)
    return [
        one if len(names[one]) == 1 else f"{one}_{_digest(video.name)}"
        for one, video in zip(ids, videos, strict=True)
    ]


def _is_clip(stem: str, stems: Container[str]) -> bool:
    """Whether a stem is what a clip of another file would be called."""
    match = re.fullmatch(r"(.+)_[0-9]{6,}", stem, re.DOTALL)
    return match is not None and match[1] in stems


def _digest(name: Path) -> str:
    return hashlib.sha256(str(name).encode("utf-8", "surrogatepass")).hexdigest()[:8]


def by_name(videos: Sequence[Video]) -> dict[str, list[Video]]:
    """Returns the videos that are called by each name: a file's, or its path in its source.

    A name without the extension counts where no file is called so.
    """
    named, stems = collections.defaultdict(list), collections.defaultdict(list)
    for video in videos:
        for name in {str(video.name), video.name.name}:
            named[name].append(video)
        for stem in {str(video.name.with_suffix("")), video.name.stem}:
            stems[stem].append(video)
    return {**stems, **named}


def clip_count(whole: float, seconds: float, rest: float) -> int:
    """Returns how many consecutive clips of `seconds` a span of `whole` seconds gives.

    What is left after the last whole clip gives one, too, where it has at least `rest` seconds.
    A shorter span gives one clip, and so does one of 0 seconds.
    """
    count = int(whole // seconds)
    left = whole - count * seconds
    return max(1, count + (left > 0 and left >= rest))
