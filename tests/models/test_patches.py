import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from cavmae_sync_jax.models import patches
from cavmae_sync_jax.models.patches import Grid


def test_patch_order_by_hand():
    picture = jnp.arange(4 * 6 * 2).reshape(1, 4, 6, 2)
    first, second, *_, last = patches.patchify(picture, 2)[0].tolist()
    assert first == [0, 1, 2, 3, 12, 13, 14, 15]  # row, column, channel
    assert second == [4, 5, 6, 7, 16, 17, 18, 19]  # to the right of the first
    assert last == [32, 33, 34, 35, 44, 45, 46, 47]


def test_audio_patches_are_frequency_major():
    fbank = jnp.asarray(np.add.outer(np.arange(32) * 1000, np.arange(32)))[None]
    tokens = patches.patchify(patches.fbank_as_picture(fbank), 16)[0]
    # (time, frequency) of each token's first pixel: both times of the low band come first.
    assert tokens[:, 0].tolist() == [0, 16_000, 16, 16_016]


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 3))
def test_unpatchify_inverts(rows, columns, patch, channels):
    shape = (2, rows * patch, columns * patch, channels)
    picture = jnp.asarray(np.random.default_rng(0).normal(size=shape))
    tokens = patches.patchify(picture, patch)
    np.testing.assert_array_equal(patches.unpatchify(tokens, Grid(rows, columns), patch), picture)


def test_restore_inverts_gather():
    tokens = jnp.arange(2 * 5 * 3.0).reshape(2, 5, 3)
    places = jnp.array([[4, 0], [1, 3]]), jnp.array([[2, 1, 3], [4, 2, 0]])
    parts = [patches.gather(tokens, chosen) for chosen in places]
    assert parts[0][0].tolist() == [[12, 13, 14], [0, 1, 2]]
    np.testing.assert_array_equal(patches.restore(parts, places), tokens)


def test_positions_encode_the_column_first():
    positions = patches.sincos_positions(Grid(2, 3), 8)
    np.testing.assert_allclose(positions[1, :2], [np.sin(1), np.sin(0.01)], rtol=1e-6)
    np.testing.assert_array_equal(positions[0, :4], positions[3, :4])  # the same column
    np.testing.assert_array_equal(positions[0, 4:], positions[1, 4:])  # the same row
