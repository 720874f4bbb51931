"""Where the videos are: media files of folders, lists and buckets, and what they are called."""

import collections
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from etils import epath

from cavmae_sync_jax.cli import UserError
from data_prep.clips import clip_name

EXTENSIONS = (
    *(".3g2", ".3gp", ".asf", ".avi", ".f4v", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"),
    *(".mpeg", ".mpg", ".mts", ".mxf", ".ogm", ".ogv", ".ts", ".vob", ".webm", ".wmv"),
)


class Video(NamedTuple):
    """A media file and its name: its path inside of the folder or list that it was found by."""

    path: epath.Path
    name: Path


def find_videos(sources: Iterable[str]) -> list[Video]:
    """Returns the media files of all sources, each file once.

    Raises:
      UserError: a source or a file of a list doesn't exist, or a source has no media files.
    """
    found: dict[epath.Path, Video] = {}
    for source in map(epath.Path, sources):
        if source.is_dir():
            videos = [Video(path, Path(path.relative_to(source))) for path in _media_files(source)]
        elif source.suffix.lower() == ".txt" and source.is_file():
            videos = list(_listed(source))
        elif source.is_file():
            videos = [Video(source, Path(source.name))]
        else:
            raise UserError(f"there is no file or folder {source}")
        if not videos:
            raise UserError(f"{source} has no media files ({' '.join(EXTENSIONS)})")
        for video in videos:
            found.setdefault(video.path.resolve(), video)
    return list(found.values())


def _media_files(folder: epath.Path) -> list[epath.Path]:
    """Follows links to folders, too, but goes into no folder twice."""
    if "://" in str(folder):
        inside = [path for path in folder.iterdir() if not path.name.startswith(".")]
        deeper = (_media_files(path) for path in inside if path.is_dir())
        here = [path for path in inside if path.suffix.lower() in EXTENSIONS and path.is_file()]
        return sorted(itertools.chain(here, *deeper))
    walked, found = set(), []
    for parent, folders, names in os.walk(folder, followlinks=True):
        place = os.path.realpath(parent)
        if place in walked:
            folders.clear()
            continue
        walked.add(place)
        folders[:] = [name for name in folders if not name.startswith(".")]
        kept = (name for name in names if Path(name).suffix.lower() in EXTENSIONS)
        found += [epath.Path(parent) / name for name in kept if not name.startswith(".")]
    return sorted(path for path in found if path.is_file())


def _listed(source: epath.Path) -> Iterator[Video]:
    try:
        lines = source.read_text().splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"{source} isn't a list of paths in UTF-8") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            path = source.parent / line.strip()
            if not path.is_file():
                raise UserError(f"{source}, line {number}: there is no file {path}")
            inside = path.resolve().is_relative_to(source.parent.resolve())
            name = path.resolve().relative_to(source.parent.resolve()) if inside else path.name
            yield Video(path, Path(name))


def clip_ids(videos: Sequence[Video]) -> list[str]:
    """Returns for each video the id that its clips' ids begin with.

    This is the file name without its extension. Files that share it get their whole name instead,
    with "__" for the path separators. An id never has path separators.
    """
    stems = collections.Counter(video.name.stem for video in videos)
    return [
        clip_name(video.name.stem if stems[video.name.stem] == 1 else str(video.name))
        for video in videos
    ]


def by_name(videos: Sequence[Video]) -> dict[str, list[Video]]:
    """Returns the videos that are called by each name: a file's, or its path in its source."""
    named = collections.defaultdict(list)
    for video in videos:
        for name in {str(video.name), video.name.name}:
            named[name].append(video)
    return named
