"""Retrieval's scores as pure NumPy functions on arrays.

They are dense, in float64, and use the aggregations of `inference.similarity`. `ranking` computes
the same ranks at scale.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from cavmae_sync_jax.inference.similarity import STRATEGIES

PAPERS = "diagonal_mean"  # the paper's aggregation
EQUAL = 1e-12  # similarities no further apart differ by float64's rounding only


# The same of unit vectors of pairs of clips, `[pairs, frames, dim]`.
PAIRED: dict[str, Callable[..., Float[np.ndarray, " pairs"]]] = {
    "diagonal_mean": lambda queries, targets: np.vecdot(queries, targets).mean(axis=1),
    "diagonal_max": lambda queries, targets: np.vecdot(queries, targets).max(axis=1),
    "mean": lambda queries, targets: np.vecdot(queries.mean(axis=1), targets.mean(axis=1)),
    "max": lambda queries, targets: (queries @ targets.mT).max(axis=(1, 2)),
}


def main_of(strategies: Sequence[str]) -> str:
    """The aggregation that stands for a model: the paper's, or the first if that is not there."""
    return PAPERS if PAPERS in strategies else strategies[0]


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
