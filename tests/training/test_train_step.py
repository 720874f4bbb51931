import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny

from cavmae_sync_jax.distributed import sharding
from cavmae_sync_jax.models import cavmae_sync, masking
from cavmae_sync_jax.training import augmentation, losses, train_step
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


@pytest.fixture(scope="module")
def step():
    """A model in float32, its parameters, and the loss of a batch's step 3 with its gradients."""
    weights = {"loss__contrast_weight": 0.5, "loss__reconstruction_weight": 3.0}
    sizes = {"model__depth": 1, "model__decoder_depth": 1, "model__remat": "none"}
    config = tiny.config(mask__ratios=(0.75,), **sizes, **weights)
    module = cavmae_sync.from_config(config.model)
    rng = np.random.default_rng(0)
    batch = {
        AUDIO: jnp.asarray(rng.normal(-5, 4, (8, *module.raw_shape(AUDIO))), jnp.float16),
        VISUAL: jnp.asarray(rng.integers(0, 256, (8, *module.raw_shape(VISUAL)), np.uint8)),
    }

    def run(params, microbatches):
        with config.unlocked():
            config.microbatches = microbatches
        number = jnp.int32(3)
        return train_step.loss_and_grads(module, config, params, batch, number, 0.75)

    # Random parameters are off the symmetric start, where many gradients are nearly zero.
    params = jax.tree.map(
        lambda x: x + 0.05 * rng.standard_normal(x.shape).astype(np.float32),
        jax.jit(module.init_params)(jax.random.key(1)),
    )
    with jax.set_mesh(sharding.make_mesh(devices=jax.devices()[:1])):
        compiled = jax.jit(run, static_argnums=1)
        yield config, module, params, batch, compiled


def test_the_gradient_is_the_slope_of_both_losses(step):
    _, _, params, _, run = step
    scalars, grads = run(params, 1)
    parts = scalars["reconstruction_audio"] + scalars["reconstruction_visual"]
    expected = 0.5 * scalars["contrast"] + 3 * parts
    assert float(scalars["loss"]) == pytest.approx(float(expected), rel=1e-6)
    norm = float(optax.global_norm(grads))

    def loss(distance):
        along = jax.tree.map(lambda x, g: x + distance * g / norm, params, grads)
        return float(run(along, 1)[0]["loss"])

    assert (loss(2e-3) - loss(-2e-3)) / 4e-3 == pytest.approx(norm, rel=2e-3)


def test_microbatches_change_neither_loss_nor_gradient(step):
    _, _, params, _, run = step
    (scalars, grads), (others, other_grads) = (run(params, count) for count in (1, 4))
    assert others == pytest.approx({k: float(v) for k, v in scalars.items()}, rel=1e-5)
    for one, other in zip(jax.tree.leaves(grads), jax.tree.leaves(other_grads), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_a_compiled_step_descends_the_gradient(step):
    config, module, params, batch, run = step
    with config.unlocked():
        config.microbatches = 1
    mesh, optimizer = sharding.make_mesh(devices=jax.devices()[:1]), optax.sgd(1.0)
    # The state is given away, so it holds copies.
    state = jax.tree.map(jnp.copy, train_step.init_state(module, optimizer, jax.random.key(1)))
    assert int(state.step) == 0 and jax.tree.structure(state.params) == jax.tree.structure(params)
    state = state.replace(step=jnp.int32(3), params=jax.tree.map(jnp.copy, params))
    state = jax.device_put(state, sharding.state_shardings(state, mesh))
    program = train_step.lowered(module, optimizer, config, mesh).compile()
    after, found = program(state, jax.device_put(batch, sharding.batch_sharding(mesh)))
    assert jax.tree.leaves(state.params)[0].is_deleted() and int(after.step) == 4
    scalars, grads = run(params, 1)
    expected = {name: float(value) for name, value in scalars.items()}
    norm = float(optax.global_norm(grads))
    assert found == pytest.approx(expected | {"grad_norm": norm, "update_norm": norm}, rel=1e-4)
    for old, new, grad in zip(*map(jax.tree.leaves, (params, after.params, grads)), strict=True):
        np.testing.assert_allclose(old - new, grad, rtol=1e-3, atol=1e-4)


def test_a_batch_comes_split_over_the_devices(step):
    _, module, _, _, _ = step
    mesh = sharding.make_mesh(4, 2)
    batch = train_step.abstract_batch(module, 16, mesh)
    expected = {AUDIO: ((16, 96, 128), jnp.float16), VISUAL: ((16, 32, 32, 3), jnp.uint8)}
    assert {m: (x.shape, x.dtype) for m, x in batch.items()} == expected
    assert all(x.sharding == sharding.batch_sharding(mesh) for x in batch.values())
    assert batch[VISUAL].sharding.shard_shape(batch[VISUAL].shape) == (2, 32, 32, 3)


def test_what_is_reconstructed_is_masked_and_what_is_seen_is_kept(step, monkeypatch):
    config, module, params, batch, _ = step
    samples = train_step._samples(module, config, batch, jnp.int32(3), 0.75)
    # What the losses get: the predictions are not computed, for nobody asks for them.
    monkeypatch.setattr(losses, "reconstruction", lambda predictions, hidden: hidden)
    hidden = jax.jit(lambda: train_step._forward(module, params, samples)[1])()
    for m in MODALITIES:
        patches = module.patchify(m, batch[m])
        places = np.asarray(samples.masked[m])
        assert places.shape[1] == round(0.75 * patches.shape[1])
        np.testing.assert_array_equal(
            hidden[m], np.take_along_axis(np.asarray(patches), places[..., None], 1)
        )
        both = np.concatenate([places, samples.keep[m]], axis=1)
        assert (np.sort(both, axis=1) == np.arange(patches.shape[1])).all()


def test_the_optimiser_of_a_config_by_hand():
    recipe = {"learning_rate": 0.1, "warmup_share": 0.2, "learning_rate_floor": 0.05, "l2": 0.5}
    config = tiny.config(schedule="cosine", adam_b1=0.6, adam_b2=0.75, **recipe)
    _, rate = train_step.make_optimizer(config, 10, 5.0)
    rates = [0, 0.05, 0.1, 0.0525, 0.005]  # the cosine's middle is between peak and floor
    assert [float(rate(step)) for step in (0, 1, 2, 6, 10)] == pytest.approx(rates, abs=1e-7)
    config.schedule, config.warmup_share = "halving", 0.0
    optimizer, rate = train_step.make_optimizer(config, 60, 5.0, (2, 3), {"w": 2.0, "v": 0.0})
    # Halved after two epochs, and then after every third.
    assert [float(rate(step)) for step in (9, 10, 24, 25)] == pytest.approx(
        [0.1, 0.05, 0.05, 0.025]
    )
    params = {"w": jnp.full(1, 2.0), "v": jnp.ones(1)}
    state, moved = optimizer.init(params), []
    for gradient in (1.0, 3.0):
        grads = jax.tree.map(lambda x, g=gradient: jnp.full_like(x, g), params)
        updates, state = optimizer.update(grads, state, params)
        moved.append(float(updates["w"][0]))
        assert not updates["v"].any()
    # The L2 term makes the gradients 2 and 4. Their means are 0.4·(2·0.6 + 4) / 0.64 and
    # 0.25·(4·0.75 + 16) / 0.4375 of the squares.
    assert moved == pytest.approx([-0.2, -0.2 * 3.25 / np.sqrt(0.25 * 19 / 0.4375)], rel=1e-5)


def test_the_ratio_of_a_step_is_drawn_evenly():
    ratios = (0.5, 0.7, 0.9)
    drawn = [train_step.batch_ratio(ratios, 3, step) for step in range(300)]
    assert drawn == [train_step.batch_ratio(ratios, 3, step) for step in range(300)]
    assert min(drawn.count(ratio) for ratio in ratios) > 70
    assert drawn != [train_step.batch_ratio(ratios, 4, step) for step in range(300)]
    assert jax.tree.all(jax.tree.map(lambda x: isinstance(x, float), drawn))


def test_weights_are_averaged_after_the_given_steps_and_no_others():
    optimizer = optax.sgd(0.5, momentum=0.0)
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
        # So many clips divided by the batch that 15 epochs have half a step too many.
        (14, 16, 11 / 10, (15, 16)),
        (15, 132, 53 / 6, (132,)),
    ],
)
def test_the_ends_of_epochs_by_hand(first, steps, steps_per_epoch, expected):
    assert train_step.ends_of_epochs(first, steps, steps_per_epoch) == expected
