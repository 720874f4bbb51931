import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from cavmae_sync_jax.models import cavmae_sync, masking
from cavmae_sync_jax.training import augmentation, train_step
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


def test_every_draw_of_a_step_has_a_key_of_its_own(samples, monkeypatch):
    keys = []

    def recorded(draw):
        def drawn(key, *arguments):
            keys.append(tuple(jax.random.key_data(key).tolist()))
            return draw(key, *arguments)

        return drawn

    for place, name in ((masking, "draw"), (augmentation, "augment_audio")):
        monkeypatch.setattr(place, name, recorded(getattr(place, name)))
    for step in (7, 8):
        samples(step, data__augment_audio=True)
    assert len(keys) == len(set(keys)) == 6
    streams = train_step.MASK_STREAM, train_step.AUGMENT_STREAM, train_step.RATIO_STREAM
    assert len(set(streams)) == 3


def test_no_key_is_used_twice(samples):
    raw = {"audio": jnp.ones((2, 8, 4)), "visual": jnp.ones((2, 3))}
    key = jax.random.key(0)
    with jax.debug_key_reuse(True):  # which traces find, too
        jax.eval_shape(lambda: samples(7, data__augment_audio=True))
        jax.eval_shape(lambda k: augmentation.mask_audio(k, raw["audio"], 3, 2), key)
        jax.eval_shape(lambda k: augmentation.mix(k, 0.5, raw, jnp.eye(2)), key)


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


def test_weights_are_averaged_after_the_given_steps_and_no_others():
    optimizer = optax.sgd(0.5)
    state = train_step.init_averaged({"w": jnp.full(4, 10.0)}, optimizer)
    used = []
    for _ in range(7):
        state, norms = train_step.updated(optimizer, state, {"w": jnp.full(4, 2.0)}, (2, 3, 6))
        used.append(float(state.best()["w"][0]))
    # The weights are 9, 8, 7, 6, 5, 4, 3. There is no average before the second step.
    assert used == pytest.approx([9, 8, 7.5, 7.5, 7.5, (8 + 7 + 4) / 3, (8 + 7 + 4) / 3])
    assert (int(state.step), int(state.averaged)) == (7, 3)
    np.testing.assert_allclose(state.params["w"], 3)
    assert norms == {"grad_norm": pytest.approx(4), "update_norm": pytest.approx(2)}


def test_a_state_without_average_uses_its_parameters():
    optimizer = optax.sgd(0.5)
    params = {"w": jnp.ones(2)}
    state = train_step.TrainState(jnp.int32(4), params, optimizer.init(params))
    state, _ = train_step.updated(optimizer, state, {"w": jnp.ones(2)})
    assert int(state.step) == 5 and type(state) is train_step.TrainState
    np.testing.assert_allclose(state.best()["w"], 0.5)


@pytest.mark.parametrize(
    ("first", "steps", "steps_per_epoch", "expected"),
    [
        (1, 12, 6.0, (6, 12)),
        (2, 10, 2.5, (5, 8, 10)),  # 7.5 is rounded to the even one
        (3, 10, 3.4, (10,)),  # the last epoch would end after the last step
        (2, 6, 6.0, ()),
        # Half an epoch at the end counts for none, however it is rounded.
        (1, 9, 2.5, (2, 5, 8)),
        (1, 11, 2.5, (2, 5, 8, 10)),
        (1, 9, 2.3, (2, 5, 7, 9)),
    ],
)
def test_the_ends_of_epochs_by_hand(first, steps, steps_per_epoch, expected):
    assert train_step.ends_of_epochs(first, steps, steps_per_epoch) == expected
