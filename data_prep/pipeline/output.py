"""Where a dataset is prepared and published: by one process at a time, whole or not at all.

In a folder the finished dataset is moved to its place at once. In a bucket nothing can be moved, so
its files are copied there, and `dataset_info.json`, without which there is no dataset, comes last.
"""

import contextlib
import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import IO

import fsspec
from etils import epath

from cavmae_sync_jax.utils.errors import UserError

INCOMPLETE, OLD = ".incomplete", "replaced"
# Of a lock in a bucket, in seconds: how often it is renewed, and when it counts as left behind.
_RENEWED, _STALE = 60.0, 600.0
_LOCK, _MARK = ".preparing", "dataset_info.json"
_FILE_SYSTEMS = {"gs": "gcs"}  # what fsspec calls the scheme of a path


def in_bucket(path: epath.PathLike) -> bool:
    """Returns whether a path has a scheme, such as gs://."""
    return "://" in os.fspath(path)


def bucket_files(path: epath.PathLike) -> tuple[fsspec.AbstractFileSystem, str]:
    """Returns a bucket's file system, and how it calls a path with a scheme."""
    text = os.fspath(path)
    scheme = text.partition("://")[0]
    files = fsspec.filesystem(_FILE_SYSTEMS.get(scheme, scheme))
    return files, files._strip_protocol(text)


@contextlib.contextmanager
def workplace(output: epath.Path, fingerprint: str) -> Iterator[epath.Path]:
    """Gives `OUTPUT/.incomplete`, emptied where it is of another preparation, to one process.

    Raises:
      UserError: another process has it, or it can't be written to.
    """
    work = output / INCOMPLETE
    try:
        work.mkdir(parents=True, exist_ok=True)
        file = None if in_bucket(output) else open(work / "lock", "w")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"--output={output} can't be written to: {error.strerror}") from error
    with _lock(file, output) if file else _bucket_lock(output):
        plan = work / "plan.json"
        if plan.exists() and json.loads(plan.read_text() or "null") != fingerprint:
            print(f"{work} is of other clips or settings, so that preparation begins anew.")
            (work / "shards").rmtree(missing_ok=True)
        plan.write_text(json.dumps(fingerprint))
        yield work


@contextlib.contextmanager
def _lock(file: IO[str], output: epath.Path) -> Iterator[None]:
    with file as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is preparing {output} at this time") from error
        yield


@contextlib.contextmanager
def _bucket_lock(output: epath.Path) -> Iterator[None]:
    """Holds an object that only one process can make, and renews it as long as it lives."""
    files, name = bucket_files(output / _LOCK)
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "id": uuid.uuid4().hex}

    def content() -> bytes:
        return json.dumps({**owner, "time": time.time()}).encode()

    def read() -> dict:
        with contextlib.suppress(FileNotFoundError, ValueError):
            return json.loads(files.cat_file(name))
        return {}

    try:
        files.pipe_file(name, content(), mode="create")
    except FileExistsError as error:
        other = read()
        if time.time() - other.get("time", 0.0) < _STALE:
            raise UserError(
                f"a process is preparing {output} (on {other.get('host')}), or was killed less "
                f"than {_STALE / 60:.0f} minutes ago: wait, or delete {output / _LOCK} if it was"
            ) from error
        files.pipe_file(name, content())
        if read().get("id") != owner["id"]:
            raise UserError(f"another process is preparing {output} at this time") from error
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(_RENEWED):
            with contextlib.suppress(Exception):  # a passing failure of the network
                files.pipe_file(name, content())

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        with contextlib.suppress(FileNotFoundError):
            files.rm_file(name)


def publish(new: epath.Path, final: epath.Path, old: epath.Path | None, work: epath.Path) -> None:
    """Puts a finished dataset to its place.

    Args:
      new: the dataset's folder, with a folder of its version.
      final: its place.
      old: what is there and replaced, if anything.
      work: of `workplace`.
    """
    if not in_bucket(final):
        if old:
            (work / OLD).rmtree(missing_ok=True)
            (work / OLD).mkdir()
            old.rename(work / OLD / final.name)
        new.rename(final)
        return
    for version in new.iterdir():
        place = final / version.name
        (place / _MARK).unlink(missing_ok=True)  # what is there is no dataset any more
        names = [path.name for path in version.iterdir()]
        if place.exists():
            for path in place.iterdir():
                if path.name not in names:
                    path.unlink()
        place.mkdir(parents=True, exist_ok=True)
        for name in sorted(names, key=lambda name: name == _MARK):
            (version / name).copy(place / name, overwrite=True)


def check_output(output: epath.PathLike, source: str, overwrite: bool) -> epath.Path | None:
    """Returns the dataset `OUTPUT/SOURCE` that is to be replaced, None if there is none.

    Raises:
      UserError: there is one and `overwrite` is not set; something else is in the way; there is
        another dataset, which would make OUTPUT ambiguous and is not ours to delete.
    """
    output = epath.Path(output)
    if output.exists() and not output.is_dir():
        raise UserError(f"--output={output} is a file; give a folder")
    stranded = output / INCOMPLETE / OLD / source
    if stranded.exists() and not (output / source).exists():  # a replacement was interrupted
        stranded.rename(output / source)
    found = {path.parent.parent for path in output.glob(f"*/*/{_MARK}")}
    own = output / source
    others = sorted(str(path) for path in found - {own})
    if others:
        raise UserError(f"{others[0]} is another dataset; give another --output")
    if own in found and not overwrite:
        raise UserError(f"{own} is a dataset already; replace it with --overwrite")
    # In a bucket, a publication that was interrupted leaves a part.
    unfinished = in_bucket(output) and (output / INCOMPLETE / source).exists()
    if own.exists() and own not in found and not unfinished:
        raise UserError(f"{own} is in the way; give another --output")
    return own if own in found else None
