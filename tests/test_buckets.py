"""Results go to gs:// as they go to a folder; the bucket is a file system in memory."""

import collections
import json
import os
import time
from typing import ClassVar

import fsspec
import numpy as np
import pytest
from ade20k_folders import Published, ids_of
from etils import epath
from faulty_clips import faulty
from fsspec.implementations.memory import MemoryFileSystem
from media_files import make_video

from benchmarks.data import bucket_emulator
from cavmae_sync_jax.checkpoints import manager
from cavmae_sync_jax.data import dataset_dir
from cavmae_sync_jax.evals import retrieval, summary
from cavmae_sync_jax.training import metric_writer
from cavmae_sync_jax.utils.errors import UserError
from data_prep import ade20k_sound
from data_prep.pipeline import bucket_ranges, output
from data_prep.pipeline.clips import Preparation, VideoClip, prepare_clip
from data_prep.pipeline.executors import Engine
from data_prep.pipeline.tfds_writer import write_dataset
from data_prep.sources import lengths, video_files


class Bucket(MemoryFileSystem):
    """Google Cloud Storage's protocol, without its network."""

    protocol = ("gcs", "gs")
    store: ClassVar = {}
    pseudo_dirs: ClassVar = [""]

    def _open(self, path, mode="rb", **kwargs):
        return super()._open(path, mode.replace("a", "w"), **kwargs)  # as objects can't grow

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(str(path).removeprefix("gs://").removeprefix("gcs://"))


@pytest.fixture
def bucket(monkeypatch):
    before = fsspec.get_filesystem_class("gcs")
    fsspec.register_implementation("gcs", Bucket, clobber=True)
    bucket_emulator.forget_file_systems()
    yield "gs://bucket"
    bucket_emulator.forget_file_systems()
    Bucket.store.clear()
    Bucket.pseudo_dirs[:] = [""]
    fsspec.register_implementation("gcs", before, clobber=True)


def test_an_evaluation_and_the_summary_write_to_a_bucket(bucket, tmp_path, capsys):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "other.npz", audio=rng.normal(size=(4, 1, 8)), visual=np.eye(4, 8)[:, None])
    result = retrieval.run_embeddings(tmp_path / "other.npz", f"{bucket}/evals")
    written = epath.Path(bucket) / "evals/retrieval.json"
    assert json.loads(written.read_text()) == result
    summary.run(f"{bucket}/evals", f"{bucket}/results.json", page=f"{bucket}/report.html")
    assert json.loads((epath.Path(bucket) / "results.json").read_text()) == {"retrieval": result}
    assert "<html" in (epath.Path(bucket) / "report.html").read_text()
    assert not list(tmp_path.glob("gs:*"))


def test_metrics_in_a_bucket_are_appended_and_dropped(bucket, monkeypatch):
    class Board:
        def __init__(self, path, purge_step=None, max_queue=None):
            assert path == f"{bucket}/run"

        def add_scalar(self, *args):
            pass

        def close(self):
            pass

    monkeypatch.setattr("tensorboardX.SummaryWriter", Board)
    writer = metric_writer.Writer(epath.Path(bucket) / "run")
    for step in (1, 2, 3):
        writer.write(step, "train", {"loss": step / 2})
    writer.drop_after(2)
    writer = metric_writer.Writer(epath.Path(bucket) / "run")  # of the resumed run
    writer.write(3, "train", {"loss": 7.0})
    writer.write(4, "train", {"loss": 8.0})
    writer.close()
    lines = (epath.Path(bucket) / "run/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    assert json.loads(lines[2])["loss"] == 7


def test_a_dataset_is_written_to_a_bucket_and_replaced(bucket, tmp_path):
    clips = faulty("a", "b", "bug")
    settings = {"class_names": (), "source": "noise", "engine": Engine(workers=1)}
    for overwrite in (False, True):
        summary = write_dataset(
            f"{bucket}/data",
            {"train": clips, "eval": faulty("c")},
            Preparation(num_frames=2, image_size=16, clip_seconds=2),
            overwrite=overwrite,
            **settings,
        )
    assert summary.examples == {"train": 2, "eval": 1}
    local = write_dataset(
        tmp_path,
        {"train": clips, "eval": faulty("c")},
        Preparation(num_frames=2, image_size=16, clip_seconds=2),
        **settings,
    )
    stored = epath.Path(bucket) / "data/noise/1.0.0"
    for path in local.directory.iterdir():
        if "array_record" in path.name:
            assert (stored / path.name).read_bytes() == path.read_bytes()
    assert (stored / "dataset_info.json").exists()
    rejects = (epath.Path(bucket) / "data/rejects.csv").read_text()
    assert "ZeroDivisionError" in rejects
    left = {path.name for path in (epath.Path(bucket) / "data").iterdir()}
    assert left == {"noise", "rejects.csv", "summary.json"}
    assert not list(tmp_path.glob("gs:*"))


def little(bucket, **settings):
    return write_dataset(
        f"{bucket}/data",
        {"train": faulty("a", "b")},
        Preparation(num_frames=2, image_size=16, clip_seconds=2),
        **{"class_names": (), "source": "noise", "engine": Engine(workers=1)} | settings,
    )


@pytest.mark.parametrize("replaces", [False, True])
def test_a_kill_while_a_bucket_gets_its_dataset_leaves_none_or_all(
    bucket, monkeypatch, capsys, replaces
):
    if replaces:
        little(bucket)
    place, copy, done = f"{bucket}/data/noise/1.0.0/", epath.Path(bucket).__class__.copy, []

    def killed(self, target, **settings):
        if str(target).startswith(place):
            done.append(str(target))
            if len(done) == 2:
                raise KeyboardInterrupt
        return copy(self, target, **settings)

    monkeypatch.setattr(epath.Path(bucket).__class__, "copy", killed)
    with pytest.raises(KeyboardInterrupt):
        little(bucket, overwrite=replaces)
    assert not any(name.endswith("dataset_info.json") for name in done)
    with pytest.raises(UserError, match="must hold one prepared dataset, but it holds none"):
        dataset_dir.find(f"{bucket}/data/noise")
    summary = little(bucket)
    assert "1 of 1 shards are finished already" in capsys.readouterr().out
    assert summary.examples == {"train": 2} and done[-1].endswith("dataset_info.json")
    assert dataset_dir.find(f"{bucket}/data") == summary.directory
    left = {path.name for path in (epath.Path(bucket) / "data").iterdir()}
    assert left == {"noise", "rejects.csv", "summary.json"}


def test_a_bucket_is_prepared_by_one_process_at_a_time(bucket):
    folder = epath.Path(f"{bucket}/data")
    lock = folder / ".preparing"
    with output.workplace(folder, "x"):
        with pytest.raises(UserError, match="a process is preparing gs://bucket/data"):
            little(bucket)
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    assert not lock.exists()
    lock.write_text(json.dumps({"host": "gone", "time": time.time() - 3600}))  # of a killed one
    assert little(bucket).examples == {"train": 2}
    assert not lock.exists()


def test_clips_are_read_from_a_bucket(bucket, tmp_path):
    path = make_video(tmp_path / "a.mp4", seconds=2, fps=5)
    epath.Path(path).copy(f"{bucket}/videos/a.mp4")
    found = video_files.find_videos([f"{bucket}/videos"])
    assert [(str(video.path), video.name.name) for video in found] == [
        (f"{bucket}/videos/a.mp4", "a.mp4")
    ]
    small = Preparation(num_frames=2, image_size=16)
    here = prepare_clip(VideoClip("a", str(path)), small)
    there = prepare_clip(VideoClip("a", str(found[0].path)), small)
    assert here["frames"] == there["frames"]
    np.testing.assert_array_equal(here["fbank"], there["fbank"])
    gone = prepare_clip(VideoClip("a", f"{bucket}/videos/b.mp4"), small)
    assert gone.reason == "missing" and f"{bucket}/videos/b.mp4" in gone.detail


LARGE = {"seconds": 12, "fps": 25, "rate": 48_000, "interleave": True, "size": (320, 240)}


def moving(index, size):
    """Noise that grows brighter, so that a file is large."""
    noise = np.random.default_rng(index).integers(0, 60, (size[1], size[0], 3), np.uint8)
    return noise + np.uint8(index // 2)


@pytest.mark.parametrize(
    ("name", "codecs"),
    [
        ("a.mp4", ("mpeg4", "aac")),
        ("a.mkv", ("mpeg4", "ac3")),
        ("a.ts", ("mpeg2video", "mp2")),
        ("a.avi", ("mpeg4", "mp3")),
        ("a.mpg", ("mpeg2video", "mp2")),
    ],
)
def test_of_a_video_in_a_bucket_only_parts_are_read(bucket, tmp_path, monkeypatch, name, codecs):
    path = make_video(tmp_path / name, codecs=codecs, picture=moving, **LARGE)
    epath.Path(path).copy(f"{bucket}/{name}")
    monkeypatch.setattr(bucket_ranges, "BLOCK", 2**14)
    monkeypatch.setattr(bucket_ranges, "KEPT", 1000)
    asked, ask = [], Bucket.cat_file

    def cat_file(self, path, start=None, end=None, **more):
        asked.append((start, end))
        return ask(self, path, start=start, end=end, **more)

    monkeypatch.setattr(Bucket, "cat_file", cat_file)
    small = Preparation(num_frames=4, image_size=16)
    for start, end in ((7.0, 8.5), (0.0, 1.5)):
        here = prepare_clip(VideoClip("a", str(path), start, end), small)
        there = prepare_clip(VideoClip("a", f"{bucket}/{name}", start, end), small)
        assert here["frames"] == there["frames"] and here["seconds"] == there["seconds"]
        np.testing.assert_array_equal(here["fbank"], there["fbank"])
    assert len(set(asked)) == len(asked)  # nothing is asked for twice
    size = path.stat().st_size
    assert sum(end - start for start, end in asked) < 0.9 * size  # probing takes much of it
    assert lengths.duration(f"{bucket}/{name}") == lengths.duration(str(path))


@pytest.mark.parametrize("good", [0, 1, 5])
def test_a_bucket_that_stops_answering_makes_no_shorter_clip(bucket, tmp_path, monkeypatch, good):
    # Without an index, FFmpeg takes a part that does not come for the end of the file.
    path = make_video(tmp_path / "a.ts", codecs=("mpeg2video", "mp2"), picture=moving, **LARGE)
    epath.Path(path).copy(f"{bucket}/a.ts")
    monkeypatch.setattr(bucket_ranges, "BLOCK", 2**16)
    ask, calls = Bucket.cat_file, iter(range(10**6))

    def cat_file(self, path, start=None, end=None, **more):
        if next(calls) >= good:
            raise ConnectionResetError("gone")
        return ask(self, path, start=start, end=end, **more)

    monkeypatch.setattr(Bucket, "cat_file", cat_file)
    with pytest.raises(OSError, match=r"a\.ts could not be read from its bucket: .*gone"):
        prepare_clip(VideoClip("a", f"{bucket}/a.ts"), Preparation(num_frames=4, image_size=16))


def test_a_video_that_is_replaced_is_read_anew(bucket, tmp_path):
    for seconds in (3, 5):
        path = make_video(tmp_path / "a.mp4", seconds=seconds)
        epath.Path(path).copy(f"{bucket}/a.mp4", overwrite=True)
        assert lengths.duration(f"{bucket}/a.mp4") == pytest.approx(seconds, abs=0.1)


def test_ade20k_sound_is_read_from_a_bucket(bucket, tmp_path):
    published = Published(tmp_path / "published")
    published.image("a.jpg", ids_of(300, 5))
    published.sound("dog.wav", 0.3 * np.random.default_rng(0).normal(size=16_000).clip(-1, 1))
    published.row("a.jpg", "x/dog.wav", 5)
    folder = published.save()
    for path in folder.rglob("*.*"):
        target = epath.Path(f"{bucket}/ADE/{path.relative_to(folder)}")
        target.parent.mkdir(parents=True, exist_ok=True)
        epath.Path(path).copy(target)
    (here,), (there,) = (ade20k_sound.read_table(place).rows for place in (folder, f"{bucket}/ADE"))
    assert there.path == f"{bucket}/ADE/frames/a.jpg"
    small = Preparation(num_frames=1, image_size=32)
    expected, found = prepare_clip(here, small), prepare_clip(there, small)
    assert found["frames"] == expected["frames"] and found["frame_mask"] == expected["frame_mask"]
    np.testing.assert_array_equal(found["fbank"], expected["fbank"])
    with pytest.raises(UserError, match=r"gs://bucket/none has no prompted_segmentation\.csv"):
        ade20k_sound.read_table(f"{bucket}/none")


def test_a_bucket_is_listed_once_and_what_else_is_there_counted(bucket, monkeypatch):
    names = ["videos/b.mp4", "videos/sub/a.MKV", "videos/n.txt", "videos/.x/c.mp4", "videos/.d.mp4"]
    for name in [*names, "videos2/e.mp4", "videos/f.mp4.part"]:
        epath.Path(f"{bucket}/{name}").write_bytes(b"")
    asked, find = [], Bucket.find
    monkeypatch.setattr(Bucket, "find", lambda *a, **k: asked.append(a) or find(*a, **k))
    for name in ("info", "exists", "isfile"):
        monkeypatch.setattr(Bucket, name, lambda self, path, **k: asked.append(path) or {})
    monkeypatch.setattr(epath.Path(bucket).__class__, "is_dir", lambda self: True)
    skipped = collections.Counter()
    found = video_files.find_videos([f"{bucket}/videos"], skipped)
    assert [video.name.as_posix() for video in found] == ["b.mp4", "sub/a.MKV"]
    assert str(found[1].path) == f"{bucket}/videos/sub/a.MKV"
    assert skipped == {".txt": 1, ".part": 1} and len(asked) == 1


def test_names_of_all_kinds_are_found_by_the_folder_and_by_a_list_here(bucket, tmp_path):
    names = ["100%.mp4", "[1].mp4", "a b.mp4", "q?.mp4", "sub/x#1.mp4"]
    for name in names:
        epath.Path(f"{bucket}/v/{name}").parent.mkdir(parents=True, exist_ok=True)
        epath.Path(f"{bucket}/v/{name}").write_bytes(b"")
    (tmp_path / "list.txt").write_text("".join(f"{bucket}/v/{name}\n" for name in names))
    for source in (f"{bucket}/v", str(tmp_path / "list.txt")):
        found = video_files.find_videos([source])
        assert [str(video.path) for video in found] == [f"{bucket}/v/{name}" for name in names]


def test_an_archive_in_a_bucket_is_told(bucket, tmp_path):
    epath.Path(f"{bucket}/v").mkdir(parents=True, exist_ok=True)
    epath.Path(f"{bucket}/v/a.tar").write_bytes(b"")
    with pytest.raises(UserError, match=r"a\.tar is an archive in a bucket: copy it"):
        video_files.find_videos([f"{bucket}/v/a.tar"])
    with pytest.raises(UserError, match=r"1 \.tar: an archive in a bucket is not read there"):
        video_files.find_videos([f"{bucket}/v"])


def test_orbax_gets_the_buckets_own_name(bucket, monkeypatch):
    seen = []
    monkeypatch.setattr(manager, "_manager", lambda folder, options: seen.append(folder))
    manager.Checkpoints(f"{bucket}/run", keep=1)
    assert str(seen[0]) == "gs://bucket/run/checkpoints"
