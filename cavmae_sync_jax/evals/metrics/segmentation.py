"""Scores of sound-prompted segmentation (paper section 3.5.3, Table 3) as functions on arrays.

All maps are scaled together. The pixels of all images of a class are pooled. AP is the area under
the precision-recall step curve. IoU is the best intersection over union of 20 thresholds. Means
are over the classes present. Maps are upsampled class by class, so that only the pixels of one
class are held and sorted at a time, with about 20 bytes per pixel.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int, Real
from PIL import Image

from cavmae_sync_jax.evals.metrics import average_precision, bootstrap

THRESHOLDS = 20
BLOB_SIGMA = 0.25  # of a side
BINS = 256  # of a class's values, and of its true ones, for the resamples of its scores
BLOB_CELLS = 32  # a side; finer than patches, so that the blob is round

Maps = Float32[np.ndarray, "items rows columns"]
Score = dict[str, float | int]


class Items(NamedTuple):
    """The frames to score: whose they are, which of a clip's chosen frames, class and mask.

    `silent_classes` and `silent_masks` are those of an object on screen that makes no sound; -1 and
    an empty mask where there is none, or where the dataset does not say. `consensus` is how far
    annotators agree on each pixel, from 0 to 1, where the dataset has boxes; see
    `media.boxes.consensus`.
    """

    records: Int[np.ndarray, " items"]
    frames: Int[np.ndarray, " items"]
    classes: Int[np.ndarray, " items"]
    masks: Bool[np.ndarray, "items height width"]
    silent_classes: Int[np.ndarray, " items"]
    silent_masks: Bool[np.ndarray, "items height width"]
    consensus: (
        Real[np.ndarray, "items height width"] | Bool[np.ndarray, "items height width"] | None
    ) = None


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
    table = {}
    for class_id, members, values in _pixels(maps, masks, classes):
        truth = masks[members].ravel()
        table[class_id] = {
            "AP": average_precision.average_precision(values.ravel(), truth),
            "IoU": best_iou(values.ravel(), truth),
            "items": len(members),
            "share": float(truth.mean()),
        }
    return table


def _pixels(
    maps: Maps, masks: Bool[np.ndarray, "items height width"], classes: Int[np.ndarray, " items"]
) -> Iterator[tuple[int, Int[np.ndarray, " members"], Float32[np.ndarray, "members pixels"]]]:
    """Each class with its items and their scaled and upsampled maps."""
    scaled = scale(maps)
    for class_id in np.unique(classes):
        members = np.flatnonzero(classes == class_id)
        values = np.stack([upsample(scaled[i], *masks.shape[1:]).ravel() for i in members])
        yield int(class_id), members, values


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


def pointing(
    maps: Maps, masks: Bool[np.ndarray, "items height width"]
) -> Float[np.ndarray, " items"]:
    """Whether the highest pixel of each upsampled map is a true one: 1 or 0.

    Of several highest pixels each counts its part, so a constant map scores the mask's share, as a
    pixel at random does.
    """
    found = []
    for small, mask in zip(maps, masks, strict=True):
        heat = upsample(small, *mask.shape)
        found.append(mask[heat == heat.max()].mean())
    return np.array(found)


def beats_silent_object(
    maps: Maps,
    masks: Bool[np.ndarray, "items height width"],
    silent_masks: Bool[np.ndarray, "items height width"],
) -> Float[np.ndarray, " items"]:
    """Whether a map's mean over the true pixels exceeds that over a silent object's: 1, ½ or 0.

    NaN where one of the two is not visible.
    """
    won = np.full(len(maps), np.nan)
    for item in np.flatnonzero(masks.any(axis=(1, 2)) & silent_masks.any(axis=(1, 2))):
        heat = upsample(maps[item], *masks.shape[1:])
        difference = float(heat[masks[item]].mean() - heat[silent_masks[item]].mean())
        won[item] = (np.sign(difference) + 1) / 2
    return won


def resampled_means(
    maps: Maps, items: Items, weights: bootstrap.Weights
) -> dict[str, bootstrap.Resampled]:
    """`mAP` and `mIoU` of each resample of the clips.

    The values of a class are sorted into bins, so that a resample is a sum of the clips' counts.
    Each bin has at most one of `BINS` parts of the pixels, and of the true ones. For the whole set,
    the IoU equals that of `by_class`, and AP differs by about 0.002.

    Args:
      maps: before scaling and upsampling.
      items: whose they are.
      weights: of the clips in each resample; column i is record i.
    """
    scores: dict[str, list[bootstrap.Resampled]] = {"AP": [], "IoU": []}
    for _, members, values in _pixels(maps, items.masks, items.classes):
        truth = items.masks[members].ravel()
        levels = _levels(values.ravel(), truth)
        bins = np.searchsorted(levels, values, side="right") - 1
        records, owners = np.unique(items.records[members], return_inverse=True)
        cells = (owners[:, None] * len(levels) + bins).ravel()
        shape = len(records), len(levels)
        counts = [
            weights[:, records] @ np.bincount(cells[side], minlength=np.prod(shape)).reshape(shape)
            for side in (truth, ~truth)
        ]
        for name, score in zip(scores, _of_counts(levels, *counts), strict=True):
            scores[name].append(score)
    # A class that a resample does not hold does not count in it.
    return {f"m{name}": np.nanmean(np.stack(rows), axis=0) for name, rows in scores.items()}


def _levels(
    values: Float32[np.ndarray, " pixels"], truth: Bool[np.ndarray, " pixels"]
) -> Float64[np.ndarray, " bins"]:
    """The lowest value of each bin; those above each threshold of `best_iou` are whole bins."""
    parts = np.linspace(0, 1, BINS)
    thresholds = np.linspace(float(values.min()), float(values.max()), THRESHOLDS)
    levels = [thresholds, np.nextafter(thresholds, np.inf)]
    # A quantile between two values is one of them, so that no level lies above its bin's values.
    levels += [np.quantile(side, parts, method="lower") for side in (values, values[truth])]
    return np.unique(np.concatenate(levels).astype(np.float64))


def _of_counts(
    levels: Float64[np.ndarray, " bins"],
    true: Float[np.ndarray, "resamples bins"],
    false: Float[np.ndarray, "resamples bins"],
) -> tuple[bootstrap.Resampled, bootstrap.Resampled]:
    """AP and IoU of counts of true and false pixels; NaN for a resample without any."""
    hits, misses = (np.cumsum(side[:, ::-1], axis=1)[:, ::-1] for side in (true, false))
    total = hits[:, :1]
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(hits + misses > 0, hits / (hits + misses), 0)
        precisions = (true * precision).sum(axis=1) / total[:, 0]
        lowest = levels[(true + false > 0).argmax(axis=1)]
        highest = levels[len(levels) - 1 - (true + false > 0)[:, ::-1].argmax(axis=1)]
        thresholds = np.linspace(lowest, highest, THRESHOLDS, axis=1)
        # What lies above every level is nothing.
        hits, misses = (np.pad(side, ((0, 0), (0, 1))) for side in (hits, misses))
        places = np.searchsorted(levels, thresholds, side="right")
        above, wrong = (np.take_along_axis(side, places, axis=1) for side in (hits, misses))
        ious = (above / (total + wrong)).max(axis=1)
    return precisions, ious
