"""What a checkpoint gives back, what it says of itself, and what older ones lack."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny

from cavmae_sync_jax.checkpoints import manager
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError


def state_of(value):
    return {"step": jnp.int32(value), "params": {"w": jnp.full((2, 3), float(value))}}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A workdir with the steps 4 and 8."""
    workdir = tmp_path_factory.mktemp("saved")
    checkpoints = manager.Checkpoints(workdir, keep=5)
    for step in (4, 8):
        checkpoints.save(step, state_of(step), tiny.config(seed=step), {"examples": 8 * step})
    checkpoints.close()
    return workdir


@pytest.fixture
def copy(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / "copy")


def change(workdir, step, edit):
    """Applies `edit` to the JSON that a checkpoint holds beside its arrays."""
    path = workdir / f"checkpoints/{step}/meta/metadata"
    meta = json.loads(path.read_text())
    edit(meta)
    path.write_text(json.dumps(meta))


def told(workdir, step=None):
    with pytest.raises(UserError) as error, manager.opened(workdir, step) as stored:
        stored.weights()
    return str(error.value)


def test_a_checkpoint_gives_back_what_was_saved(saved):
    checkpoints = manager.Checkpoints(saved, keep=5)
    assert (checkpoints.finished, checkpoints.latest) == ([4, 8], 8)
    layout = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=layout), state_of(0)
    )
    for step in (4, 8):
        stored = checkpoints.stored(step)
        assert stored.step == step and stored.position == {"examples": 8 * step}
        settings = json.loads(tiny.config(seed=step).to_json())
        assert json.loads(stored.config.to_json()) == settings
        jax.tree.map(np.testing.assert_array_equal, stored.restore(shapes), state_of(step))
        np.testing.assert_array_equal(stored.weights()["w"], np.full((2, 3), step))
        assert isinstance(stored.weights()["w"], np.ndarray)
        assert stored.arrays("step", "nothing") == {"step": step}
    checkpoints.close()
    meta = json.loads((saved / "checkpoints/8/meta/metadata").read_text())
    assert meta["version"] == cli.version()
    assert set(meta["fingerprints"]) == {"step", "params/w"}
    assert manager.exists(saved) and not manager.exists(saved.parent)


def test_changed_json_is_damage(copy):
    change(copy, 8, lambda meta: meta["position"].update(examples=65))
    said = told(copy)
    assert said.startswith(f"checkpoint {copy}/checkpoints/8 is damaged or unreadable (its JSON is")
    assert "delete this one to go on from step 4, or evaluate with" in said
    assert told(copy, 8) == said
    change(copy, 4, lambda meta: meta["config"].update(seed=5))
    assert told(copy, 4).endswith(": there is no older one")


@pytest.mark.parametrize("way", ["to train on", "to evaluate"])
def test_an_array_that_is_not_what_was_saved_is_named(copy, way):
    def other(meta):
        meta["fingerprints"]["params/w"] ^= 1
        meta["digest"] = manager._digest(meta)

    change(copy, 8, other)
    with pytest.raises(UserError) as error, manager.opened(copy) as stored:
        assert stored.arrays("step") == {"step": 8}  # it is whole
        if way == "to evaluate":
            stored.weights()
        stored.restore(jax.eval_shape(lambda: state_of(0)))
    assert "checkpoints/8 is damaged or unreadable (params/w is not what was" in str(error.value)


def test_older_checkpoints_lack_settings_and_sums(copy):
    def older(meta):
        del meta["fingerprints"], meta["digest"]
        del meta["config"]["data"]["requests"], meta["config"]["microbatches"]
        del meta["config"]["mask"]

    change(copy, 8, older)
    with manager.opened(copy) as stored:
        assert (stored.config.data.requests, stored.config.microbatches) == (64, 1)
        assert stored.config.data.num_frames == 4 and "mask" not in stored.config
        np.testing.assert_array_equal(stored.weights()["w"], np.full((2, 3), 8))
    change(copy, 4, lambda meta: (meta["config"].pop("data"), meta.pop("digest")))
    with manager.opened(copy, 4) as stored:
        assert "data" not in stored.config  # of a probe's head
        assert stored.config.model.residual_dtype == tiny.config().model.residual_dtype


def test_unfinished_saves_are_removed_by_the_next_training(copy):
    left = copy / "checkpoints/12.orbax-checkpoint-tmp"
    left.mkdir()
    with manager.opened(copy) as stored:
        assert stored.step == 8 and left.exists()
    manager.Checkpoints(copy, keep=5).close()
    assert not left.exists()


def test_only_the_newest_are_kept(copy):
    checkpoints = manager.Checkpoints(copy, keep=2)
    checkpoints.save(12, state_of(12), tiny.config(), {})
    checkpoints.close()
    assert manager.Checkpoints(copy, keep=2).finished == [8, 12]


def test_a_failed_save_hides_no_other_error(copy, monkeypatch, capsys):
    def failing(checkpoints):
        def wait():  # an error is raised once
            monkeypatch.undo()
            raise OSError("No space left on device\nand more")

        monkeypatch.setattr(checkpoints._manager, "wait_until_finished", wait)
        return checkpoints

    sentence = "(No space left on device); the newest whole one is of step 8: fix that"
    with pytest.raises(UserError) as error:
        failing(manager.Checkpoints(copy, keep=5)).close()
    assert sentence in str(error.value)
    checkpoints = failing(manager.Checkpoints(copy, keep=5))
    with pytest.raises(ZeroDivisionError):
        try:
            raise ZeroDivisionError
        finally:
            checkpoints.close()
    assert sentence in capsys.readouterr().err


def test_reasons_are_one_line():
    tail = " See full TensorStore details: https://example.com"
    assert manager._reason(OSError(f"no room{tail}\nsecond line")) == "no room"
    assert manager._reason(KeyError()) == "KeyError"
    assert manager._reason(ValueError("x" * 300)) == "x" * 200


@pytest.mark.parametrize(("averaged", "best"), [(0, "params"), (2, "average")])
def test_the_weights_to_use_are_the_average_once_there_is_one(tmp_path, averaged, best):
    trees = {"params": {"w": np.ones(3)}, "average": {"w": np.zeros(3)}}
    manager.write(tmp_path / "new", trees | {"averaged": np.int32(averaged)}, tiny.config(seed=3))
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    with manager.opened(tmp_path / "new") as stored:
        assert stored.best() == best and stored.step == 0 and stored.config.seed == 3
        np.testing.assert_array_equal(stored.weights()["w"], trees[best]["w"])


def test_a_workdir_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    place = tmp_path / "new"
    full, refused = OSError("No space left on device"), UserError("can't")
    refused.__cause__ = full
    for error in (full, refused):

        def fail(*_, error=error, **__):
            raise error

        with monkeypatch.context() as patch, pytest.raises(UserError) as raised:
            patch.setattr(manager.Checkpoints, "save", fail)
            manager.write(place, state_of(1), tiny.config())
        assert str(raised.value) == f"{place} can't be written: No space left on device"
        assert list(tmp_path.iterdir()) == []
    manager.write(place, state_of(1), tiny.config())
    with pytest.raises(UserError, match="exists already: delete it or give another name"):
        manager.write(place, state_of(2), tiny.config())
    with manager.opened(place) as stored:
        assert float(stored.weights()["w"][0, 0]) == 1


def test_what_holds_no_checkpoints_gets_advice(copy, tmp_path):
    (tmp_path / "sync.pth").touch()
    assert told(tmp_path / "sync.pth").endswith("sync.pth FOLDER makes a folder with them")
    (tmp_path / "notes.txt").touch()
    assert told(tmp_path / "notes.txt").endswith("give the folder of a training or a conversion")
    assert told(tmp_path) == f"{tmp_path} holds no checkpoints: give {copy}"
    (tmp_path / "empty").mkdir()
    assert told(tmp_path / "empty").endswith("give the folder of a training or a conversion")
    (tmp_path / "empty/checkpoints").mkdir()
    assert "holds no finished checkpoint: train to the first one" in told(tmp_path / "empty")
