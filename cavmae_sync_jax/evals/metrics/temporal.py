"""Cuts clips into segments by their frames' embeddings, and scores the cuts.

A segment is a run of frames with one label. A label may return later: speech, a bell, speech are
three segments with two labels.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from sklearn.metrics.cluster import contingency_matrix

from cavmae_sync_jax.inference.similarity import unit

SAME = 1e-5  # distance of unit vectors that is rounding
KMEANS_STARTS = 10
Labels = Int[np.ndarray, " frames"]


class Segmentation(NamedTuple):
    """The labels of a clip's frames, and whether a threshold gave the wanted segments."""

    labels: Labels
    by_threshold: bool


def concatenated(
    audio: Float[np.ndarray, "*shape dim"], visual: Float[np.ndarray, "*shape dim"]
) -> Float[np.ndarray, "*shape twice"]:
    """Both modalities' vectors, each of length one first, so that both count the same."""
    return np.concatenate([unit(audio), unit(visual)], axis=-1)


def segment(vectors: Float[np.ndarray, "frames dim"], wanted: int) -> Segmentation:
    """Clusters frames until their clusters make `wanted` segments in time (supplement 11).

    Agglomerative clustering by complete linkage of cosine distances, as in the authors' code; the
    paper names no linkage. The distance threshold is adapted: the coarsest of the tree's cuts with
    exactly `wanted` segments is taken. The authors' code counts clusters where the paper says
    segments. If there is none, K-means with `wanted` clusters, which may give more segments. Frames
    at no distance from each other are never in different clusters.

    Args:
      vectors: of any length; what is compared is their direction.
      wanted: number of segments; more than frames means one per frame.

    Returns:
      Labels from 0, in the order in which they first come.

    Raises:
      ValueError: if `wanted` is less than 1.
    """
    if wanted < 1:
        raise ValueError(f"a clip can't have {wanted} segments")
    frames = len(vectors)
    wanted = min(wanted, frames)
    if frames == 1:
        return Segmentation(np.zeros(1, int), True)
    # Of unit vectors, the largest Euclidean distance is also the largest cosine distance.
    vectors = unit(vectors)
    tree = linkage(vectors, "complete")
    thresholds = np.unique(np.maximum([SAME, *tree[:, 2]], SAME))
    for threshold in thresholds[::-1]:
        labels = fcluster(tree, threshold, "distance")
        if len(boundaries(labels)) + 1 == wanted:
            return Segmentation(in_order(labels), True)
    distinct = fcluster(tree, SAME, "distance").max()
    kmeans = KMeans(min(wanted, distinct), n_init=KMEANS_STARTS, random_state=0)
    return Segmentation(in_order(kmeans.fit_predict(vectors)), False)


def in_order(labels: Labels) -> Labels:
    """Renames labels to 0, 1, … in the order in which they first come."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse]


def uniform(frames: int, wanted: int) -> Labels:
    """A clip cut into `wanted` segments that are as equally long as whole frames allow."""
    return np.arange(frames) * min(wanted, frames) // frames


def boundaries(labels: Labels) -> Int[np.ndarray, " boundaries"]:
    """The frames, counted from 0, that begin a new segment; the first one is none of them."""
    return np.flatnonzero(np.diff(labels)) + 1


def boundary_f1(
    predicted: Int[np.ndarray, " predicted"], true: Int[np.ndarray, " true"], tolerance: int
) -> float:
    """F1 of predicted boundaries, paired one to one with true ones at most `tolerance` away.

    Of all pairings the one with the most pairs counts. No boundary, rightly predicted, scores 1.
    """
    total = len(predicted) + len(true)
    if not total:
        return 1.0
    near = csr_array(np.abs(predicted[:, None] - true) <= tolerance)
    return 2 * int((maximum_bipartite_matching(near) >= 0).sum()) / total


def adjusted_rand(predicted: Labels, true: Labels) -> float:
    """Agreement of labels whatever their names: 1 is perfect, 0 what chance gives."""
    return float(adjusted_rand_score(true, predicted))


def scores(predicted: Labels, true: Labels, tolerance: int) -> dict[str, float]:
    """`boundary_f1` and `adjusted_rand` of one clip."""
    found = boundary_f1(boundaries(predicted), boundaries(true), tolerance)
    return {"boundary_f1": found, "adjusted_rand": adjusted_rand(predicted, true)}


def named_like(labels: Labels, reference: Labels) -> Labels:
    """Renames labels to those of `reference` with which they share most frames, one to one.

    Labels without a partner get numbers above all of the reference's.
    """
    names, kinds = np.unique(labels), np.unique(reference)
    pairs = linear_sum_assignment(contingency_matrix(labels, reference), maximize=True)
    renamed = dict(zip(names[pairs[0]], kinds[pairs[1]], strict=True))
    for name in names:
        renamed.setdefault(name, max(*renamed.values(), reference.max()) + 1)
    return np.array([renamed[name] for name in labels])
