"""A server that speaks the Hugging Face Hub's protocol: repositories are folders `USER/NAME`.

It creates repositories, lists and sends their files, and takes commits with small files inside and
large ones by LFS. Writing needs the token `TOKEN`.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import os
import re
import threading

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_test"
LARGE = 1000  # bytes from which on a file goes by LFS


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root = None  # folder of the repositories
    blobs = None  # what was sent by LFS, by its SHA-256

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.read()

    def do_GET(self):
        self.read()

    def do_PUT(self):
        body = self.body()
        digest = self.path.rpartition("/")[2]
        assert hashlib.sha256(body).hexdigest() == digest
        self.blobs[digest] = body
        self.answer(b"")

    def do_POST(self):
        body, path = self.body(), self.path.partition("?")[0]
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer(b'{"error": "not yours"}', 403)
        if path == "/api/repos/create":
            asked = json.loads(body)
            (self.root / asked["organization"] / asked["name"]).mkdir(parents=True, exist_ok=True)
            (self.root / "visibility").write_text(asked["visibility"])
            name = f"{asked['organization']}/{asked['name']}"
            return self.answer({"url": f"{self.origin}/{name}", "name": name})
        if path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        if match := re.fullmatch(r"/(\w+/\w+)\.git/info/lfs/objects/batch", path):
            objects = [
                one | {"actions": {"upload": {"href": f"{self.origin}/lfs/{one['oid']}"}}}
                for one in json.loads(body)["objects"]
            ]
            return self.answer({"transfer": "basic", "objects": objects})
        if match := re.fullmatch(r"/api/models/(\w+/\w+)/preupload/main", path):
            files = [
                {
                    "path": one["path"],
                    "uploadMode": "lfs" if one["size"] >= LARGE else "regular",
                    "shouldIgnore": False,
                }
                for one in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        if match := re.fullmatch(r"/api/models/(\w+/\w+)/commit/main", path):
            for line in body.splitlines():
                self.change(self.root / match[1], **json.loads(line))
            url = f"{self.origin}/{match[1]}/commit/{COMMIT}"
            return self.answer({"success": True, "commitOid": COMMIT, "commitUrl": url})
        return self.answer(b"", 404)

    def change(self, folder, key, value):
        if key == "header":
            return
        place = folder / value["path"]
        if key == "deletedFile":
            place.unlink()
            return
        data = self.blobs[value["oid"]] if key == "lfsFile" else base64.b64decode(value["content"])
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)

    def read(self):
        path = self.path.partition("?")[0]
        if match := re.fullmatch(r"/(\w+/\w+)/resolve/\w+/(.+)", path):
            place = self.root / match[1] / match[2]
            if place.is_file():
                return self.answer(place.read_bytes())
            return self.answer(b"", 404, error="EntryNotFound")
        match = re.fullmatch(r"/api/models/(\w+/\w+)(?:/(revision|tree)/\w+)?", path)
        if match is None or not (self.root / match[1]).is_dir():
            return self.answer(b"", 404, error="RepoNotFound")
        folder = self.root / match[1]
        files = [file for file in folder.rglob("*") if file.is_file()]
        names = [file.relative_to(folder).as_posix() for file in files]
        if match[2] == "tree":
            sizes = [file.stat().st_size for file in files]
            entries = [
                {"type": "file", "path": name, "size": size, "oid": "0" * 40}
                for name, size in zip(names, sizes, strict=True)
            ]
            return self.answer(entries)
        siblings = [{"rfilename": name} for name in names]
        return self.answer({"id": match[1], "sha": COMMIT, "siblings": siblings})

    @property
    def origin(self):
        return f"http://127.0.0.1:{self.server.server_port}"

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def answer(self, content, status=200, error=None):
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        if error:
            self.send_header("X-Error-Code", error)
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


@contextlib.contextmanager
def serving(root):
    """Serves the repositories below a folder; yields the settings of a process that asks."""
    Handler.root, Handler.blobs = root, {}
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield os.environ | {
            "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
            "HF_HOME": str(root / "cache"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": TOKEN,
        }
    finally:
        server.shutdown()
        server.server_close()
