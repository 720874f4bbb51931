"""Attention, GELU and LayerNorm with lean gradients equal the plain ones, and keep less."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cavmae_sync_jax.models import attention, memory_efficient_ops

EPSILON = 1e-5


def plain_norm(x, scale, bias):
    norm = nn.LayerNorm(EPSILON, dtype=x.dtype, use_fast_variance=False)
    return norm.apply({"params": {"scale": scale, "bias": bias}}, x)


def lean_norm(x, scale, bias):
    return memory_efficient_ops.layer_norm(x, scale, bias, EPSILON)


def plain_gelu(x):
    return jax.nn.gelu(x, approximate=False)


TOKENS, HEADS, DIM = 13, 3, 8
CASES = {
    "attention": (
        attention.dot_product_attention,
        jax.nn.dot_product_attention,
        [(2, TOKENS, HEADS, DIM)] * 3,
        3,
    ),
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
    given = [array.astype(dtype) if array.ndim > 1 else array for array in arrays]
    pull = jnp.asarray(rng.standard_normal(shapes[0]), dtype)
    value, back = jax.vjp(ours, *given)
    assert value.dtype == dtype
    # In bfloat16 the truth is the plain function of the same numbers in float32.
    expected, plain_back = jax.vjp(theirs, *(array.astype(jnp.float32) for array in given))
    close(value, expected, tolerance)
    for found, wanted, array in zip(
        back(pull), plain_back(pull.astype(jnp.float32)), given, strict=True
    ):
        assert found.dtype == array.dtype
        close(found, wanted, tolerance)


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
    assert kept(jax.nn.dot_product_attention) > 2 * 2 * 64 * 64
