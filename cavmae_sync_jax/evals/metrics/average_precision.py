"""Average precision, which classification and segmentation share."""

import numpy as np
from jaxtyping import Bool, Float


def average_precision(
    values: Float[np.ndarray, " samples"], truth: Bool[np.ndarray, " samples"]
) -> float:
    """Area under the precision-recall step curve: sum over thresholds of recall gained × precision.

    A threshold takes in all samples that are at least as high, so equal values count together.

    Raises:
      ValueError: if nothing is true, or a value is not a number.
    """
    true, false = by_truth(values, truth)
    levels, counts = np.unique(true, return_counts=True)
    hits = len(true) - np.searchsorted(true, levels)
    misses = len(false) - np.searchsorted(false, levels)
    return float((counts * (hits / (hits + misses))).sum() / len(true))


def by_truth(
    values: Float[np.ndarray, " samples"], truth: Bool[np.ndarray, " samples"]
) -> tuple[Float[np.ndarray, " true"], Float[np.ndarray, " false"]]:
    """The values of what is true and of what is not, each sorted; raises as said above."""
    if not truth.any():
        raise ValueError("nothing is true")
    if np.isnan(values).any():
        raise ValueError("a value is not a number")
    return np.sort(values[truth]), np.sort(values[~truth])
