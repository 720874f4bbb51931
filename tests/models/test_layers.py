"""A stack of blocks is one function, however its layers are run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cavmae_sync_jax.models.layers import Stack

FIRST = 2


@pytest.fixture(scope="module")
def plain():
    """Inputs, parameters, and the scanned stack's outputs and gradients from token 2 on."""
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 8)), jnp.float32)
    params = jax.jit(Stack(3, 2, 2.0, jnp.float32, False, "none").init)(jax.random.key(0), x)
    return x, params, outputs(False, "none", x, params, 0)


def outputs(unroll, remat, x, params, first):
    stack = Stack(3, 2, 2.0, jnp.float32, unroll, remat)

    def wanted(params, x):
        found = stack.apply(params, x, first=first)[:, FIRST - first :]
        return jnp.square(found).sum(), found

    return jax.jit(jax.grad(wanted, argnums=(0, 1), has_aux=True))(params, x)


@pytest.mark.parametrize("unroll, remat", [(False, "none"), (True, "none"), (True, "full")])
def test_the_last_block_computes_wanted_tokens_only(plain, unroll, remat):
    x, params, expected = plain
    found = outputs(unroll, remat, x, params, FIRST)
    assert found[1].shape == (2, 3, 8)
    for mine, whole in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, whole, rtol=1e-4, atol=1e-5)


def test_fewer_tokens_cost_less():
    def products(first):
        stack = Stack(1, 2, 2.0, jnp.float32, False, "none")
        x = jax.ShapeDtypeStruct((2, 8, 16), jnp.float32)
        params = jax.eval_shape(stack.init, jax.random.key(0), x)
        return jax.jit(lambda p, x: stack.apply(p, x, first=first)).lower(params, x).cost_analysis()

    # Keys and values of all tokens stay: a quarter of the block's products with this MLP.
    share = products(4)["flops"] / products(0)["flops"]
    assert 0.5 < share < 0.75
