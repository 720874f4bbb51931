"""The evaluations' scores as pure NumPy functions on arrays.

Retrieval's are the definition: dense, in float64. `ranking` has the same ranks at scale.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int

Similarity = Float[np.ndarray, "queries targets"]
BLOCK = 64  # query clips whose frame-by-frame cosines are held at a time
EQUAL = 1e-12  # similarities no further apart differ by float64's rounding only


def unit(embeddings: Float[np.ndarray, "*shape dim"]) -> Float[np.ndarray, "*shape dim"]:
    """Scales every vector to length one, in float64; zeros stay zeros."""
    embeddings = embeddings.astype(np.float64, copy=False)
    norms = np.sqrt(np.vecdot(embeddings, embeddings))[..., None]
    return embeddings / np.maximum(norms, np.finfo(np.float64).tiny)


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
    queries: Float[np.ndarray, "queries query_frames dim"],
    targets: Float[np.ndarray, "targets target_frames dim"],
) -> Similarity:
    """Mean cosine of all pairs of frames (Table 11, "block mean"): the product of the means."""
    return unit(queries).mean(axis=1) @ unit(targets).mean(axis=1).T


def maximum(
    queries: Float[np.ndarray, "queries query_frames dim"],
    targets: Float[np.ndarray, "targets target_frames dim"],
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


# The same of unit vectors of pairs of clips, `[pairs, frames, dim]`.
PAIRED: dict[str, Callable[..., Float[np.ndarray, " pairs"]]] = {
    "diagonal_mean": lambda queries, targets: np.vecdot(queries, targets).mean(axis=1),
    "diagonal_max": lambda queries, targets: np.vecdot(queries, targets).max(axis=1),
    "mean": lambda queries, targets: np.vecdot(queries.mean(axis=1), targets.mean(axis=1)),
    "max": lambda queries, targets: (queries @ targets.mT).max(axis=(1, 2)),
}


def compare(
    similarity: Float[np.ndarray, "*shape"], own: Float[np.ndarray, "*#shape"]
) -> tuple[Bool[np.ndarray, "*shape"], Bool[np.ndarray, "*shape"]]:
    """Which similarities are better than that of the query's own target, and which are equal."""
    better = similarity > own + EQUAL
    return better, ~better & (similarity >= own - EQUAL)


def ranks(
    similarity: Float[np.ndarray, "queries targets"],
    own: Int[np.ndarray, " queries"] | None = None,
) -> Float[np.ndarray, " queries"]:
    """The rank (1 is best) of each query's own target.

    A rank is 1 + the number of strictly better targets + half the number of the equal others. A
    constant similarity therefore scores as chance, not as perfect.

    Args:
      similarity: of every query to every target.
      own: index of each query's own target; None: the query's own index.

    Raises:
      ValueError: if a similarity is not a number; nothing could be said of its rank.
    """
    if np.isnan(similarity).any():
        raise ValueError("a similarity is not a number")
    queries = np.arange(len(similarity))
    own = queries if own is None else own
    better, equal = compare(similarity, similarity[queries, own][:, None])
    return 1 + better.sum(axis=1) + (equal.sum(axis=1) - 1) / 2


def summary(rank: Float[np.ndarray, " queries"]) -> dict[str, float]:
    """R@1, R@5, R@10 (fractions) and the median of ranks."""
    scores = {f"R{k}": float((rank <= k).mean()) for k in (1, 5, 10)}
    return {**scores, "median_rank": float(np.median(rank))}


def recall(similarity: Float[np.ndarray, "clips clips"]) -> dict[str, float]:
    """The `summary` of a query-by-target similarity's ranks."""
    return summary(ranks(similarity))


def retrieval(
    audio: Float[np.ndarray, "clips audio_frames dim"],
    visual: Float[np.ndarray, "clips visual_frames dim"],
    strategy: str = "diagonal_mean",
) -> dict[str, dict[str, float]]:
    """Scores of both directions under one of `STRATEGIES` (sections 3.5.1 and 8).

    Holds every similarity at once: `ranking.retrieval` is for thousands of clips.
    """
    # Every strategy is symmetric in its arguments, so one matrix serves both directions.
    similarity = STRATEGIES[strategy](audio, visual)
    return {"audio_to_visual": recall(similarity), "visual_to_audio": recall(similarity.T)}
