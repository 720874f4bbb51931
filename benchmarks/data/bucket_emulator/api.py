"""The part of Google's JSON API that the clients of gs:// use: requests to answers."""

import contextlib
import email.parser
import email.policy
import json
import os
import pathlib
import re
import urllib.parse
import uuid
from typing import Any, NamedTuple

from benchmarks.data.bucket_emulator.store import Refused, Store

_OBJECT = re.compile(r"(?:/download|/upload)?/storage/v1/b/([^/]+)/o(?:/([^/]+))?")
_MOVE = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/moveTo/o/([^/]+)")
_COPY = re.compile(r"/storage/v1/b/([^/]+)/o/([^/]+)/(?:copyTo|rewriteTo)/b/([^/]+)/o/([^/]+)")


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


def as_json(value: Any, status: int = 200) -> Answer:
    """An answer that holds a value."""
    return Answer(status, json.dumps(value).encode(), (("content-type", "application/json"),))


def refusal(error: Refused) -> Answer:
    """What a request gets that can't be fulfilled, as Google words it."""
    return as_json({"error": {"code": error.status, "message": str(error)}}, error.status)


class Bucket:
    """Answers requests out of a store."""

    def __init__(self, store: Store):
        self.store = store

    def answer(self, request: Request) -> Answer:
        """What a request gets."""
        try:
            return self._route(request)
        except Refused as error:
            return refusal(error)

    def _route(self, request: Request) -> Answer:
        path = request.path
        if path.startswith("/batch"):
            return self._batch(request)
        copied = _COPY.fullmatch(path)
        if copied:
            return self._copy(request, *map(urllib.parse.unquote, copied.groups()))
        moved = _MOVE.fullmatch(path)
        if moved:
            return self._move(request, *map(urllib.parse.unquote, moved.groups()))
        found = _OBJECT.fullmatch(path)
        if found:
            bucket, name = (urllib.parse.unquote(part or "") for part in found.groups())
            if path.startswith("/upload"):
                return self._upload(request, bucket)
            return self._object(request, bucket, name) if name else self._list(request, bucket)
        if path.startswith("/storage/v1/b/"):
            name = path.removeprefix("/storage/v1/b/")
            if "/" not in name:
                return as_json({"kind": "storage#bucket", "name": name, "location": "LOCAL"})
            if name.endswith("/storageLayout"):
                return as_json({"hierarchicalNamespace": {"enabled": False}})
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
            return as_json(self.store.resource(bucket, name))
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
                return as_json(self._page(items, prefixes) | {"nextPageToken": page})
            page = entry
            if entry == folder and delimiter in rest:
                prefixes.append(entry)
            else:
                with contextlib.suppress(Refused):  # deleted meanwhile
                    items.append(self.store.resource(bucket, name))
        return as_json(self._page(items, prefixes))

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
            return as_json(resource)
        done = {"done": True, "objectSize": str(size), "totalBytesRewritten": str(size)}
        return as_json({"kind": "storage#rewriteResponse", **done, "resource": resource})

    def _move(self, request: Request, bucket: str, name: str, to_name: str) -> Answer:
        self._check(request, bucket, to_name)
        resource = self.store.write(bucket, to_name, self.store.read(bucket, name, None)[0])
        self.store.path(bucket, name).unlink()
        return as_json(resource)

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
        return as_json(self.store.write(bucket, name, data))

    def _resume(self, request: Request, bucket: str, session: str) -> Answer:
        """A part of a resumable upload; the last one makes the object."""
        place = self.store.uploads / pathlib.PurePath(session).name
        described = place.with_suffix(".json")
        if not described.exists():
            raise Refused(404, "no such upload")
        kept = json.loads(described.read_text())
        if "made" in kept:  # the answer to the last part was lost on its way
            return as_json(kept["made"])
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
        query = {} if kept["match"] is None else {"ifGenerationMatch": kept["match"]}
        self._check(request._replace(query=query), bucket, kept["name"])
        resource = self.store.write(bucket, kept["name"], place.read_bytes())
        place.unlink()
        described.write_text(json.dumps({"made": resource}))
        return as_json(resource)

    def _batch(self, request: Request) -> Answer:
        """Several requests in one: parts, each of which is a request, get parts as answers."""
        message = _message(request)
        answers = []
        for part in message.iter_parts():
            first_line = part.get_payload(decode=True).decode().partition("\n")[0]
            method, target = first_line.split()[:2]
            url = urllib.parse.urlsplit(target)
            query = dict(urllib.parse.parse_qsl(url.query))
            one = self.answer(Request(method, url.path, query, {}, b""))
            number = str(part["content-id"]).strip("<>")
            answers.append(
                f"--batch\r\nContent-Type: application/http\r\nContent-ID: <response-{number}>"
                f"\r\n\r\nHTTP/1.1 {one.status} X\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(one.body)}\r\n\r\n{one.body.decode()}\r\n"
            )
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
