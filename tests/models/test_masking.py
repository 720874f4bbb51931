import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cavmae_sync_jax.models import masking
from cavmae_sync_jax.models.patches import Grid

GRID = Grid(8, 26)


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(list(masking.STRUCTURES)),
    st.sampled_from([0.6, 0.75, 0.9]),
    st.integers(0, 2**30),
)
def test_keeps_the_right_number_of_different_patches(structure, ratio, seed):
    keep, masked = masking.draw(jax.random.key(seed), 3, GRID, ratio, structure)
    assert keep.shape == (3, int(208 * (1 - ratio)))
    rows = np.concatenate([keep, masked], axis=1)
    np.testing.assert_array_equal(np.sort(rows, axis=1), [range(208)] * 3)
    np.testing.assert_array_equal((~masking.is_masked(keep, 208)).sum(axis=1), keep.shape[1])
    np.testing.assert_array_equal(masking.complement(keep, 208), np.sort(masked, axis=1))


def visible(structure, ratio=0.75):
    keep, _ = masking.draw(jax.random.key(0), 64, GRID, ratio, structure)
    return ~np.asarray(masking.is_masked(keep, GRID.patches)).reshape(64, *GRID)


def test_frequency_masks_whole_bands():
    np.testing.assert_array_equal(np.sort(visible("frequency").all(axis=2).sum(axis=1)), 2)


def test_time_masks_whole_columns():
    seen = visible("time")
    # int(26 · 0.75) = 19 columns are lifted; the other 7 are seen whenever 52 patches allow it.
    assert (seen.any(axis=1).sum(axis=1) == 7).all() and seen.sum() == 64 * 52


def test_time_frequency_fills_up_fairly():
    seen = visible("time_frequency")
    # 4 of 8 bands and 13 of 26 times are lifted: 4 · 13 = 52 patches are free, which is the quota.
    assert (seen.any(axis=2).sum(axis=1) == 4).all()
    assert (seen.any(axis=1).sum(axis=1) == 13).all()


def test_unstructured_is_uniform_and_samples_differ():
    seen = visible("unstructured")
    assert abs(seen.mean(axis=0) - 0.25).max() < 0.25
    assert len({row.tobytes() for row in seen}) == 64


def test_refuses_a_ratio_that_keeps_nothing():
    with pytest.raises(ValueError, match="keeps none of the 208"):
        masking.draw(jax.random.key(0), 1, GRID, 0.999)
    with pytest.raises(ValueError, match="diagonal"):
        masking.draw(jax.random.key(0), 1, GRID, 0.75, "diagonal")


def test_without_a_structure_every_patch_is_as_likely():
    key = jax.random.key(3)
    for one, other in zip(
        masking.draw(key, 2, GRID, 0.75),
        masking.draw(key, 2, GRID, 0.75, "unstructured"),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)


def test_bands_and_times_are_drawn_apart():
    keep, _ = masking.draw(jax.random.key(0), 64, Grid(10, 10), 0.75, "time_frequency")
    seen = ~np.asarray(masking.is_masked(keep, 100)).reshape(64, 10, 10)
    # 5 of 10 bands and 5 of 10 times are free. They have the same numbers in one draw of 252.
    same = (seen.any(axis=2) == seen.any(axis=1)).all(axis=1)
    assert (seen.any(axis=2).sum(axis=1) == 5).all() and same.mean() < 0.1


@pytest.mark.parametrize("structure", masking.STRUCTURES)
def test_no_key_is_used_twice(structure):
    with jax.debug_key_reuse(True):  # which a trace finds, too
        jax.eval_shape(lambda k: masking.draw(k, 2, GRID, 0.75, structure), jax.random.key(0))
