"""Locks for one process at a time; a killed process leaves its lock to the next one.

In a folder the operating system holds the lock (flock), and releases it when the process ends, in
whatever way. NFS of version 4 does the same for the machines that share it. A bucket has no locks.
There an object names the holder, who renews it, and an object that is too old is ignored.
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

from etils import epath

from cavmae_sync_jax.utils.buckets import bucket_files, in_bucket

# Of a lock in a bucket, in seconds: how often it is renewed, and when it counts as left behind.
RENEWED, STALE = 60.0, 600.0


class Busy(Exception):
    """Another process has the lock; `host` is its machine, where that is known."""

    def __init__(self, host: str | None = None):
        super().__init__(f"held on {host}" if host else "held by another process")
        self.host = host


@contextlib.contextmanager
def held(path: epath.PathLike) -> Iterator[None]:
    """Holds the lock at `path`, in an existing folder or in a bucket, until the context ends.

    A lock's file stays where it is: a lock on a file that another process removes is worth nothing.

    Raises:
      Busy: another process holds it.
      OSError: the file can't be written.
    """
    if in_bucket(path):
        with _in_bucket(path):
            yield
        return
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy from error
        yield


@contextlib.contextmanager
def _in_bucket(path: epath.PathLike) -> Iterator[None]:
    """Holds an object that only one process can make, and renews it as long as it lives."""
    files, name = bucket_files(path)
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
        if time.time() - other.get("time", 0.0) < STALE:
            raise Busy(other.get("host", "an unknown machine")) from error
        files.pipe_file(name, content())
        if read().get("id") != owner["id"]:
            raise Busy from error
    stop = threading.Event()

    def renew() -> None:
        while not stop.wait(RENEWED):
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
