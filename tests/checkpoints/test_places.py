"""Where checkpoints can be stored: paths that Orbax would take for patterns are refused."""

import os

import jax.numpy as jnp
import pytest
from ml_collections import ConfigDict

from cavmae_sync_jax.checkpoints import manager, places
from cavmae_sync_jax.utils.errors import UserError


@pytest.mark.parametrize("name", ["run [a]", "weights*", "what?"])
def test_a_path_that_is_a_pattern_is_refused(tmp_path, name):
    folder = tmp_path / name / "deeper"
    with pytest.raises(UserError, match=r"can.t be stored in .*: rename that folder"):
        manager.Checkpoints(folder, keep=1)
    with pytest.raises(UserError, match="can't be stored in"):
        manager.write(folder, {"params": {"a": jnp.zeros(2)}}, ConfigDict({"model": {}}))
    assert not folder.exists()


def test_the_current_folder_counts(tmp_path, monkeypatch):
    (tmp_path / "project [2]").mkdir()
    monkeypatch.chdir(tmp_path / "project [2]")
    with pytest.raises(UserError, match=r"project \[2\]/runs/mine, as there is one of"):
        places.to_write("runs/mine")


def test_a_name_that_is_no_text_is_refused(tmp_path):
    name = os.fsdecode(os.fsencode(str(tmp_path)) + b"/\xff")
    with pytest.raises(UserError, match=r"xff is not UTF-8: rename it"):
        places.to_write(name)
    assert places.to_write("gs://bucket/runs") == places.absolute("gs://bucket/runs")
