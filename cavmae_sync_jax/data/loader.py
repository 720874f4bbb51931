"""A prepared dataset (TFDS, ArrayRecord) to batches: frames and their audio windows.

The order of training examples is a pure function of (seed, position): position `n` of an endless
sequence of shuffled epochs. Batch `s` holds positions `s·B … s·B + B - 1`, cut into equal
consecutive shares for the processes. A run therefore resumes from a number, with any count of
workers, processes or devices, and every clip comes once an epoch.
"""

import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import grain
import jax
import numpy as np
import tensorflow_datasets as tfds
from absl import flags
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from cavmae_sync_jax.data import dataset_dir
from cavmae_sync_jax.distributed import preemption, sharding
from cavmae_sync_jax.media import audio
from cavmae_sync_jax.media.images import decode_jpeg
from cavmae_sync_jax.utils.errors import UserError
from cavmae_sync_jax.utils.modalities import AUDIO, VISUAL

FIELDS = ("clip_id", "frames", "fbank")
TRUTH = "truth"  # of a batch: which classes each clip has
Batch = dict[str, Any]
Weights = Float[np.ndarray, " clips"]
# Where Linux keeps what processes share; containers often have 64 MB of it.
SHARED_MEMORY = Path("/dev/shm")


class Records:
    """Random access to a split's records; errors name the record."""

    def __init__(self, directory: epath.PathLike, split: str, fields: tuple[str, ...] = FIELDS):
        """Opens a split.

        Args:
          directory: a dataset's version folder, or a folder with one dataset somewhere below.
          split: "train", "eval" or what else the dataset has.
          fields: the features that the caller needs.

        Raises:
          UserError: if there is no such dataset, split or field.
        """
        self.directory = dataset_dir.find(directory)
        self.split = split
        self.fields = fields
        builder = tfds.builder_from_directory(str(self.directory))
        self.features = builder.info.features
        self.splits = tuple(builder.info.splits)
        if split not in builder.info.splits:
            have = ", ".join(builder.info.splits)
            raise UserError(
                f"{self.directory} has no split {split!r}; it has {have}: name one by --split, "
                "a training's by --config.data.train_split and --config.data.eval_split (which may "
                "be empty)"
            )
        info = builder.info.splits[split]
        self.identity = (
            f"{builder.info.full_name}, split {split}: "
            f"{info.num_examples} clips, {info.num_bytes} bytes"
        )
        missing = [field for field in fields if field not in self.features]
        if missing:
            raise UserError(f"{self.directory} has no {', '.join(missing)}, which this needs")
        # Datasets of version 0.1.0 don't tell; each of their records is checked when it is read.
        self.longest_rows: int | None = (builder.info.metadata or {}).get("longest_rows")
        self._source = builder.as_data_source(split=split)
        self._length = info.num_examples
        if not self._length:
            raise UserError(f"{self.directory}, split {split} is empty")

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            return self._source[index]
        except Exception as error:
            raise self._damaged(index, error) from error

    def pairs(self, index: int, pair_spec: "PairSpec", frames: Iterable[int]) -> list[Batch]:
        """Some of a clip's frames with their windows, see `PairSpec.pair`.

        Records opened with the field `labels` also give `truth` `[classes]`.
        """
        record = self[index]
        truth = {TRUTH: self.truth(record)} if "labels" in self.fields else {}
        try:
            return [pair_spec.pair(record, frame) | truth for frame in frames]
        except OSError as error:
            raise self._damaged(index, error) from error

    def truth(self, record: Mapping[str, Any]) -> Bool[np.ndarray, " classes"]:
        """Which classes a record has."""
        truth = np.zeros(self.features["labels"].feature.num_classes or 0, bool)
        truth[record["labels"]] = True
        return truth

    def _damaged(self, index: int, error: Exception) -> UserError:
        return UserError(
            f"{self.directory}, split {self.split}, record {index} is damaged "
            f"({error}): prepare the dataset again"
        )

    def ids(self, indices: list[int]) -> list[str]:
        """The clip ids of some records."""
        return [self[index]["clip_id"].decode() for index in indices]


class PairSpec(NamedTuple):
    """How a clip becomes pairs of a frame and its audio window; all of it a config may change."""

    num_frames: int
    clip_rows: int
    audio_rows: int
    audio_bins: int
    image_size: int
    window_spread: str = audio.SPREADS[0]
    only_frame: int | None = None  # of those, in an evaluation of one frame per clip

    @classmethod
    def of(cls, config: Any) -> "PairSpec":
        """What a training config asks for; an evaluation may add `data.only_frame`."""
        data, model = config.data, config.model
        sizes = model.audio_rows, model.audio_bins, model.image_size
        only_frame = data.get("only_frame", None)
        return cls(data.num_frames, data.clip_rows, *sizes, data.window_spread, only_frame)

    @property
    def frames(self) -> range:
        """The frames of each clip that an evaluation takes: all `num_frames`, or one of them."""
        if self.only_frame is None:
            return range(self.num_frames)
        return range(self.only_frame, self.only_frame + 1)

    def check_rows(self, rows: int | None) -> None:
        """Refuses a dataset with clips of so many log-mel rows, if the frames of one can't fit.

        Raises:
          UserError: they are clearly more than `clip_rows`.
        """
        if rows is not None and rows > audio.LONGEST * self.clip_rows:
            raise UserError(
                f"config.data.clip_rows={self.clip_rows}, but the dataset holds clips of {rows} "
                f"rows, over which their frames are spread: set --config.data.clip_rows={rows}"
            )

    def pair(self, record: Mapping[str, Any], frame: int) -> Batch:
        """Frame `frame` of `num_frames` evenly chosen from those stored, and its window.

        Returns:
          `visual`: uint8 RGB `[size, size, 3]`; `audio`: raw log-mel `[audio_rows, bins]`.

        Raises:
          OSError: if the frame is no readable JPEG.
          UserError: if the dataset has fewer frames, frames or log-mels of another size.
        """
        stored, (rows, bins) = len(record["frames"]), record["fbank"].shape
        if bins != self.audio_bins:
            raise UserError(
                f"config.model.audio_bins={self.audio_bins}, but the dataset has {bins}"
            )
        self.check_rows(rows)
        if self.num_frames > stored:
            raise UserError(
                f"config.data.num_frames={self.num_frames}, but the dataset holds {stored} frames "
                f"per clip: prepare it with --num_frames={self.num_frames}"
            )
        frame = frame * stored // self.num_frames
        image = decode_jpeg(record["frames"][frame])
        if image.shape[0] != self.image_size:
            raise UserError(
                f"config.model.image_size={self.image_size}, but the dataset's frames have "
                f"{image.shape[0]} pixels: prepare it with --image_size={self.image_size}"
            )
        window = audio.cut_window(
            record["fbank"],
            frame,
            stored,
            self.clip_rows,
            self.audio_rows,
            seconds=audio.stored_seconds(record),
            spread=self.window_spread,
        )
        return {AUDIO: window, VISUAL: image}


class _RandomFrame(grain.transforms.RandomMap):
    """A clip and a random frame of it, anew in each epoch; with weights, a clip drawn by them."""

    def __init__(self, frames: int, weights: Weights | None):
        self._frames = frames
        self._upto = None if weights is None else np.cumsum(weights) / np.sum(weights)

    def random_map(self, element: int, rng: np.random.Generator) -> tuple[np.int32, np.int32]:
        """The index of the record and the number of the frame."""
        if self._upto is not None:
            drawn = np.searchsorted(self._upto, rng.random(), side="right")
            element = min(int(drawn), len(self._upto) - 1)  # the last sum may be below 1
        return np.int32(element), np.int32(rng.integers(self._frames))


class _Pairs(grain.transforms.Map):
    """Clips and frames of a batch to its pairs, each copied into the batch as soon as it is there.

    So the next one takes the same memory, and no new page has to be cleared for it.
    """

    def __init__(self, records: Records, pair_spec: PairSpec):
        self._records, self._pair_spec = records, pair_spec

    def map(self, element: tuple[Int[np.ndarray, " clips"], Int[np.ndarray, " clips"]]) -> Batch:
        """The batch's pairs, and the indices of its records."""
        clips, frames = element
        batch: Batch = {"clip": clips}
        for place, (clip, frame) in enumerate(zip(clips.tolist(), frames.tolist(), strict=True)):
            (pair,) = self._records.pairs(clip, self._pair_spec, [frame])
            for name, values in pair.items():
                if place == 0:
                    batch[name] = np.empty((len(clips), *values.shape), values.dtype)
                batch[name][place] = values
        return batch


def train_batches(
    records: Records,
    pair_spec: PairSpec,
    batch_size: int,
    seed: int,
    start: int,
    workers: int,
    prefetch: int,
    weights: Weights | None = None,
) -> grain.DatasetIterator:
    """This process's share of the training batches, endlessly, from position `start` on.

    Args:
      records: the split to train on.
      pair_spec: how clips become pairs.
      batch_size: clips in a global batch; a multiple of the number of processes.
      seed: of the epochs' order and the frames' choice.
      start: position of the first example, 0 for a new run.
      workers: processes that read and decode; 0 does it in this process.
      prefetch: batches each worker holds ready.
      weights: draws every clip by its weight, with replacement; None takes each once an epoch.

    Returns:
      An iterator of `audio` `[share, rows, bins]`, `visual` `[share, height, width, 3]`,
      `clip` `[share]` (indices of the records) and, for `Records` with the field `labels`,
      `truth` `[share, classes]`.

    Raises:
      UserError: at once, if the dataset's longest clip has too many rows, or the workers' batches
        don't fit into the shared memory.
    """
    pair_spec.check_rows(records.longest_rows)
    count, rank = jax.process_count(), jax.process_index()
    chosen = _chosen(len(records), seed, pair_spec.num_frames, weights)[start:]
    shares = chosen.batch(batch_size // count)[rank::count].map(_Pairs(records, pair_spec))
    if workers:
        size = _worker_bytes(records, pair_spec, batch_size // count, prefetch)
        _check_shared_memory(size, workers)
    return iter(_prefetched(shares, workers, prefetch))


def _chosen(clips: int, seed: int, frames: int, weights: Weights | None) -> grain.MapDataset:
    """Endless pairs of a record's index and a frame's number."""
    shuffled = grain.MapDataset.range(clips).seed(seed).shuffle().repeat()
    return shuffled.random_map(_RandomFrame(frames, weights))


def order(
    clips: int, seed: int, start: int, count: int, weights: Weights | None = None
) -> list[int]:
    """The records at `count` positions from `start` on of `train_batches`' endless sequence."""
    return [int(clip) for clip, _ in _chosen(clips, seed, 1, weights)[start : start + count]]


def _check_shared_memory(worker_bytes: int, workers: int) -> None:
    """Refuses workers whose batches don't fit: writing beyond the end kills them by a signal."""
    needed, free = workers * worker_bytes, _free_shared_memory()
    if workers and needed > free:
        raise UserError(
            f"config.data.workers={workers} needs {needed / 1e9:.2g} GB of shared memory for its "
            f"batches, but {SHARED_MEMORY} has {free / 1e9:.2g} GB: lower --config.data.workers "
            "or --config.data.prefetch, or give a container more by docker run --shm-size"
        )


def _free_shared_memory() -> float:
    return float(shutil.disk_usage(SHARED_MEMORY).free) if SHARED_MEMORY.is_dir() else math.inf


def _worker_bytes(records: Records, pair_spec: PairSpec, pairs: int, prefetch: int) -> int:
    """The shared memory of a worker: `prefetch` batches are ready, and it fills another one."""
    (pair,) = records.pairs(0, pair_spec, [0])
    return (prefetch + 1) * pairs * sum(values.nbytes for values in pair.values())


def _prefetched(batches: grain.MapDataset, workers: int, prefetch: int) -> grain.IterDataset:
    # A worker's finished batches wait in shared memory, so that it holds but one of its own.
    own = 1 if workers else prefetch
    threads = grain.ReadOptions(num_threads=1, prefetch_buffer_size=own)
    dataset = batches.to_iter_dataset(threads)
    if not workers:
        return dataset
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain's workers read absl flags, which we do not use
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=prefetch)
    return dataset.mp_prefetch(options, worker_init_fn=preemption.init_worker)


class _WholeClip(grain.transforms.Map):
    """All frames of the clip at a place of `order`; places past its end are not valid."""

    def __init__(self, records: Records, pair_spec: PairSpec, order: Int[np.ndarray, " places"]):
        self._records, self._pair_spec, self._order = records, pair_spec, order

    def map(self, element: int) -> Batch:
        """All pairs of the record at place `element`, its index and whether it counts."""
        index = int(self._order[min(element, len(self._order) - 1)])
        pairs = self._records.pairs(index, self._pair_spec, self._pair_spec.frames)
        stacked = {name: np.stack([pair[name] for pair in pairs]) for name in (AUDIO, VISUAL)}
        return {**stacked, "clip": np.int32(index), "valid": element < len(self._order)}


def clip_batches(
    records: Records,
    pair_spec: PairSpec,
    batch_size: int,
    workers: int,
    prefetch: int,
    order: Int[np.ndarray, " places"] | None = None,
    start: int = 0,
) -> grain.DatasetIterator:
    """This process's share of one pass over clips, with all their frames.

    The last global batch is filled up; `valid` tells which clips count.

    Args:
      records: the split.
      pair_spec: how clips become pairs.
      batch_size: clips in a global batch; a multiple of the number of processes.
      workers: processes that read and decode, as far as the shared memory holds their batches; 0
        does it in this process.
      prefetch: batches each worker holds ready.
      order: indices of the records, any of them any number of times; None is all, once.
      start: the batch to begin with.

    Returns:
      An iterator of `audio` `[share, frames, rows, bins]`, `visual` `[share, frames, height,
      width, 3]`, `clip` `[share]` and `valid` `[share]`.

    Raises:
      UserError: at once, if the dataset's longest clip has too many rows.
    """
    pair_spec.check_rows(records.longest_rows)
    count, rank = jax.process_count(), jax.process_index()
    order = np.arange(len(records)) if order is None else order
    padded = -(-len(order) // batch_size) * batch_size
    clips = grain.MapDataset.range(start * batch_size, padded)
    clips = clips.map(_WholeClip(records, pair_spec, order))
    pairs = batch_size // count * len(pair_spec.frames)
    if workers:
        # The training's count, maybe of a larger machine; scores do not depend on it.
        fitting = _free_shared_memory() / _worker_bytes(records, pair_spec, pairs, prefetch)
        workers = math.floor(min(fitting, workers))
    shares = clips.batch(batch_size // count)[rank::count]
    return iter(_prefetched(shares, workers, prefetch))


def to_device(
    batches: grain.DatasetIterator, mesh: Mesh, ahead: int = 2
) -> Iterator[tuple[Batch, Batch]]:
    """Yields (global arrays sharded on the mesh, the host's share), `ahead` batches in transfer."""
    layout = sharding.batch_sharding(mesh)
    queue: list[tuple[Batch, Batch]] = []
    try:
        for batch in batches:
            with jax.transfer_guard("allow"):  # JAX takes this for an implicit one
                arrays = {
                    name: jax.make_array_from_process_local_data(layout, values)
                    for name, values in batch.items()
                }
            queue.append((arrays, batch))
            if len(queue) > ahead:
                yield queue.pop(0)
        yield from queue
    finally:
        batches.close()  # ends grain's workers
