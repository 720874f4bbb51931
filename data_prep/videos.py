"""Prepares videos of any common format as a dataset to train and evaluate on.

A SOURCE is a folder, a media file, an archive of media files (.tar, .tar.gz, .zip), or a .txt list
with one path per line, relative to the list. Folders are searched with their subfolders and
archives, but without hidden and deleted files. Copies of a file under its name, or under one such
as `a (1).mp4`, count once. A file longer than --clip_seconds gives consecutive clips. A rest
shorter than --min_seconds gives none; by default this is half a clip. Clips that can't be used,
such as those without sound, are listed with the reason in OUTPUT/rejects.csv. OUTPUT/summary.json
counts everything. --dry_run only counts.

Labels are optional. --labels is a CSV with the header video,label and a row for each label of a
video. A video is a file's name, or its path inside SOURCE, with or without the extension. A third
column, split, says which split a video goes to: train, eval (or test), val. Without it a hash of
the file's name decides. So all clips of a file stay together, and files keep their split when
others are added. If a file has copies or links, any one of their names decides.

With --labels_from=folders a video's class is the folder it lies in: class/file, or split/class/file
inside SOURCE if all outermost folders are called train, eval, test, val or the like.

With --segments the clips are the spans that a CSV names: AudioSet's, VGGSound's, VGGSounder's,
AudioCaps' or Kinetics' as published, or one with the header video,start,end,label,split. Of
Kinetics, only the clips of --classes are taken. A segment without a file is rejected.

The published lists name videos by YouTube's id. It may be anywhere in a file's name: ID.mp4,
"Title [ID].mp4", YID.mp4. A number behind it says which piece of the video the file holds: ID_30,
ID_000030, ID_30.0-40.0, or in milliseconds ID_30000_40000. Without a number a file holds the whole
video, or with --trimmed the segment alone. --name_pattern reads all other names. It is a regular
expression with the group (?P<id>…) and, optionally, (?P<start>…) and (?P<end>…).

Examples:
  python -m data_prep.videos ~/actions --labels_from=folders --output=data/actions
  python -m data_prep.videos ~/videos --labels=labels.csv --output=data/videos
  python -m data_prep.videos ~/vggsound --segments=vggsound.csv \\
      --classes=class_labels_indices_vgg.csv --output=data/vggsound
  python -m data_prep.videos ~/audioset --segments=train=balanced_train_segments.csv \\
      --segments=eval=eval_segments.csv --classes=class_labels_indices.csv --output=data/as20k
  python -m data_prep.videos ~/kinetics400 --segments=train=train.csv --segments=eval=val.csv \\
      --classes=kinetics_sounds --output=data/kinetics_sounds
"""

import argparse
import collections
from collections.abc import Mapping, Sequence

from etils import epath

from cavmae_sync_jax.media import decoding
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError
from data_prep.pipeline import flags, output
from data_prep.pipeline.clips import Preparation, VideoClip
from data_prep.pipeline.executors import Failure
from data_prep.pipeline.summary import Findings
from data_prep.sources import (
    class_lists,
    csv_files,
    folder_labels,
    lengths,
    segment_files,
    segment_lists,
    segments,
    video_files,
)
from data_prep.sources.csv_files import EVAL, TRAIN, Classes, LabelRow
from data_prep.sources.video_files import Video

SOURCE = "videos"


def split_clips(
    video: Video,
    clip_id: str,
    labels: tuple[str, ...],
    whole: float | Failure,
    seconds: decoding.Seconds,
    rest: decoding.Seconds = 1.0,
) -> list[VideoClip]:
    """Returns the consecutive clips of `seconds` that a file of `whole` seconds gives.

    Of several, each has its start in whole seconds after its id. What is left at the file's end
    gives a clip, too, where it has at least `rest` seconds. A file of unknown length gives
    one clip, which is refused.
    """
    if isinstance(whole, Failure):
        detail = (
            whole.detail if str(video.path) in whole.detail else f"{video.path}: {whole.detail}"
        )
        refusal = whole.reason, detail
        return [VideoClip(clip_id, str(video.path), labels=labels, refusal=refusal)]
    count = video_files.clip_count(whole, seconds, rest)
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

    A video that the CSV doesn't name is in no split then.

    Raises:
      UserError: a split that should have videos has none.
    """
    by_row = any(row.split for row in rows.values())
    splits: dict[str, list[Video]] = {TRAIN: [], EVAL: []}
    for video in videos:
        if by_row and video not in rows:
            continue
        split = rows[video].split if by_row else segments.hashed_split(video.name, eval_share)
        splits.setdefault(split, []).append(video)
    if not by_row and eval_share > 0 and not all(splits.values()):
        empty = EVAL if splits[TRAIN] else TRAIN
        raise UserError(
            f"with {len(videos)} videos and --eval_share={eval_share:g} nothing is left for the "
            f"split {empty!r}: give more videos, a split column in --labels, or --eval_share=0"
        )
    return {split: members for split, members in splits.items() if members}


def run(arguments: argparse.Namespace) -> None:
    """Prepares the dataset that the command line asks for and prints a summary."""
    if not 0 <= arguments.eval_share < 1:
        raise UserError(f"--eval_share must be from 0 to below 1, not {arguments.eval_share:g}")
    if arguments.clip_seconds < 1:
        raise UserError(f"--clip_seconds must be at least 1, not {arguments.clip_seconds:g}")
    if arguments.segments and arguments.labels:
        raise UserError("--segments has the labels already: leave out --labels")
    if arguments.labels_from and (arguments.labels or arguments.segments):
        raise UserError("--labels_from takes them from folders: leave out --labels and --segments")
    if arguments.trimmed and not arguments.segments:
        raise UserError("--trimmed says what the files of --segments hold: give that, too")
    if arguments.name_pattern and not arguments.segments:
        raise UserError("--name_pattern reads the names of files for --segments: give that, too")
    preparation, engine = flags.preparation(arguments), flags.engine(arguments)
    # Of a longer file, a short rest is nearly all padding; a short file may be all that there is.
    rest = arguments.min_seconds or max(preparation.min_seconds, preparation.clip_seconds / 2)
    if not arguments.dry_run:
        output.check_output(arguments.output, SOURCE, arguments.overwrite)
    classes = class_lists.read(arguments.classes) if arguments.classes else None
    skipped = collections.Counter()
    unlisted: list[str] = []
    videos = video_files.find_videos(arguments.sources, skipped, unlisted)
    links = sum(len(video.links) for video in videos)
    found = len(videos)
    if not arguments.segments:  # whose files are told apart by their ids
        videos = video_files.without_copies(videos)
    copies = found - len(videos)
    findings = Findings(len(videos), skipped, absent=unlisted, links=links, copies=copies)
    if arguments.segments:
        clips, classes = _segments(arguments, videos, classes, rest, findings)
    else:
        labels = csv_files.Labels({}, [], {})
        if arguments.labels_from:
            labels = folder_labels.read(videos)
        elif arguments.labels:
            labels = csv_files.read_labels(arguments.labels, video_files.Names(videos).called)
            findings.absent = [*unlisted, *labels.absent]
            findings.unused = [str(video.name) for video in videos if video not in labels.rows]
        names = [label for row in labels.rows.values() for label in row.labels]
        classes = classes or csv_files.classes_of(names)
        where = arguments.labels or "--labels_from=folders"
        labels = labels._replace(
            rows={
                video: row._replace(
                    labels=tuple(classes.named(label, where) for label in row.labels)
                )
                for video, row in labels.rows.items()
            }
        )
        splits = assign_splits(videos, labels.rows, arguments.eval_share)
        videos = [video for members in splits.values() for video in members]
        # A dry run looks at no file, so that each gives one clip.
        paths, place = [str(video.path) for video in videos], epath.Path(arguments.output)
        seconds = {} if arguments.dry_run else lengths.look(paths, engine, place)
        clips, findings.tails = whole_clips(splits, labels, seconds, preparation, rest)
    summary = flags.write(
        arguments, clips, preparation, class_names=classes.names, source=SOURCE, findings=findings
    )
    flags.finish(arguments, summary)


def whole_clips(
    splits: Mapping[str, Sequence[Video]],
    labels: csv_files.Labels,
    seconds: Mapping[str, float | Failure],
    preparation: Preparation,
    rest: decoding.Seconds,
) -> tuple[dict[str, list[VideoClip]], list[float]]:
    """Returns the clips of whole videos by split, and the rests that are too short for one.

    Args:
      splits: the videos of each split.
      labels: of the videos.
      seconds: the length of each path; a path that it lacks gives one clip.
      preparation: what is stored.
      rest: the shortest rest, in seconds, that gives a clip.
    """
    videos = [video for members in splits.values() for video in members]
    ids = dict(zip(videos, video_files.clip_ids(videos), strict=True))
    clips, tails = collections.defaultdict(list), []
    for split, members in splits.items():
        for video in members:
            names = labels.rows[video].labels if video in labels.rows else ()
            whole = seconds.get(str(video.path), 0.0)
            if video in labels.ambiguous:
                whole = Failure("ambiguous", labels.ambiguous[video])
            made = split_clips(video, ids[video], names, whole, preparation.clip_seconds, rest)
            clips[split] += made
            if not isinstance(whole, Failure) and whole - made[-1].end >= segments.SMALLEST_TAIL:
                tails.append(whole - made[-1].end)
    return dict(clips), tails


def _segments(
    arguments: argparse.Namespace,
    videos: Sequence[Video],
    classes: Classes | None,
    rest: decoding.Seconds,
    findings: Findings,
) -> tuple[dict[str, list[VideoClip]], Classes]:
    """Returns the clips of all --segments by split, and their classes; fills `findings`.

    Raises:
      UserError: no segment has a file.
    """
    found = []
    for given in arguments.segments:
        split, equals, path = given.partition("=")
        named = bool(equals) and split in csv_files.SPLITS
        split = csv_files.SPLITS[split] if named else None
        found += segment_lists.read_segments(path if named else given, split)
    if classes is not None:
        found, findings.other_classes = segments.of_classes(found, classes)
    labels = [label for segment in found for label in segment.labels]
    classes = classes or csv_files.classes_of(labels)
    pattern = arguments.name_pattern
    made = segments.segment_clips(
        videos,
        found,
        classes,
        trimmed=arguments.trimmed,
        seconds=arguments.clip_seconds,
        eval_share=arguments.eval_share,
        rest=rest,
        pattern=segment_files.read_pattern(pattern) if pattern else None,
    )
    findings.unused = [str(video.name) for video in made.unused]
    findings.tails = made.tails
    return made.splits, classes


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="folders, files, archives or .txt lists of paths",
    )
    parser.add_argument("--labels", help="CSV with labels of videos, and splits if wanted")
    parser.add_argument(
        "--labels_from",
        choices=("folders",),
        help="take labels from the names of the folders that videos lie in",
    )
    parser.add_argument(
        "--segments",
        action="append",
        metavar="[SPLIT=]FILE",
        help="CSV with labelled spans; SPLIT train or eval is for all of them; may come repeatedly",
    )
    known = ", ".join(class_lists.KNOWN)
    parser.add_argument(
        "--classes", help=f"CSV index,mid,display_name with all class names, or {known}"
    )
    parser.add_argument(
        "--trimmed",
        action="store_true",
        help="a file called ID is only its segment, not the whole video",
    )
    parser.add_argument(
        "--name_pattern",
        metavar="REGEX",
        help="regular expression that reads ids and spans from file names",
    )
    parser.add_argument(
        "--eval_share",
        type=float,
        default=0.1,
        help="share of the files for the split eval, where no CSV gives one",
    )
    flags.add_flags(parser)
    parser.set_defaults(min_seconds=None)  # else a rest could not have another default
    return parser


def main() -> None:
    """Runs the command line."""
    cli.main(_parser(), run)


if __name__ == "__main__":
    main()
