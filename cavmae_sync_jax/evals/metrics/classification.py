"""Classification scores as pure NumPy functions, as the AudioSet papers have them.

Means over classes leave out those that no clip has. A second function for each score gives its
values in the resamples of `bootstrap.draw_weights`.
"""

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.special import ndtri

from cavmae_sync_jax.evals.metrics import bootstrap
from cavmae_sync_jax.evals.metrics.average_precision import average_precision, by_truth

RESAMPLES_AT_ONCE = 2**24  # weights of clips that are sorted at once
Truth = Bool[np.ndarray, "clips classes"]
Scores = Float[np.ndarray, "clips classes"]

# VGGSounder's subsets of labels, by the modality that each label is tagged with.
PERCEIVED = {
    "heard (A, AV)": ("A", "AV"),
    "seen (V, AV)": ("V", "AV"),
    "both (AV)": ("AV",),
    "heard only (A)": ("A",),
    "seen only (V)": ("V",),
}
TOP = (1, 3, 5, 10)  # how many of a clip's best classes count as its predictions


def class_precisions(truth: Truth, scores: Scores) -> Float[np.ndarray, " classes"]:
    """The average precision of each class; not a number for classes that no clip has."""
    return np.array(
        [
            average_precision(s, t) if t.any() else np.nan
            for t, s in zip(truth.T, scores.T, strict=True)
        ]
    )


def class_areas(truth: Truth, scores: Scores) -> Float[np.ndarray, " classes"]:
    """The area under each class's ROC curve; not a number for classes that no or all clips have.

    That is the chance that a clip of the class scores higher than another; equal scores count half.
    """
    return np.array([_area(s, t) for t, s in zip(truth.T, scores.T, strict=True)])


def _area(values: Float[np.ndarray, " clips"], truth: Bool[np.ndarray, " clips"]) -> float:
    if not truth.any() or truth.all():
        return np.nan
    true, false = by_truth(values, truth)
    below = np.searchsorted(false, true, "left") + np.searchsorted(false, true, "right")
    return float(below.sum() / (2 * len(true) * len(false)))


def d_prime(area: float) -> float:
    """How far apart two unit normals lie whose ROC curve has this area: √2 · Φ⁻¹(AUC)."""
    return float(np.sqrt(2) * ndtri(area))


def accuracy(truth: Truth, scores: Scores) -> float:
    """The share of clips whose best class is one of theirs."""
    return float(_hits(truth, scores).mean())


def _hits(truth: Truth, scores: Scores) -> Bool[np.ndarray, " clips"]:
    return truth[np.arange(len(truth)), scores.argmax(axis=1)]


def top_k(truth: Truth, scores: Scores) -> dict[str, float]:
    """`F1@k` and `hit_rate@k`, where the k best classes of each clip are its predictions.

    F1 counts the labels of all clips together (micro-average). A clip is a hit if one of its
    predictions is right. Each k of `TOP` is there that is not above the number of classes.
    """
    right = np.take_along_axis(truth, np.argsort(-scores, axis=1, kind="stable"), axis=1)
    found = {}
    for k in TOP:
        if k <= truth.shape[1]:
            counts = right[:, :k].sum(axis=1)
            found[f"F1@{k}"] = float(2 * counts.sum() / (k * len(truth) + truth.sum()))
            found[f"hit_rate@{k}"] = float((counts > 0).mean())
    return found


def modality_confusion(
    truth: Truth, both: Scores, audio: Scores, visual: Scores
) -> dict[str, float]:
    """VGGSounder's modality confusion: clips that one modality gets right and both together wrong.

    Args:
      truth: all labels.
      both: what the model says with both modalities.
      audio: what it says with the sound alone.
      visual: what it says with the picture alone.

    Returns:
      The share of clips whose best class is wrong with both, but right with the sound alone
      (`audio`), with the picture alone (`visual`), or with each of them alone (`both`).
    """
    missed, heard, seen = ~_hits(truth, both), _hits(truth, audio), _hits(truth, visual)
    shares = {"audio": heard & missed, "visual": seen & missed, "both": heard & seen & missed}
    return {name: float(clips.mean()) for name, clips in shares.items()}


def scores_of(truth: Truth, scores: Scores) -> dict[str, float]:
    """`mAP`, `AUC` and `d_prime` over the classes, `accuracy` where every clip has one label.

    `AUC` is missing if no class has both kinds of clips, and `d_prime`, that of the mean AUC, if it
    would not be finite.
    """
    found = {"mAP": float(np.nanmean(class_precisions(truth, scores)))}
    areas = class_areas(truth, scores)
    if np.isfinite(areas).any():
        found["AUC"] = float(np.nanmean(areas))
        if 0 < found["AUC"] < 1:
            found["d_prime"] = d_prime(found["AUC"])
    if (truth.sum(axis=1) == 1).all():
        found["accuracy"] = accuracy(truth, scores)
    return found


def intervals_of(
    truth: Truth, scores: Scores, weights: bootstrap.Weights
) -> dict[str, list[float]]:
    """The interval of each of `scores_of` between which the middle 95 % of the resamples lie."""
    resamples = len(weights)
    sums = {"mAP": np.zeros(resamples), "AUC": np.zeros(resamples)}
    counts = {name: np.zeros(resamples) for name in sums}
    for t, s in zip(truth.T, scores.T, strict=True):
        if t.any():
            for name, values in zip(sums, resampled_class(t, s, weights), strict=True):
                known = np.isfinite(values)
                sums[name][known] += values[known]
                counts[name] += known
    with np.errstate(invalid="ignore"):
        means = {name: sums[name] / counts[name] for name in sums}
    means["d_prime"] = np.sqrt(2) * ndtri(means["AUC"])
    means["accuracy"] = weights @ _hits(truth, scores) / weights.sum(axis=1)
    names = scores_of(truth, scores)
    return {
        name: bootstrap.interval(values)
        for name, values in means.items()
        if name in names and np.isfinite(values).any()
    }


def resampled_class(
    truth: Bool[np.ndarray, " clips"],
    scores: Float[np.ndarray, " clips"],
    weights: bootstrap.Weights,
) -> tuple[bootstrap.Resampled, bootstrap.Resampled]:
    """The average precision and the area under the ROC curve of one class in each resample.

    A resample without clips of the class, or without others for the area, is not a number.
    """
    order = np.argsort(-scores, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # of equal scores
    rows = max(1, RESAMPLES_AT_ONCE // len(scores))
    parts = []
    for first in range(0, len(weights), rows):
        sorted_weights = weights[first : first + rows, order]
        above = np.cumsum(sorted_weights * truth[order], axis=1)[:, ends]
        taken = np.cumsum(sorted_weights, axis=1)[:, ends]
        hits = np.diff(above, axis=1, prepend=0)
        misses = np.diff(taken, axis=1, prepend=0) - hits
        with np.errstate(invalid="ignore", divide="ignore"):
            precision = np.where(taken > 0, above / taken, 0)
            precisions = (hits * precision).sum(axis=1) / above[:, -1]
            areas = (misses * (above - hits / 2)).sum(axis=1)
            areas /= above[:, -1] * (taken[:, -1] - above[:, -1])
        parts.append((precisions, areas))
    precisions, areas = (np.concatenate(column) for column in zip(*parts, strict=True))
    return precisions, areas


def confusion(truth: Truth, scores: Scores) -> Float[np.ndarray, "classes classes"]:
    """For each true class (row), how its clips' best classes (columns) are spread; rows sum to 1.

    A clip of several classes counts in each of their rows; a class without clips has zeros.
    """
    best: Int[np.ndarray, " clips"] = scores.argmax(axis=1)
    counts = truth.T.astype(np.float64) @ np.eye(truth.shape[1])[best]
    return counts / np.maximum(truth.sum(axis=0), 1)[:, None]
