"""Checkpoints in an emulated bucket, reached by the requests that a real one would get."""

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from benchmarks.data import bucket_emulator
from benchmarks.training import launch
from cavmae_sync_jax.checkpoints import manager
from cavmae_sync_jax.utils.errors import UserError

MARK = "commit_success.txt"
CONFIG = ConfigDict({"seed": 1})


@pytest.fixture
def store(bucket_server):
    bucket_server.turn(errors=0, latency_ms=0, kill=0)
    with bucket_server.pointed_at():
        yield bucket_emulator.Store(bucket_server.folder)


def save(place, *steps):
    checkpoints = manager.Checkpoints(place, keep=2)
    for step in steps:
        state = {"params": {"a": jnp.full((3, 4), float(step))}}
        checkpoints.save(step, state, CONFIG, {"examples": step})
    checkpoints.close()


def read(place, step=None):
    with manager.opened(place, step) as stored:
        assert stored.position == {"examples": stored.step}
        np.testing.assert_array_equal(stored.weights()["a"], np.full((3, 4), stored.step))
        return stored.step


def copied(store, source, destination, left_out):
    """Copies a workdir by hand, but for the objects whose names end so."""
    for name in store.names("bucket", f"{source}/"):
        if not name.endswith(left_out):
            data, _, _ = store.read("bucket", name, None)
            store.write("bucket", name.replace(source, destination, 1), data)
    return store.names("bucket", f"{destination}/")


def test_they_are_kept_read_and_set_aside(store):
    place = "gs://bucket/kept"
    save(place, 1, 2, 3)
    assert manager.exists(place) and read(place) == 3 and read(place, 2) == 2
    assert read(f"{place}/checkpoints/3") == 3
    again = manager.Checkpoints(place, keep=2)
    assert again.finished == [2, 3] and again.latest == 3
    again.set_aside_after(2)
    assert again.finished == [2]
    again.close()
    aside = store.names("bucket", "kept/set_aside_3/")
    assert f"kept/set_aside_3/{MARK}" in aside
    save(place, 4)
    assert read(place) == 4


@pytest.mark.parametrize(
    "left_out", [MARK, f"3/{MARK}", f"checkpoints/2/{MARK}"], ids=["all", "newest", "older"]
)
def test_one_that_was_copied_without_its_mark_is_refused_and_not_removed(store, left_out, request):
    kind = request.node.callspec.id
    save(f"gs://bucket/source_{kind}", 2, 3)
    destination = f"copy_{kind}"
    names = copied(store, f"source_{kind}", destination, left_out)
    place = f"gs://bucket/{destination}"
    step = 3 if "3" in left_out else 2
    message = f"{place}/checkpoints/{step}/{MARK}"
    with pytest.raises(UserError, match=f"has no {MARK}.*copy it again, .* cp - {message}"):
        manager.Checkpoints(place, keep=2)
    with pytest.raises(UserError, match=f"has no {MARK}"):
        read(place, step)
    assert store.names("bucket", f"{destination}/") == names
    # What the message says, for each of them.
    for number in (2, 3):
        store.write("bucket", f"{destination}/checkpoints/{number}/{MARK}", b"whole\n")
    save(place, 4)
    assert [read(place, step) for step in (3, 4)] == [3, 4]


def test_a_save_that_was_killed_is_removed(store):
    save("gs://bucket/begun", 2, 3)
    left_out = (f"3/{MARK}", "3/_CHECKPOINT_METADATA", f"3/state/{MARK}")
    assert copied(store, "begun", "killed", left_out)
    place = "gs://bucket/killed"
    assert read(place) == 2
    with pytest.raises(UserError, match="has no checkpoint of step 3"):
        read(place, 3)
    checkpoints = manager.Checkpoints(place, keep=2)
    assert checkpoints.latest == 2
    checkpoints.close()
    # Orbax removes it in a thread that it does not wait for.
    launch.wait_for(lambda: not store.names("bucket", "killed/checkpoints/3/"), [], 30)


def test_a_new_workdir_appears_complete_or_not_at_all(store, monkeypatch):
    params = {"params": {"a": np.zeros((3, 4))}}
    manager.write("gs://bucket/converted", params, CONFIG)
    with manager.opened("gs://bucket/converted") as stored:
        assert stored.step == 0
    with pytest.raises(UserError, match="gs://bucket/converted exists already"):
        manager.write("gs://bucket/converted", params, CONFIG)

    def broken(*_, **__):
        raise OSError("the bucket has gone")

    monkeypatch.setattr(manager.Checkpoints, "save", broken)
    with pytest.raises(UserError, match="gs://bucket/other can't be written: the bucket has gone"):
        manager.write("gs://bucket/other", params, CONFIG)
    assert not store.names("bucket", "other") and not store.names("bucket", ".other")
