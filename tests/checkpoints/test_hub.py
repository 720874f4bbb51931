"""Models go to and come from a server that speaks the Hub's protocol, and mistakes are told."""

import subprocess
import sys

import hub_server
import pytest
import tiny

from cavmae_sync_jax.checkpoints import hub
from cavmae_sync_jax.utils.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("hub")
    tiny.write_model(place / "me" / "model")
    return place


@pytest.fixture(scope="module")
def server(folder):
    with hub_server.serving(folder) as settings:
        yield settings


def python(server, code, **settings):
    """Runs in a process of its own, because the Hub's library reads its settings at import."""
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=tiny.ROOT,
        capture_output=True,
        text=True,
        env=server | settings,
    )


CONVERT = """
import sys
from cavmae_sync_jax import convert
def call(*flags):
    sys.argv = ["convert", *flags]
    try:
        convert.main()
    except SystemExit as left:
        print(left.code)
"""


def test_a_model_is_downloaded_and_loaded(server):
    code = "import cavmae_sync_jax; m = cavmae_sync_jax.load('hf://me/model'); print(m.step, m[4])"
    done = python(server, code)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "0 hf://me/model\n"


@pytest.mark.release
def test_convert_pushes_and_pulls(server, folder):
    left = folder / "me" / "new" / "checkpoints" / "0" / "of_a_push_before"
    left.parent.mkdir(parents=True)
    left.write_text("old")
    code = f"""{CONVERT}
import cavmae_sync_jax, jax, numpy as np
call({str(folder / "me" / "model")!r}, "hf://me/new")
call("hf://me/new", {str(folder / "pulled")!r})
call("hf://me/new", {str(folder / "pulled")!r})
call("hf://me/new", {str(folder / "pulled.safetensors")!r})
call({str(folder / "pulled.safetensors")!r}, "hf://me/third", "--config.model.heads=2",
     "--config.model.decoder_heads=2")
own, pulled, third = map(cavmae_sync_jax.load, {[str(folder / "me" / "model")]!r}
    + {[str(folder / "pulled")]!r} + ["hf://me/third"])
for other in (pulled, third):
    assert jax.tree.all(jax.tree.map(np.array_equal, own.params, other.params))
assert pulled.config.to_json() == own.config.to_json()
"""
    done = python(server, code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["2"]  # the folder that was there
    assert "pulled exists already" in done.stderr
    assert f"pushed: {server['HF_ENDPOINT']}/me/new" in done.stderr
    assert (folder / "visibility").read_text() == "private"
    assert not left.exists()
    card = (folder / "me" / "new" / "README.md").read_text()
    assert 'cavmae_sync_jax.load("hf://me/new")' in card and card.startswith("---\nlibrary_name:")
    (folder / "me" / "new" / "README.md").write_text("mine")
    refused = f'{CONVERT}call({str(folder / "me" / "model")!r}, "hf://me/new")'
    done = python(server, refused, HF_TOKEN="hf_another")
    assert done.stdout == "2\n"
    assert "hf://me/new can't be written with your login: run" in done.stderr.splitlines()[-1]
    assert python(server, refused).stdout == ""
    assert (folder / "me" / "new" / "README.md").read_text() == "mine"


def test_a_repository_that_is_not_there(server):
    code = f"{CONVERT}call('hf://me/nothing', 'nothing.pth')"
    done = python(server, code)
    assert done.stdout == "2\n"
    assert "error: there is no hf://me/nothing, or" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("address", ["hf://model", "hf://a/b/c", "hf:///b"])
def test_addresses_name_a_user_and_a_repository(address):
    with pytest.raises(UserError, match="must be hf://USER/REPO"):
        hub.local(address)
    assert hub.local("runs/mine") == "runs/mine"


def test_without_the_hubs_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="needs huggingface_hub"):
        hub.local("hf://me/model")
