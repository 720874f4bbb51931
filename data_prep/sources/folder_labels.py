"""Takes labels and splits from the folders that videos lie in: class/file or split/class/file."""

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from cavmae_sync_jax.utils.errors import UserError
from data_prep.pipeline import archives
from data_prep.sources.csv_files import SPLITS, LabelRow, Labels, read_split
from data_prep.sources.video_files import Video


def read(videos: Sequence[Video]) -> Labels:
    """Returns each video's class: the outermost folder in its name, or the one below its split.

    The outermost folders are splits where all of them are called so (`csv_files.SPLITS`). Folders
    below the class's mean nothing.

    A file to which links lead from other folders has their classes, too. An archive is what it
    holds: its own name is a folder only if it is that of a split, or nothing else is one.

    Raises:
      UserError: a video lies in no class's folder or in two splits, splits lie beside other folders
        of classes, or the only class has several folders or archives in it.
    """
    names = [Path(*_unpacked(name)) for video in videos for name in video.names]
    tops = {name.parts[0] for name in names if len(name.parts) > 1}
    splits = {top for top in tops if read_split(top)}
    with_splits = bool(tops) and tops == splits
    # A class may be called train, but then its files lie in it.
    nested = [name for name in names if len(name.parts) > 2 and name.parts[0] in splits]
    if nested and not with_splits:
        raise UserError(
            f"--labels_from=folders: {nested[0]} lies in a split, but "
            f"{min(tops - splits)!r} is none of {', '.join(SPLITS)}"
        )
    rows = {video: _row(video, with_splits) for video in videos}
    classes = {label for row in rows.values() for label in row.labels}
    below = {name.parts[with_splits + 1] for name in names if len(name.parts) > with_splits + 2}
    packed = {
        part
        for video in videos
        for name in video.names
        for part in name.parts[:-1]
        if archives.is_archive(part) and _stem(part) not in classes | splits
    }
    if len(classes) == 1 and (len(below) > 1 or len(packed) > 1):
        raise UserError(
            f"--labels_from=folders: all videos would be of the class {min(classes)!r}; if the "
            f"classes are {', '.join(map(repr, sorted(below or packed)[:3]))} …, give the folder "
            "that these lie in, or unpack them"
        )
    return Labels(rows, [], {})


def _stem(archive: str) -> str:
    """An archive's name without its extension, which may be double."""
    end = max((end for end in archives.EXTENSIONS if archive.lower().endswith(end)), key=len)
    return archive[: -len(end)]


def _unpacked(name: Path) -> tuple[str, ...]:
    """The parts of a file's name as if each archive in it were unpacked where it lies."""
    *folders, file = name.parts
    parts: list[str] = []
    for place, part in enumerate(folders):
        if not archives.is_archive(part):
            parts.append(part)
            continue
        stem, inside = _stem(part), folders[place + 1 :]
        twice = bool(inside) and inside[0] == stem  # a packed folder of the archive's name
        if not twice and (not inside or read_split(stem)):
            parts.append(stem)
    return (*parts, file)


def _row(video: Video, with_splits: bool) -> LabelRow:
    """Returns the classes of all of a video's names, and their one split."""
    found = []
    for name in video.names:
        *folders, _ = _unpacked(name)
        if len(folders) <= with_splits:
            wanted = "split/class/file" if with_splits else "class/file"
            path = video.path if name == video.name else name
            raise UserError(
                f"--labels_from=folders: {path} lies in no folder of a class: files must be "
                f"{wanted} inside of SOURCE"
            )
        # As lists and TFDS have it, too.
        label = unicodedata.normalize("NFC", folders[with_splits]).strip()
        found.append((read_split(folders[0]) if with_splits else None, label))
    split = found[0][0]
    for name, (other, _) in zip(video.names, found, strict=True):
        if other != split:
            raise UserError(
                f"--labels_from=folders: {video.name} and {name} are one file in two splits: "
                "remove it from one of them"
            )
    return LabelRow(tuple(dict.fromkeys(label for _, label in found)), split)
