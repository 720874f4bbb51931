"""A bucket's server in a process of its own, for tests and benchmarks."""

import contextlib
import json
import os
import pathlib
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator

from benchmarks.data.bucket_emulator.server import CONTROL
from benchmarks.data.bucket_emulator.store import Store

# What tells the clients of gs:// to come here.
VARIABLES = (
    "CLOUD_STORAGE_EMULATOR_ENDPOINT",
    "STORAGE_EMULATOR_HOST",
    "TENSORSTORE_GCS_HTTP_URL",
)


def forget_file_systems() -> None:
    """Makes epath and fsspec ask anew what gs:// is, and where."""
    from etils.epath import backend  # which the server need not load

    backend._FileSystemSpecBackend._get_filesystem.cache_clear()
    if "gcsfs" in sys.modules:
        sys.modules["gcsfs"].GCSFileSystem.clear_instance_cache()


class Emulator:
    """A server in a process of its own, which can be gone for a while and come back."""

    def __init__(self, folder: pathlib.Path, **knobs: float):
        self.folder, self.knobs, self.port = folder, knobs, 0
        self.start()

    def start(self) -> None:
        """Starts it, at the port that it had."""
        flags = [f"--{name}={value}" for name, value in self.knobs.items()]
        command = [sys.executable, "-m", "benchmarks.data.bucket_emulator", str(self.folder)]
        self._process = subprocess.Popen(
            [*command, f"--port={self.port}", *flags],
            stdout=subprocess.PIPE,
            cwd=pathlib.Path(__file__).parents[3],
        )
        self.port = json.loads(self._process.stdout.readline())["port"]

    def stop(self) -> None:
        """Ends it: whoever is connected is cut off, and nobody can connect."""
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()

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
        forget_file_systems()
        try:
            yield
        finally:
            forget_file_systems()
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

    def settle(self, quiet: float = 0.3) -> None:
        """Waits until nothing is in flight and nobody has asked for `quiet` seconds.

        Clients may still repeat requests that nobody waits for any more.

        Raises:
          TimeoutError: if they don't end.
        """
        end, since, asked = time.monotonic() + 60, time.monotonic(), -1
        while time.monotonic() - since < quiet:
            counts = self.counts()
            if counts["in_flight"] or counts["requests"] != asked:
                since, asked = time.monotonic(), counts["requests"]
            if time.monotonic() > end:
                raise TimeoutError("somebody goes on asking the emulated bucket")
            time.sleep(0.02)

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
