"""Which classes the clips of a split have, and how to draw rare ones as often as others."""

import numpy as np
from jaxtyping import Bool, Float

from cavmae_sync_jax.data import dataset_dir, loader
from cavmae_sync_jax.utils.errors import UserError

Truth = Bool[np.ndarray, "_ classes"]


def class_names(records: loader.Records) -> list[str]:
    """The names of a dataset's classes, in the order of its labels.

    Raises:
      UserError: if it has none.
    """
    names = list(records.features["labels"].feature.names)
    if not names:
        raise UserError(
            f"{records.directory} has no labels, which a classifier learns from: "
            "prepare it with labels, such as data_prep.videos --labels=CSV"
        )
    return names


def read(records: loader.Records) -> Truth:
    """Which classes each clip has.

    Raises:
      UserError: if the dataset has no labels, or a clip of the split has none.
    """
    truth = np.zeros((len(records), len(class_names(records))), bool)
    for clip, indices in zip(truth, records.labels(), strict=True):
        clip[indices] = True
    without = np.flatnonzero(~truth.any(axis=1))
    if without.size:
        raise UserError(
            f"{records.directory}, split {records.split}: {without.size} clips have no label "
            f"(the first: {records.ids([int(without[0])])[0]}), so that nothing can be learned "
            "from them or said of them"
        )
    return truth


def require_one_label(records: loader.Records, truth: Truth, key: str) -> None:
    """Refuses clips of several classes, for the setting `key` of cross-entropy."""
    several = np.flatnonzero(truth.sum(axis=1) > 1)
    if several.size:
        raise UserError(
            f"config.{key}='ce' needs one label per clip, but {several.size} clips of the split "
            f"{records.split} have more (the first: {records.ids([int(several[0])])[0]}): "
            f"use --config.{key}=bce"
        )


def balancing_weights(truth: Truth) -> Float[np.ndarray, " clips"]:
    """How likely each clip is drawn: the sum over its labels of 1000 / (clips of the label + 0.01).

    The weights sum to 1.
    """
    weights = truth @ dataset_dir.class_weights(truth.sum(axis=0))
    return weights / weights.sum()
