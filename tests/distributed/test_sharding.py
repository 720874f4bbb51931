"""One device and eight give the same loss and gradients, however the mesh is cut."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from jax.sharding import PartitionSpec as P

from cavmae_sync_jax.distributed import sharding
from cavmae_sync_jax.models import cavmae_sync
from cavmae_sync_jax.training import train_step
from cavmae_sync_jax.utils.errors import UserError


def gradients(config, data, fsdp, devices):
    """The loss of two steps of plain descent, and the change of the parameters: the gradients."""
    module = cavmae_sync.from_config(config.model)
    optimizer = optax.sgd(1.0)
    mesh = sharding.make_mesh(data, fsdp, devices=jax.devices()[:devices])
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda k: train_step.init_state(module, optimizer, k), key)
    shardings = sharding.state_shardings(shapes, mesh)
    state = jax.jit(lambda k: train_step.init_state(module, optimizer, k), out_shardings=shardings)(
        key
    )
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
        step_fn = train_step.make_train_step(module, optimizer, config, shardings)
        state, scalars = step_fn(state, batch, 0.75)
    after = jax.device_get(state.params)
    return jax.device_get(scalars), jax.tree.map(np.subtract, before, after)


@pytest.fixture(scope="module")
def one_device():
    """The reference for each number of contrast groups."""
    settings = {"model__depth": 1}
    return functools.cache(
        lambda groups: gradients(tiny.config(**settings, loss__contrast_groups=groups), 1, 1, 1)
    )


@pytest.mark.release
@pytest.mark.parametrize(
    ("data", "fsdp", "groups"), [(8, 1, 1), (4, 2, 1), (2, 4, 1), (1, 8, 1), (4, 2, 4)]
)
def test_any_mesh_equals_one_device(data, fsdp, groups, one_device, monkeypatch):
    monkeypatch.setattr(sharding, "MIN_SHARDED", 64)
    config = tiny.config(model__depth=1, loss__contrast_groups=groups)
    check_equal(gradients(config, data, fsdp, 8), one_device(groups))


def check_equal(ours, expected):
    """Compares losses and gradients."""
    for name, value in expected[0].items():
        np.testing.assert_allclose(ours[0][name], value, rtol=1e-5, err_msg=name)
    leaves = (jax.tree.leaves(tree) for tree in (ours[1], expected[1]))
    for mine, other in zip(*leaves, strict=True):
        scale = max(1e-2, np.abs(other).max())
        np.testing.assert_allclose(mine, other, rtol=0, atol=1e-5 * scale)


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


@dataclasses.dataclass(frozen=True)
class Chip:
    """What the arrangement asks of a TPU's device."""

    id: int
    coords: tuple[int, int, int]
    slice_index: int
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    core_on_chip: int = 0
    process_index: int = 0


def two_slices():
    places = [(s, x, y) for x in range(2) for s in range(2) for y in range(2)]
    return [Chip(number, (x, y, 0), s) for number, (s, x, y) in enumerate(places)]


@pytest.mark.parametrize("shape", [(8, 1), (4, 2), (2, 4)])
def test_parameters_never_cross_slices(shape):
    arranged = sharding.arrange(shape, two_slices())
    assert arranged.shape == shape
    assert sorted(chip.id for chip in arranged.flat) == list(range(8))
    for row in arranged:
        assert len({chip.slice_index for chip in row}) == 1
    halves = np.vectorize(lambda chip: chip.slice_index, otypes=[int])(arranged)
    assert (halves[: shape[0] // 2] == 0).all() and (halves[shape[0] // 2 :] == 1).all()


def test_parameters_that_would_cross_slices_are_refused():
    message = "data=1, fsdp=8 does not fit 2 TPU slices: set config.mesh.data to a multiple of 2"
    with pytest.raises(UserError, match=message):
        sharding.arrange((1, 8), two_slices())


def test_mesh_shapes():
    assert dict(sharding.make_mesh(-1, 2).shape) == {"data": 4, "fsdp": 2}
    assert dict(sharding.make_mesh(2, -1).shape) == {"data": 2, "fsdp": 4}
    with pytest.raises(UserError, match="data=3, fsdp=1 does not fit 8 devices"):
        sharding.make_mesh(3, 1)
    with pytest.raises(UserError, match="does not fit"):
        sharding.make_mesh(-1, 3)


SETTINGS = {"model__depth": 1, "data__augment_audio": True, "loss__contrast_groups": 4}


@pytest.fixture(scope="module")
def whole_batch():
    """The reference for microbatches."""
    return gradients(tiny.config(**SETTINGS), 1, 1, 1)


@pytest.mark.release
@pytest.mark.parametrize(("data", "fsdp", "chunks"), [(1, 1, 4), (4, 2, 2)])
def test_microbatches_equal_the_whole_batch(data, fsdp, chunks, whole_batch, monkeypatch):
    monkeypatch.setattr(sharding, "MIN_SHARDED", 64)
    config = tiny.config(**SETTINGS, microbatches=chunks)
    check_equal(gradients(config, data, fsdp, data * fsdp), whole_batch)


def compiled_step(config, data, fsdp):
    module = cavmae_sync.from_config(config.model)
    optimizer, _ = train_step.make_optimizer(config, 10, 5.0)
    mesh = sharding.make_mesh(data, fsdp, devices=jax.devices()[: data * fsdp])
    with jax.set_mesh(mesh):
        return train_step.lowered(module, optimizer, config, mesh).compile()


@pytest.mark.release
def test_no_device_holds_all_pairs():
    config = tiny.config(batch_size=56, model__depth=1, loss__contrast_direction="both")
    text = compiled_step(config, 8, 1).as_text()
    assert "f32[7,56]" in text and "f32[56,56]" not in text


@pytest.mark.release
def test_microbatches_need_less_memory():
    memory = {
        chunks: compiled_step(
            tiny.config(batch_size=256, model__depth=1, microbatches=chunks), 1, 1
        )
        .memory_analysis()
        .temp_size_in_bytes
        for chunks in (1, 8)
    }
    assert memory[8] < memory[1] / 3


def test_rows_stay_on_their_device_when_a_batch_is_split():
    mesh = sharding.make_mesh()
    x = jnp.arange(32).reshape(16, 2)

    def split(x):
        parts = sharding.split_batch(x, 2)
        return parts, sharding.merge_batch(parts)

    with jax.set_mesh(mesh):
        compiled = jax.jit(split, in_shardings=sharding.batch_sharding(mesh)).lower(x).compile()
        parts, merged = compiled(jax.device_put(x, sharding.batch_sharding(mesh)))
    np.testing.assert_array_equal(merged, x)
    np.testing.assert_array_equal(parts[1], x[1::2])
    assert not any(kind in compiled.as_text() for kind in ("all-", "collective", "scatter"))


def test_an_implicit_transfer_in_the_loop_is_refused():
    mesh = sharding.make_mesh()
    add = jax.jit(lambda x: x + 1, in_shardings=sharding.batch_sharding(mesh))
    with jax.transfer_guard("disallow"):
        add(jax.device_put(np.ones(8, np.float32), sharding.batch_sharding(mesh)))
        with pytest.raises(Exception, match="Disallowed host-to-device transfer"):
            add(np.ones(8, np.float32))
