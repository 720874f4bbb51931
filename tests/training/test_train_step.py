import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from cavmae_sync_jax.models import cavmae_sync
from cavmae_sync_jax.training import train_step
from cavmae_sync_jax.utils.modalities import AUDIO, MODALITIES, VISUAL


@pytest.fixture(scope="module")
def samples():
    """The samples of a step, as `(step, overrides) -> Samples`."""
    module = cavmae_sync.from_config(tiny.config().model)
    batch = {m: jnp.ones((8, *module.raw_shape(m)), jnp.float32) for m in MODALITIES}

    def draw(step, **overrides):
        config = tiny.config(**overrides)
        return train_step._samples(module, config, batch, jnp.asarray(step), 0.5)

    return draw


def same(first, second, modality):
    return np.array_equal(first.keep[modality], second.keep[modality])


def test_masks_are_drawn_anew_for_each_step_and_seed(samples):
    first = samples(7)
    for modality in MODALITIES:
        assert same(first, samples(7), modality)
        assert not same(first, samples(8), modality)
        assert not same(first, samples(7, seed=1), modality)


def test_each_sample_and_modality_has_its_own_mask(samples):
    keep = samples(7).keep
    assert not np.array_equal(keep[AUDIO][0], keep[AUDIO][1])
    kept = min(keep[AUDIO].shape[1], keep[VISUAL].shape[1])
    assert not np.array_equal(keep[AUDIO][:, :kept], keep[VISUAL][:, :kept])


def test_noise_and_time_shift_are_drawn_anew_and_only_if_asked_for(samples):
    np.testing.assert_array_equal(samples(7).raw[AUDIO], 1)
    first, again, other = (samples(step, data__augment_audio=True).raw[AUDIO] for step in (7, 7, 8))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1


def test_the_ratio_of_a_step_is_drawn_evenly():
    ratios = (0.5, 0.7, 0.9)
    drawn = [train_step.batch_ratio(ratios, 3, step) for step in range(300)]
    assert drawn == [train_step.batch_ratio(ratios, 3, step) for step in range(300)]
    assert min(drawn.count(ratio) for ratio in ratios) > 70
    assert drawn != [train_step.batch_ratio(ratios, 4, step) for step in range(300)]
    assert jax.tree.all(jax.tree.map(lambda x: isinstance(x, float), drawn))
