"""Scores of classifiers against scikit-learn's, and their resamples against weighted ones."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from cavmae_sync_jax.evals.metrics import bootstrap, classification
from cavmae_sync_jax.evals.metrics.average_precision import average_precision


def drawn(seed, clips=60, classes=4):
    rng = np.random.default_rng(seed)
    truth = rng.random((clips, classes)) < [0.5, 0.2, 0.05, 0.0]
    truth[0, :3] = True
    scores = truth + rng.normal(size=truth.shape)
    return truth, np.round(scores) if seed % 2 else scores  # with ties, and without


@pytest.mark.parametrize("seed", range(6))
def test_scores_are_scikit_learns(seed):
    truth, scores = drawn(seed)
    known = slice(3)  # no clip has the last class
    found = classification.scores_of(truth, scores)
    expected = average_precision_score(truth[:, known], scores[:, known], average="macro")
    assert found["mAP"] == pytest.approx(expected, abs=1e-12)
    area = roc_auc_score(truth[:, known], scores[:, known], average="macro")
    assert found["AUC"] == pytest.approx(area, abs=1e-12)
    assert np.isnan(classification.class_areas(truth, scores)[3]) and "accuracy" not in found


def test_d_prime_by_hand():
    # Two normals that lie one deviation apart: AUC = Φ(1/√2).
    assert classification.d_prime(0.760249938906523) == pytest.approx(1, abs=1e-9)
    assert classification.d_prime(0.5) == 0
    assert classification.d_prime(0.971) == pytest.approx(
        2.681, abs=2e-3
    )  # as AST's paper pairs them


@pytest.mark.parametrize("seed", [0, 2])  # without ties
def test_f1_of_the_best_classes_is_scikit_learns(seed):
    truth, scores = drawn(seed)
    found = classification.top_k(truth, scores)
    assert found.keys() == {"F1@1", "hit_rate@1", "F1@3", "hit_rate@3"}  # of four classes
    for k in (1, 3):
        predicted = scores >= np.sort(scores, axis=1)[:, -k, None]
        assert found[f"F1@{k}"] == pytest.approx(f1_score(truth, predicted, average="micro"))
        assert found[f"hit_rate@{k}"] == (truth & predicted).any(axis=1).mean()


def test_of_equal_classes_the_first_ones_are_predicted():
    generator = np.random.default_rng(0)
    # So many equal ones that NumPy's fastest sort would exchange some of them.
    scores = generator.integers(3, size=(4, 300)).astype(float)
    truth = generator.random((4, 300)) < 0.3
    best = [sorted(range(300), key=lambda place, row=row: -row[place]) for row in scores]
    found = classification.top_k(truth, scores)
    for k in classification.TOP:
        right = [truth[clip, order[:k]].sum() for clip, order in enumerate(best)]
        assert found[f"hit_rate@{k}"] == np.mean([count > 0 for count in right])
        assert found[f"F1@{k}"] == pytest.approx(2 * sum(right) / (4 * k + truth.sum()))
    assert classification.accuracy(truth, scores) == found["hit_rate@1"]


def test_modality_confusion_by_hand():
    truth = np.array([[1, 0, 0], [0, 1, 1], [0, 0, 1], [1, 1, 0]], bool)
    best = {"both": [1, 1, 0, 2], "audio": [0, 0, 2, 1], "visual": [1, 2, 2, 0]}
    # Both are wrong in the clips 0, 2 and 3. The sound is right in all three, the picture in two.
    scores = {name: np.eye(3)[places] for name, places in best.items()}
    found = classification.modality_confusion(truth, **scores)
    assert found == {"audio": 0.75, "visual": 0.5, "both": 0.5}


def test_perfect_scores_have_no_d_prime():
    truth = np.eye(3, dtype=bool)
    assert classification.scores_of(truth, truth.astype(float)) == {
        "mAP": 1.0,
        "AUC": 1.0,
        "accuracy": 1.0,
    }


@pytest.mark.parametrize("seed", range(4))
def test_resamples_are_weighted_scores(seed):
    truth, scores = drawn(seed)
    weights = bootstrap.draw_weights(len(truth), 8, seed)
    precisions, areas = classification.resampled_class(truth[:, 1], scores[:, 1], weights)
    for weight, precision, area in zip(weights, precisions, areas, strict=True):
        again = np.repeat(np.arange(len(truth)), weight.astype(int))
        t, s = truth[again, 1], scores[again, 1]
        assert precision == pytest.approx(average_precision_score(t, s), abs=1e-12)
        assert area == pytest.approx(roc_auc_score(t, s), abs=1e-12)


def test_intervals_hold_the_scores():
    truth, scores = drawn(0, clips=200)
    weights = bootstrap.draw_weights(len(truth), 100)
    found = classification.scores_of(truth, scores)
    intervals = classification.intervals_of(truth, scores, weights)
    assert intervals.keys() == found.keys()
    for name, (low, high) in intervals.items():
        assert low < found[name] < high
    one = truth & (np.cumsum(truth, axis=1) == 1)
    one[~one.any(axis=1), 0] = True
    low, high = classification.intervals_of(one, scores, weights)["accuracy"]
    assert low < classification.accuracy(one, scores) < high


def test_average_precision_refuses_what_has_none():
    values = np.array([0.5, np.nan])
    with pytest.raises(ValueError, match=r"^nothing is true$"):
        average_precision(values[:1], np.array([False]))
    with pytest.raises(ValueError, match=r"^a value is not a number$"):
        average_precision(values, np.array([True, False]))


def test_average_precision_by_hand():
    truth = np.array([True, False, True, False])
    # Found at ranks 1 and 3: (1/1 + 2/3) / 2.
    assert average_precision(np.array([4.0, 3, 2, 1]), truth) == pytest.approx(5 / 6)
    # All equal: one step whose precision is the share of positives.
    assert average_precision(np.zeros(4), truth) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="nothing is true"):
        average_precision(np.zeros(4), np.zeros(4, bool))


@pytest.mark.parametrize("seed", range(20))
def test_average_precision_is_scikit_learns(seed):
    rng = np.random.default_rng(seed)
    samples = int(rng.integers(2, 60))
    truth = rng.random(samples) < rng.choice([0.1, 0.5, 0.9])
    truth[rng.integers(samples)] = True
    scores = rng.normal(size=samples)
    if seed % 2:
        scores = np.round(scores)  # ties
    expected = average_precision_score(truth, scores)
    assert average_precision(scores, truth) == pytest.approx(expected, abs=1e-12)


def test_scores_of_classes_by_hand():
    truth = np.array([[1, 0, 0], [0, 1, 0], [0, 1, 0], [1, 0, 0]], bool)
    logits = np.array([[2.0, 1, 0], [2, 1, 0], [0, 1, 0], [0, 0, 1]])
    assert classification.accuracy(truth, logits) == 0.5
    expected = [[0.5, 0, 0.5], [0.5, 0.5, 0], [0, 0, 0]]
    np.testing.assert_allclose(classification.confusion(truth, logits), expected)
    precisions = classification.class_precisions(truth, logits)
    assert np.isnan(precisions[2]) and not np.isnan(precisions[:2]).any()
    scores = classification.scores_of(truth, logits)
    assert scores["mAP"] == pytest.approx(precisions[:2].mean()) and scores["accuracy"] == 0.5
    assert "accuracy" not in classification.scores_of(truth | [False, False, True], logits)
