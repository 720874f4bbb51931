"""Takes labels and splits from the folders that videos lie in: class/file or split/class/file."""

import unicodedata
from collections.abc import Sequence

from cavmae_sync_jax.utils.errors import UserError
from data_prep.sources.csv_files import SPLITS, LabelRow, Labels, read_split
from data_prep.sources.video_files import Video


def read(videos: Sequence[Video]) -> Labels:
    """Returns each video's class: the outermost folder in its name, or the one below its split.

    The outermost folders are splits where all of them are called so (`csv_files.SPLITS`). Folders
    below the class's mean nothing.

    A file to which links lead from other folders has their classes, too.

    Raises:
      UserError: a video lies in no class's folder or in two splits, splits lie beside other folders
        of classes, or the only class has several folders in it.
    """
    names = [name for video in videos for name in video.names]
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
    if len(classes) == 1 and len(below) > 1:
        raise UserError(
            f"--labels_from=folders: all videos would be of the class {min(classes)!r}; if the "
            f"classes are {', '.join(map(repr, sorted(below)[:3]))} …, give the folder that these "
            "lie in"
        )
    return Labels(rows, [], {})


def _row(video: Video, with_splits: bool) -> LabelRow:
    """Returns the classes of all of a video's names, and their one split."""
    found = []
    for name in video.names:
        *folders, _ = name.parts
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
