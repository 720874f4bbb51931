"""Reads every record of a dataset and says which are damaged.

Separate processes read. A damaged file may end one of them, which costs only the damaged record.
"""

import functools
import io
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from array_record.python.array_record_module import ArrayRecordReader
from etils import epath
from PIL import Image
from tqdm import tqdm

from cavmae_sync_jax.data import dataset_dir
from cavmae_sync_jax.media import audio
from data_prep.inspection.dataset import Dataset, open_dataset
from data_prep.pipeline.clips import Preparation
from data_prep.pipeline.executors import Failure, Workers

_SPAN = 64  # records that a process reads before it reports
_WITHOUT_INDEX = "delete it, and programs will take them from the records"
_TIME_LIMIT = 600.0  # seconds a span may take


class RecordRange(NamedTuple):
    """Consecutive records of one file.

    Attributes:
      split: that they belong to.
      path: of the file.
      offset: of the file's first record in the split.
      start: the first of these records in the file.
      count: how many they are.
    """

    split: str
    path: str
    offset: int
    start: int
    count: int

    @property
    def first(self) -> int:
        """The first of these records in the split."""
        return self.offset + self.start


class Damage(NamedTuple):
    """A damaged record, or the `count` records from `record` on of a file that is damaged whole."""

    split: str
    record: int
    count: int
    file: str
    why: str

    def __str__(self) -> str:
        which = f"record {self.record}"
        if self.count > 1:
            which = f"records {self.record} to {self.record + self.count - 1}"
        return f"split {self.split}, {which}, {self.file}: {self.why}"


class Verdict(NamedTuple):
    """What `verify` found.

    Attributes:
      clips: records that the metadata promise.
      damages: of all splits, in their order; empty if the dataset is whole.
      class_counts: clips of each class, over all splits.
    """

    clips: int
    damages: tuple[Damage, ...]
    class_counts: list[int]

    @property
    def damaged(self) -> int:
        """How many records are damaged."""
        return sum(damage.count for damage in self.damages)


class _Checked(NamedTuple):
    """The id, classes and flaw of a record; only a record without flaw has the former."""

    clip_id: bytes
    classes: tuple[int, ...]
    flaw: str | None


def verify(dataset: Dataset, workers: int | None) -> Verdict:
    """Reads all records of all splits: number, checksum, parse, `flaw`, unique ids, the index.

    Args:
      dataset: whose files need not be there.
      workers: processes; None means one per core.
    """
    files = [span for split in dataset.splits for span in _files(dataset, split)]
    total = sum(file.count for file in files)
    damages: list[Damage] = []
    counts = [0] * len(dataset.class_names)
    seen: dict[bytes, RecordRange] = {}
    indexes = {split: _index(dataset, split) for split in dataset.splits}
    differing: dict[str, list[int]] = {}
    with (
        Workers(workers, _TIME_LIMIT) as pool,
        tqdm(total=total, unit="clip", desc="verifying") as bar,
    ):
        for file, result in pool.results(_count, files):
            wrong = _wrong_number(file, result)
            if wrong is not None:
                damages.append(_damage(file, wrong))
                bar.update(file.count)
        broken = {(damage.split, damage.record) for damage in damages}
        whole = [file for file in files if (file.split, file.first) not in broken]
        for span, checked in _checked(pool, whole, str(dataset.directory)):
            bar.update()
            why = checked.flaw
            if why is None and checked.clip_id in seen:
                other = seen[checked.clip_id]
                name = checked.clip_id.decode(errors="replace")
                why = f"the clip id {name!r} is that of record {other.first} of {other.split}, too"
            if why is not None:
                damages.append(_damage(span, why))
                continue
            seen[checked.clip_id] = span
            if not _tells(indexes[span.split], span.first, checked):
                differing.setdefault(span.split, []).append(span.first)
            for index in checked.classes:
                counts[index] += 1
    for split, records in differing.items():
        why = f"it has other ids or labels than {len(records)} records: {_WITHOUT_INDEX}"
        name = dataset_dir.index_path(dataset.directory, split).name
        damages.append(Damage(split, records[0], 1, name, why))
    order = list(dataset.splits)
    damages.sort(key=lambda damage: (order.index(damage.split), damage.record))
    return Verdict(total, tuple(damages), counts)


def _index(dataset: Dataset, split: str) -> dataset_dir.ClipIndex | None:
    """The index of a split; None if there is none, an empty one if it can't be read."""
    if not dataset_dir.index_path(dataset.directory, split).exists():
        return None
    clips = dataset.splits[split].num_examples
    found = dataset_dir.read_index(dataset.directory, split, clips)
    return found or dataset_dir.ClipIndex([], [])


def _tells(index: dataset_dir.ClipIndex | None, record: int, checked: _Checked) -> bool:
    """Whether an index says of a record what the record says of itself."""
    if index is None:
        return True
    if not index.ids:
        return False
    clip_id = index.ids[record].encode("utf-8", "surrogateescape")
    classes = set(index.labels[record].tolist())  # in the list's order, which means nothing
    return (clip_id, classes) == (checked.clip_id, set(checked.classes))


def flaw(record: Mapping[str, Any], dataset: Dataset) -> str | None:
    """Returns what is wrong with a parsed record, None if nothing is."""
    checks = (_flaw_of_identity, _flaw_of_frames, _flaw_of_fbank, _flaw_of_truth, _flaw_of_extras)
    flaws = (check(record, dataset) for check in checks)
    return next((found for found in flaws if found is not None), None)


def _flaw_of_identity(record: Mapping[str, Any], dataset: Dataset) -> str | None:
    if not record["clip_id"]:
        return "the clip id is empty"
    classes = len(dataset.class_names)
    strange = [int(index) for index in record["labels"] if not 0 <= index < classes]
    return f"the label {strange[0]} is none of the {classes} classes" if strange else None


def _flaw_of_frames(record: Mapping[str, Any], dataset: Dataset) -> str | None:
    return _flaw_of_images(record["frames"], "frame", "JPEG", dataset.preparation)


def _flaw_of_images(
    images: list[bytes], name: str, kind: str, preparation: Preparation
) -> str | None:
    size = preparation.image_size
    if len(images) != preparation.num_frames:
        return f"there are {len(images)} {name}s, not {preparation.num_frames}"
    for number, data in enumerate(images):
        try:
            with Image.open(io.BytesIO(data), formats=[kind]) as image:
                if image.size != (size, size):
                    shape = " x ".join(map(str, image.size))
                    return f"{name} {number} has {shape} pixels, not {size} x {size}"
                image.load()
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            return f"{name} {number} is not a readable {kind} ({error})"
    return None


def _flaw_of_fbank(record: Mapping[str, Any], dataset: Dataset) -> str | None:
    fbank, dtype = record["fbank"], np.dtype(dataset.features["fbank"].np_dtype)
    if fbank.dtype != dtype or fbank.ndim != 2 or fbank.shape[1] != audio.BINS or not len(fbank):
        return f"the log-mel is {fbank.dtype} {fbank.shape}, not {dtype} [rows, {audio.BINS}]"
    if not np.isfinite(fbank).all():
        return "the log-mel holds numbers that aren't finite"
    seconds = audio.stored_seconds(record)
    if seconds is not None and not 0 < seconds < float("inf"):
        return f"the frames are spread over {seconds} seconds"
    return None


def _flaw_of_truth(record: Mapping[str, Any], dataset: Dataset) -> str | None:
    if "frame_class" not in dataset.features:
        return None
    classes = len(dataset.class_names)
    if not all(-1 <= index < classes for index in record["frame_class"]):
        return f"a class of frame_class is none of the {classes} classes"
    events = record["events"]
    if not all(0 <= index < classes for index in events["class"]):
        return f"the class of an event is none of the {classes} classes"
    if len({len(field) for field in events.values()}) != 1:
        return "the fields of the events are of different lengths"
    spans = zip(events["start"], events["end"], strict=True)
    if not all(0 <= start <= end < float("inf") for start, end in spans):
        return "an event has no start before its end"
    # Empty where the source says nothing of silent objects; version 0.1.0 stored none.
    if silent := list(record.get("frame_silent_mask", ())):
        if len(record["frame_silent_class"]) != len(silent):
            return "the fields of the silent object are of different lengths"
        flaw = _flaw_of_images(silent, "silent object's mask", "PNG", dataset.preparation)
        if flaw is not None:
            return flaw
    return _flaw_of_images(record["frame_mask"], "mask", "PNG", dataset.preparation)


def _flaw_of_extras(record: Mapping[str, Any], dataset: Dataset) -> str | None:
    if len({len(field) for field in record.get("boxes", {}).values()}) > 1:
        return "the fields of the boxes are of different lengths"
    if "label_modalities" in record and len(record["label_modalities"]) != len(record["labels"]):
        return "there are more or fewer modalities than labels"
    return None


def _files(dataset: Dataset, split: str) -> Iterator[RecordRange]:
    info, offset = dataset.splits[split], 0
    for path, count in zip(info.filepaths, info.shard_lengths, strict=True):
        yield RecordRange(split, str(path), offset, 0, count)
        offset += count


def _damage(span: RecordRange, why: str) -> Damage:
    return Damage(span.split, span.first, span.count, epath.Path(span.path).name, why)


def _count(file: RecordRange) -> int | None:
    """Returns how many records a file holds, None if it isn't there."""
    if not epath.Path(file.path).exists():
        return None
    return ArrayRecordReader(file.path).num_records()


def _wrong_number(file: RecordRange, result: int | Failure | None) -> str | None:
    if result is None:
        return "the file is missing"
    if isinstance(result, Failure):
        return result.detail
    if result != file.count:
        # A truncated file has lost its index and says 0.
        return f"the file holds {result} readable records, not {file.count}"
    return None


def _checked(
    pool: Workers, files: list[RecordRange], directory: str
) -> Iterator[tuple[RecordRange, _Checked]]:
    """Yields every record of the files, as a span of one, with what `_check` says of it."""
    spans = (
        file._replace(start=start, count=min(_SPAN, file.count - start))
        for file in files
        for start in range(0, file.count, _SPAN)
    )
    alone: list[RecordRange] = []
    for span, result in pool.results(_check, spans, directory):
        if isinstance(result, Failure):  # one of its records took the process down
            alone += _singly(span)
        else:
            yield from zip(_singly(span), result, strict=True)
    for span, result in pool.results(_check, alone, directory):
        if isinstance(result, Failure):
            yield span, _Checked(b"", (), result.detail)
        else:
            yield span, result[0]


def _singly(span: RecordRange) -> list[RecordRange]:
    starts = range(span.start, span.start + span.count)
    return [span._replace(start=start, count=1) for start in starts]


def _check(span: RecordRange, directory: str) -> list[_Checked]:
    reader, dataset = _reader(span.path), _dataset(directory)
    found = []
    for position in range(span.start, span.start + span.count):
        try:
            record = dataset.features.deserialize_example_np(reader.read([position])[0])
            what = flaw(record, dataset)
        except Exception as error:  # each layer has its own, and none may end the search
            what = " ".join(f"{error}".split())
        if what is None:
            labels = tuple(sorted({int(index) for index in record["labels"]}))
            found.append(_Checked(record["clip_id"], labels, None))
        else:
            found.append(_Checked(b"", (), what))
    return found


@functools.lru_cache(maxsize=1)
def _reader(path: str) -> ArrayRecordReader:
    return ArrayRecordReader(path)


@functools.lru_cache(maxsize=1)
def _dataset(directory: str) -> Dataset:
    return open_dataset(directory)
