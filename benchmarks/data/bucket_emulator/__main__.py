"""Imitates Google Cloud Storage on this machine, with its latency and its faults.

    python -m benchmarks.data.bucket_emulator FOLDER --port=9023 --latency_ms=30
    export CLOUD_STORAGE_EMULATOR_ENDPOINT=http://127.0.0.1:9023     # ArrayRecord
    export STORAGE_EMULATOR_HOST=http://127.0.0.1:9023               # gcsfs and Google's Python
    export TENSORSTORE_GCS_HTTP_URL=http://127.0.0.1:9023            # Orbax

Serves the part of the JSON API that these clients use: objects are listed, read by ranges, written
(whole, in two parts or resumably), copied, moved, rewritten and deleted, alone or in batches, with
generations as preconditions. Objects are files in FOLDER, so that they outlive the server. It
listens on the loopback interface only and believes everybody.
"""

import argparse
import asyncio
import contextlib
import dataclasses
import pathlib

from benchmarks.data.bucket_emulator.api import Bucket
from benchmarks.data.bucket_emulator.server import Knobs, Server
from benchmarks.data.bucket_emulator.store import Store


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", help="folder that holds the objects")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; 0 takes a free one")
    for field in dataclasses.fields(Knobs):
        about = {"type": type(field.default), "help": field.metadata["help"]}
        parser.add_argument(f"--{field.name}", default=field.default, **about)
    given = vars(parser.parse_args())
    store, port = Store(pathlib.Path(given.pop("folder"))), given.pop("port")
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(Server(Bucket(store), Knobs(**given)).serve(port))


if __name__ == "__main__":
    main()
