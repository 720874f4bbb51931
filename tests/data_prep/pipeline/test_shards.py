import os

import faulty_clips
from etils import epath

from data_prep.pipeline import shards
from data_prep.pipeline.clips import Preparation


def test_a_shard_is_on_the_disk_before_its_mark_is_seen(tmp_path, monkeypatch):
    """After a power cut no mark may speak of records that the disk never got."""
    events = []
    fsync, replace = os.fsync, os.replace

    def recorded_fsync(descriptor):
        events.append(("fsync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def recorded_replace(source, destination):
        inode = os.stat(source).st_ino
        replace(source, destination)
        events.append((os.path.basename(destination), inode))

    monkeypatch.setattr(os, "fsync", recorded_fsync)
    monkeypatch.setattr(os, "replace", recorded_replace)
    planned = shards.plan({"train": faulty_clips.faulty("a", "b")})[0]
    job = shards.Job(
        shards.Schema((), 2, False, "float16"),
        Preparation(num_frames=2, image_size=16, clip_seconds=2),
    )
    results = ((clip, shards.prepare_record(clip, job)) for clip in planned.clips)
    shards.write_shard(planned, results, epath.Path(tmp_path))
    (first, data), (name, moved), (second, mark), (mark_name, mark_moved) = events
    assert (first, second) == ("fsync", "fsync") and (data, mark) == (moved, mark_moved)
    assert name == shards.data_path(epath.Path(tmp_path), planned).name
    assert mark_name == shards._mark_path(epath.Path(tmp_path), planned).name
