import pathlib

import numpy as np
import pytest

from cavmae_sync_jax.evals.metrics import retrieval as retrieval_metrics
from cavmae_sync_jax.inference import similarity as similarity_of

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "retrieval.npz"


@pytest.mark.parametrize("strategy", retrieval_metrics.STRATEGIES)
def test_retrieval_equals_the_reference(strategy):
    golden = np.load(GOLDEN, allow_pickle=False)
    pair = golden["audio"], golden["visual"]
    actual = retrieval_metrics.retrieval(*pair, strategy)
    for direction, score in actual.items():
        queries, targets = pair if direction == "audio_to_visual" else pair[::-1]
        similarity = retrieval_metrics.STRATEGIES[strategy](queries, targets)
        key = f"{strategy}/{direction}"
        np.testing.assert_allclose(similarity, golden[f"{key}/similarity"], atol=1e-6)
        names = {"R1": "R1", "R5": "R5", "R10": "R10", "MR": "median_rank"}
        for theirs, ours in names.items():
            assert score[ours] == pytest.approx(float(golden[f"{key}/{theirs}"]))


def test_ranks_by_hand():
    similarity = np.array([[0.9, 0.1, 0.2], [0.5, 0.4, 0.3], [0.7, 0.8, 0.1]])
    np.testing.assert_array_equal(retrieval_metrics.ranks(similarity), [1, 2, 3])
    assert retrieval_metrics.recall(similarity) == {
        "R1": 1 / 3,
        "R5": 1,
        "R10": 1,
        "median_rank": 2,
    }


def test_ties_score_as_chance():
    assert retrieval_metrics.ranks(np.ones((5, 5))).tolist() == [3] * 5
    assert retrieval_metrics.ranks(np.array([[0.5, 0.5], [0.0, 1.0]])).tolist() == [1.5, 1]


def test_strategies_by_hand():
    # Two frames in the plane: the clip's own frames, and the same in the other order.
    x, y = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    queries, targets = np.stack([np.stack([x, y])]), np.stack([[x, y], [y, x], [x, x]])
    values = {
        name: f(queries, 3.0 * targets)[0].tolist()
        for name, f in retrieval_metrics.STRATEGIES.items()
    }
    assert values == {
        "diagonal_mean": [1, 0, 0.5],
        "diagonal_max": [1, 0, 1],
        "mean": [0.5, 0.5, 0.5],
        "max": [1, 1, 1],
    }


def test_blocks_do_not_change_the_maximum(monkeypatch):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 7, 3, 5))
    whole = similarity_of.maximum(a, b)
    monkeypatch.setattr(similarity_of, "BLOCK", 2)
    np.testing.assert_array_equal(similarity_of.maximum(a, b), whole)


def test_what_is_not_a_number_has_no_rank():
    with pytest.raises(ValueError, match=r"^a similarity is not a number$"):
        retrieval_metrics.ranks(np.array([[np.nan, 0.0], [0.0, 1.0]]))


@pytest.mark.parametrize("strategy", retrieval_metrics.STRATEGIES)
def test_pairs_are_the_diagonal_of_all(strategy):
    a, b = np.random.default_rng(0).normal(size=(2, 6, 3, 5)).astype(np.float32)
    whole = retrieval_metrics.STRATEGIES[strategy](a, b)
    pairs = retrieval_metrics.PAIRED[strategy](similarity_of.unit(a), similarity_of.unit(b))
    assert whole.dtype == pairs.dtype == np.float64
    np.testing.assert_allclose(pairs, np.diagonal(whole), atol=1e-14)


def test_ranks_of_some_queries():
    similarity = np.array([[0.9, 0.1, 0.2], [0.7, 0.8, 0.1]])
    np.testing.assert_array_equal(retrieval_metrics.ranks(similarity, np.array([2, 0])), [2, 2])


def test_float64_rounding_makes_no_winner():
    similarity = np.array([[0.5, 0.5 + 1e-15, 0.5 - 1e-15], [0.5, 0.5, 0.5 + 1e-9], [0, 0, 1.0]])
    np.testing.assert_array_equal(retrieval_metrics.ranks(similarity), [2, 2.5, 1])


def test_what_differs_by_the_bound_is_equal():
    bound = retrieval_metrics.EQUAL
    similarity = np.array([[0.0, bound, -bound, 2 * bound, -2 * bound]])
    # One is better; the own one and two others are equal.
    np.testing.assert_array_equal(retrieval_metrics.ranks(similarity), [3])


def test_the_mean_over_equal_frames_is_the_default():
    golden = np.load(GOLDEN, allow_pickle=False)
    pair = golden["audio"], golden["visual"]
    found = retrieval_metrics.retrieval(*pair)
    assert found == retrieval_metrics.retrieval(*pair, "diagonal_mean")
    assert found != retrieval_metrics.retrieval(*pair, "mean")
