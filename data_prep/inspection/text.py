"""The text that `inspect_dataset` prints: source, splits, labels, rejects, statistics."""

import collections
import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from etils import epath

from cavmae_sync_jax.utils.errors import UserError
from data_prep.inspection.dataset import Dataset, unfinished
from data_prep.pipeline.clips import NOTES, REASONS
from data_prep.pipeline.summary import REJECTS

_EXTREMES = 5  # classes named at either end of the frequencies
_LONGEST_NAME = 32
_HEAD = (
    *("split", "clips", "shards", "on disk", "a clip", "frames", "log-mel"),
    *("clips read", "clips/s", "MB/s"),
)


class Sample(NamedTuple):
    """What was read of a split.

    Attributes:
      clips: how many.
      seconds: that reading and parsing took.
      size: bytes of the records.
      frames: those of them that are JPEGs.
      fbank: those of them that are log-mel.
      class_counts: clips of each class.
      notes: clips with each key of `clips.NOTES`; version 0.1.0 stored none.
    """

    clips: int
    seconds: float
    size: int
    frames: int
    fbank: int
    class_counts: list[int]
    notes: Mapping[str, int]


def identity(dataset: Dataset) -> str:
    """Returns where the dataset comes from and what was stored."""
    info = dataset.builder.info
    stored = info.metadata["preparation"]
    lines = [
        f"{info.name} {info.version}: {dataset.directory}",
        f"  source        {info.metadata['source']}",
        f"  code version  {info.metadata['code_version']}",
        f"  truth         {'yes' if 'frame_class' in dataset.features else 'no'}",
        "  preparation   " + ", ".join(f"{name} {value}" for name, value in stored.items()),
    ]
    state = unfinished(dataset.output)
    if state is not None:
        lines.append(f"  note          {state}; this dataset was there before")
    return "\n".join(lines)


def format_splits(dataset: Dataset, samples: Mapping[str, Sample]) -> str:
    """Returns the splits as a table; shares of bytes and speed are those of the samples."""
    rows = [_HEAD]
    for name, info in dataset.splits.items():
        disk = sum(path.stat().length for path in info.filepaths)
        row = (name, f"{info.num_examples:,}", f"{len(info.shard_lengths):,}", size_text(disk))
        row += (size_text(disk / info.num_examples),)
        if name in samples:
            sample = samples[name]
            row += (f"{sample.frames / sample.size:.0%}", f"{sample.fbank / sample.size:.0%}")
            row += (f"{sample.clips:,}", f"{sample.clips / sample.seconds:,.0f}")
            row += (f"{sample.size / sample.seconds / 1e6:,.0f}",)
        rows.append(row + ("-",) * (len(_HEAD) - len(row)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if place else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def size_text(size: float | int) -> str:
    """Returns bytes for example as "1.23 GB", where a kB is 1000 bytes."""
    units = ["bytes", "kB", "MB", "GB", "TB"]
    while size >= 999.5 and len(units) > 1:
        size, units = size / 1000, units[1:]
    digits = 0 if units[0] == "bytes" else max(0, 3 - len(f"{size:.0f}"))
    return f"{size:.{digits}f} {units[0]}"


def labels(names: Sequence[str], counts: Sequence[int] | None, where: str) -> str:
    """Returns the number of classes, and the most and least frequent ones with their clips.

    Args:
      names: of the classes; none for clips without labels.
      counts: clips of each class, None if they were not counted.
      where: the clips that were counted.
    """
    if not names:
        return "labels: none"
    title = f"labels: {len(names):,} classes"
    if counts is None:
        return title
    order = sorted(range(len(names)), key=lambda index: -counts[index])
    shown = [f"{_short(names[index])} {counts[index]:,}" for index in order]
    title += f", clips of each in {where}"
    if len(names) <= 2 * _EXTREMES:
        return f"{title}\n  {', '.join(shown)}"
    lines = [
        title,
        f"  most frequent   {', '.join(shown[:_EXTREMES])}",
        f"  least frequent  {', '.join(shown[-_EXTREMES:])}",
    ]
    absent = sum(count == 0 for count in counts)
    return "\n".join([*lines, f"  without a clip  {absent:,} classes"] if absent else lines)


def notes(samples: Iterable[Sample]) -> str:
    """Returns how many of the clips read are still, damaged or the like."""
    samples = list(samples)
    counts = sum((collections.Counter(sample.notes) for sample in samples), collections.Counter())
    if not counts:
        return "notes: none"
    lines = [f"notes, of the {sum(sample.clips for sample in samples):,} clips read:"]
    return "\n".join(
        [*lines, *(f"  {count:,} {note}: {NOTES[note]}" for note, count in counts.most_common())]
    )


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…"


def count_rejects(path: epath.PathLike) -> collections.Counter[str]:
    """Returns how many clips a list of rejects has for each reason; it is read line by line.

    Raises:
      UserError: it is no such list.
    """
    counts: collections.Counter[str] = collections.Counter()
    with epath.Path(path).open("rb") as file:
        reader = csv.DictReader(io.TextIOWrapper(file, "utf-8", errors="replace", newline=""))
        try:
            if "reason" not in (reader.fieldnames or ()):
                raise UserError(f"{path} isn't a list of rejects: it has no column 'reason'")
            for row in reader:
                counts[row["reason"] or "?"] += 1
        except csv.Error as error:
            raise UserError(f"{path}, line {reader.line_num} is not valid CSV: {error}") from error
    return counts


def rejects(dataset: Dataset) -> str:
    """Returns how many clips were rejected, and why.

    Raises:
      UserError: the list can't be read.
    """
    path = dataset.output / REJECTS
    if not path.exists():
        return f"rejects: not known, for there is no {path}"
    counts = count_rejects(path)
    if not counts:
        return "rejects: none"
    kept = sum(split.num_examples for split in dataset.splits.values())
    rejected = counts.total()
    share = f"{rejected / (rejected + kept):.1%}"
    lines = [f"rejects: {rejected:,} of {rejected + kept:,} clips ({share}), listed in {path}"]
    for reason, count in counts.most_common():
        meaning = REASONS.get(reason, "a reason that this version doesn't know")
        lines.append(f"  {count:,} {reason}: {meaning}")
    return "\n".join(lines)


def statistics(stored: Mapping[str, Any] | None) -> str:
    """Returns the statistics of the log-mel, None for a dataset that has none."""
    if stored is None:
        return "statistics: none (--compute_stats stores them)"
    return (
        f"statistics: log-mel mean {stored['fbank_mean']:.4f}, standard deviation "
        f"{stored['fbank_std']:.4f}, of {stored['clips']:,} clips of {stored['split']}"
    )
