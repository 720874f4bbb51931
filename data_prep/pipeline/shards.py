"""Clips to shards of records: the unit in which a preparation is divided, resumed and counted.

The clips of a split are ordered by a hash of their ids and cut into shards before any is prepared.
So the same clips give the same shards on any engine, and a shard's examples are in random order.
A preparation that was killed goes on with the shards that have no mark of completion.
"""

import collections
import contextlib
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordReader, ArrayRecordWriter
from etils import epath
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from cavmae_sync_jax.media import audio
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError
from data_prep.pipeline import archives
from data_prep.pipeline.clips import FBANK_DTYPES, Clip, Preparation, Reject, prepare_clip

# A reader opens shards again and again if there are many; a preparation that is killed loses one.
MOST_SHARDS, FEWEST_CLIPS = 1000, 64
# JPEGs do not shrink any more, and reading is twice as fast; one record can be read alone.
_WRITER_OPTIONS = "group_size:1,uncompressed"
# So many rows does a log-mel lack at its end, for windows are there only where they fit.
_LAST_WINDOW = 2


class Schema(NamedTuple):
    """What decides the features of a dataset; `extras` are of `clips.EXTRAS`."""

    class_names: tuple[str, ...]
    num_frames: int
    has_truth: bool
    fbank_dtype: str
    extras: tuple[str, ...] = ()

    def features(self) -> tfds.features.FeaturesDict:
        """The features of an example; see `clips.prepare_clip` for what they mean.

        The log-mel and the images are stored as plain bytes, which needs no TensorFlow to read
        and write. Truth is there only if the source has it.
        """
        feature, text = tfds.features, tfds.features.Text()
        dtype = FBANK_DTYPES[self.fbank_dtype]
        spec = {
            "clip_id": text,
            "frames": feature.Sequence(text),
            "fbank": feature.Tensor(shape=(None, audio.BINS), dtype=dtype, encoding="bytes"),
            "seconds": feature.Scalar(np.float32),
            "notes": feature.Sequence(text),
            "labels": feature.Sequence(feature.ClassLabel(names=list(self.class_names))),
        }
        if self.has_truth:
            spec |= {
                "frame_class": feature.Tensor(shape=(self.num_frames,), dtype=np.int64),
                "frame_mask": feature.Sequence(text),
                "frame_silent_class": feature.Sequence(np.int64),
                "frame_silent_mask": feature.Sequence(text),
                "events": feature.Sequence(
                    {"class": np.int64, "start": np.float32, "end": np.float32}
                ),
            }
        if "boxes" in self.extras:
            sides = dict.fromkeys(("left", "top", "right", "bottom", "weight"), np.float32)
            spec["boxes"] = feature.Sequence({"frame": np.int64, **sides})
        if "label_modalities" in self.extras:
            spec["label_modalities"] = feature.Sequence(text)
        return feature.FeaturesDict(spec)


class Job(NamedTuple):
    """What a process needs to prepare any clip of a dataset."""

    schema: Schema
    preparation: Preparation


class Shard(NamedTuple):
    """Some clips of a split, in the order of their records."""

    split: str
    index: int
    clips: tuple[Clip, ...]

    @property
    def name(self) -> str:
        """Of the shard's files while the dataset is being prepared."""
        return f"{self.split}-{self.index:05d}"


class Record(NamedTuple):
    """An example as bytes, its log-mel rows, and what the summary sums up about it.

    `notes` are numbers by name: `padded_seconds`, and 1 for each of `clips.NOTES` that holds.
    """

    data: bytes
    rows: int
    notes: dict[str, float]


class Outcome(NamedTuple):
    """What became of a shard's clips.

    `notes` are sums of its records', `rows` the largest; `version` is of the code that prepared it.
    `digest` is a hash of the records, empty where version 0.1.0 wrote them.
    """

    examples: int
    bytes: int
    rejects: tuple[Reject, ...]
    notes: dict[str, float]
    rows: int
    version: str
    digest: str = ""


def plan(splits: Mapping[str, Sequence[Clip]]) -> list[Shard]:
    """Returns the shards of all splits: at most `MOST_SHARDS` of each, of equal sizes to one clip.

    A split has no shard of under `FEWEST_CLIPS` clips unless it has no more.
    """
    shards = []
    for split, clips in splits.items():
        ordered = sorted(clips, key=_place)
        count = min(MOST_SHARDS, max(1, len(clips) // FEWEST_CLIPS))
        edges = [len(clips) * index // count for index in range(count + 1)]
        for index in range(count):
            shards.append(Shard(split, index, tuple(ordered[edges[index] : edges[index + 1]])))
    return shards


def _place(clip: Clip) -> bytes:
    return hashlib.sha256(clip.clip_id.encode("utf-8", "surrogateescape")).digest()


def fingerprint(shards: Sequence[Shard], job: Job) -> str:
    """Returns a hash of all that a dataset depends on but its media files."""
    # Without extras, what a preparation began before there were any still goes on.
    schema = job.schema if job.schema.extras else job.schema[:-1]
    digest = hashlib.sha256(json.dumps([schema, dataclasses.asdict(job.preparation)]).encode())
    for shard in shards:
        digest.update(shard.name.encode())
        for clip in shard.clips:
            digest.update(json.dumps([type(clip).stored_name(), dataclasses.asdict(clip)]).encode())
    return digest.hexdigest()


def prepare_record(clip: Clip, job: Job) -> Record | Reject:
    """Returns a clip's example as a record, or why there is none."""
    example = prepare_clip(clip, job.preparation)
    if isinstance(example, Reject):
        return example
    features, serializer = _serializer(job.schema)
    proto = serializer.get_tf_example(features.encode_example(example))
    data = proto.SerializeToString(deterministic=True)  # a map's order is else up to the process
    rows = len(example["fbank"])
    seconds = (rows + _LAST_WINDOW) / audio.ROWS_PER_SECOND
    padded = round(job.preparation.clip_seconds - seconds, 2)
    notes = dict.fromkeys(example["notes"], 1) | ({"padded_seconds": padded} if padded > 0 else {})
    return Record(data, rows, notes)


@functools.lru_cache(maxsize=1)
def _serializer(schema: Schema) -> tuple[tfds.features.FeaturesDict, ExampleSerializer]:
    features = schema.features()
    return features, ExampleSerializer(features.get_serialized_info())


def used(shard: Shard, outcome: Outcome) -> list[Clip]:
    """Returns the clips that became examples, in the order of their records."""
    rejected = {reject.clip_id for reject in outcome.rejects}
    return [clip for clip in shard.clips if clip.clip_id not in rejected]


def write_shard(
    shard: Shard, results: Iterable[tuple[Clip, Record | Reject]], folder: epath.Path
) -> Outcome:
    """Writes a shard's records to `folder`, then its mark of completion, and returns the latter.

    Args:
      shard: whose clips the results are of.
      results: each clip once, in the shard's order, with its outcome.
      folder: where the files go; a shard without a record has its mark only.

    Raises:
      UserError: the files can't be written.
    """
    rejects, examples, size, rows, digest = [], 0, 0, 0, hashlib.sha256()
    notes = collections.Counter()
    bucket = "://" in str(folder)
    place = archives.temporary_folder() if bucket else tempfile.TemporaryDirectory(dir=str(folder))
    with place as own:
        path = Path(own) / shard.name
        writer = ArrayRecordWriter(str(path), _WRITER_OPTIONS)
        try:
            for _, result in results:
                if isinstance(result, Reject):
                    rejects.append(result)
                else:
                    writer.write(result.data)
                    digest.update(hashlib.sha256(result.data).digest())
                    examples, size = examples + 1, size + len(result.data)
                    rows = max(rows, result.rows)
                    notes.update(result.notes)
        finally:
            _close(writer, path)
        if examples + len(rejects) != len(shard.clips):
            raise RuntimeError(
                f"{len(shard.clips)} clips of {shard.name} became {examples} examples and "
                f"{len(rejects)} rejects"
            )
        about = dict(notes), rows, cli.version(), digest.hexdigest()
        outcome = Outcome(examples, size, tuple(rejects), *about)
        if examples:
            _move(path, data_path(folder, shard))
        mark = path.with_suffix(".json")
        entries = [dataclasses.asdict(reject) for reject in rejects]
        mark.write_text(json.dumps({**outcome._asdict(), "rejects": entries}), encoding="utf-8")
        _move(mark, _mark_path(folder, shard))
    return outcome


def _close(writer: ArrayRecordWriter, path: Path) -> None:
    try:
        writer.close()
    except RuntimeError as error:
        raise UserError(f"{path} can't be written: {error}: make room, start again") from error


def _move(path: Path, destination: epath.Path) -> None:
    """Puts a finished file to its place at once: whole or not at all."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    if "://" in str(destination):
        epath.Path(path).copy(destination, overwrite=True)
    else:
        os.replace(path, destination)


def link(path: epath.Path, target: epath.Path) -> None:
    """Gives records a second name, so that they need not be copied; in a bucket, copies them."""
    if "://" in str(path):
        path.copy(target, overwrite=True)  # were it renamed, a kill would cost the finished shard
        return
    try:
        os.link(path, target)
    except OSError:  # this file system has no links
        shutil.copyfile(path, target)


def data_path(folder: epath.Path, shard: Shard) -> epath.Path:
    """Where `write_shard` puts the records."""
    return folder / f"{shard.name}.array_record"


def _mark_path(folder: epath.Path, shard: Shard) -> epath.Path:
    return folder / f"{shard.name}.json"


def finished(shard: Shard, folder: epath.Path) -> Outcome | None:
    """Returns the outcome of a shard that is complete, None for any other."""
    try:
        mark = json.loads(_mark_path(folder, shard).read_text())
    except FileNotFoundError:
        return None
    if mark["examples"] and not _holds(data_path(folder, shard), mark["examples"]):
        return None
    rejects = tuple(Reject(**entry) for entry in mark["rejects"])
    # Version 0.1.0 took no notes.
    notes, rows, version = mark.get("notes", {}), mark.get("rows", 0), mark.get("version", "0.1.0")
    about = notes, rows, version, mark.get("digest", "")
    return Outcome(mark["examples"], mark["bytes"], rejects, *about)


def _holds(path: epath.Path, examples: int) -> bool:
    """Returns whether a file has that many records; one that was cut has none."""
    if "://" in str(path):
        return path.exists()  # in a bucket a file is whole or not there
    try:
        with contextlib.closing(ArrayRecordReader(str(path))) as reader:
            return reader.num_records() == examples
    except (OSError, RuntimeError, ValueError):
        return False


def store(shards: Iterable[Shard], folder: epath.Path) -> Iterator[epath.Path]:
    """Writes each shard's list of clips as JSON for other machines to `load`; yields its path."""
    for shard in shards:
        path = folder / f"{shard.name}.clips"
        rows = [dataclasses.asdict(clip) for clip in shard.clips]
        path.write_text(json.dumps({"split": shard.split, "index": shard.index, "clips": rows}))
        yield path


def load(path: epath.Path, clip_class: type[Clip]) -> Shard:
    """Reads what `store` has written of clips of one class."""
    stored = json.loads(path.read_text())
    clips = tuple(
        clip_class(**{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()})
        for row in stored["clips"]
    )
    return Shard(stored["split"], stored["index"], clips)
