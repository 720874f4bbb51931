"""Finds a prepared dataset, checks its metadata and reads its records."""

import os
from typing import Any, NamedTuple

import tensorflow_datasets as tfds
from etils import epath

from cavmae_sync_jax.data import dataset_dir
from cavmae_sync_jax.utils import path_names
from cavmae_sync_jax.utils.errors import UserError
from data_prep.pipeline.clips import Preparation
from data_prep.pipeline.output import INCOMPLETE

_FIELDS = ("clip_id", "frames", "fbank", "labels")
_RAW = tfds.decode.DeserializeMethod.RAW_BYTES


class Dataset(NamedTuple):
    """A dataset whose metadata are sound.

    Attributes:
      builder: TFDS's.
      preparation: what was stored with each clip.
      class_names: in the order of the label indices.
    """

    builder: tfds.core.DatasetBuilder
    preparation: Preparation
    class_names: list[str]

    @property
    def directory(self) -> epath.Path:
        """The version's folder."""
        return epath.Path(self.builder.data_path)

    @property
    def output(self) -> epath.Path:
        """The --output of the program that prepared the dataset."""
        return self.directory.parent.parent

    @property
    def features(self) -> tfds.features.FeaturesDict:
        """The features of a record."""
        return self.builder.info.features

    @property
    def splits(self) -> dict[str, tfds.core.SplitInfo]:
        """The splits by name, in the order of the metadata."""
        return dict(self.builder.info.splits)

    def missing_files(self) -> list[epath.Path]:
        """Returns the files of records that the metadata name and that are not there."""
        paths = [path for split in self.splits.values() for path in split.filepaths]
        return [path for path in paths if not path.exists()]


class RawRecords:
    """Random access to a split's records."""

    def __init__(self, dataset: Dataset, split: str):
        """Opens a split that the dataset has."""
        self._dataset, self._split = dataset, split
        self._source = dataset.builder.as_data_source(split=split, deserialize_method=_RAW)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> tuple[bytes, dict[str, Any]]:
        """Returns a record's bytes, and what they hold.

        Raises:
          UserError: the record is damaged.
        """
        try:
            data = self._source[index]
            return data, self._dataset.features.deserialize_example_np(data)
        except Exception as error:  # ArrayRecord, protobuf and TFDS have each their own
            raise self.damaged(index, " ".join(f"{error}".split())) from error

    def damaged(self, index: int, why: str) -> UserError:
        """Returns the error that a record is damaged."""
        return UserError(
            f"{self._dataset.directory}, split {self._split}, record {index} is damaged ({why}): "
            "--verify lists all damaged records"
        )


def find(directory: epath.PathLike) -> epath.Path:
    """Returns the version folder of the one dataset at or below `directory` (NAME/VERSION).

    Raises:
      UserError: if there is none, none yet, or more than one.
    """
    try:
        return dataset_dir.find(directory)
    except UserError as error:
        state = unfinished(epath.Path(directory)) if os.fspath(directory) else None
        if state is None or any(path_names.matching(directory, "*/*/dataset_info.json")):
            raise
        raise UserError(f"{state}: start the same command again to go on with it") from error


def unfinished(output: epath.Path) -> str | None:
    """Returns a sentence on an interrupted or running preparation, None if there is none."""
    if not (output / INCOMPLETE).is_dir():
        return None
    done = len(list(path_names.matching(output / INCOMPLETE / "shards", "*.json")))
    return f"a preparation in {output} isn't finished (shards that are: {done:,})"


def open_dataset(directory: epath.PathLike) -> Dataset:
    """Opens the dataset that `find` finds; its records are not looked at.

    Raises:
      UserError: there is none, or its metadata are damaged.
    """
    directory = find(directory)
    try:
        builder = tfds.builder_from_directory(str(directory))
        info = builder.info
        missing = [name for name in _FIELDS if name not in info.features]
        if missing or not info.splits:
            raise ValueError(f"no {', '.join(missing) or 'split'}")
        if any(count < 1 for split in info.splits.values() for count in split.shard_lengths):
            raise ValueError("a shard without records")
        names = list(info.metadata["class_names"])
        classes = info.features["labels"].feature.num_classes
        if len(names) != classes:
            raise ValueError(f"{len(names)} names for {classes} classes")
        lacking = {"source", "code_version"} - set(info.metadata)
        if lacking:
            raise ValueError(f"no {', '.join(sorted(lacking))}")
        preparation = Preparation(**info.metadata["preparation"])
    except Exception as error:  # TFDS, protobuf and JSON have each their own
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(
            f"the metadata in {directory} are damaged, or not data_prep's ({why}): "
            "prepare the dataset again"
        ) from error
    return Dataset(builder, preparation, names)
