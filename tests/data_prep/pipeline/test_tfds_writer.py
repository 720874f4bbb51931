"""Clips to a TFDS dataset and back, without TensorFlow; what is refused, and what is rejected."""

import csv
import io
import json
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds
from media_files import make_video, number, tone
from PIL import Image

from cavmae_sync_jax.data import loader
from cavmae_sync_jax.media import audio
from cavmae_sync_jax.utils.errors import UserError
from data_prep.pipeline import tfds_writer
from data_prep.pipeline.clips import Preparation, Reject, VideoClip, prepare_clip
from data_prep.pipeline.executors import Engine
from data_prep.pipeline.tfds_writer import write_dataset

PREPARATION = Preparation(num_frames=4, image_size=32, clip_seconds=4)
NAMES = ("dog", "cat")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    return make_video(tmp_path_factory.mktemp("media") / "a.mp4", seconds=3, fps=10)


@pytest.fixture(scope="module")
def silent(tmp_path_factory):
    waves = np.zeros((1, 48_000))
    return make_video(tmp_path_factory.mktemp("media") / "silent.mp4", waves=waves)


def decode(data):
    return np.asarray(Image.open(io.BytesIO(data)))


def write(output, splits, **settings):
    settings = {"class_names": NAMES, "source": "little", "engine": Engine(workers=1)} | settings
    return write_dataset(output, splits, PREPARATION, **settings)


def records(summary, split):
    return list(tfds.builder_from_directory(summary.directory).as_data_source(split=split))


def rejects_in(output):
    with (output / "rejects.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def truth(tmp_path):
    mask = np.zeros((4, 48, 64), bool)
    mask[:, :, 32:] = True  # the right half
    mask[3] = False
    fields = {
        "frame_class": np.array([0, 1, 1, -1]),
        "frame_mask": mask,
        "event_class": np.array([0, 1]),
        "event_start": np.array([0.0, 0.7], np.float32),
        "event_end": np.array([0.5, 2.0], np.float32),
    }

    def save(**changes):
        path = tmp_path / "truth.npz"
        np.savez(path, **fields | changes)
        return str(path)

    return save


def test_an_example_holds_the_clip(video):
    example = prepare_clip(VideoClip("a", str(video), labels=("cat",)), PREPARATION)
    assert set(example) == {"clip_id", "frames", "fbank", "seconds", "notes", "labels"}
    images = [decode(jpeg) for jpeg in example["frames"]]
    assert [image.shape for image in images] == [(32, 32, 3)] * 4
    assert [number(image) for image in images] == [0, 7, 15, 22]
    assert example["fbank"].dtype == np.float16
    assert example["labels"] == ["cat"]
    expected = audio.log_mel(tone(440, 3, 16_000), audio.SAMPLE_RATE)
    assert example["fbank"].shape == expected.shape == (298, 128)
    # AAC changes what is quiet; the tone's own bins stay.
    loud = expected.mean(axis=0) > 0
    assert loud.any()
    np.testing.assert_allclose(example["fbank"].mean(0)[loud], expected.mean(0)[loud], atol=0.2)


def test_a_span_of_a_file(video):
    example = prepare_clip(VideoClip("a", str(video), 1.0, 2.2), PREPARATION)
    assert [number(decode(jpeg)) for jpeg in example["frames"]] == [10, 13, 16, 19]
    assert len(example["fbank"]) == 118


def test_without_an_end_a_clip_has_the_nominal_length(tmp_path):
    path = make_video(tmp_path / "long.mp4", seconds=6, fps=5)
    assert len(prepare_clip(VideoClip("a", str(path)), PREPARATION)["fbank"]) == 398


@pytest.mark.parametrize("level", [0.0, 0.5])
def test_sound_that_never_changes_is_rejected(tmp_path, level):
    waves = np.full((1, 48_000), level)
    path = make_video(tmp_path / "flat.mov", codecs=("mpeg4", "pcm_s16le"), waves=waves)
    result = prepare_clip(VideoClip("a", str(path)), PREPARATION)
    assert isinstance(result, Reject)
    assert (result.clip_id, result.path, result.reason) == ("a", str(path), "silent")


def test_short_clips_are_rejected(video):
    result = prepare_clip(VideoClip("a", str(video), 2.5), PREPARATION)
    assert isinstance(result, Reject)
    assert result.reason == "too_short"


def test_truth_has_the_frames_geometry(video, truth):
    example = prepare_clip(VideoClip("a", str(video), truth=truth()), PREPARATION)
    masks = [decode(png) for png in example["frame_mask"]]
    assert {mask.dtype for mask in masks} == {np.dtype(bool)}
    assert {mask.shape for mask in masks} == {(32, 32)}
    assert masks[0][:, 16:].all()
    assert not masks[0][:, :16].any()
    assert not masks[3].any()
    np.testing.assert_array_equal(example["frame_class"], [0, 1, 1, -1])
    # The file says nothing of a silent object.
    assert example["frame_silent_mask"] == [] and len(example["frame_silent_class"]) == 0
    quiet = np.zeros((4, 48, 64), bool)
    quiet[1, :, :32] = True
    silent = {"frame_silent_class": np.array([-1, 0, -1, -1]), "frame_silent_mask": quiet}
    example = prepare_clip(VideoClip("a", str(video), truth=truth(**silent)), PREPARATION)
    masks = np.stack([decode(png) for png in example["frame_silent_mask"]])
    assert masks[1, :, :16].all() and masks.sum() == 32 * 16
    np.testing.assert_array_equal(example["frame_silent_class"], [-1, 0, -1, -1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frame_silent_class": np.zeros(4, int)}, "frame_silent_mask of other shapes"),
        ({"frame_silent_mask": np.zeros((4, 48, 64), bool)}, "write both"),
        ({"frame_class": np.zeros(5, int)}, "frame_class"),
        ({"frame_mask": np.zeros((4, 64, 48), bool)}, "frame_mask"),
        ({"frame_mask": np.zeros((4, 48, 64))}, "frame_mask"),
        ({"event_end": np.zeros(3, np.float32)}, "different lengths"),
        ({"frame_class": np.array([None] * 4)}, "isn't a readable truth file"),
    ],
)
def test_truth_that_does_not_fit_is_refused(video, truth, changes, message):
    with pytest.raises(UserError, match=message):
        prepare_clip(VideoClip("a", str(video), truth=truth(**changes)), PREPARATION)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_frames": 0},
        {"image_size": 4},
        {"clip_seconds": 0.5},
        {"min_seconds": 0.0},
        {"clip_seconds": float("nan")},
        {"jpeg_quality": 101},
        {"audio_channel": "left"},
    ],
)
def test_impossible_preparations_are_refused(settings):
    with pytest.raises(UserError, match=next(iter(settings))):
        Preparation(**settings)


def test_a_dataset_comes_back_as_it_was_written(tmp_path, video, silent):
    train = [VideoClip(f"t{i}", str(video), i * 0.5, labels=NAMES[: i + 1]) for i in range(2)]
    bad = VideoClip("bad", str(silent))
    summary = write(tmp_path, {"train": [*train, bad], "eval": [VideoClip("e", str(video))]})
    assert summary.directory == tmp_path / "little" / tfds_writer.VERSION
    assert summary.examples == {"train": 2, "eval": 1}
    by_id = {record["clip_id"].decode(): record for record in records(summary, "train")}
    assert set(by_id) == {"t0", "t1"}
    for clip in train:
        expected, found = prepare_clip(clip, PREPARATION), by_id[clip.clip_id]
        assert list(found["frames"]) == expected["frames"]
        np.testing.assert_array_equal(found["fbank"], expected["fbank"])
        assert found["fbank"].dtype == np.float16
        assert [NAMES[label] for label in found["labels"]] == list(clip.labels)
    assert list(records(summary, "eval")[0]["labels"]) == []
    builder = tfds.builder_from_directory(summary.directory)
    assert builder.info.features["labels"].feature.names == list(NAMES)
    metadata = builder.info.metadata
    assert metadata.pop("code_version")
    assert metadata.pop("longest_rows") == 298
    assert set(metadata.pop("contents")) == {"train", "eval"}
    assert metadata == {
        "source": "little",
        "class_names": list(NAMES),
        "has_truth": False,
        "preparation": {
            "num_frames": 4,
            "image_size": 32,
            "clip_seconds": 4,
            "min_seconds": 1.0,
            "jpeg_quality": 95,
            "fbank_dtype": "float16",
            "audio_channel": "first",
        },
    }
    assert [reject.reason for reject in summary.rejects] == ["silent"]
    assert [(row["clip_id"], row["reason"]) for row in rejects_in(tmp_path)] == [("bad", "silent")]
    assert "3 examples: 2 in train, 1 in eval" in summary.report()
    assert "1 silent" in summary.report()
    assert str(tmp_path / "rejects.csv") in summary.report()
    assert {path.name for path in tmp_path.iterdir()} == {"little", "rejects.csv", "summary.json"}


def test_the_contents_tell_datasets_of_the_same_size_apart(tmp_path):
    video, other = (
        make_video(tmp_path / f"{hertz}.mp4", seconds=3, fps=10, waves=tone(hertz, 3, 48_000)[None])
        for hertz in (300, 900)
    )
    found = []
    for place, path, label in (
        ("first", video, "dog"),
        ("same", video, "dog"),
        ("sound", other, "dog"),
        ("label", video, "cat"),
    ):
        clips = {"train": [VideoClip("a", str(path), labels=(label,))]}
        found.append(loader.Records(write(tmp_path / place, clips).directory, "train"))
    assert len({records.identity for records in found}) == 1
    contents = [records.contents for records in found]
    assert contents[0] == contents[1] and len(set(contents)) == 3
    # A dataset of version 0.1.0 has no hash of its records, but perhaps an index with the labels.
    for records in found:
        path = records.directory / "metadata.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"contents": {}}))
    older = [loader.Records(records.directory, "train").contents for records in found]
    assert older[0] == older[1] != older[3] and not set(older) & set(contents)


def test_truth_comes_back(tmp_path, video, truth):
    summary = write(tmp_path / "out", {"eval": [VideoClip("a", str(video), truth=truth())]})
    record = records(summary, "eval")[0]
    np.testing.assert_array_equal(record["frame_class"], [0, 1, 1, -1])
    assert decode(record["frame_mask"][1])[:, 16:].all()
    np.testing.assert_array_equal(record["events"]["class"], [0, 1])
    np.testing.assert_allclose(record["events"]["start"], [0.0, 0.7])
    np.testing.assert_allclose(record["events"]["end"], [0.5, 2.0])
    assert tfds.builder_from_directory(summary.directory).info.metadata["has_truth"]


def test_the_number_of_workers_changes_nothing(tmp_path, video):
    clips = [VideoClip(f"c{i}", str(video), i * 0.3) for i in range(5)]
    one = write(tmp_path / "1", {"train": clips}, engine=Engine(workers=1))
    two = write(tmp_path / "2", {"train": clips[::-1]}, engine=Engine(workers=2))
    ids = [[record["clip_id"] for record in records(s, "train")] for s in (one, two)]
    assert ids[0] == ids[1]


def test_an_existing_dataset_stays_until_its_successor_is_complete(tmp_path, video, silent):
    good = {"train": [VideoClip("old", str(video))]}
    write(tmp_path, good)
    with pytest.raises(UserError, match="--overwrite"):
        write(tmp_path, good)
    with pytest.raises(UserError, match=r"none of the 1 clips .*1 silent"):
        write(tmp_path, {"train": [VideoClip("bad", str(silent))]}, overwrite=True)
    assert rejects_in(tmp_path) == []
    assert {path.name for path in tmp_path.iterdir()} == {"little", "rejects.csv", "summary.json"}
    with pytest.raises(UserError, match="little is another dataset; give another --output"):
        write(tmp_path, good, overwrite=True, source="other")
    new = write(tmp_path, {"train": [VideoClip("new", str(video))]}, overwrite=True)
    assert [record["clip_id"] for record in records(new, "train")] == [b"new"]
    assert {path.name for path in tmp_path.iterdir()} == {"little", "rejects.csv", "summary.json"}


def test_a_failure_leaves_no_dataset_but_the_rejects(tmp_path, silent):
    with pytest.raises(UserError, match="none of the 1 clips"):
        write(tmp_path / "out", {"train": [VideoClip("bad", str(silent))]})
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"rejects.csv", "summary.json"}
    assert rejects_in(tmp_path / "out")[0]["path"] == str(silent)


def test_a_users_folder_is_never_replaced(tmp_path, video):
    mine = tmp_path / "little" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("keep")
    with pytest.raises(UserError, match="in the way"):
        write(tmp_path, {"train": [VideoClip("a", str(video))]}, overwrite=True)
    with pytest.raises(UserError, match="is a file"):
        write(mine, {"train": [VideoClip("a", str(video))]})
    with pytest.raises(UserError, match="can't be written to"):
        write(mine / "below", {"train": [VideoClip("a", str(video))]})
    assert mine.read_text() == "keep"


@pytest.mark.parametrize(
    ("splits", "settings", "message"),
    [
        (
            {"train": [VideoClip("a", "x.mp4")], "eval": [VideoClip("a", "y.mp4")]},
            {},
            r"x\.mp4 and y\.mp4",
        ),
        ({"train": []}, {}, "no clip for the split 'train'"),
        ({"train": [VideoClip("a", "x.mp4", labels=("cow",))]}, {}, "cow"),
        (
            {"train": [VideoClip("a", "x", truth="t"), VideoClip("b", "y")]},
            {},
            "some clips have a truth",
        ),
        ({"train": [VideoClip("a", "x")]}, {"class_names": ("dog", "dog")}, "class names"),
    ],
)
def test_clips_that_make_no_dataset(tmp_path, splits, settings, message):
    with pytest.raises(UserError, match=message):
        write(tmp_path / "out", splits, **settings)
    assert not (tmp_path / "out").exists()


def test_preparing_needs_neither_jax_nor_tensorflow():
    code = (
        "import sys, data_prep.pipeline.tfds_writer; "
        "assert not {'jax', 'tensorflow'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
