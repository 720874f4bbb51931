"""One device and eight give the same loss and gradients, however the mesh is cut."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from jax.sharding import PartitionSpec as P

from cavmae_sync_jax import cli, sharding, step
from cavmae_sync_jax import model as modeling


def gradients(config, data, fsdp, devices):
    """The loss of two steps of plain descent, and the change of the parameters: the gradients."""
    module = modeling.from_config(config.model)
    optimizer = optax.sgd(1.0)
    mesh = sharding.make_mesh(data, fsdp, devices=jax.devices()[:devices])
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda k: step.init_state(module, optimizer, k), key)
    shardings = sharding.state_shardings(shapes, mesh)
    state = jax.jit(lambda k: step.init_state(module, optimizer, k), out_shardings=shardings)(key)
    split = [leaf for leaf in jax.tree.leaves(state.params) if not leaf.is_fully_replicated]
    assert bool(split) == (fsdp > 1)
    rng = np.random.default_rng(0)
    batch = {
        "audio": rng.normal(-5, 4, (16, *module.raw_shape("audio"))).astype(np.float16),
        "visual": rng.integers(0, 256, (16, *module.raw_shape("visual")), np.uint8),
    }
    batch = jax.device_put(batch, sharding.batch_sharding(mesh))
    before = jax.device_get(state.params)
    with jax.set_mesh(mesh):
        step_fn = step.make_train_step(module, optimizer, config, shardings)
        state, scalars = step_fn(state, batch, 0.75)
    after = jax.device_get(state.params)
    return jax.device_get(scalars), jax.tree.map(np.subtract, before, after)


@pytest.fixture(scope="module")
def one_device():
    """The reference for each number of contrast groups."""
    return functools.cache(
        lambda groups: gradients(tiny.config(loss__contrast_groups=groups), 1, 1, 1)
    )


@pytest.mark.parametrize(
    ("data", "fsdp", "groups"), [(8, 1, 1), (4, 2, 1), (2, 4, 1), (1, 8, 1), (4, 2, 4)]
)
def test_any_mesh_equals_one_device(data, fsdp, groups, one_device, monkeypatch):
    monkeypatch.setattr(sharding, "MIN_SHARDED", 64)
    config = tiny.config(loss__contrast_groups=groups)
    expected, expected_grads = one_device(groups)
    actual, grads = gradients(config, data, fsdp, 8)
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-5, err_msg=name)
    for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        np.testing.assert_allclose(
            ours, theirs, rtol=0, atol=1e-5 * max(1e-2, np.abs(theirs).max())
        )


def test_the_rule(monkeypatch):
    mesh = sharding.make_mesh(2, 4)
    large = jax.ShapeDtypeStruct((4, 256, 512), jnp.float32)
    tree = {
        "blocks": {"kernel": jax.ShapeDtypeStruct((1024, 128, 128), jnp.float32)},
        "kernel": large,
        "odd": jax.ShapeDtypeStruct((30_001, 3), jnp.float32),
        "bias": jax.ShapeDtypeStruct((512,), jnp.float32),
    }
    specs = jax.tree.map(lambda s: s.spec, sharding.state_shardings(tree, mesh))
    assert specs == {
        "blocks": {"kernel": P(None, None, "fsdp")},  # never the layers, the last of equals
        "kernel": P(None, None, "fsdp"),
        "odd": P(),
        "bias": P(),
    }


def test_mesh_shapes():
    assert dict(sharding.make_mesh(-1, 2).shape) == {"data": 4, "fsdp": 2}
    assert dict(sharding.make_mesh(2, -1).shape) == {"data": 2, "fsdp": 4}
    with pytest.raises(cli.UserError, match="data=3, fsdp=1 does not fit 8 devices"):
        sharding.make_mesh(3, 1)
    with pytest.raises(cli.UserError, match="does not fit"):
        sharding.make_mesh(-1, 3)
