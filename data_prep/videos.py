"""Prepares videos of any common format as a dataset to train and evaluate on.

A SOURCE is a folder (searched with its subfolders; hidden files are left out), a media file, or a
.txt list with one path a line, relative to the list. A file longer than --clip_seconds gives
consecutive clips; a rest of under a second is left out. Clips that can't be used, such as those
without sound, are listed with the reason in OUTPUT/rejects.csv.

Labels are optional. --labels is a CSV with the header video,label and a row for each label of a
video, where video is a file's name, or its path inside of SOURCE. A third column, split, with train
or eval, says which split a video goes to. Without it a hash of the file's name decides, so that all
clips of a file stay together, and files keep their split when others are added.

With --segments the clips are the spans that a CSV names: AudioSet's or VGGSound's as published, or
one with the header video,start,end,label,split. A segment whose file is not there is rejected. The
published lists name videos by YouTube's id, of which files may be called ID, YID (both the whole
video, or the segment alone with --trimmed), ID_SSSSSS or ID_START_END (the segment alone).

Examples:
  python -m data_prep.videos ~/videos --labels=labels.csv --output=data/videos
  python -m data_prep.videos ~/vggsound --segments=vggsound.csv \\
      --classes=class_labels_indices_vgg.csv --output=data/vggsound
  python -m data_prep.videos ~/audioset --segments=train=balanced_train_segments.csv \\
      --segments=eval=eval_segments.csv --classes=class_labels_indices.csv --output=data/as20k
"""

import argparse
import collections
import contextlib
import math
from collections.abc import Mapping, Sequence

from tqdm import tqdm

from cavmae_sync_jax.media import decoding
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError
from data_prep.pipeline import flags, readers
from data_prep.pipeline.clips import Preparation, VideoClip
from data_prep.pipeline.executors import Failure, Workers
from data_prep.sources import csv_files, segments, video_files
from data_prep.sources.csv_files import EVAL, TRAIN, Classes, LabelRow
from data_prep.sources.video_files import Video

SOURCE = "videos"
# A file's rest that is shorter than this, in seconds, makes no clip of its own.
SHORTEST_REST = 1.0


def duration(path: str) -> float:
    """Returns a file's seconds, 0 for one that can't be read."""
    with contextlib.suppress(decoding.MediaError), readers.local(path) as here:
        return decoding.probe(here).duration
    return 0.0


def split_clips(
    video: Video, clip_id: str, labels: tuple[str, ...], whole: float, seconds: decoding.Seconds
) -> list[VideoClip]:
    """Returns the consecutive clips of `seconds` that a file of `whole` seconds gives.

    Of several, each has its start in whole seconds after its id. A file that can't be read (0 s)
    gives one clip too: preparing that clip will tell why.
    """
    count = max(1, math.ceil((whole - SHORTEST_REST) / seconds))
    return [
        VideoClip(
            clip_id if count == 1 else f"{clip_id}_{int(number * seconds):06d}",
            str(video.path),
            number * seconds,
            (number + 1) * seconds,
            labels=labels,
        )
        for number in range(count)
    ]


def assign_splits(
    videos: Sequence[Video], rows: Mapping[Video, LabelRow], eval_share: float
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
        split = rows[video].split if by_row else segments.hashed_split(video.name, eval_share)
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
    if arguments.segments and arguments.labels:
        raise UserError("--segments has the labels already: leave out --labels")
    if arguments.trimmed and not arguments.segments:
        raise UserError("--trimmed says what the files of --segments hold: give that, too")
    preparation, engine = flags.preparation(arguments), flags.engine(arguments)
    classes = csv_files.read_classes(arguments.classes) if arguments.classes else None
    videos = video_files.find_videos(arguments.sources)
    unlabelled = 0
    if arguments.segments:
        clips, classes = _segments(arguments, videos, classes)
    else:
        names = video_files.by_name(videos)
        rows = csv_files.read_labels(arguments.labels, names) if arguments.labels else {}
        labels = [label for row in rows.values() for label in row.labels]
        classes = classes or csv_files.classes_of(labels)
        rows = {
            video: row._replace(
                labels=tuple(classes.named(label, arguments.labels) for label in row.labels)
            )
            for video, row in rows.items()
        }
        unlabelled = len(videos) - len(rows) if arguments.labels else 0
        splits = assign_splits(videos, rows, arguments.eval_share)
        with Workers(engine.workers, engine.time_limit) as workers:
            clips = whole_clips(splits, rows, preparation, workers)
    summary = flags.write(arguments, clips, preparation, class_names=classes.names, source=SOURCE)
    if unlabelled:
        print(f"{unlabelled} of {len(videos)} videos have no label in {arguments.labels}.")
    flags.finish(arguments, summary)


def whole_clips(
    splits: Mapping[str, Sequence[Video]],
    rows: Mapping[Video, LabelRow],
    preparation: Preparation,
    workers: Workers,
) -> dict[str, list[VideoClip]]:
    """Returns the clips of whole videos by split; the workers find out how long the files are."""
    videos = [video for members in splits.values() for video in members]
    ids = dict(zip(videos, video_files.clip_ids(videos), strict=True))
    seconds = {}
    found = workers.results(duration, [str(video.path) for video in videos])
    for path, whole in tqdm(found, total=len(videos), unit="file", desc="looking at files"):
        seconds[path] = 0.0 if isinstance(whole, Failure) else whole
    clips = collections.defaultdict(list)
    for split, members in splits.items():
        for video in members:
            labels = rows[video].labels if video in rows else ()
            whole = seconds[str(video.path)]
            clips[split] += split_clips(video, ids[video], labels, whole, preparation.clip_seconds)
    return dict(clips)


def _segments(
    arguments: argparse.Namespace, videos: Sequence[Video], classes: Classes | None
) -> tuple[dict[str, list[VideoClip]], Classes]:
    """Returns the clips of all --segments by split, and their classes."""
    found = []
    for given in arguments.segments:
        split, equals, path = given.partition("=")
        named = bool(equals) and split in (TRAIN, EVAL)
        found += segments.read_segments(path if named else given, split if named else None)
    labels = [label for segment in found for label in segment.labels]
    classes = classes or csv_files.classes_of(labels)
    clips = segments.segment_clips(
        videos,
        found,
        classes,
        trimmed=arguments.trimmed,
        seconds=arguments.clip_seconds,
        eval_share=arguments.eval_share,
    )
    return clips, classes


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="folder, file or .txt list")
    parser.add_argument("--labels", help="CSV with labels of videos, and splits if wanted")
    parser.add_argument(
        "--segments",
        action="append",
        metavar="[SPLIT=]FILE",
        help="CSV with labelled spans; SPLIT train or eval is for all of them; may come repeatedly",
    )
    parser.add_argument("--classes", help="CSV index,mid,display_name with all class names")
    parser.add_argument(
        "--trimmed", action="store_true", help="files called ID hold nothing but their segment"
    )
    parser.add_argument(
        "--eval_share",
        type=float,
        default=0.1,
        help="share of the files for the split eval, where no CSV gives one",
    )
    flags.add_flags(parser)
    return parser


def main() -> None:
    """Runs the command line."""
    cli.main(_parser(), run)


if __name__ == "__main__":
    main()
