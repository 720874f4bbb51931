import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cavmae_sync_jax.training import losses


def test_a_zero_embedding_has_a_finite_gradient():
    zeros, ones = jnp.zeros((2, 3)), jnp.eye(2, 3)
    gradient = jax.grad(lambda x: losses.info_nce(x, ones, 0.05)[0])(zeros)
    assert np.isfinite(gradient).all()


def test_reconstruction_by_hand():
    patches = jnp.array([[[1.0, 3.0], [0.0, 4.0]]])  # normalised: ±1/√2 either way
    predictions = jnp.zeros((1, 2, 2))
    for masked, expected in (([True, False], 0.5), ([True, True], 0.5)):
        loss = losses.reconstruction_loss(predictions, patches, jnp.array([masked]))
        assert loss == pytest.approx(expected, rel=1e-5)
    perfect = losses.normalise_patches(patches).at[0, 1].add(3.0)
    loss = losses.reconstruction_loss(perfect, patches, jnp.array([[True, False]]))
    assert loss == pytest.approx(0, abs=1e-6)  # visible patches don't count


def test_directions_by_hand():
    # Both audios look like visual 0, so each visual finds two equal audios.
    audio = jnp.array([[2.0, 0.0], [5.0, 0.0]])
    visual = jnp.array([[1.0, 0.0], [0.0, 1.0]])
    v2a, accuracy = losses.info_nce(audio, visual, 1.0, "visual_to_audio")
    assert v2a == pytest.approx(np.log(2), rel=1e-6)
    a2v, _ = losses.info_nce(audio, visual, 1.0, "audio_to_visual")
    right, wrong = np.log1p(np.exp(-1)), np.log1p(np.exp(1))
    assert a2v == pytest.approx((right + wrong) / 2, rel=1e-6)
    both, _ = losses.info_nce(audio, visual, 1.0, "both")
    assert both == pytest.approx(float(v2a + a2v) / 2, rel=1e-6)
    assert accuracy == 0.5


def test_temperature_and_length():
    audio = visual = jnp.eye(3)
    loss, accuracy = losses.info_nce(7 * audio, visual, 0.5)
    assert loss == pytest.approx(np.log(1 + 2 * np.exp(-2)), rel=1e-6) and accuracy == 1


def test_groups_are_batches_of_their_own():
    rng = np.random.default_rng(0)
    audio, visual = jnp.asarray(rng.normal(size=(2, 12, 5)), jnp.float32)
    for direction in losses.DIRECTIONS:
        whole = losses.info_nce(audio, visual, 0.05, direction, groups=3)
        parts = [
            losses.info_nce(audio[i : i + 4], visual[i : i + 4], 0.05, direction) for i in (0, 4, 8)
        ]
        np.testing.assert_allclose(whole, np.mean(parts, axis=0), rtol=1e-5)
        assert whole[0] < losses.info_nce(audio, visual, 0.05, direction)[0]
