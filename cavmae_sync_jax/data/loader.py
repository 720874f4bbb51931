"""A prepared dataset (TFDS, ArrayRecord) to batches: frames and their audio windows.

The order of training examples is a pure function of (seed, position): position `n` of an endless
sequence of shuffled epochs. Batch `s` holds positions `s·B … s·B + B - 1`, cut into equal
consecutive shares for the processes. A run therefore resumes from a number, with any count of
workers, processes or devices. Every clip comes once per epoch.
"""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import grain
import jax
import numpy as np
from absl import flags
from jax.sharding import Mesh
from jaxtyping import Float, Int

from cavmae_sync_jax.data.batch_stream import Batches, Builder
from cavmae_sync_jax.data.pair_spec import Batch, PairSpec
from cavmae_sync_jax.data.records import Records
from cavmae_sync_jax.distributed import preemption, sharding
from cavmae_sync_jax.utils.errors import UserError
from cavmae_sync_jax.utils.modalities import AUDIO, VISUAL

Weights = Float[np.ndarray, " clips"]
_ClipsAndFrames = tuple[Int[np.ndarray, " clips"], Int[np.ndarray, " clips"]]
_ENDLESS = 2**50  # positions; more than any training needs, few enough for floats, as grain has
# Where Linux keeps what processes share; containers often have 64 MB of it.
SHARED_MEMORY = Path("/dev/shm")


class _RandomFrame(grain.transforms.RandomMap):
    """A clip and a random frame of it, new in each epoch; with weights, a clip drawn by them."""

    def __init__(self, frames: int, weights: Weights | None):
        self._frames = frames
        self._upto = None if weights is None else np.cumsum(weights) / np.sum(weights)

    def random_map(self, element: int, rng: np.random.Generator) -> tuple[np.int32, np.int32]:
        """The index of the record and the number of the frame."""
        if self._upto is not None:
            drawn = np.searchsorted(self._upto, rng.random(), side="right")
            element = min(int(drawn), len(self._upto) - 1)  # the last sum may be below 1
        return np.int32(element), np.int32(rng.integers(self._frames))


class _Pairs(NamedTuple):
    """Makes a batch's pairs from its clips and frames; each is copied into the batch at once.

    So the next one takes the same memory, and no new page has to be cleared for it.
    """

    records: Records
    pair_spec: PairSpec

    def clips(self, element: _ClipsAndFrames) -> list[int]:
        """The records of the pairs."""
        return element[0].tolist()

    def batch(self, element: _ClipsAndFrames, clips: Iterator[int]) -> Batch:
        """The batch's pairs, and the indices of its records."""
        all_clips, frames = element
        batch: Batch = {"clip": all_clips}
        for place, clip in enumerate(clips):
            (pair,) = self.records.pairs(clip, self.pair_spec, [int(frames[place])])
            for name, values in pair.items():
                if place == 0:
                    batch[name] = np.empty((len(all_clips), *values.shape), values.dtype)
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
      weights: draws every clip by its weight, with replacement; None takes each once per epoch.

    Returns:
      An iterator of `audio` `[share, rows, bins]`, `visual` `[share, height, width, 3]` and `clip`
      `[share]`, which are indices of the records. `Records` with the field `labels` add `truth`
      `[share, classes]`.

    Raises:
      UserError: at once, if the dataset's longest clip has too many rows, or the workers' batches
        don't fit into the shared memory.
    """
    pair_spec.check_rows(records.longest_rows)
    count, rank = jax.process_count(), jax.process_index()
    chosen = _chosen(len(records), seed, pair_spec.num_frames, weights)[start:]
    shares = chosen.batch(batch_size // count)[rank::count]
    if workers:
        size = _worker_bytes(records, pair_spec, batch_size // count, prefetch)
        _check_shared_memory(size, workers)
    return iter(_prefetched(shares, _Pairs(records, pair_spec), workers, prefetch))


def _chosen(clips: int, seed: int, frames: int, weights: Weights | None) -> grain.MapDataset:
    """Endless pairs of a record's index and a frame's number."""
    shuffled = grain.MapDataset.range(clips).seed(seed).shuffle().repeat(_ENDLESS // clips)
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


def _prefetched(
    shares: grain.MapDataset, builder: Builder, workers: int, prefetch: int
) -> grain.IterDataset:
    elements = shares.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    # A worker's finished batches wait in shared memory, so that it holds but one of its own.
    dataset = Batches(elements, builder, 1 if workers else max(1, prefetch))
    if not workers:
        return dataset
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # grain's workers read absl flags, which we do not use
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=prefetch)
    return dataset.mp_prefetch(options, worker_init_fn=preemption.init_worker)


class _WholeClips(NamedTuple):
    """All frames of the clips at some places of `order`; places past its end are not valid."""

    records: Records
    pair_spec: PairSpec
    order: Int[np.ndarray, " places"]

    def clips(self, element: Int[np.ndarray, " clips"]) -> list[int]:
        """The records at the places `element`."""
        return self.order[np.minimum(element, len(self.order) - 1)].tolist()

    def batch(self, element: Int[np.ndarray, " clips"], clips: Iterator[int]) -> Batch:
        """All pairs of the records at the places `element`, their indices, and which count."""
        indices = np.array(self.clips(element), np.int32)
        batch: Batch = {"clip": indices, "valid": element < len(self.order)}
        for place, clip in enumerate(clips):
            pairs = self.records.pairs(clip, self.pair_spec, self.pair_spec.frames)
            for name in (AUDIO, VISUAL):
                values = [pair[name] for pair in pairs]
                if place == 0:
                    shape = (len(indices), len(values), *values[0].shape)
                    batch[name] = np.empty(shape, values[0].dtype)
                np.stack(values, out=batch[name][place])
        return batch


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

    The last global batch is filled up; `valid` says which clips count.

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
    places = grain.MapDataset.range(start * batch_size, padded)
    pairs = batch_size // count * len(pair_spec.frames)
    if workers:
        # The training's count, maybe of a larger machine; scores do not depend on it.
        fitting = _free_shared_memory() / _worker_bytes(records, pair_spec, pairs, prefetch)
        workers = math.floor(min(fitting, workers))
    shares = places.batch(batch_size // count)[rank::count]
    return iter(_prefetched(shares, _WholeClips(records, pair_spec, order), workers, prefetch))


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
