"""The evaluations' scores as pure NumPy functions on arrays."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float

Similarity = Float[np.ndarray, "queries targets"]
BLOCK = 64  # query clips whose frame-by-frame cosines are held at a time


def unit(embeddings: Float[np.ndarray, "*shape dim"]) -> Float[np.ndarray, "*shape dim"]:
    """Scales every vector to length one."""
    norms = np.linalg.norm(embeddings, axis=-1, keepdims=True)
    return embeddings / np.maximum(norms, np.finfo(embeddings.dtype).tiny)


def diagonal_mean(
    queries: Float[np.ndarray, "queries frames dim"],
    targets: Float[np.ndarray, "targets frames dim"],
) -> Similarity:
    """Mean cosine of equal frames (equation 5): one product of the flattened unit vectors."""
    frames = queries.shape[1]
    return (
        unit(queries).reshape(len(queries), -1) @ unit(targets).reshape(len(targets), -1).T / frames
    )


def diagonal_max(
    queries: Float[np.ndarray, "queries frames dim"],
    targets: Float[np.ndarray, "targets frames dim"],
) -> Similarity:
    """Largest cosine of equal frames (Table 11, "diag max")."""
    queries, targets = unit(queries), unit(targets)
    best = queries[:, 0] @ targets[:, 0].T
    for frame in range(1, queries.shape[1]):
        np.maximum(best, queries[:, frame] @ targets[:, frame].T, out=best)
    return best


def mean(
    queries: Float[np.ndarray, "queries frames dim"],
    targets: Float[np.ndarray, "targets frames dim"],
) -> Similarity:
    """Mean cosine of all pairs of frames (Table 11, "block mean"): the product of the means."""
    return unit(queries).mean(axis=1) @ unit(targets).mean(axis=1).T


def maximum(
    queries: Float[np.ndarray, "queries frames dim"],
    targets: Float[np.ndarray, "targets frames dim"],
) -> Similarity:
    """Largest cosine of all pairs of frames (Table 11, "block max")."""
    flat = unit(targets).reshape(-1, targets.shape[-1]).T
    rows = []
    for start in range(0, len(queries), BLOCK):
        block = unit(queries[start : start + BLOCK])
        cosines = block.reshape(-1, block.shape[-1]) @ flat
        rows.append(cosines.reshape(len(block), block.shape[1], len(targets), -1).max(axis=(1, 3)))
    return np.concatenate(rows)


STRATEGIES: dict[str, Callable[..., Similarity]] = {
    "diagonal_mean": diagonal_mean,
    "diagonal_max": diagonal_max,
    "mean": mean,
    "max": maximum,
}


def ranks(similarity: Float[np.ndarray, "clips clips"]) -> Float[np.ndarray, " clips"]:
    """The rank (1 is best) of each query's own target, which is the one of the same index.

    Ties: 1 + the number of strictly better targets + half the number of the equal others, so that
    a constant similarity scores as chance, not as perfect.

    Raises:
      ValueError: if a similarity is not a number; nothing could be said of its rank.
    """
    if np.isnan(similarity).any():
        raise ValueError("a similarity is not a number")
    own = np.diagonal(similarity)[:, None]
    return 1 + (similarity > own).sum(axis=1) + ((similarity == own).sum(axis=1) - 1) / 2


def recall(similarity: Float[np.ndarray, "clips clips"]) -> dict[str, float]:
    """R@1, R@5, R@10 (fractions) and the median rank of a query-by-target similarity."""
    rank = ranks(similarity)
    scores = {f"R{k}": float((rank <= k).mean()) for k in (1, 5, 10)}
    return {**scores, "median_rank": float(np.median(rank))}


def retrieval(
    audio: Float[np.ndarray, "clips frames dim"],
    visual: Float[np.ndarray, "clips frames dim"],
    strategy: str = "diagonal_mean",
) -> dict[str, dict[str, float]]:
    """Scores of both directions under one of `STRATEGIES` (sections 3.5.1 and 8)."""
    # Every strategy is symmetric in its arguments, so one matrix serves both directions.
    similarity = STRATEGIES[strategy](audio, visual)
    return {"audio_to_visual": recall(similarity), "visual_to_audio": recall(similarity.T)}
