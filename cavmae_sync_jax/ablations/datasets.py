"""The datasets that a table's columns are scored on, by the names that the columns use."""

import functools
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from etils import epath
from ml_collections import ConfigDict

from cavmae_sync_jax.ablations.paper import OWN
from cavmae_sync_jax.ablations.tables import Column
from cavmae_sync_jax.data import loader
from cavmae_sync_jax.evals import clip_lists, sound_maps
from cavmae_sync_jax.utils.errors import UserError


class Datasets(NamedTuple):
    """The folder of the training's own dataset and those of others, all with one split."""

    own: str
    split: str
    train_split: str
    others: Mapping[str, str]
    clips: Mapping[str, str]

    def records(self, name: str, evaluation: str = "") -> loader.Records:
        """The clips to score; in retrieval only those of a list, if one is given.

        Raises:
          UserError: if they are not there.
        """
        clips = self.clips.get(name) if evaluation == "retrieval" else None
        return _records(self.others.get(name, self.own), self.split, clips)

    def of_training(self, config: ConfigDict) -> loader.Records:
        """The clips that a config trains on."""
        return _records(config.data.dir, config.data.train_split, None)

    def of_probe(self, name: str, recipe: ConfigDict) -> loader.Records:
        """The clips that a probe on a dataset learns from.

        Raises:
          UserError: if they are not there.
        """
        return _records(self.others.get(name, self.own), recipe.train_split, None)

    def why_not(self, column: Column) -> str | None:
        """Why a column can't be scored; None if it can.

        Raises:
          UserError: if a dataset that was given can't be opened.
        """
        name = column.dataset
        if column.evaluation == "training":
            return None
        if name not in self.others and name not in OWN:
            return f"{column.name} needs --data={name}=DIR"
        records, where = self.records(name), f"{self.others.get(name, self.own)}"
        lacking = {
            "segmentation": not set(sound_maps.TRUTH) <= set(records.features) and "true pixels",
            "temporal": "frame_class" not in records.features and "true times",
        }.get(column.evaluation, False)
        if column.evaluation in ("probe", "tokens"):
            if not records.features["labels"].feature.names:
                lacking = "labels"
            elif self.train_split not in records.splits:
                lacking = f"split {self.train_split!r}"
        return f"{column.name} is left out: {where} has no {lacking}" if lacking else None

    def check_names(self, columns: Sequence[Column]) -> None:
        """Refuses names of datasets that none of some columns has.

        Raises:
          UserError: naming the flag and the names that there are.
        """
        used = {"data": columns, "clips": [one for one in columns if one.evaluation == "retrieval"]}
        for flag, given in (("data", self.others), ("clips", self.clips)):
            known = sorted({one.dataset for one in used[flag] if one.evaluation != "training"})
            if unknown := sorted(set(given) - set(known)):
                names = ", ".join(filter(None, known))
                raise UserError(
                    f"--{flag}={unknown[0]}: no column has a dataset of this name; "
                    f"there are {names}"
                )

    def identities(self, columns: Sequence[Column]) -> dict[str, str]:
        """The identity of the dataset of each evaluation."""
        return {
            " on ".join(filter(None, (one.evaluation, one.dataset))): self.records(
                one.dataset, one.evaluation
            ).identity
            for one in columns
            if one.evaluation != "training"
        }


@functools.lru_cache(maxsize=16)
def _records(directory: str, split: str, clips: str | None) -> loader.Records:
    records = loader.Records(directory, split)
    if clips is None:
        return records
    return clip_lists.select(records, clip_lists.read(clips), clips)[0]


def pairs(flag: str, given: Sequence[str]) -> dict[str, str]:
    """Parses `NAME=VALUE` of a flag that may be repeated.

    Raises:
      UserError: for anything else, or a name that comes twice.
    """
    found: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (equals and name and value) or name in found:
            raise UserError(f"--{flag}={text}: give it as NAME={epath.Path('DIR')}, each name once")
        found[name] = value
    return found
