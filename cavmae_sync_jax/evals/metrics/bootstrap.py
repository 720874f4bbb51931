"""Intervals of scores: percentile bootstrap over clips.

Frames of a clip resemble each other, so whole clips are resampled, with all their frames. The same
weights for two scores give the interval of their difference.
"""

import numpy as np
from jaxtyping import Bool, Float, Int

RESAMPLES = 1000
LEVEL = 0.95
DRAWN_AT_ONCE = 8_000_000  # weights of `shares`

Weights = Float[np.ndarray, "resamples clips"]
Resampled = Float[np.ndarray, " resamples"]


def draw_weights(clips: int, resamples: int = RESAMPLES, seed: int = 0) -> Weights:
    """How often each of `clips` is drawn in each resample of as many clips."""
    generator = np.random.default_rng(seed)
    return generator.multinomial(clips, np.full(clips, 1 / clips), resamples).astype(np.float64)


def interval(resampled: Resampled) -> list[float]:
    """The bounds between which the middle 95 % of the resamples lie; undefined ones are left out.

    Raises:
      ValueError: if the score is defined in no resample.
    """
    known = resampled[np.isfinite(resampled)]
    if not known.size:
        raise ValueError("the score is defined in no resample")
    return [float(bound) for bound in np.quantile(known, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])]


def means(
    weights: Weights, clips: Int[np.ndarray, " items"], values: Float[np.ndarray, " items"]
) -> Resampled:
    """The mean over the items of each resample; `clips` says whose each item is."""
    sums = np.bincount(clips, values, weights.shape[1])
    counts = np.bincount(clips, minlength=weights.shape[1])
    with np.errstate(invalid="ignore"):
        return (weights @ sums) / (weights @ counts)


def shares(
    hits: Bool[np.ndarray, "scores clips"], resamples: int = RESAMPLES, seed: int = 0
) -> Float[np.ndarray, "scores resamples"]:
    """The share of the clips with a hit in each resample, for several scores of the same clips.

    The resamples are those of `draw_weights`, drawn in parts, so that millions of clips fit.
    """
    clips = hits.shape[1]
    generator = np.random.default_rng(seed)
    rows = max(1, DRAWN_AT_ONCE // clips)
    parts = []
    for start in range(0, resamples, rows):
        count = min(rows, resamples - start)
        weights = generator.multinomial(clips, np.full(clips, 1 / clips), count)
        parts.append(hits @ weights.T / clips)
    return np.concatenate(parts, axis=1)


def areas_under_roc(
    weights: Weights,
    clips: Int[np.ndarray, " samples"],
    values: Float[np.ndarray, " samples"],
    positive: Bool[np.ndarray, " samples"],
) -> Resampled:
    """The area under the ROC curve in each resample.

    That is the chance that a positive sample has a higher value than a negative one; equal values
    count half.
    """
    levels, places = np.unique(values, return_inverse=True)
    sides = []
    for side in (positive, ~positive):
        counts = np.zeros((weights.shape[1], len(levels)), np.float32)
        np.add.at(counts, (clips[side], places[side]), 1)
        sides.append(weights.astype(np.float32) @ counts)
    above, below = (side.astype(np.float64) for side in sides)
    lower = np.cumsum(below, axis=1) - below / 2
    with np.errstate(invalid="ignore"):
        return (above * lower).sum(axis=1) / (above.sum(axis=1) * below.sum(axis=1))
