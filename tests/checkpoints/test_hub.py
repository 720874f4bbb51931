"""A model is loaded from a server that speaks the Hub's protocol, and mistakes are told."""

import http.server
import json
import os
import subprocess
import sys
import threading

import pytest
import tiny

from cavmae_sync_jax.checkpoints import hub
from cavmae_sync_jax.utils.errors import UserError

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub(http.server.BaseHTTPRequestHandler):
    """The repository me/model, whose files are those of `folder`."""

    folder = None

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.respond(body=False)

    def do_GET(self):
        self.respond(body=True)

    def respond(self, body):
        path = self.path.partition("?")[0]
        content = None
        files = [p for p in self.folder.rglob("*") if p.is_file()]
        names = [file.relative_to(self.folder).as_posix() for file in files]
        if path.startswith("/api/models/me/model/revision/"):
            siblings = [{"rfilename": name} for name in names]
            content = json.dumps({"id": "me/model", "sha": COMMIT, "siblings": siblings}).encode()
        elif path == f"/api/models/me/model/tree/{COMMIT}":
            entries = [
                {"type": "file", "path": name, "size": file.stat().st_size, "oid": "0" * 40}
                for name, file in zip(names, files, strict=True)
            ]
            content = json.dumps(entries).encode()
        elif path.startswith(f"/me/model/resolve/{COMMIT}/"):
            place = self.folder / path.removeprefix(f"/me/model/resolve/{COMMIT}/")
            content = place.read_bytes() if place.is_file() else None
        self.send_response(404 if content is None else 200)
        if content is None:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{abs(hash(path))}"')
        self.send_header("Content-Length", str(len(content or b"")))
        self.end_headers()
        if body and content:
            self.wfile.write(content)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    tiny.write_model(folder / "files")
    Hub.folder = folder / "files"
    running = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{running.server_port}", folder
    running.shutdown()


def load(server, address):
    """Loads in a process of its own, because the Hub's library reads its settings at import."""
    endpoint, folder = server
    code = f"import cavmae_sync_jax; m = cavmae_sync_jax.load({address!r}); print(m.step, m[4])"
    settings = {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(folder / "cache"),
        "HF_HUB_DISABLE_XET": "1",
    }
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=tiny.ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, **settings},
    )


def test_a_model_is_downloaded_and_loaded(server):
    done = load(server, "hf://me/model")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "0 hf://me/model\n"


def test_a_repository_that_is_not_there(server):
    done = load(server, "hf://me/nothing")
    assert "UserError: there is no hf://me/nothing, or" in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("address", ["hf://model", "hf://a/b/c"])
def test_addresses_name_a_user_and_a_repository(address):
    with pytest.raises(UserError, match="must be hf://USER/REPO"):
        hub.local(address)
    assert hub.local("runs/mine") == "runs/mine"


def test_without_the_hubs_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match="needs huggingface_hub"):
        hub.local("hf://me/model")
