"""Imitates Google Cloud Storage on this machine, with its latency and its faults.

    python -m benchmarks.bucket_emulator FOLDER --port=9023 --latency_ms=30
    export CLOUD_STORAGE_EMULATOR_ENDPOINT=http://127.0.0.1:9023     # ArrayRecord
    export STORAGE_EMULATOR_HOST=http://127.0.0.1:9023               # gcsfs and Google's Python
    export TENSORSTORE_GCS_HTTP_URL=http://127.0.0.1:9023            # Orbax

Serves the part of the JSON API that these clients use: objects are listed, read by ranges, written
(whole, in two parts or resumably), copied, rewritten and deleted, alone or in batches, with
generations as preconditions. Objects are files in FOLDER, so that they outlive the server. It
listens on the loopback interface only and believes everybody.
"""

import argparse
import asyncio
import base64
import contextlib
import dataclasses
import email.parser
import email.policy
import hashlib
import json
import os
import pathlib
import random
import re
import signal
import subprocess
import sys
import time
import urllib.parse
import urllib.request
import uuid
from collections.abc import Iterator
from typing import Any, NamedTuple

FAULTS = (429, 500, 502, 503, "reset", "cut")  # what `errors` draws from
# What tells the clients of gs:// to come here.
VARIABLES = (
    "CLOUD_STORAGE_EMULATOR_ENDPOINT",
    "STORAGE_EMULATOR_HOST",
    "TENSORSTORE_GCS_HTTP_URL",
)
CONTROL = "/emulator"  # GET: the counters; POST: other knobs
_PART = 2**18  # bytes that are sent before "cut" closes the connection, at most
_OBJECT = re.compile(r"(?:/download|/upload)?/storage/v1/b/([^/]+)/o(?:/([^/]+))?")
_COPY = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/(?:copyTo|rewriteTo)/b/([^/]+)/o/([^/]+)")


@dataclasses.dataclass
class Knobs:
    """How well the network and the bucket work."""

    latency_ms: float = 0.0  # before each answer
    errors: float = 0.0  # share of the requests that meet one of FAULTS
    status: int = 0  # of these faults, if it is always the same, such as 403
    kill: int = 0  # the number of a process, which the `kill_at`-th request kills by `kill -9`
    kill_at: int = 0
    kill_when_done: int = 0  # 0: the request is not fulfilled, 1: it is, but not answered
    seed: int = 0  # of the faults


class Request(NamedTuple):
    """What came in."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


class Answer(NamedTuple):
    """What goes out."""

    status: int
    body: bytes = b""
    headers: tuple[tuple[str, str], ...] = ()


class Refused(Exception):
    """A request that can't be fulfilled, with its HTTP status."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status

    def answer(self) -> Answer:
        """As Google's own words it."""
        error = {"code": self.status, "message": str(self)}
        return _json({"error": error}, self.status)


def _json(value: Any, status: int = 200) -> Answer:
    return Answer(status, json.dumps(value).encode(), (("content-type", "application/json"),))


class Store:
    """Objects as files: one folder per bucket, and the quoted names in it."""

    def __init__(self, folder: pathlib.Path):
        self.folder = folder
        self.uploads = folder / ".uploads"
        self.uploads.mkdir(parents=True, exist_ok=True)

    def path(self, bucket: str, name: str) -> pathlib.Path:
        """Where an object lies."""
        return self.folder / urllib.parse.quote(bucket, "") / urllib.parse.quote(name, "")

    def generation(self, bucket: str, name: str) -> int:
        """When an object was written; 0 is none."""
        try:
            return self.path(bucket, name).stat().st_mtime_ns // 1000
        except FileNotFoundError:
            return 0

    def resource(self, bucket: str, name: str) -> dict[str, Any]:
        """An object's metadata."""
        try:
            stat = self.path(bucket, name).stat()
        except FileNotFoundError:
            raise Refused(404, f"No such object: {bucket}/{name}") from None
        moment = time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(stat.st_mtime))
        generation = str(stat.st_mtime_ns // 1000)
        return {
            "kind": "storage#object",
            "id": f"{bucket}/{name}/{generation}",
            "bucket": bucket,
            "name": name,
            "size": str(stat.st_size),
            "generation": generation,
            "metageneration": "1",
            "timeCreated": moment,
            "updated": moment,
            "etag": generation,
            "storageClass": "STANDARD",
        }

    def write(self, bucket: str, name: str, data: bytes) -> dict[str, Any]:
        """Makes or replaces an object, whole or not at all."""
        path = self.path(bucket, name)
        path.parent.mkdir(exist_ok=True)
        partial = self.uploads / uuid.uuid4().hex
        partial.write_bytes(data)
        before = self.generation(bucket, name)
        os.replace(partial, path)
        if self.generation(bucket, name) <= before:
            os.utime(path, ns=((before + 1) * 1000,) * 2)
        digest = base64.b64encode(hashlib.md5(data).digest()).decode()
        return {**self.resource(bucket, name), "md5Hash": digest}

    def read(self, bucket: str, name: str, span: str | None) -> tuple[bytes, int, int]:
        """Bytes of an object, where they begin, and its size."""
        try:
            with self.path(bucket, name).open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                first, last = _span(span, size)
                return os.pread(file.fileno(), last - first, first), first, size
        except FileNotFoundError:
            raise Refused(404, f"No such object: {bucket}/{name}") from None

    def names(self, bucket: str, prefix: str) -> list[str]:
        """The objects whose names begin so, in order."""
        folder = self.folder / urllib.parse.quote(bucket, "")
        quoted = os.listdir(folder) if folder.is_dir() else []
        return sorted(n for n in map(urllib.parse.unquote, quoted) if n.startswith(prefix))


def _span(text: str | None, size: int) -> tuple[int, int]:
    """The first byte of a `Range` and the one after its last."""
    if not text:
        return 0, size
    first, _, last = text.removeprefix("bytes=").partition("-")
    if not first:
        return max(0, size - int(last)), size
    if int(first) >= size:
        raise Refused(416, f"the range {text} is beyond the {size} bytes")
    return int(first), min(size, int(last) + 1 if last else size)


class Bucket:
    """Answers requests out of a store."""

    def __init__(self, store: Store):
        self.store = store

    def answer(self, request: Request) -> Answer:
        """What a request gets."""
        try:
            return self._route(request)
        except Refused as refusal:
            return refusal.answer()

    def _route(self, request: Request) -> Answer:
        path = request.path.removeprefix("/batch") if request.path != "/batch" else "/batch"
        if request.path.startswith("/batch"):
            return self._batch(request)
        copied = _COPY.fullmatch(path)
        if copied:
            return self._copy(request, *map(urllib.parse.unquote, copied.groups()))
        found = _OBJECT.fullmatch(path)
        if found:
            bucket, name = (urllib.parse.unquote(part or "") for part in found.groups())
            if path.startswith("/upload"):
                return self._upload(request, bucket)
            return self._object(request, bucket, name) if name else self._list(request, bucket)
        if path.startswith("/storage/v1/b/"):
            name = path.removeprefix("/storage/v1/b/")
            if "/" not in name:
                return _json({"kind": "storage#bucket", "name": name, "location": "LOCAL"})
            if name.endswith("/storageLayout"):
                return _json({"hierarchicalNamespace": {"enabled": False}})
        bucket, _, name = path.lstrip("/").partition("/")
        if bucket and name and not path.startswith("/storage/"):  # the XML API
            media = request._replace(query={**request.query, "alt": "media"})
            return self._object(media, bucket, urllib.parse.unquote(name))
        raise Refused(501, f"the emulator knows no {request.method} {request.path}")

    def _object(self, request: Request, bucket: str, name: str) -> Answer:
        self._check(request, bucket, name)
        if request.method == "DELETE":
            self.store.resource(bucket, name)
            self.store.path(bucket, name).unlink()
            return Answer(204)
        if request.method == "PATCH" or request.query.get("alt") != "media":
            return _json(self.store.resource(bucket, name))
        span = request.headers.get("range")
        data, first, size = self.store.read(bucket, name, span)
        generation = str(self.store.generation(bucket, name))
        headers = [("content-type", "application/octet-stream")]
        headers += [("x-goog-generation", generation), ("x-goog-metageneration", "1")]
        headers += [("x-goog-stored-content-length", str(size)), ("etag", generation)]
        if span:
            headers.append(("content-range", f"bytes {first}-{first + len(data) - 1}/{size}"))
        return Answer(206 if span else 200, data, tuple(headers))

    def _check(self, request: Request, bucket: str, name: str) -> None:
        """Refuses what an object's generation forbids."""
        wanted = request.query.get("ifGenerationMatch")
        now = self.store.generation(bucket, name)
        if wanted is not None and int(wanted) != now:
            raise Refused(412, f"{bucket}/{name} has the generation {now}, not {wanted}")
        unwanted = request.query.get("ifGenerationNotMatch")
        if unwanted is not None and int(unwanted) == now:
            raise Refused(304 if request.method == "GET" else 412, "not modified")
        asked = request.query.get("generation")
        if asked is not None and int(asked) != now:
            raise Refused(404, f"No such object: {bucket}/{name}#{asked}")

    def _list(self, request: Request, bucket: str) -> Answer:
        prefix, delimiter = request.query.get("prefix", ""), request.query.get("delimiter", "")
        most = int(request.query.get("maxResults", 1000))
        after = request.query.get("pageToken", "")
        start, end = request.query.get("startOffset", ""), request.query.get("endOffset")
        items: list[dict[str, Any]] = []
        prefixes: list[str] = []
        page = ""
        for name in self.store.names(bucket, prefix):
            if name < start or (end is not None and name >= end):
                continue
            rest = name[len(prefix) :]
            folder = prefix + rest.split(delimiter)[0] + delimiter if delimiter else ""
            entry = folder if delimiter and delimiter in rest else name
            if entry <= after or entry in prefixes:
                continue
            if len(items) + len(prefixes) == most:
                return _json(self._page(items, prefixes) | {"nextPageToken": page})
            page = entry
            if entry == folder and delimiter in rest:
                prefixes.append(entry)
            else:
                with contextlib.suppress(Refused):  # deleted meanwhile
                    items.append(self.store.resource(bucket, name))
        return _json(self._page(items, prefixes))

    @staticmethod
    def _page(items: list[dict[str, Any]], prefixes: list[str]) -> dict[str, Any]:
        page: dict[str, Any] = {"kind": "storage#objects"}
        return (
            page
            | ({"items": items} if items else {})
            | ({"prefixes": prefixes} if prefixes else {})
        )

    def _copy(
        self, request: Request, bucket: str, name: str, to_bucket: str, to_name: str
    ) -> Answer:
        self._check(request, to_bucket, to_name)
        data, _, size = self.store.read(bucket, name, None)
        resource = self.store.write(to_bucket, to_name, data)
        if "/copyTo/" in request.path:
            return _json(resource)
        done = {"done": True, "objectSize": str(size), "totalBytesRewritten": str(size)}
        return _json({"kind": "storage#rewriteResponse", **done, "resource": resource})

    def _upload(self, request: Request, bucket: str) -> Answer:
        kind, session = request.query.get("uploadType"), request.query.get("upload_id")
        if session:
            return self._resume(request, bucket, session)
        if kind == "multipart":
            described, data = _parts(request)
            name = json.loads(described).get("name") or request.query["name"]
        elif kind == "resumable":
            described = json.loads(request.body or b"{}")
            name, session = request.query.get("name") or described["name"], uuid.uuid4().hex
            self._check(request, bucket, name)
            kept = {"name": name, "match": request.query.get("ifGenerationMatch")}
            (self.store.uploads / f"{session}.json").write_text(json.dumps(kept))
            (self.store.uploads / session).write_bytes(b"")
            place = urllib.parse.urlencode({"uploadType": "resumable", "upload_id": session})
            host = request.headers.get("host", "127.0.0.1")
            location = f"http://{host}/upload/storage/v1/b/{bucket}/o?{place}"
            return Answer(200, b"", (("location", location),))
        else:
            name, data = request.query["name"], request.body
        self._check(request, bucket, name)
        return _json(self.store.write(bucket, name, data))

    def _resume(self, request: Request, bucket: str, session: str) -> Answer:
        """A part of a resumable upload; the last one makes the object."""
        place = self.store.uploads / pathlib.PurePath(session).name
        described = place.with_suffix(".json")
        if not described.exists():
            raise Refused(404, "no such upload")
        if request.method == "DELETE":
            place.unlink(missing_ok=True)
            described.unlink()
            return Answer(499)
        span = request.headers.get("content-range", "bytes */*").removeprefix("bytes ")
        where, _, total = span.partition("/")
        with place.open("r+b") as file:
            if where != "*":
                file.seek(int(where.split("-")[0]))
            else:
                file.seek(0, os.SEEK_END)
            file.write(request.body)
            size = file.tell()
        if total == "*" or size < int(total):
            return Answer(308, b"", (("range", f"bytes=0-{size - 1}"),) if size else ())
        kept = json.loads(described.read_text())
        query = {} if kept["match"] is None else {"ifGenerationMatch": kept["match"]}
        self._check(request._replace(query=query), bucket, kept["name"])
        resource = self.store.write(bucket, kept["name"], place.read_bytes())
        place.unlink()
        described.unlink()
        return _json(resource)

    def _batch(self, request: Request) -> Answer:
        """Several requests in one: parts, each of which is a request, get parts as answers."""
        message = _message(request)
        answers = []
        for part in message.iter_parts():
            head, _, rest = part.get_payload(decode=True).decode().partition("\n")
            method, target = head.split()[:2]
            url = urllib.parse.urlsplit(target)
            query = dict(urllib.parse.parse_qsl(url.query))
            one = self.answer(Request(method, url.path, query, {}, b""))
            number = str(part["content-id"]).strip("<>")
            answers.append(
                f"--batch\r\nContent-Type: application/http\r\nContent-ID: <response-{number}>"
                f"\r\n\r\nHTTP/1.1 {one.status} X\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(one.body)}\r\n\r\n{one.body.decode()}\r\n"
            )
            del rest
        body = "".join(answers) + "--batch--\r\n"
        return Answer(200, body.encode(), (("content-type", "multipart/mixed; boundary=batch"),))


def _message(request: Request) -> Any:
    head = f"Content-Type: {request.headers['content-type']}\r\n\r\n".encode()
    return email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + request.body)


def _parts(request: Request) -> tuple[bytes, bytes]:
    """The description and the data of a multipart upload; its data may hold any byte."""
    boundary = re.search(r"boundary=['\"]?([^'\";]+)", request.headers["content-type"])
    mark = b"--" + boundary[1].encode()
    _, described, data, _ = request.body.split(mark, 3)
    found = [re.split(rb"\r?\n\r?\n", part, maxsplit=1)[1] for part in (described, data)]
    return found[0], re.sub(rb"\r?\n\Z", b"", found[1])


class Server:
    """Speaks HTTP/1.1 on loopback for a bucket, as well as its knobs let it."""

    def __init__(self, bucket: Bucket, knobs: Knobs):
        self.bucket, self.knobs = bucket, knobs
        self.counts = {"requests": 0, "faults": 0, "bytes": 0, "in_flight": 0, "most_in_flight": 0}
        self._random = random.Random(knobs.seed)

    async def serve(self, port: int) -> None:
        """Serves until it is cancelled; says where."""
        server = await asyncio.start_server(self._connected, "127.0.0.1", port, limit=2**20)
        print(json.dumps({"port": server.sockets[0].getsockname()[1]}), flush=True)
        async with server:
            await server.serve_forever()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._one(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass  # the client has gone
        finally:
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answers one request; False if the connection is to be closed."""
        request = await self._read(reader, writer)
        if request.path == CONTROL:
            if request.method == "POST":
                self.knobs = dataclasses.replace(self.knobs, **json.loads(request.body))
                self._random = random.Random(self.knobs.seed)
                self.counts |= {"requests": 0, "faults": 0, "bytes": 0, "most_in_flight": 0}
            await self._write(writer, _json(self.counts))
            return True
        self.counts["requests"] += 1
        self.counts["in_flight"] += 1
        self.counts["most_in_flight"] = max(self.counts["most_in_flight"], self.counts["in_flight"])
        try:
            return await self._answer(request, writer)
        finally:
            self.counts["in_flight"] -= 1

    async def _answer(self, request: Request, writer: asyncio.StreamWriter) -> bool:
        if self.knobs.latency_ms:
            await asyncio.sleep(self.knobs.latency_ms / 1000)
        fault: int | str = 0
        if self._random.random() < self.knobs.errors:
            fault = self.knobs.status or self._random.choice(FAULTS)
            self.counts["faults"] += 1
        if fault == "reset":
            writer.transport.abort()
            return False
        last = self.knobs.kill and self.counts["requests"] >= self.knobs.kill_at
        if last and not self.knobs.kill_when_done:
            return self._kill()
        answer = self.bucket.answer(request) if not isinstance(fault, int) or not fault else None
        if last:
            return self._kill()
        if answer is None:
            answer = Refused(int(fault), "a fault of the emulator").answer()
        self.counts["bytes"] += len(answer.body)
        await self._write(writer, answer, cut=fault == "cut")
        return fault != "cut"

    def _kill(self) -> bool:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.knobs.kill, signal.SIGKILL)
        self.knobs.kill = 0
        return False

    @staticmethod
    async def _read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.split("\r\n")
        method, target, _ = first.split(" ")
        pairs = (line.partition(":") for line in lines if line)
        headers = {name.lower(): value.strip() for name, _, value in pairs}
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = b""
        if headers.get("transfer-encoding", "").lower() == "chunked":
            while size := int((await reader.readline()).split(b";")[0], 16):
                body += await reader.readexactly(size)
                await reader.readline()
            await reader.readline()
        else:
            body = await reader.readexactly(int(headers.get("content-length", 0)))
        url = urllib.parse.urlsplit(target)
        query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        return Request(method, url.path, query, headers, body)

    @staticmethod
    async def _write(writer: asyncio.StreamWriter, answer: Answer, cut: bool = False) -> None:
        lines = [f"HTTP/1.1 {answer.status} X"]
        lines += [f"{name}: {value}" for name, value in answer.headers]
        if answer.status != 204:
            lines.append(f"content-length: {len(answer.body)}")
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        writer.write(answer.body[: min(_PART, len(answer.body) // 2)] if cut else answer.body)
        await writer.drain()


class Emulator:
    """A server in a process of its own, which can be gone for a while and come back."""

    def __init__(self, folder: pathlib.Path, **knobs: float):
        self.folder, self.knobs, self.port = folder, knobs, 0
        self.start()

    def start(self) -> None:
        """Starts it, at the port that it had."""
        flags = [f"--{name}={value}" for name, value in self.knobs.items()]
        command = [sys.executable, "-m", "benchmarks.bucket_emulator", str(self.folder)]
        self._process = subprocess.Popen(
            [*command, f"--port={self.port}", *flags],
            stdout=subprocess.PIPE,
            cwd=pathlib.Path(__file__).parent.parent,
        )
        self.port = json.loads(self._process.stdout.readline())["port"]

    def stop(self) -> None:
        """Ends it: whoever is connected is cut off, and nobody can connect."""
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What brings the clients of gs:// here."""
        plain = {"GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false", "NO_GCE_CHECK": "true"}
        return {**dict.fromkeys(VARIABLES, self.address), **plain}

    @contextlib.contextmanager
    def pointed_at(self) -> Iterator[None]:
        """Sends requests for gs:// of this process, and of those that it starts, here."""
        before = {name: os.environ.get(name) for name in self.environment}
        os.environ.update(self.environment)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value

    def turn(self, **knobs: float) -> dict[str, int]:
        """Turns knobs and sets the counters to zero."""
        body = json.dumps(knobs).encode()
        return self._control(urllib.request.Request(self.address + CONTROL, body, method="POST"))

    def counts(self) -> dict[str, int]:
        """Requests, faults and bytes since the last `turn`, and the requests in flight."""
        return self._control(urllib.request.Request(self.address + CONTROL))

    @staticmethod
    def _control(request: urllib.request.Request) -> dict[str, int]:
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)


@contextlib.contextmanager
def running(folder: pathlib.Path, **knobs: float) -> Iterator[Emulator]:
    """Starts an emulator and ends it."""
    emulator = Emulator(folder, **knobs)
    try:
        yield emulator
    finally:
        emulator.stop()


def upload(folder: pathlib.Path, store: pathlib.Path, bucket: str, prefix: str) -> str:
    """Puts a folder's files into a bucket without a request; returns where they are."""
    objects = Store(store)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            name = f"{prefix}/{path.relative_to(folder).as_posix()}"
            objects.write(bucket, name, path.read_bytes())
    return f"gs://{bucket}/{prefix}"


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="where the objects are kept")
    parser.add_argument("--port", type=int, default=0, help="to listen on; 0 is any free one")
    for field in dataclasses.fields(Knobs):
        kind = type(field.default)
        parser.add_argument(f"--{field.name}", type=kind, default=field.default)
    given = vars(parser.parse_args())
    store, port = Store(pathlib.Path(given.pop("folder"))), given.pop("port")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(Server(Bucket(store), Knobs(**given)).serve(port))


if __name__ == "__main__":
    main()
