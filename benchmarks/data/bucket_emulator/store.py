"""Objects as files: what a bucket keeps, without the words for asking it."""

import base64
import hashlib
import os
import pathlib
import time
import urllib.parse
import uuid
from typing import Any


class Refused(Exception):
    """A request that can't be fulfilled, with its HTTP status."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


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
