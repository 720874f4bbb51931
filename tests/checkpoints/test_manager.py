"""Damage to a checkpoint is found and named, wherever it is; a full disk loses nothing."""

import functools
import pathlib
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from cavmae_sync_jax.checkpoints import manager
from cavmae_sync_jax.checkpoints.checksums import fingerprints
from cavmae_sync_jax.distributed import sharding
from cavmae_sync_jax.utils.errors import UserError


@functools.cache
def saved_state():
    """What a training saves; made late, because a module that is imported must not start JAX."""
    return {
        "step": jnp.array(7),
        "params": {"kernel": jnp.arange(24.0).reshape(4, 6), "bias": jnp.ones(5)},
        "opt_state": {"mu": jnp.arange(24.0).reshape(4, 6) / 7},
    }


def abstract_state():
    layout = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout), saved_state()
    )


def save(workdir, *steps):
    checkpoints = manager.Checkpoints(workdir, keep=5)
    for step in steps:
        checkpoints.save(step, saved_state(), tiny.config(), {"examples": 8 * step})
    checkpoints.close()


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("saved")
    save(workdir, 4, 8)
    return workdir


def read(workdir, step=None):
    """All that a resumed run takes from a checkpoint."""
    with manager.opened(workdir, step) as stored:
        state = stored.restore(abstract_state())
        return stored.step, stored.config.to_json(), stored.position, jax.device_get(state)


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty(path):
    path.write_bytes(b"")


def flips(path):
    """The same file with one bit changed, at several places."""
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.choice(len(data), min(len(data), 6), replace=False):
        changed = bytearray(data)
        changed[place] ^= 1 << int(rng.integers(8))
        yield bytes(changed)


# What a failed read leaves behind speaks when it is collected.
@pytest.mark.release
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_every_damage_is_found_or_harmless(saved, tmp_path):
    """Each file in turn is lost, emptied, cut in half and flipped; nothing wrong is ever read."""
    whole, found = read(saved, 8), 0
    workdir = tmp_path / "copy"
    names = [
        p.relative_to(saved) for p in sorted((saved / "checkpoints/8").rglob("*")) if p.is_file()
    ]
    assert len(names) >= 5

    def damaged():
        for name in names:
            path = workdir / name
            for damage in (pathlib.Path.unlink, empty, truncate):
                yield name, lambda path=path, damage=damage: damage(path)
            for data in flips(saved / name):
                yield name, lambda path=path, data=data: path.write_bytes(data)

    for name, damage in damaged():
        shutil.rmtree(workdir, ignore_errors=True)
        shutil.copytree(saved, workdir)
        damage()
        try:
            again = read(workdir, 8)
        except UserError as error:
            assert "checkpoints/8 is damaged or unreadable (" in str(error), (name, error)
            assert "delete this one to go on from step 4" in str(error), name
            assert "--checkpoint=" in str(error) and "checkpoints/4" in str(error)
            found += 1
        else:
            assert again[:3] == whole[:3], name
            jax.tree.map(np.testing.assert_array_equal, again[3], whole[3])
        assert read(workdir, 4)[0] == 4
    assert found > 40  # the rest are files that Orbax does not need to read


def test_a_step_is_named_by_its_folder(saved):
    assert read(saved / "checkpoints/4")[0] == 4
    assert read(saved)[0] == 8
    with pytest.raises(UserError, match=r"no checkpoint of step 5; it has \[4, 8\]"):
        read(saved / "checkpoints/5")


@pytest.mark.parametrize("name", ["checkpoints/7", "checkpoints/checkpoints"])
def test_a_workdir_may_be_called_like_a_step(saved, tmp_path, name):
    workdir = shutil.copytree(saved, tmp_path / name)
    assert read(workdir)[0] == read(workdir / "checkpoints")[0] == 8
    assert read(workdir / "checkpoints/4")[0] == 4


@pytest.mark.parametrize("name", ["best_12", "damaged_8", "012"])
def test_a_copy_beside_the_checkpoints_is_none_of_them(saved, tmp_path, name):
    folder = shutil.copytree(saved, tmp_path / "run") / "checkpoints"
    shutil.copytree(folder / "8", folder / name)
    shutil.rmtree(folder / "8")
    checkpoints = manager.Checkpoints(tmp_path / "run", keep=5)
    assert checkpoints.finished == [4] and checkpoints.latest == read(tmp_path / "run")[0] == 4
    checkpoints.set_aside_after(4)
    checkpoints.close()
    assert (folder / name).is_dir()
    shutil.rmtree(folder / "4")
    assert not manager.exists(tmp_path / "run")


def test_newer_checkpoints_are_set_aside(tmp_path):
    save(tmp_path, 4, 8, 12)
    for _ in range(2):
        checkpoints = manager.Checkpoints(tmp_path, keep=5)
        checkpoints.set_aside_after(4)
        assert checkpoints.latest == 4
        checkpoints.save(8, saved_state(), tiny.config(), {"examples": 0})
        checkpoints.close()
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["checkpoints", "set_aside_12", "set_aside_8", "set_aside_8_again"]
    assert (tmp_path / "set_aside_8/state").is_dir()
    with pytest.raises(UserError, match=r"no checkpoint of step 5; it has \[4, 8\]"):
        manager.Checkpoints(tmp_path, keep=5).stored(5)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_full_disk_is_one_sentence_and_what_was_saved_stays(saved, tmp_path):
    workdir = shutil.copytree(saved, tmp_path / "copy")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    state = {**saved_state(), "params": {"kernel": jnp.zeros((4096, 64)), "bias": jnp.ones(5)}}
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
        checkpoints = manager.Checkpoints(workdir, keep=5)
        with pytest.raises(UserError, match=r"can't be written.*whole one is of step 8"):
            try:
                checkpoints.save(12, state, tiny.config(), {"examples": 0})
            finally:
                checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read(workdir)[0] == 8
    save(workdir, 12)
    assert read(workdir)[0] == 12


def test_fingerprints_do_not_depend_on_the_mesh():
    rng = np.random.default_rng(0)
    tree = {"kernel": rng.normal(size=(16, 32)).astype(np.float32), "count": np.arange(8)}
    expected = fingerprints(tree)
    for data, fsdp in ((8, 1), (2, 4)):
        mesh = sharding.make_mesh(data, fsdp)
        assert fingerprints(jax.device_put(tree, sharding.batch_sharding(mesh))) == expected
        assert fingerprints(jax.device_put(tree, sharding.replicated(mesh))) == expected


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int32", "uint8", "bool"])
def test_any_changed_bit_and_any_exchange_shows(dtype):
    values = jnp.arange(40).reshape(5, 8).astype(dtype)
    before = fingerprints({"x": values})
    if dtype == "bool":
        assert fingerprints({"x": values.at[0, 0].set(True)}) != before
        return
    raw = np.asarray(values).view(f"u{values.dtype.itemsize}").copy()
    for place in range(0, 40, 7):
        for bit in range(8 * values.dtype.itemsize):
            changed = raw.copy()
            changed.flat[place] ^= 1 << bit
            assert fingerprints({"x": changed.view(values.dtype)}) != before
    assert fingerprints({"x": values[::-1]}) != before
