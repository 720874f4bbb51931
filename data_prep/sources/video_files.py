"""Finds media files in folders, lists, archives and buckets, and gives them names."""

import collections
import functools
import hashlib
import os
import re
import unicodedata
from collections.abc import Container, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from etils import epath

from cavmae_sync_jax.utils import clip_names, listing
from cavmae_sync_jax.utils.buckets import bucket_files, in_bucket
from cavmae_sync_jax.utils.errors import UserError
from data_prep.pipeline import archives
from data_prep.pipeline.clips import clip_name
from data_prep.sources import copies

EXTENSIONS = clip_names.VIDEOS
_TABLES = (".csv", ".tsv", ".json", ".jsonl", ".xlsx")
_PACKED = (".7z", ".bz2", ".gz", ".rar", ".tbz2", ".txz", ".xz", ".zst")
_PART = re.compile(r"\.(\d{2,3}|part\w+|[rz]\d{2}|a[a-z])", re.ASCII)  # of an archive
_NAMED = 5  # extensions that a sentence names


class Video(NamedTuple):
    """A media file and its name: its path inside of the folder or list that it was found by.

    `links` are further names, where links lead to the same file, or where it has copies.
    """

    path: epath.Path
    name: Path
    links: tuple[Path, ...] = ()

    @property
    def names(self) -> tuple[Path, ...]:
        """All names, its own first."""
        return self.name, *self.links


def find_videos(
    sources: Iterable[str],
    skipped: collections.Counter[str] | None = None,
    absent: list[str] | None = None,
) -> list[Video]:
    """Returns the media files of all sources, each file once, with all its names.

    Args:
      sources: folders, files, archives of files, or lists of paths (.txt).
      skipped: gets the number of other files in the folders, by extension.
      absent: gets the paths in lists of which there is no file.

    Raises:
      UserError: a source or a folder in it doesn't exist or can't be read, or a source has no media
        files.
    """
    found: dict[str, list[Video]] = collections.defaultdict(list)
    skipped = collections.Counter() if skipped is None else skipped
    absent = [] if absent is None else absent
    for source in map(epath.Path, sources):
        others, gone = collections.Counter[str](), list[str]()  # of this source
        try:
            videos = _videos(source, others, gone)
            places = _places(videos)
        except OSError as error:
            raise UserError(
                f"{error.filename or source} can't be read: {error.strerror or error}"
            ) from error
        except ImportError as error:
            raise UserError(f"{source} needs pip install '.[gcs]' ({error})") from error
        if not videos and gone:
            raise UserError(
                f"{source} names no file that is there, such as {gone[0]!r}: a path in a list is "
                "relative to the list"
            )
        if not videos:
            other = ", ".join(f"{count:,} {kind}" for kind, count in others.most_common(_NAMED))
            how = "a .txt list of paths takes files of any name"
            if any(map(_is_packed, others)):
                how = "unpack archives of these kinds, and put their parts together"
            elif in_bucket(source) and any(map(archives.is_archive, others)):
                how = "an archive in a bucket is not read there, so unpack it or copy it to a disk"
            raise UserError(
                f"{source} has no media files ({' '.join(EXTENSIONS)})"
                + (other and f", but {other}: {how}")
            )
        skipped.update(others)
        absent += gone
        for place, video in zip(places, videos, strict=True):
            found[place].append(video)
    return [_together(videos) for videos in found.values()]


def _is_packed(extension: str) -> bool:
    return extension in _PACKED or _PART.fullmatch(extension) is not None


def without_copies(videos: Sequence[Video]) -> list[Video]:
    """Returns each file once with the names of all its copies, see `copies.groups`.

    Its own name is the shortest.
    """
    groups = copies.groups([str(video.path) for video in videos], [video.name for video in videos])
    return [
        _together(sorted((videos[one] for one in members), key=lambda one: len(str(one.name))))
        for members in groups
    ]


def _together(videos: Sequence[Video]) -> Video:
    """Returns the one file that has several names."""
    first = videos[0]
    names = dict.fromkeys(name for video in videos for name in video.names)
    return first._replace(links=tuple(name for name in names if name != first.name))


def _places(videos: Iterable[Video]) -> list[str]:
    """Returns the paths without links; a folder is resolved once for all of its files."""
    real_folder, places = functools.cache(os.path.realpath), []
    for path in (os.fspath(video.path) for video in videos):
        folder, name = os.path.split(path)
        link = os.path.islink(path)
        places.append(os.path.realpath(path) if link else f"{real_folder(folder)}/{name}")
    return places


def _videos(
    source: epath.Path, skipped: collections.Counter[str], absent: list[str]
) -> list[Video]:
    if source.is_dir():
        root, remote = str(source), in_bucket(source)
        found, damaged = [], []
        others, real_folder = set[str](), functools.cache(os.path.realpath)
        # Of hundreds of thousands of files, making paths takes most of the time.
        for inside in _in_bucket(source) if remote else listing.in_folder(root, all_names=True):
            extension = os.path.splitext(inside)[1].lower().rstrip(".")
            if archives.is_archive(inside) and not remote:
                try:
                    found += _in_archive(
                        epath.Path(os.path.join(root, inside)), Path(inside), skipped
                    )
                except UserError as error:  # all of them are reported together
                    damaged.append(str(error))
            elif extension in EXTENSIONS:
                found.append(Video(epath.Path(os.path.join(root, inside)), Path(inside)))
            else:
                above, name = os.path.split(os.path.join(root, inside))
                others.add(f"{real_folder(above)}/{name}")
        kinds = (os.path.splitext(other)[1].lower().rstrip(".") for other in others)
        skipped.update(kind or "none" for kind in kinds)
        if damaged:
            raise UserError("; ".join(damaged))
        return sorted(found, key=lambda video: video.name.parts)
    if archives.is_archive(source.name) and source.is_file() and not in_bucket(source):
        return sorted(_in_archive(source, Path(), skipped))
    if archives.is_archive(source.name) and source.is_file():
        raise UserError(f"{source} is an archive in a bucket: copy it to a disk, or unpack it")
    if source.suffix.lower() == ".txt" and source.is_file():
        return list(_listed(source, skipped, absent))
    if source.suffix.lower() in _TABLES and source.is_file():
        raise UserError(f"{source} is not a video: a table goes to --labels or --segments")
    if source.suffix.lower() in _PACKED and source.is_file():
        known = ", ".join(archives.EXTENSIONS)
        raise UserError(f"{source} can't be read as it is ({known} can be): unpack it")
    if source.is_file():
        return [Video(source, Path(source.name))]
    raise UserError(f"there is no file or folder {source}")


def _in_archive(
    archive: epath.Path, name: Path, skipped: collections.Counter[str]
) -> Iterator[Video]:
    """Yields an archive's videos, each file once, under its own name where it has one.

    Those that are hidden, or would lie outside, are left out.
    """
    found: dict[str, list[Video]] = collections.defaultdict(list)
    places, replaced = archives.members(str(archive)), archives.replaced(str(archive))
    if replaced:
        skipped["replaced in its archive by one of its name"] += replaced
    for member in sorted(places, key=lambda name: (name != places[name], name)):
        parts = [part for part in Path(member).parts if part != "."]
        if any(listing.is_hidden(part) or part.startswith("/") for part in parts):
            continue
        if Path(member).suffix.lower() in EXTENSIONS:
            video = Video(epath.Path(f"{archive}/{member}"), name.joinpath(*parts))
            found[places[member]].append(video)
        else:
            skipped[Path(member).suffix.lower() or "none"] += 1
    yield from map(_together, found.values())


def _in_bucket(folder: epath.Path) -> Iterator[str]:
    """Lists everything at once: one request for each of a million objects would take days."""
    files, root = bucket_files(folder)
    for name in files.find(root):
        inside = name[len(root) :].strip("/")
        if not any(map(listing.is_hidden, inside.split("/"))):
            yield inside


def _listed(
    source: epath.Path, skipped: collections.Counter[str], absent: list[str]
) -> Iterator[Video]:
    """Yields the files of a list of paths."""
    folder = source.parent.resolve()
    for line, path in listing.in_list(source):
        if path is None:
            absent.append(line)
            continue
        real = path.resolve()
        name = Path(real.relative_to(folder) if real.is_relative_to(folder) else path.name)
        if archives.is_archive(path.name) and not in_bucket(path):
            yield from _in_archive(path, name, skipped)
        else:
            yield Video(path, name)


def clip_ids(videos: Sequence[Video]) -> list[str]:
    """Returns for each video the id that its clips' ids begin with.

    This is the file name without its extension. Files that share it, or whose it might be that of a
    clip of another file, get their whole name instead, with "__" for the path separators. The whole
    names of several sources begin with the source's, where they would be the same. Names that are
    still the same in this writing get a hash behind it. An id never has path separators.
    """
    stems = [clip_name(video.name.stem) for video in videos]
    count = collections.Counter(stems)
    often = collections.Counter(video.name for video in dict.fromkeys(videos))
    wholes = [_from_source(one) if often[one.name] > 1 else one.name for one in videos]
    ids = [
        stem if count[stem] == 1 and not _is_clip(stem, count) else clip_name(str(whole))
        for stem, whole in zip(stems, wholes, strict=True)
    ]
    files: dict[str, dict[str, Path]] = collections.defaultdict(dict)
    for one, video, whole in zip(ids, videos, wholes, strict=True):
        files[one][str(video.path)] = whole
    made = []
    for one, video, whole in zip(ids, videos, wholes, strict=True):
        others = list(files[one].values())
        distinct = str(whole if others.count(whole) == 1 else video.path)
        made.append(one if len(others) == 1 else f"{one}_{_digest(distinct)}")
    return made


def _from_source(video: Video) -> Path:
    """Returns a video's name behind that of the folder or list that it was found by."""
    path, name = str(video.path), str(video.name)
    return Path(Path(path.removesuffix(f"/{name}")).name) / video.name


def _is_clip(stem: str, stems: Container[str]) -> bool:
    """Whether a stem is what a clip of another file would be called."""
    match = re.fullmatch(r"(.+)_[0-9]{6,}", stem, re.DOTALL)
    return match is not None and match[1] in stems


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:8]


class Names:
    """Finds videos by the names in lists."""

    def __init__(self, videos: Iterable[Video]):
        """Takes the videos that are there."""
        self._by_stem: dict[str, list[tuple[Path, Video]]] = collections.defaultdict(list)
        for video in videos:
            for name in video.names:
                self._by_stem[_plain(name.stem)].append((name, video))

    def called(self, name: str) -> list[Video]:
        """Returns the videos that a name means; one is the right outcome.

        A name is a file's, its path in its source, or its path on this machine. Where no file is
        called so, the name may lack the extension. Where there is none either, another extension
        will do, and neither case nor the writing of accents and separators matter.
        """
        keys = dict.fromkeys(_plain(one) for one in (_last(name), Path(_last(name)).stem))
        places = [place for key in keys for place in self._by_stem.get(key, ())]
        exact, plain = str(Path(name)), _plain(clip_names.without_extension(name))
        for writings in (
            lambda own, _: (str(own), own.name),
            lambda own, _: (str(own.with_suffix("")), own.stem),
            lambda _, video: (os.fspath(video.path), os.path.abspath(video.path)),
        ):
            if found := [video for own, video in places if exact in writings(own, video)]:
                return list(dict.fromkeys(found))
        same = (
            video
            for own, video in places
            if plain in (_plain(str(own.with_suffix(""))), _plain(own.stem))
        )
        return list(dict.fromkeys(same))


def _plain(name: str) -> str:
    """Returns a name in a form that file systems and spreadsheets share."""
    return unicodedata.normalize("NFC", name.replace("\\", "/")).casefold()


def _last(name: str) -> str:
    return name.replace("\\", "/").rstrip("/").rpartition("/")[2]


def clip_count(whole: float, seconds: float, rest: float) -> int:
    """Returns how many consecutive clips of `seconds` a span of `whole` seconds gives.

    What is left after the last whole clip gives one, too, where it has at least `rest` seconds.
    A shorter span gives one clip, and so does one of 0 seconds.
    """
    count = int(whole // seconds)
    left = whole - count * seconds
    return max(1, count + (left > 0 and left >= rest))
