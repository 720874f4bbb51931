"""Labels, and splits, from the folders that videos lie in: class/file or split/class/file."""

from collections.abc import Sequence

from cavmae_sync_jax.utils.errors import UserError
from data_prep.sources.csv_files import SPLITS, LabelRow, Labels, read_split
from data_prep.sources.video_files import Video


def read(videos: Sequence[Video]) -> Labels:
    """Returns each video's class: the outermost folder in its name, or the one below its split.

    The outermost folders are splits where all of them are called so (`csv_files.SPLITS`). Folders
    below the class's mean nothing.

    Raises:
      UserError: a video lies in no class's folder, splits lie beside other folders of classes, or
        the only class has several folders in it.
    """
    tops = {video.name.parts[0] for video in videos if len(video.name.parts) > 1}
    splits = {top for top in tops if read_split(top)}
    with_splits = bool(tops) and tops == splits
    # A class may be called train, but then its files lie in it.
    nested = [v for v in videos if len(v.name.parts) > 2 and v.name.parts[0] in splits]
    if nested and not with_splits:
        raise UserError(
            f"--labels_from=folders: {nested[0].name} lies in a split, but "
            f"{min(tops - splits)!r} is none of {', '.join(SPLITS)}"
        )
    rows = {}
    for video in videos:
        *folders, _ = video.name.parts
        if len(folders) <= with_splits:
            wanted = "split/class/file" if with_splits else "class/file"
            raise UserError(
                f"--labels_from=folders: {video.path} lies in no folder of a class: files must be "
                f"{wanted} inside of SOURCE"
            )
        split = read_split(folders[0]) if with_splits else None
        rows[video] = LabelRow((folders[with_splits],), split)
    classes = {row.labels[0] for row in rows.values()}
    deep = (v.name.parts for v in videos if len(v.name.parts) > with_splits + 2)
    below = {parts[with_splits + 1] for parts in deep}
    if len(classes) == 1 and len(below) > 1:
        raise UserError(
            f"--labels_from=folders: all videos would be of the class {min(classes)!r}; if the "
            f"classes are {', '.join(map(repr, sorted(below)[:3]))} …, give the folder that these "
            "lie in"
        )
    return Labels(rows, [], {})
