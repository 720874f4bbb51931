import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from cavmae_sync_jax.models import cavmae_sync
from cavmae_sync_jax.training import train_step
from cavmae_sync_jax.utils.errors import UserError

SHAPES = [
    {},
    {"model__registers": 0},
    {"model__global_token": False},
    {"model__registers_in_joint": True},
    {"model__joint_depth": 2, "model__remat": "dots"},
]


def draw(module):
    return jax.jit(module.init_params)(jax.random.key(1))


def batch_of(module, size=4):
    rng = np.random.default_rng(0)
    return {
        "audio": jnp.asarray(rng.normal(-5, 4, (size, *module.raw_shape("audio"))), jnp.float32),
        "visual": jnp.asarray(rng.integers(0, 256, (size, *module.raw_shape("visual")), np.uint8)),
    }


@pytest.mark.parametrize("overrides", SHAPES, ids=str)
def test_every_parameter_receives_a_gradient(overrides):
    config = tiny.config(**overrides)
    module = cavmae_sync.from_config(config.model)
    params = draw(module)
    gradient = functools.partial(train_step.loss_and_grads, module, config)
    grad = jax.jit(lambda p: gradient(p, batch_of(module), jnp.int32(0), 0.75)[1])(params)
    dead = [
        jax.tree_util.keystr(path)
        for path, leaf in jax.tree_util.tree_leaves_with_path(grad)
        if not np.abs(leaf).max() > 0
    ]
    assert not dead


def test_initialisation():
    config = tiny.config(model__width=64)
    params = draw(cavmae_sync.from_config(config.model))
    encoder = params["encoders_audio"]
    limit = np.sqrt(6 / (64 + 3 * 64))  # Xavier-uniform of the fused projection
    kernel = np.asarray(encoder["stack"]["blocks"]["attention"]["qkv"]["kernel"])
    assert np.abs(kernel).max() == pytest.approx(limit, rel=0.01)
    assert kernel[0].std() == pytest.approx(limit / np.sqrt(3), rel=0.05)
    assert not np.allclose(kernel[0], kernel[1])
    assert np.asarray(encoder["registers"]).std() == pytest.approx(1, rel=0.2)
    assert np.asarray(encoder["global_token"]).std() == pytest.approx(0.02, rel=0.4)
    assert not np.asarray(encoder["patch_projection"]["bias"]).any()


def test_masked_patches_are_not_seen():
    module = cavmae_sync.from_config(tiny.config().model)
    params = draw(module)
    patches = module.patchify("visual", batch_of(module)["visual"])
    keep = jnp.array([[2, 0]] * 4)
    encode = jax.jit(lambda p: module.apply({"params": params}, "visual", p, keep, method="encode"))
    same = encode(patches.at[:, [1, 3]].set(7.0))
    np.testing.assert_array_equal(same.patches, encode(patches).patches)
    assert not np.array_equal(encode(patches.at[:, 2].set(7.0)).patches, same.patches)


def test_registers_in_the_joint_block_leave_reconstruction_alone():
    outputs = []
    for flag in (False, True):
        module = cavmae_sync.from_config(tiny.config(model__registers_in_joint=flag).model)
        params = draw(module)
        raw = batch_of(module)
        keep = {m: jnp.array([[1, 0]] * 4) for m in raw}
        visible = {m: module.patchify(m, raw[m], keep[m]) for m in raw}
        outputs.append(jax.jit(module.apply)({"params": params}, visible, keep))
    without, within = outputs
    np.testing.assert_array_equal(without.latent, within.latent)
    assert not np.allclose(without.embeddings["audio"][0], within.embeddings["audio"][0])


def test_normalisation_of_raw_input():
    module = cavmae_sync.from_config(tiny.config().model)
    fbank = jnp.full((1, *module.raw_shape("audio")), -5.081 + 4.4849)
    np.testing.assert_allclose(module.patchify("audio", fbank), 1.0, rtol=1e-5)
    image = jnp.full((1, *module.raw_shape("visual")), 255, jnp.uint8)
    expected = [(1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    np.testing.assert_allclose(module.patchify("visual", image)[0, 0, :3], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"model__image_size": 33}, "image_size=33 must be a multiple of config.model.image_patch"),
        ({"model__heads": 3}, "width=16 must be a multiple of config.model.heads=3"),
        ({"model__registers": 17}, "registers must be 0 to 16"),
        ({"model__dtype": "float8"}, "dtype must be one of auto, float32, bfloat16"),
        ({"model__residual_dtype": "bfloat16"}, "residual_dtype must be one of auto, float32"),
        ({"model__remat": "some"}, "remat must be one of none, full, dots"),
    ],
)
def test_sizes_that_do_not_fit_are_told(override, message):
    with pytest.raises(UserError, match=message):
        cavmae_sync.from_config(tiny.config(**override).model)


def test_missing_and_unknown_keys_are_told():
    section = tiny.config().model.to_dict()
    section["hight"] = section.pop("width")
    with pytest.raises(UserError, match=r"missing keys \['width'\].*unknown keys \['hight'\]"):
        cavmae_sync.from_config(section)


def test_tokens_between_blocks_may_be_float32():
    def walk(jaxpr):
        for equation in jaxpr.eqns:
            yield equation
            for inner in jax.tree.leaves(list(equation.params.values())):
                if hasattr(inner, "eqns"):
                    yield from walk(getattr(inner, "jaxpr", inner))

    def body(loop):
        return getattr(loop.params["jaxpr"], "jaxpr", loop.params["jaxpr"])

    def carried(**types):
        config = tiny.config(**types)
        module = cavmae_sync.from_config(config.model)
        params, batch = draw(module), batch_of(module)
        run = functools.partial(train_step.loss_and_grads, module, config)
        trace = jax.make_jaxpr(lambda p: run(p, batch, jnp.int32(0), 0.75))(params)
        # A loop over layers carries the tokens forward and their cotangents back.
        loops = [equation for equation in walk(trace.jaxpr) if equation.primitive.name == "scan"]
        assert {aval.dtype for aval in trace.out_avals} == {jnp.dtype("float32")}
        # What it stacks has one axis more outside than inside.
        tokens = (
            outer.aval
            for loop in loops
            for outer, inner in zip(loop.outvars, body(loop).outvars, strict=True)
            if outer.aval.ndim == inner.aval.ndim == 3
        )
        return {aval.dtype.name for aval in tokens}

    assert carried(model__dtype="float32") == {"float32"}
    assert carried(model__dtype="bfloat16") == {"bfloat16"}
    assert carried(model__dtype="bfloat16", model__residual_dtype="float32") == {"float32"}


def test_bfloat16_is_close_to_float32():
    losses, embeddings = [], []
    for dtype in ("float32", "bfloat16"):
        config = tiny.config(model__dtype=dtype)
        module = cavmae_sync.from_config(config.model)
        params, batch = draw(module), batch_of(module)
        loss = functools.partial(train_step.loss_and_grads, module, config)
        value = jax.jit(lambda p, loss=loss, batch=batch: loss(p, batch, jnp.int32(0), 0.75)[0])
        losses.append(jax.device_get(value(params)))
        embed = jax.jit(functools.partial(module.apply, method="embed"), static_argnums=1)
        embeddings.append(embed({"params": params}, "audio", batch["audio"]))
    assert embeddings[1].global_token.dtype == jnp.bfloat16
    for name, value in losses[0].items():
        assert losses[1][name] == pytest.approx(float(value), rel=0.05, abs=0.3), name
    error = np.abs(np.asarray(embeddings[1].patch_tokens, np.float32) - embeddings[0].patch_tokens)
    assert 0 < error.max() < 0.15
