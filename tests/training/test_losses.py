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
    both, shared = losses.info_nce(audio, visual, 1.0, "both")
    assert both == pytest.approx(float(v2a + a2v) / 2, rel=1e-6)
    assert accuracy == shared == 0.5  # of either direction, and so of their mean


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


def test_each_patch_is_normalised_by_itself():
    patches = jnp.array(
        [[[1.0, 3.0], [10.0, 16.0], [5.0, 5.0]], [[0.0, 2.0], [4.0, 4.0], [1.0, 0]]]
    )
    found = losses.normalise_patches(patches)
    unit = 0.5**0.5  # of two pixels, each is half their difference away from their mean
    expected = [[[-unit, unit], [-unit, unit], [0, 0]], [[-unit, unit], [0, 0], [unit, -unit]]]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    # A variance of 1e-6 doubles: the bound is added, and to the variance, not to its root.
    faint = losses.normalise_patches(jnp.array([[[0.0, 2e-6**0.5]]]))
    np.testing.assert_allclose(faint, [[[-0.5, 0.5]]], rtol=1e-4)


def test_without_a_mask_all_patches_count():
    patches = jnp.array([[[1.0, 3.0], [0.0, 4.0]], [[5.0, 1.0], [2.0, 0.0]]])
    error = jnp.array([[[1.0, 0.0], [2.0, 0.0]], [[0.0, 0.0], [1.0, 1.0]]])
    predictions = losses.normalise_patches(patches) + error
    assert losses.reconstruction_loss(predictions, patches) == pytest.approx(7 / 8, rel=1e-5)
    masked = jnp.array([[True, True], [True, False]])
    loss = losses.reconstruction_loss(predictions, patches, masked)
    assert loss == pytest.approx((0.5 + 2 + 0) / 3, rel=1e-5)


def test_half_precision_is_left_before_anything_is_subtracted():
    patches = jnp.array([[[1.0, 3.0], [0.0, 4.0]]])
    predictions = losses.normalise_patches(patches).astype(jnp.bfloat16)
    exact = losses.reconstruction_loss(predictions.astype(jnp.float32), patches)
    found = losses.reconstruction_loss(predictions, patches)
    assert found.dtype == jnp.float32 and found == exact > 0
    audio = visual = jnp.eye(3, dtype=jnp.bfloat16)
    assert losses.info_nce(audio, visual, 0.5)[0].dtype == jnp.float32


SETTINGS = {
    "temperature": 0.5,
    "contrast_direction": "audio_to_visual",
    "contrast_groups": 2,
    "contrast_weight": 0.25,
    "reconstruction_weight": 3.0,
}


def test_the_contrast_follows_the_settings():
    audio, visual = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 3)), jnp.float32)
    found = losses.contrast(SETTINGS, {"audio": audio, "visual": visual})
    expected = losses.info_nce(audio, visual, 0.5, "audio_to_visual", 2)
    assert [float(x) for x in found] == [float(x) for x in expected]
    for other in (
        losses.info_nce(visual, audio, 0.5, "audio_to_visual", 2),
        losses.info_nce(audio, visual, 0.5, "audio_to_visual"),
    ):
        assert found[0] != pytest.approx(float(other[0]), rel=1e-3)


def test_the_default_direction_and_groups_are_the_released_ones():
    audio, visual = jnp.asarray(np.random.default_rng(0).normal(size=(2, 4, 3)), jnp.float32)
    found = losses.info_nce(audio, visual, 0.5)
    assert found[0] == losses.info_nce(audio, visual, 0.5, "visual_to_audio", 1)[0]


def test_the_total_by_hand():
    patches = {"audio": jnp.array([[[1.0, 3.0]]]), "visual": jnp.array([[[0.0, 4.0]]])}
    predictions = {"audio": jnp.zeros((1, 1, 2)), "visual": jnp.ones((1, 1, 2))}
    parts = losses.reconstruction(predictions, patches)
    assert parts == {
        "reconstruction_audio": pytest.approx(0.5, rel=1e-5),
        "reconstruction_visual": pytest.approx(1.5, rel=1e-5),
    }
    loss, scalars = losses.total(SETTINGS, (jnp.float32(2), jnp.float32(0.75)), parts)
    assert loss == pytest.approx(0.25 * 2 + 3 * (0.5 + 1.5), rel=1e-5)
    assert scalars == {"loss": loss, "contrast": 2, "nce_accuracy": 0.75, **parts}
