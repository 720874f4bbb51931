"""Prepares videos of any common format as a dataset to train and evaluate on.

A SOURCE is a folder (searched with its subfolders; hidden files are left out), a media file, or a
.txt list with one path a line, relative to the list. A file longer than --clip_seconds gives
consecutive clips; a rest of under a second is left out. Clips that can't be used, such as those
without sound, are listed with the reason in OUTPUT/rejects.csv.

Labels are optional. Their CSV has the header video,label and a row for each label of a video,
where video is a file's name, or its path inside of SOURCE. A third column, split, with train or
eval, says which split a video goes to. Without it a hash of the file's name decides, so that all
clips of a file stay together, and files keep their split when others are added.

Example:
  python -m data_prep.videos ~/videos --labels=labels.csv --output=data/videos
"""

import argparse
import collections
import csv
import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from cavmae_sync_jax import cli, media
from cavmae_sync_jax.cli import UserError
from data_prep import datasets
from data_prep.clips import Clip, Preparation

SOURCE = "videos"
TRAIN, EVAL = "train", "eval"
EXTENSIONS = (
    *(".3g2", ".3gp", ".asf", ".avi", ".f4v", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"),
    *(".mpeg", ".mpg", ".mts", ".mxf", ".ogm", ".ogv", ".ts", ".vob", ".webm", ".wmv"),
)
# A file's rest that is shorter than this, in seconds, makes no clip of its own.
SHORTEST_REST = 1.0


class Video(NamedTuple):
    """A media file and its name: its path inside of the folder or list that it was found by."""

    path: Path
    name: Path


class Row(NamedTuple):
    """What a labels CSV says about one video; `split` is None without such a column."""

    labels: tuple[str, ...]
    split: str | None


def find_videos(sources: Iterable[str]) -> list[Video]:
    """Returns the media files of all sources, each file once.

    Raises:
      UserError: a source or a file of a list doesn't exist, or a source has no media files.
    """
    found: dict[Path, Video] = {}
    for source in map(Path, sources):
        if source.is_dir():
            videos = [Video(path, path.relative_to(source)) for path in _media_files(source)]
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


def _media_files(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in EXTENSIONS
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.is_file()
    )


def _listed(source: Path) -> Iterator[Video]:
    try:
        lines = source.read_text(encoding="utf-8").splitlines()
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
    names = (
        video.name.stem if stems[video.name.stem] == 1 else str(video.name) for video in videos
    )
    return [
        name.encode("utf-8", "replace").decode().replace("/", "__").replace("\\", "__")
        for name in names
    ]


def split_clips(
    video: Video, clip_id: str, labels: tuple[str, ...], seconds: media.Seconds
) -> list[Clip]:
    """Returns the consecutive clips of `seconds` that a file gives, at least one.

    Of several, each has its start in whole seconds after its id. A file that can't be read gives
    one clip too: preparing that clip will tell why.
    """
    try:
        duration = media.probe(video.path).duration
    except media.MediaError:
        duration = 0.0
    count = max(1, math.ceil((duration - SHORTEST_REST) / seconds))
    return [
        Clip(
            clip_id if count == 1 else f"{clip_id}_{int(number * seconds):06d}",
            str(video.path),
            number * seconds,
            (number + 1) * seconds,
            labels,
        )
        for number in range(count)
    ]


def read_labels(path: str | Path, videos: Sequence[Video]) -> dict[Video, Row]:
    """Reads a labels CSV (see the module) and returns what it says about each video it names.

    Raises:
      UserError: the file or a row of it is malformed, or names no video, or more than one.
    """
    named = collections.defaultdict(list)
    for video in videos:
        for name in {str(video.name), video.name.name}:
            named[name].append(video)
    rows: dict[Video, Row] = {}
    try:
        with Path(path).open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if reader.fieldnames not in (["video", "label"], ["video", "label", "split"]):
                raise UserError(
                    f"{path} must begin with the header video,label or video,label,split"
                )
            for cells in reader:
                where = f"{path}, line {reader.line_num}"
                if None in cells or not all(cells.values()):
                    raise UserError(f"{where}: need {len(reader.fieldnames)} cells, none empty")
                matches = named[str(Path(cells["video"]))]
                if len(matches) != 1:
                    raise UserError(
                        f"{where}: {cells['video']!r} is the name of {len(matches)} videos; "
                        "give the path of one inside of SOURCE"
                    )
                split = cells.get("split")
                if split not in (None, TRAIN, EVAL):
                    raise UserError(f"{where}: split must be {TRAIN} or {EVAL}, not {split!r}")
                before = rows.get(matches[0], Row((), split))
                if before.split != split:
                    raise UserError(f"{where}: {cells['video']!r} is in {before.split} already")
                labels = dict.fromkeys([*before.labels, cells["label"]])
                rows[matches[0]] = Row(tuple(labels), split)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} can't be read as a CSV file in UTF-8: {error}") from error
    return rows


def hashed_split(video: Video, eval_share: float) -> str:
    """Returns "eval" for about `eval_share` of all names, and "train" for the others."""
    digest = hashlib.sha256(os.fsencode(video.name.as_posix())).digest()
    return EVAL if int.from_bytes(digest[:8]) < eval_share * 2**64 else TRAIN


def assign_splits(
    videos: Sequence[Video], rows: dict[Video, Row], eval_share: float
) -> dict[str, list[Video]]:
    """Returns the videos of each split, by the labels CSV if it says so, else by hash.

    Raises:
      UserError: a video has no split, or a split that should have videos has none.
    """
    by_row = any(row.split for row in rows.values())
    splits: dict[str, list[Video]] = {TRAIN: [], EVAL: []}
    for video in videos:
        if by_row and video not in rows:
            raise UserError(f"{video.path} has no row in the labels CSV, so it has no split")
        split = rows[video].split if by_row else hashed_split(video, eval_share)
        splits[split].append(video)
    if not by_row and eval_share > 0 and not all(splits.values()):
        empty = EVAL if splits[TRAIN] else TRAIN
        raise UserError(
            f"with {len(videos)} videos and --eval_share={eval_share:g} nothing is left for the "
            f"split {empty!r}: give more videos, a split column in --labels, or --eval_share=0"
        )
    return {split: members for split, members in splits.items() if members}


def run(arguments: argparse.Namespace) -> None:
    """Prepares the dataset that the command line asks for and prints what came of it."""
    if not 0 <= arguments.eval_share < 1:
        raise UserError(f"--eval_share must be from 0 to below 1, not {arguments.eval_share:g}")
    if arguments.clip_seconds < 1:
        raise UserError(f"--clip_seconds must be at least 1, not {arguments.clip_seconds:g}")
    if arguments.workers < 1:
        raise UserError(f"--workers must be at least 1, not {arguments.workers}")
    preparation = Preparation(
        num_frames=arguments.num_frames,
        image_size=arguments.image_size,
        clip_seconds=arguments.clip_seconds,
        min_seconds=arguments.min_seconds,
    )
    videos = find_videos(arguments.sources)
    rows = read_labels(arguments.labels, videos) if arguments.labels else {}
    splits = assign_splits(videos, rows, arguments.eval_share)
    ids = dict(zip(videos, clip_ids(videos), strict=True))
    clips = collections.defaultdict(list)
    with tqdm(total=len(videos), unit="file", desc="looking at files") as bar:
        for split, members in splits.items():
            for video in members:
                labels = rows[video].labels if video in rows else ()
                clips[split] += split_clips(video, ids[video], labels, preparation.clip_seconds)
                bar.update()
    summary = datasets.write_dataset(
        arguments.output,
        clips,
        preparation,
        class_names=sorted({label for row in rows.values() for label in row.labels}),
        source=SOURCE,
        workers=arguments.workers,
        overwrite=arguments.overwrite,
    )
    print(summary.report())
    unlabelled = len(videos) - len(rows)
    if arguments.labels and unlabelled:
        print(f"{unlabelled} of {len(videos)} videos have no label in {arguments.labels}.")


def _parser() -> argparse.ArgumentParser:
    defaults = Preparation()
    parser = cli.parser(__doc__)
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="folder, file or .txt list")
    parser.add_argument("--output", required=True, help="folder to write the dataset to")
    parser.add_argument("--labels", help="CSV with labels, and splits if wanted")
    parser.add_argument(
        "--eval_share",
        type=float,
        default=0.1,
        help="share of the files for the split eval, where --labels has no split column",
    )
    parser.add_argument(
        "--num_frames", type=int, default=defaults.num_frames, help="frames stored a clip"
    )
    parser.add_argument(
        "--image_size", type=int, default=defaults.image_size, help="pixels of a frame's side"
    )
    parser.add_argument(
        "--clip_seconds", type=float, default=defaults.clip_seconds, help="length of a clip"
    )
    parser.add_argument(
        "--min_seconds", type=float, default=defaults.min_seconds, help="reject shorter clips"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a dataset that OUTPUT holds already"
    )
    return parser


def main() -> None:
    """Runs the command line."""
    cli.main(_parser(), run)


if __name__ == "__main__":
    main()
