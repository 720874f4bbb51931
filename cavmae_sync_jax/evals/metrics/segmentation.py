"""Scores of sound-prompted segmentation (paper section 3.5.3, Table 3) as functions on arrays.

Maps are scaled once over the whole set. A class's pixels are those of all its images together. AP
is the area under the precision-recall step curve. IoU is the best intersection over union of 20
thresholds. Means are over the classes present. Maps are upsampled class by class. Only the pixels
of one class are held and sorted at a time, with about 20 bytes per pixel.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Int
from PIL import Image

from cavmae_sync_jax.evals.metrics import average_precision

THRESHOLDS = 20
BLOB_SIGMA = 0.25  # of a side
BLOB_CELLS = 32  # a side; finer than patches, so that the blob is round

Maps = Float32[np.ndarray, "items rows columns"]
Score = dict[str, float | int]


class Items(NamedTuple):
    """The frames to score: whose they are, which of a clip's chosen frames, class and mask."""

    records: Int[np.ndarray, " items"]
    frames: Int[np.ndarray, " items"]
    classes: Int[np.ndarray, " items"]
    masks: Bool[np.ndarray, "items height width"]


def scale(maps: Maps) -> Maps:
    """Shifts and scales all maps together to [0, 1]; maps that never differ become 0."""
    low, high = maps.min(), maps.max()
    return (maps - low) / (high - low) if high > low else np.zeros_like(maps)


def upsample(
    small: Float32[np.ndarray, "rows columns"], height: int, width: int
) -> Float32[np.ndarray, "{height} {width}"]:
    """Bilinear with half-pixel centres; beyond the outermost centres the values go on."""
    image = Image.fromarray(np.ascontiguousarray(small))
    return np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))


def blob() -> Float32[np.ndarray, "cells cells"]:
    """A Gaussian in the middle of a map: what "it is in the centre" scores."""
    offsets = ((np.arange(BLOB_CELLS) + 0.5) / BLOB_CELLS - 0.5) / BLOB_SIGMA
    side = np.exp(-0.5 * offsets**2)
    return np.outer(side, side).astype(np.float32)


def best_iou(values: Float32[np.ndarray, " pixels"], truth: Bool[np.ndarray, " pixels"]) -> float:
    """Best intersection over union of `THRESHOLDS` evenly from the lowest value to the highest.

    The pixels strictly above a threshold are predicted: a constant map predicts nothing, IoU 0.

    Raises:
      ValueError: if no pixel is true, or a value is not a number.
    """
    true, false = average_precision.by_truth(values, truth)
    thresholds = np.linspace(float(values.min()), float(values.max()), THRESHOLDS)
    hits, misses = (len(v) - np.searchsorted(v, thresholds, side="right") for v in (true, false))
    return float((hits / (len(true) + misses)).max())


def by_class(
    maps: Maps,
    masks: Bool[np.ndarray, "items height width"],
    classes: Int[np.ndarray, " items"],
) -> dict[int, Score]:
    """Scores small maps: for each class present `AP`, `IoU`, its `items` and its pixels' `share`.

    Args:
      maps: before scaling and upsampling.
      masks: the true pixels; every class needs one.
      classes: of the items.
    """
    scaled, table = scale(maps), {}
    for class_id in np.unique(classes):
        members = np.flatnonzero(classes == class_id)
        truth = masks[members].ravel()
        values = np.stack([upsample(scaled[i], *masks.shape[1:]) for i in members]).ravel()
        table[int(class_id)] = {
            "AP": average_precision.average_precision(values, truth),
            "IoU": best_iou(values, truth),
            "items": len(members),
            "share": float(truth.mean()),
        }
    return table


def means(table: Iterable[Mapping[str, float | int]]) -> dict[str, float]:
    """`mAP` and `mIoU`: the means over the classes."""
    rows = list(table)
    return {f"m{name}": float(np.mean([row[name] for row in rows])) for name in ("AP", "IoU")}


def constant(table: Iterable[Mapping[str, float | int]]) -> dict[str, float]:
    """The means of a constant map that predicts every pixel: both scores are a class's share.

    By the rule of `best_iou` a constant map predicts no pixel. But a map with two values may
    predict all but its lowest pixels, so this is the IoU to beat.
    """
    return means({"AP": row["share"], "IoU": row["share"]} for row in table)
