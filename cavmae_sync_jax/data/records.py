"""A split of a prepared dataset (TFDS, ArrayRecord): its records by number.

docs/data.md lists the fields of a record; `data_prep.pipeline.shards.Schema` defines them.
"""

import collections
import contextlib
import functools
import hashlib
import json
import os
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from jaxtyping import Bool, Int

from cavmae_sync_jax.data import dataset_dir
from cavmae_sync_jax.data.disk_shards import DiskShards, Places, Shards
from cavmae_sync_jax.data.pair_spec import Batch, PairSpec
from cavmae_sync_jax.utils import console
from cavmae_sync_jax.utils.errors import UserError

FIELDS = ("clip_id", "frames", "fbank")
TRUTH = "truth"  # of a batch: which classes each clip has
REQUESTS = 128  # in flight per process, for what a bucket is asked ahead


class Records:
    """Random access to a split's records; errors name the record.

    `identity` names the split and its size, to be read; `contents` is a hash of what is in it.
    """

    requests = REQUESTS

    def __init__(
        self,
        directory: epath.PathLike,
        split: str,
        fields: tuple[str, ...] = FIELDS,
        requests: int = REQUESTS,
    ):
        """Opens a split.

        Args:
          directory: a dataset's version folder, or a folder with one dataset somewhere below; it
            may lie in a bucket.
          split: "train", "eval" or what else the dataset has.
          fields: the features that the caller needs.
          requests: in flight at a time, to a bucket.

        Raises:
          UserError: if there is no such dataset, split or field.
        """
        self.directory = dataset_dir.find(directory)
        self.split = split
        self.fields = fields
        self.requests = requests
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
        self.contents = _contents(builder.info, split)
        missing = [field for field in fields if field not in self.features]
        if missing:
            raise UserError(
                f"{self.directory} has no {', '.join(missing)}: name a dataset that has it, or "
                "prepare this one again"
            )
        # Datasets of version 0.1.0 don't say; each of their records is checked when it is read.
        self.longest_rows: int | None = (builder.info.metadata or {}).get("longest_rows")
        places = Places([os.fspath(path) for path in info.filepaths], info.shard_lengths)
        if not len(places):
            raise UserError(f"{self.directory}, split {split} is empty")
        # Records of a bucket are better asked for ahead.
        self.in_bucket = places.paths[0].startswith(dataset_dir.BUCKET)
        self.shards: Shards = (
            _open_bucket(places, requests) if self.in_bucket else DiskShards(places)
        )
        self._length = len(places)

    def __len__(self) -> int:
        return self._length

    def place(self, index: int) -> int:
        """Which record of the split an element is made of."""
        return index

    def __getitem__(self, index: int) -> dict[str, Any]:
        place = self.place(index)
        try:
            return self.features.deserialize_example_np(self.shards.read(place))
        except UserError:
            raise
        except Exception as error:
            raise self._damaged(place, error) from error

    def ahead(self, indices: Iterable[int]) -> Generator[int, None, None]:
        """Yields the indices, while a bucket is asked for the records that come after each."""
        waiting: collections.deque[int] = collections.deque()

        def places() -> Iterator[int]:
            for index in indices:
                waiting.append(index)
                yield self.place(index)

        with contextlib.closing(self.shards.ahead(places())) as asked:
            for _ in asked:
                yield waiting.popleft()

    def pairs(self, index: int, pair_spec: PairSpec, frames: Iterable[int]) -> list[Batch]:
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

    def column(self, name: str) -> Iterator[Any]:
        """Yields one field of each record in turn; raises UserError where one is damaged."""
        return (self[index][name] for index in self.ahead(range(len(self))))

    @functools.cached_property
    def _index(self) -> dataset_dir.ClipIndex:
        """The ids and labels of all records, from beside them, else read once from all of them."""
        stored = dataset_dir.read_index(self.directory, self.split, self._length)
        if stored is not None:
            return stored
        ids, labels = [], []
        with console.progress(f"ids of {self.split}", self._length, "clip") as bar:
            for index in self.ahead(range(self._length)):
                record = self[index]
                ids.append(record["clip_id"].decode())
                labels.append(np.asarray(record["labels"], np.int32))
                bar.update()
        return dataset_dir.ClipIndex(ids, labels)

    def ids(self, indices: Sequence[int]) -> list[str]:
        """The clip ids of some records."""
        return [self._index.ids[index] for index in indices]

    def labels(self) -> list[Int[np.ndarray, " labels"]]:
        """The indices of each record's classes."""
        return self._index.labels


def _contents(info: tfds.core.DatasetInfo, split: str) -> str:
    """A short hash of a split's records.

    The sizes alone don't tell: with another sound or label, every record is as long as before.
    """
    metadata = dict(info.metadata or {})
    if split in metadata.get("contents", {}):
        return metadata["contents"][split]
    # Version 0.1.0 stored no hash of the records: take what is known of them.
    metadata.pop("code_version", None)
    sizes = int(info.splits[split].num_bytes), list(info.splits[split].shard_lengths)
    index = dataset_dir.index_path(info.data_dir, split)
    known = index.read_bytes() if index.exists() else b""
    text = json.dumps((*sizes, metadata), sort_keys=True, default=str).encode()
    return hashlib.sha256(text + known).hexdigest()[:16]


def _open_bucket(places: Places, requests: int) -> Shards:
    from cavmae_sync_jax.data.bucket_shards import BucketShards  # loads TensorStore

    return BucketShards(places, requests)
