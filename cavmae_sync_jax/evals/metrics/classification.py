"""Classification scores as pure NumPy functions: precision of each class, accuracy, confusion."""

import numpy as np
from jaxtyping import Bool, Float, Int

from cavmae_sync_jax.evals.metrics.average_precision import average_precision

# VGGSounder's subsets of labels, by the modality that each label is tagged with.
PERCEIVED = {
    "heard (A, AV)": ("A", "AV"),
    "seen (V, AV)": ("V", "AV"),
    "both (AV)": ("AV",),
    "heard only (A)": ("A",),
    "seen only (V)": ("V",),
}


def class_precisions(
    truth: Bool[np.ndarray, "clips classes"], scores: Float[np.ndarray, "clips classes"]
) -> Float[np.ndarray, " classes"]:
    """The average precision of each class; not a number for classes that no clip has."""
    return np.array(
        [
            average_precision(s, t) if t.any() else np.nan
            for t, s in zip(truth.T, scores.T, strict=True)
        ]
    )


def accuracy(
    truth: Bool[np.ndarray, "clips classes"], scores: Float[np.ndarray, "clips classes"]
) -> float:
    """The share of clips whose best class is one of theirs."""
    return float(truth[np.arange(len(truth)), scores.argmax(axis=1)].mean())


def confusion(
    truth: Bool[np.ndarray, "clips classes"], scores: Float[np.ndarray, "clips classes"]
) -> Float[np.ndarray, "classes classes"]:
    """For each true class (row), how its clips' best classes (columns) are spread; rows sum to 1.

    A clip of several classes counts in each of their rows; a class without clips has zeros.
    """
    best: Int[np.ndarray, " clips"] = scores.argmax(axis=1)
    counts = truth.T.astype(np.float64) @ np.eye(truth.shape[1])[best]
    return counts / np.maximum(truth.sum(axis=0), 1)[:, None]
