"""Attention, GELU and LayerNorm with lean gradients equal the plain ones, and keep less."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cavmae_sync_jax.models import attention, layers, memory_efficient_ops

EPSILON = 1e-5


def plain_norm(x, scale, bias):
    norm = nn.LayerNorm(EPSILON, dtype=x.dtype, use_fast_variance=False)
    return norm.apply({"params": {"scale": scale, "bias": bias}}, x)


def lean_norm(x, scale, bias):
    return memory_efficient_ops.layer_norm(x, scale, bias, EPSILON, x.dtype)


def plain_gelu(x):
    return jax.nn.gelu(x, approximate=False)


def plain_attention(*heads):
    mixed = jax.nn.dot_product_attention(*heads)
    return mixed.reshape(*mixed.shape[:2], -1)


def plain_linear(x, kernel, bias):
    return x @ kernel + jnp.broadcast_to(bias, (*x.shape[:-1], len(bias)))


TOKENS, HEADS, DIM = 13, 3, 8
CASES = {
    "attention": (
        attention.dot_product_attention,
        plain_attention,
        [(2, TOKENS, HEADS, DIM)] * 3,
        3,
    ),
    "attention of few queries": (
        attention.dot_product_attention,
        plain_attention,
        [(2, TOKENS - 5, HEADS, DIM), *[(2, TOKENS, HEADS, DIM)] * 2],
        3,
    ),
    **{
        f"fused attention, {queries} to {tokens}": (
            functools.partial(attention.fused_attention, implementation="xla"),
            plain_attention,
            [(2, queries, HEADS, DIM), *[(2, tokens, HEADS, DIM)] * 2],
            3,
        )
        for queries, tokens in ((13, 13), (7, 12), (8, 13), (8, 12))
    },
    "linear": (memory_efficient_ops.linear, plain_linear, [(2, TOKENS, DIM), (DIM, 5), (5,)], 1),
    "gelu": (memory_efficient_ops.gelu, plain_gelu, [(2, TOKENS, DIM)], 3),
    "layer norm": (lean_norm, plain_norm, [(2, TOKENS, DIM), (DIM,), (DIM,)], 1),
    "layer norm of pooled": (lean_norm, plain_norm, [(5, DIM), (DIM,), (DIM,)], 1),
}


def close(ours, theirs, tolerance):
    ours, theirs = (np.asarray(x, np.float64) for x in (ours, theirs))
    assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 2e-6), (jnp.bfloat16, 2e-2)])
@pytest.mark.parametrize("name", CASES)
def test_values_and_gradients_are_those_of_the_plain_function(name, dtype, tolerance):
    ours, theirs, shapes, spread = CASES[name]
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(spread * rng.standard_normal(shape), jnp.float32) for shape in shapes]
    # Parameters stay in float32.
    parameters = {"linear": 2, "layer norm": 2, "layer norm of pooled": 2}.get(name, 0)
    inputs = len(arrays) - parameters
    given = [array.astype(dtype) for array in arrays[:inputs]] + arrays[inputs:]
    value, back = jax.vjp(ours, *given)
    pull = jnp.asarray(rng.standard_normal(value.shape), dtype)
    assert value.dtype == dtype
    # In bfloat16 the truth is the plain function of the same numbers in float32.
    expected, plain_back = jax.vjp(theirs, *(array.astype(jnp.float32) for array in given))
    close(value, expected, tolerance)
    for found, wanted, array in zip(
        back(pull), plain_back(pull.astype(jnp.float32)), given, strict=True
    ):
        assert found.dtype == array.dtype
        close(found, wanted, tolerance)


def test_a_norm_may_be_narrower_than_what_it_normalises():
    rng = np.random.default_rng(0)
    x = jnp.asarray(300 + rng.standard_normal((3, DIM)), jnp.float32)  # bfloat16 has steps of 2
    scale, bias = jnp.ones(DIM), jnp.zeros(DIM)
    narrow = functools.partial(memory_efficient_ops.layer_norm, epsilon=EPSILON, dtype=jnp.bfloat16)
    value, back = jax.vjp(narrow, x, scale, bias)
    expected, plain_back = jax.vjp(plain_norm, x, scale, bias)
    assert value.dtype == jnp.bfloat16
    close(value, expected, 1e-2)
    pull = jnp.asarray(rng.standard_normal(value.shape), jnp.bfloat16)
    for found, wanted in zip(back(pull), plain_back(pull.astype(jnp.float32)), strict=True):
        assert found.dtype == jnp.float32
        close(found, wanted, 1e-2)


def test_large_logits_stay_finite():
    huge = jnp.full((1, 4, 1, 8), 1e3).at[0, 0].mul(-1)
    value, back = jax.vjp(attention.dot_product_attention, huge, huge, huge)
    assert np.isfinite(value).all()
    assert all(np.isfinite(slope).all() for slope in back(jnp.ones_like(value)))


def test_attention_keeps_nothing_that_grows_with_the_square_of_the_tokens():
    shape = jax.ShapeDtypeStruct((2, 64, 2, 8), jnp.float32)

    def kept(function):
        _, back = jax.eval_shape(lambda *x: jax.vjp(function, *x), shape, shape, shape)
        return sum(leaf.size for leaf in jax.tree.leaves(back))

    assert kept(attention.dot_product_attention) == 4 * np.prod(shape.shape) + 2 * 64 * 2
    assert kept(plain_attention) > 2 * 2 * 64 * 64


def test_a_layer_of_attention_keeps_its_output_once():
    layer = layers.Attention(2, jnp.float32)
    x = jax.ShapeDtypeStruct((2, 64, 16), jnp.float32)
    params = jax.eval_shape(layer.init, jax.random.key(0), x)
    _, back = jax.eval_shape(lambda *given: jax.vjp(layer.apply, *given), params, x)
    kept = sum(leaf.size for leaf in jax.tree.leaves(back))
    # The input, query, key and value, the output; a number per head and token; both kernels.
    assert kept == 5 * 2 * 64 * 16 + 2 * 2 * 64 + 16 * 48 + 16 * 16


def test_weight_gradients_are_not_rounded_before_devices_add_them():
    rng = np.random.default_rng(1)
    x, cotangent = (jnp.asarray(rng.normal(size=(64, 32, 6)), jnp.bfloat16) for _ in range(2))
    kernel, bias = jnp.zeros((6, 6)), jnp.zeros(6)
    _, back = jax.vjp(memory_efficient_ops.linear, x, kernel, bias)
    _, kernel_gradient, bias_gradient = back(cotangent)
    wide = (
        np.asarray(x, np.float64).reshape(-1, 6),
        np.asarray(cotangent, np.float64).reshape(-1, 6),
    )
    # One rounding to bfloat16 would be wrong by up to 2⁻⁹ of each value.
    np.testing.assert_allclose(kernel_gradient, wide[0].T @ wide[1], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(bias_gradient, wide[1].sum(0), rtol=1e-5, atol=1e-4)
    assert (kernel_gradient != kernel_gradient.astype(jnp.bfloat16)).any()


def test_gelu_of_bfloat16_is_rounded_once():
    x = jnp.linspace(-4, 4, 4001).astype(jnp.bfloat16)
    exact = np.asarray(plain_gelu(x.astype(jnp.float32)))
    found = np.asarray(memory_efficient_ops.gelu(x), np.float32)
    np.testing.assert_array_equal(found, np.asarray(exact.astype(jnp.bfloat16), np.float32))


def test_fused_attention_of_odd_lengths_under_vmap():
    rng = np.random.default_rng(0)
    query, key, value = rng.normal(size=(3, 4, 2, 5, 2, 8)).astype(np.float32)
    fused = functools.partial(attention.fused_attention, implementation="xla")
    expected = plain_attention(*(x.reshape(-1, 5, 2, 8) for x in (query, key, value)))
    found = jax.vmap(fused)(query, key, value)
    np.testing.assert_allclose(found.reshape(expected.shape), expected, rtol=1e-5, atol=1e-6)


def test_the_devices_choose_the_attention():
    def kernels(dim, dtype, platform):
        text = ""
        described = jax.sharding.AbstractDevice(
            device_kind="none", num_cores=None, platform=platform
        )
        mesh = jax.sharding.AbstractMesh((1, 1), ("data", "fsdp"), abstract_device=described)
        x = jax.ShapeDtypeStruct((2, 5, 2, dim), dtype)
        with jax.sharding.use_abstract_mesh(mesh), pytest.MonkeyPatch.context() as patch:
            patch.setattr(attention, "fused_attention", lambda *heads: heads[0].reshape(2, 5, -1))
            text = str(jax.make_jaxpr(attention.dot_product_attention)(x, x, x))
        return "lean" if "dot_general" in text else "fused"

    assert kernels(8, jnp.bfloat16, "gpu") == kernels(128, jnp.float16, "cuda") == "fused"
    assert kernels(8, jnp.bfloat16, "cpu") == kernels(8, jnp.bfloat16, "tpu") == "lean"
    assert kernels(8, jnp.float32, "gpu") == "lean"
    assert kernels(12, jnp.bfloat16, "gpu") == kernels(136, jnp.bfloat16, "gpu") == "lean"
