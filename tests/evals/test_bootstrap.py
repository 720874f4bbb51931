"""Intervals over clips, beside known ones and scikit-learn's scores."""

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from cavmae_sync_jax.evals.metrics import bootstrap


def test_every_resample_holds_as_many_clips():
    weights = bootstrap.draw_weights(7, resamples=50, seed=1)
    assert weights.shape == (50, 7)
    assert (weights.sum(axis=1) == 7).all() and weights.std() > 0.5
    np.testing.assert_array_equal(weights, bootstrap.draw_weights(7, resamples=50, seed=1))


def test_the_middle_of_the_resamples():
    assert bootstrap.interval(np.arange(1001) / 1000) == pytest.approx([0.025, 0.975])
    assert bootstrap.interval(np.array([np.nan, 3.0, np.nan])) == [3, 3]
    with pytest.raises(ValueError, match="defined in no resample"):
        bootstrap.interval(np.array([np.nan]))


def test_means_of_the_frames_of_the_drawn_clips():
    clips, values = np.array([0, 0, 2]), np.array([1.0, 0.0, 1.0])
    weights = np.array([[1, 1, 1], [2, 0, 1], [0, 3, 0]], float)
    found = bootstrap.means(weights, clips, values)
    np.testing.assert_allclose(found, [2 / 3, 3 / 5, np.nan])
    # The last clip may have no frames.
    np.testing.assert_allclose(bootstrap.means(weights, clips // 2, values), [2 / 3, 1 / 2, 1])


def test_the_interval_of_a_mean_is_as_wide_as_its_standard_error_says():
    values = np.random.default_rng(0).normal(size=400)
    weights = bootstrap.draw_weights(400)
    low, high = bootstrap.interval(bootstrap.means(weights, np.arange(400), values))
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)
    # Copies of a clip's frames tell nothing new.
    doubled = bootstrap.means(weights, np.tile(np.arange(400), 2), np.tile(values, 2))
    assert bootstrap.interval(doubled) == pytest.approx([low, high])


@pytest.mark.parametrize("levels", [3, 1000])
def test_areas_under_roc_are_scikit_learns(levels):
    generator = np.random.default_rng(levels)
    values = generator.integers(levels, size=60).astype(float)
    positive, clips = generator.random(60) < 0.4, generator.integers(9, size=60)
    weights = bootstrap.draw_weights(9, resamples=5)
    found = bootstrap.areas_under_roc(weights, clips, values, positive)
    for row, area in zip(weights, found, strict=True):
        expected = roc_auc_score(positive, values, sample_weight=row[clips])
        assert area == pytest.approx(expected, abs=1e-6)


def test_shares_are_those_of_the_same_resamples(monkeypatch):
    hits = np.random.default_rng(0).random((3, 11)) < 0.4
    expected = bootstrap.draw_weights(11) @ hits.T / 11
    np.testing.assert_allclose(bootstrap.shares(hits), expected.T)
    monkeypatch.setattr(bootstrap, "DRAWN_AT_ONCE", 50)  # four resamples at a time
    np.testing.assert_allclose(bootstrap.shares(hits), expected.T)
