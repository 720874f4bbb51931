"""Shows what a prepared dataset holds, how fast it can be read and whether it is whole.

DATASET is the --output of a data_prep program, or the dataset's own folder below it. The program
prints where the dataset comes from, its splits, labels, rejected clips and statistics. To measure
the speed of one core, it reads some clips of each split in random order and parses them, without
decoding. Clips that were read shortly before may come from memory instead of the disk.

--verify reads every record: checksum, frames, log-mel, labels, truth, clip ids. --page draws clips
with their frames, log-mel, the audio windows of some frames, and the truth if the dataset has it.

Example:
  python -m data_prep.inspect_dataset data/videos --verify --page=clips.png
"""

import argparse
import collections
import os
import time
from typing import Any

import numpy as np
from etils import epath
from tqdm import tqdm

from cavmae_sync_jax.data import dataset_dir
from cavmae_sync_jax.media import audio
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError
from data_prep.inspection import text
from data_prep.inspection import verify as inspection_verify
from data_prep.inspection.dataset import Dataset, RawRecords, open_dataset
from data_prep.inspection.text import Sample
from data_prep.pipeline import stats

_SEED = 0  # of the order in which records are read
_LEAST = {"read": 0, "clips": 1, "audio_rows": 1, "clip_rows": 1, "workers": 1}


def measure(dataset: Dataset, split: str, most: int) -> Sample:
    """Reads and parses up to `most` records of a split in random order, in this process.

    Raises:
      UserError: a record is damaged.
    """
    records = RawRecords(dataset, split)
    order = np.random.default_rng(_SEED).permutation(len(records))[:most].tolist()
    seconds, size, frames, fbank = 0.0, 0, 0, 0
    counts = [0] * len(dataset.class_names)
    notes: collections.Counter[str] = collections.Counter()
    for index in tqdm(order, unit="clip", desc=f"reading {split}"):
        before = time.perf_counter()
        data, record = records[index]
        seconds += time.perf_counter() - before
        size += len(data)
        frames += sum(map(len, record["frames"]))
        fbank += record["fbank"].nbytes
        notes.update(note.decode() for note in record.get("notes", ()))
        for label in {int(label) for label in record["labels"]}:
            counts[label] += 1
    return Sample(len(order), seconds, size, frames, fbank, counts, notes)


def verify(dataset: Dataset, workers: int | None) -> list[int]:
    """Reads every record and returns the clips of each class.

    Raises:
      UserError: some are damaged; they are printed.
    """
    verdict = inspection_verify.verify(dataset, workers)
    if verdict.damages:
        print(*verdict.damages, sep="\n")
        raise UserError(
            f"{verdict.damaged:,} of {verdict.clips:,} records in {dataset.directory} are damaged "
            f"(the first: {verdict.damages[0]}); prepare the dataset again"
        )
    print(f"verified: all {verdict.clips:,} records are whole")
    return verdict.class_counts


def draw_page(dataset: Dataset, split: str, arguments: argparse.Namespace) -> None:
    """Draws clips that are evenly chosen from a split to `arguments.page`.

    Raises:
      UserError: a record is damaged, a clip is longer than --clip_rows, or the page can't be
        written.
    """
    from data_prep.inspection import page  # only a page needs matplotlib

    source = RawRecords(dataset, split)
    shown = min(arguments.clips, len(source))
    clips = []
    for index in np.linspace(0, len(source) - 1, shown).astype(int).tolist():
        _, record = source[index]
        flaw = inspection_verify.flaw(record, dataset)
        if flaw is not None:
            raise source.damaged(index, flaw)
        rows = len(record["fbank"])
        if rows > audio.LONGEST * arguments.clip_rows:
            raise UserError(
                f"--clip_rows={arguments.clip_rows} is too few for the clips of {rows} rows in "
                f"{dataset.directory}: draw with --clip_rows={rows} and train with "
                f"--config.data.clip_rows={rows}"
            )
        clips.append(record)
    info = dataset.builder.info
    title = f"{info.name} {info.version}, split {split}: {shown:,} of {len(source):,} clips"
    framing = page.PageSettings(arguments.audio_rows, arguments.clip_rows)
    figure = page.compose(clips, dataset.class_names, framing, title)
    path = epath.Path(arguments.page)
    cli.make_folder(path.parent)
    try:
        page.save(figure, path)
    except OSError as error:
        raise UserError(f"--page={path} can't be written: {error.strerror}") from error
    print(f"{path} shows {shown:,} clips of the split {split}.")


def run(arguments: argparse.Namespace) -> None:
    """Does what the command line asks for.

    Raises:
      UserError: a flag is wrong, there is no dataset, or it is damaged.
    """
    dataset = open_dataset(arguments.dataset)
    split = _check(arguments, dataset)
    print(text.identity(dataset))
    counts, where = None, ""
    if arguments.verify:
        counts, where = verify(dataset, arguments.workers), "all splits"
    if arguments.compute_stats:
        stats.store(dataset.directory, stats.compute(dataset.directory))
    stored = _stored_statistics(dataset)
    if counts is None and stored is not None:
        counts = [stored["class_counts"][name] for name in dataset.class_names]
        where = stored["split"]
    samples = {}
    if arguments.read:
        samples = {name: measure(dataset, name, arguments.read) for name in dataset.splits}
    if counts is None and samples:
        counts = np.sum([sample.class_counts for sample in samples.values()], axis=0).tolist()
        where = f"the {sum(sample.clips for sample in samples.values()):,} clips read"
    print(f"\n{text.format_splits(dataset, samples)}\n")
    print(text.labels(dataset.class_names, counts, where))
    if samples:
        print(text.notes(samples.values()))
    print(text.rejects(dataset))
    print(text.statistics(stored))
    if arguments.page:
        draw_page(dataset, split, arguments)


def _check(arguments: argparse.Namespace, dataset: Dataset) -> str:
    """Returns the split for the page, after refusing what can't be done."""
    for name, least in _LEAST.items():
        value = getattr(arguments, name)
        if value < least:
            raise UserError(f"--{name} must be at least {least}, not {value}")
    if arguments.page and epath.Path(arguments.page).suffix.lower() != ".png":
        raise UserError(f"--page={arguments.page} must end in .png")
    split = arguments.split or next(iter(dataset.splits))
    if split not in dataset.splits:
        have = ", ".join(dataset.splits)
        raise UserError(f"{dataset.directory} has no split {split!r}; it has {have}")
    if arguments.compute_stats and stats.SPLIT not in dataset.splits:
        raise UserError(f"--compute_stats is of the split {stats.SPLIT!r}, which is not there")
    missing = dataset.missing_files()
    if missing and not arguments.verify:
        more = f" and {len(missing) - 1:,} more" if len(missing) > 1 else ""
        raise UserError(f"{missing[0]}{more} of the dataset's files are gone: prepare it again")
    return split


def _stored_statistics(dataset: Dataset) -> dict[str, Any] | None:
    if not (dataset.directory / dataset_dir.STATISTICS).exists():
        return None
    return dataset_dir.read_statistics(dataset.directory)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    parser.add_argument("dataset", metavar="DATASET", help="folder of one prepared dataset")
    parser.add_argument(
        "--read", type=int, default=1000, help="clips of each split to read for the speed"
    )
    parser.add_argument("--verify", action="store_true", help="list all damaged records")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes that verify"
    )
    parser.add_argument(
        "--compute_stats",
        action="store_true",
        help="store mean and deviation of the training clips' log-mel, class counts and weights",
    )
    parser.add_argument("--page", default="", help="PNG file to draw clips to")
    parser.add_argument(
        "--split", default="", help="split whose clips are drawn; if empty, the first"
    )
    parser.add_argument("--clips", type=int, default=8, help="number of clips to draw")
    parser.add_argument(
        "--audio_rows",
        type=int,
        default=416,
        help="rows of a window, as in config.model.audio_rows",
    )
    parser.add_argument(
        "--clip_rows",
        type=int,
        default=1024,
        help="rows of a whole clip, as in config.data.clip_rows",
    )
    return parser


def main() -> None:
    """Runs the command line."""
    cli.main(_parser(), run)


if __name__ == "__main__":
    main()
