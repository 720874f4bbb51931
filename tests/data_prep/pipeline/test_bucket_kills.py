"""A preparation into a bucket is killed by a request, and goes on to the same bytes."""

import os
import pathlib
import signal
import subprocess
import sys

import pytest

from benchmarks.data import bucket_emulator
from cavmae_sync_jax.data import dataset_dir
from cavmae_sync_jax.utils.errors import UserError

pytestmark = pytest.mark.release

# What a process does that is to be killed, and what this one does afterwards.
LITTLE = """
from faulty_clips import faulty
from data_prep.pipeline.clips import Preparation
from data_prep.pipeline.executors import Engine
from data_prep.pipeline.tfds_writer import write_dataset
write_dataset(
    OUTPUT,
    {"train": faulty("a", "b"), "eval": faulty("c")},
    Preparation(num_frames=2, image_size=16, clip_seconds=2),
    class_names=(),
    source="noise",
    engine=Engine(workers=1),
)
"""
HELPERS = pathlib.Path(__file__).parents[2] / "helpers"


def little(output):
    exec(LITTLE, {"OUTPUT": output})


def contents(store, prefix):
    """What was written, without the output's own name, which the summary has."""
    names, own = store.names("bucket", f"{prefix}/"), f"gs://bucket/{prefix}/".encode()
    found = {name.removeprefix(prefix): store.read("bucket", name, None)[0] for name in names}
    return {name: data.replace(own, b"") for name, data in found.items()}


@pytest.fixture
def bucket(bucket_server):
    bucket_server.turn(errors=0, latency_ms=0, kill=0)
    with bucket_server.pointed_at():
        yield bucket_server


def test_a_preparation_is_killed_by_requests_and_goes_on(bucket):
    store = bucket_emulator.Store(bucket.folder)
    little("gs://bucket/whole")
    requests, whole = bucket.counts()["requests"], contents(store, "whole")
    assert any(name.endswith("dataset_info.json") for name in whole)
    # While shards are written, and while the finished dataset is copied to its place.
    for moment in (0.3, 0.75):
        output = f"gs://bucket/killed{moment}"
        process = subprocess.Popen(
            [sys.executable, "-c", f"OUTPUT = {output!r}{LITTLE}"],
            env={**os.environ, "PYTHONPATH": f"{HELPERS}:{HELPERS.parents[1]}"},
        )
        bucket.turn(kill=process.pid, kill_at=int(moment * requests))
        assert process.wait(600) == -signal.SIGKILL
        with pytest.raises(UserError, match="holds none"):
            dataset_dir.find(output)
        with pytest.raises(UserError, match=rf"delete {output}/\.preparing"):
            little(output)
        store.path("bucket", f"killed{moment}/.preparing").unlink()
        little(output)
        assert contents(store, f"killed{moment}") == whole
