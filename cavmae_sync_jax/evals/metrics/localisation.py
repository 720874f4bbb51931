"""The scores of localisation benchmarks, as functions on arrays.

With boxes they are cIoU and AUC (Senocak et al., CVPR 2018). The half of a map's pixels with the
highest values is predicted, as in the public evaluations of VGG-SS and of EZ-VSL. With masks they
are AVSBench's two (Zhou et al., ECCV 2022): J, the mean IoU of the frames, and F, the F-score.
Here every map is scaled by itself.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Float32, Real

from cavmae_sync_jax.evals.metrics import bootstrap
from cavmae_sync_jax.evals.metrics.segmentation import Items, Maps, upsample

SUCCESS = 0.5  # the cIoU from which on an object is found
STEPS = 0.05 * np.arange(21)  # thresholds of the cIoU, over which AUC is taken
J_LEVEL = 0.5  # of a scaled map: pixels above are predicted
BETA_SQUARED = 0.3  # F weighs precision more than recall
LEVELS = np.linspace(0, 1, 255, dtype=np.float32)  # thresholds of a scaled map, for F


def scores(
    maps: Maps, items: Items, weights: bootstrap.Weights
) -> tuple[dict[str, float], dict[str, bootstrap.Resampled]]:
    """cIoU and AUC of boxes, or J and F of masks, and the same of every resample of the clips.

    Args:
      maps: before upsampling.
      items: their truth.
      weights: of the clips in each resample; column i is record i.
    """
    if items.consensus is not None:
        ious = consensus_ious(maps, items.consensus)
        values = {"cIoU": (ious >= SUCCESS).astype(float), "AUC": areas(ious)}
    else:
        values = {"J": frame_ious(maps, items.masks)}
    means = {name: float(value.mean()) for name, value in values.items()}
    resampled = {n: bootstrap.means(weights, items.records, v) for n, v in values.items()}
    if items.consensus is None:
        curves = f_curves(maps, items.masks)
        means["F"] = float(curves.mean(axis=0).max())
        resampled["F"] = _resampled_f(curves, items, weights)
    return means, resampled


def constant(items: Items) -> Mapping[str, float]:
    """The same two scores of a map that predicts every pixel of every image."""
    ones = np.ones((1, 1), np.float32)
    if items.consensus is not None:
        ious = np.concatenate([consensus_ious(ones[None], one[None]) for one in items.consensus])
        return {"cIoU": float((ious >= SUCCESS).mean()), "AUC": float(areas(ious).mean())}
    shares = items.masks.mean(axis=(1, 2))
    return {"J": float(shares.mean()), "F": float(_f(shares, np.ones_like(shares)).mean())}


def consensus_ious(
    maps: Maps,
    consensus: Real[np.ndarray, "items height width"] | Bool[np.ndarray, "items height width"],
) -> Float[np.ndarray, " items"]:
    """The consensus IoU of each map's upper half.

    Predicted are the pixels that are not below the map's median, the higher one of two. With the
    consensus g it is the sum of g over them, divided by the sum of all g and their number where g
    is 0 (Senocak et al., CVPR 2018). A constant map predicts every pixel.
    """
    found = []
    for small, agreed in zip(maps, consensus, strict=True):
        heat = upsample(small, *agreed.shape)
        middle = heat.size // 2
        chosen = heat >= np.partition(heat, middle, axis=None)[middle]
        wrong = np.count_nonzero(chosen & (agreed == 0))
        agreed = agreed.astype(np.float64)
        found.append(agreed[chosen].sum() / (agreed.sum() + wrong))
    return np.array(found)


def areas(ious: Float[np.ndarray, " items"]) -> Float[np.ndarray, " items"]:
    """What each image adds to AUC; the mean of all is AUC.

    At each threshold, a share of the images has a cIoU of at least the threshold. AUC is the area
    under this share, by the trapezoidal rule over 0, 0.05, … 1 (Senocak et al., CVPR 2018).
    """
    reached = ious[:, None] >= STEPS
    return np.trapezoid(reached.astype(float), STEPS, axis=1)


def frame_ious(
    maps: Maps, masks: Bool[np.ndarray, "items height width"]
) -> Float[np.ndarray, " items"]:
    """The IoU of each map's pixels above `J_LEVEL`; the mean of all is J (Zhou et al., ECCV 2022).

    AVSBench's own maps are probabilities. These are scaled to [0, 1] first, each by itself.
    """
    found = []
    for small, mask in zip(maps, masks, strict=True):
        chosen = _scaled(small, mask.shape) > J_LEVEL
        found.append(np.count_nonzero(chosen & mask) / np.count_nonzero(chosen | mask))
    return np.array(found)


def f_curves(
    maps: Maps, masks: Bool[np.ndarray, "items height width"]
) -> Float[np.ndarray, "items levels"]:
    """The F-score of each scaled map's pixels at or above each of `LEVELS`.

    F is the best mean over the images that one level has. AVSBench's script (Zhou et al., ECCV
    2022) takes the best level of each batch, so that its F depends on the size of the batches.
    """
    curves = []
    for small, mask in zip(maps, masks, strict=True):
        places = np.searchsorted(LEVELS, _scaled(small, mask.shape), side="right") - 1
        true, all_ = (
            np.cumsum(np.bincount(side.ravel(), minlength=len(LEVELS))[::-1])[::-1]
            for side in (places[mask], places)
        )
        precision = true / np.maximum(all_, 1)
        curves.append(_f(precision, true / np.count_nonzero(mask)))
    return np.stack(curves)


def _f(
    precision: Float[np.ndarray, " values"], recall: Float[np.ndarray, " values"]
) -> Float[np.ndarray, " values"]:
    bottom = BETA_SQUARED * precision + recall
    top = (1 + BETA_SQUARED) * precision * recall
    return top / np.where(bottom > 0, bottom, 1)


def _resampled_f(
    curves: Float[np.ndarray, "items levels"], items: Items, weights: bootstrap.Weights
) -> bootstrap.Resampled:
    sums = np.zeros((weights.shape[1], curves.shape[1]))
    np.add.at(sums, items.records, curves)
    counts = weights @ np.bincount(items.records, minlength=weights.shape[1])
    with np.errstate(invalid="ignore"):
        return (weights @ sums / counts[:, None]).max(axis=1)


def _scaled(
    small: Float32[np.ndarray, "rows columns"], shape: tuple[int, ...]
) -> Float32[np.ndarray, "height width"]:
    """An upsampled map from 0 at its lowest to 1 at its highest; a constant one is 0."""
    heat = upsample(small, *shape)
    low, high = heat.min(), heat.max()
    return (heat - low) / (high - low) if high > low else np.zeros_like(heat)
