"""The similarity of sounds and pictures: retrieval's aggregations of cosines, in NumPy and float64.

These functions are the definition (paper sections 3.5.1 and 8): `evals.retrieval` and
`Model.similarity` both use them.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Matrix = Float[np.ndarray, "queries targets"]
ROUNDING = 1e-6  # of cosines that are computed in float32
BLOCK = 64  # query clips whose frame-by-frame cosines are held at a time


def unit(embeddings: Float[np.ndarray, "*shape dim"]) -> Float[np.ndarray, "*shape dim"]:
    """Scales every vector to length one, in float64; zeros stay zeros."""
    embeddings = embeddings.astype(np.float64, copy=False)
    norms = np.sqrt(np.vecdot(embeddings, embeddings))[..., None]
    return embeddings / np.maximum(norms, np.finfo(np.float64).tiny)


def diagonal_mean(
    queries: Float[np.ndarray, "queries frames dim"],
    targets: Float[np.ndarray, "targets frames dim"],
) -> Matrix:
    """Mean cosine of equal frames (equation 5): one product of the flattened unit vectors."""
    frames = queries.shape[1]
    return (
        unit(queries).reshape(len(queries), -1) @ unit(targets).reshape(len(targets), -1).T / frames
    )


def diagonal_max(
    queries: Float[np.ndarray, "queries frames dim"],
    targets: Float[np.ndarray, "targets frames dim"],
) -> Matrix:
    """Largest cosine of equal frames (Table 11, "diag max")."""
    queries, targets = unit(queries), unit(targets)
    best = queries[:, 0] @ targets[:, 0].T
    for frame in range(1, queries.shape[1]):
        np.maximum(best, queries[:, frame] @ targets[:, frame].T, out=best)
    return best


def mean(
    queries: Float[np.ndarray, "queries query_frames dim"],
    targets: Float[np.ndarray, "targets target_frames dim"],
) -> Matrix:
    """Mean cosine of all pairs of frames (Table 11, "block mean"): the product of the means."""
    return unit(queries).mean(axis=1) @ unit(targets).mean(axis=1).T


def maximum(
    queries: Float[np.ndarray, "queries query_frames dim"],
    targets: Float[np.ndarray, "targets target_frames dim"],
) -> Matrix:
    """Largest cosine of all pairs of frames (Table 11, "block max")."""
    flat = unit(targets).reshape(-1, targets.shape[-1]).T
    rows = []
    for start in range(0, len(queries), BLOCK):
        block = unit(queries[start : start + BLOCK])
        cosines = block.reshape(-1, block.shape[-1]) @ flat
        rows.append(cosines.reshape(len(block), block.shape[1], len(targets), -1).max(axis=(1, 3)))
    return np.concatenate(rows)


STRATEGIES: dict[str, Callable[..., Matrix]] = {
    "diagonal_mean": diagonal_mean,
    "diagonal_max": diagonal_max,
    "mean": mean,
    "max": maximum,
}


def of_pair(
    sound: Float[np.ndarray, "sound_pairs dim"],
    picture: Float[np.ndarray, "picture_pairs dim"],
    strategy: str,
) -> float:
    """The similarity of one sound and one picture, as in retrieval's matrix.

    A diagonal needs two equal timelines. Where the numbers of pairs differ, `diagonal_mean` is
    `mean` and `diagonal_max` is `max`.
    """
    if len(sound) != len(picture):
        strategy = strategy.removeprefix("diagonal_")
    return float(STRATEGIES[strategy](sound[None], picture[None])[0, 0])


def percentile(value: float, others: Float[np.ndarray, " others"]) -> float:
    """The percentage of other clips' similarities that lie below a value; equal ones count half.

    Those count as equal that differ by no more than float32's rounding.
    A cosine has no scale of its own. Its place among clips that do not belong together has one.
    """
    equal = np.abs(others - value) < ROUNDING
    return 100 * float(np.mean((others < value) & ~equal) + np.mean(equal) / 2)
