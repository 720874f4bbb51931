"""Folders as labels: class/file, split/class/file, and what is neither."""

from pathlib import Path
from unittest import mock

import pytest
from calls import call_here
from etils import epath

from cavmae_sync_jax.utils.errors import UserError
from data_prep import videos
from data_prep.pipeline import summary
from data_prep.sources import csv_files, folder_labels
from data_prep.sources.video_files import Video


def labels_of(*names):
    found = folder_labels.read([Video(epath.Path("/v") / name, Path(name)) for name in names])
    return {str(video.name): (*row.labels, row.split) for video, row in found.rows.items()}


def test_classes_are_the_outermost_folders_below_the_splits():
    assert labels_of("dog/a.mp4", "cat/deep/b.mp4") == {
        "dog/a.mp4": ("dog", None),
        "cat/deep/b.mp4": ("cat", None),
    }
    assert labels_of("train/dog/a.mp4", "test/dog/b.mp4", "validate/cat/more/c.mp4") == {
        "train/dog/a.mp4": ("dog", "train"),
        "test/dog/b.mp4": ("dog", "eval"),
        "validate/cat/more/c.mp4": ("cat", "val"),
    }
    assert labels_of("Train/dog/a.mp4", "TEST/cat/b.mp4") == {
        "Train/dog/a.mp4": ("dog", "train"),
        "TEST/cat/b.mp4": ("cat", "eval"),
    }
    assert labels_of("dog/x/a.mp4") == {"dog/x/a.mp4": ("dog", None)}
    # An archive is what it holds.
    assert labels_of(
        "train.zip/dog/a.mp4", "test.tar.gz/test/dog/b.mp4", "train/part_1.tar/cat/c.mp4"
    ) == {
        "train.zip/dog/a.mp4": ("dog", "train"),
        "test.tar.gz/test/dog/b.mp4": ("dog", "eval"),
        "train/part_1.tar/cat/c.mp4": ("cat", "train"),
    }
    assert labels_of("dog.zip/a.mp4", "cat.tar/cat/b.mp4", "all.zip/owl/c.mp4") == {
        "dog.zip/a.mp4": ("dog", None),
        "cat.tar/cat/b.mp4": ("cat", None),
        "all.zip/owl/c.mp4": ("owl", None),
    }
    # A space behind a name is lost where TFDS reads it again.
    assert labels_of("dog/a.mp4", "dog /b.mp4")["dog /b.mp4"] == ("dog", None)
    # A class may be called so, beside others.
    assert labels_of("train/a.mp4", "bus/b.mp4")["train/a.mp4"] == ("train", None)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("a.mp4",), "/v/a.mp4 lies in no folder of a class: files must be class/file"),
        (("dog/a.mp4", "b.mp4"), "/v/b.mp4 lies in no folder"),
        (("train/dog/a.mp4", "test/b.mp4"), "files must be split/class/file"),
        (("train/dog/a.mp4", "extra/dog/b.mp4"), "in a split, but 'extra' is none of train"),
        (
            ("UCF/dog/a.mp4", "UCF/cat/b.mp4"),
            "would be of the class 'UCF'.*'cat', 'dog'",
        ),
        (
            ("dog.zip/videos/a.mp4", "cat.zip/videos/b.mp4"),
            "would be of the class 'videos'.*'cat.zip', 'dog.zip' …, give the .*, or unpack them",
        ),
        (("UCF/train/dog/a.mp4", "UCF/test/cat/b.mp4"), "would be of the class 'UCF'"),
    ],
)
def test_other_layouts_are_told_in_a_sentence(names, message):
    with pytest.raises(UserError, match=message):
        labels_of(*names)


def test_the_program_labels_by_folders(tmp_path, capsys):
    for name in ("train/dog/a", "train/cat/b", "test/cat/c"):
        path = tmp_path / "in" / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    flags = [str(tmp_path / "in"), "--labels_from=folders", f"--output={tmp_path / 'out'}"]
    with mock.patch.object(videos.flags, "write", wraps=videos.flags.write) as write:
        videos.run(videos._parser().parse_args([*flags, "--dry_run"]))
    assert "Split eval: clips 1, files 1." in capsys.readouterr().out
    (_, splits, _), settings = write.call_args
    labels = {clip.clip_id: clip.labels for clips in splits.values() for clip in clips}
    assert labels == {"a": ("dog",), "b": ("cat",), "c": ("cat",)}
    assert settings["class_names"] == ("cat", "dog")
    status, _, said = call_here("data_prep.videos", *flags, "--labels=x.csv")
    assert status == 2 and "leave out --labels and --segments" in said


def test_a_class_is_the_same_from_every_machine(tmp_path):
    composed, parted = "Caf\u00e9", "Cafe\u0301"  # Macs write the second
    found = labels_of(f"train/{composed}/a.mp4", f"test/{parted}/b.mp4")
    assert {row[0] for row in found.values()} == {composed}
    (tmp_path / "labels.csv").write_text(f"video,label\na,{composed}\nb,{parted}\n")
    rows = csv_files.read_labels(tmp_path / "labels.csv", lambda name: [name]).rows
    assert rows["a"].labels == rows["b"].labels == (composed,)


def test_classes_that_are_written_nearly_the_same_are_told():
    names = ["Dog", "dog", "dog barking", "dog_barking", "cat", "C", "C++"]
    said = "Classes that may be one, but stay apart: 'Dog' and 'dog'; 'dog barking' and"
    assert summary.alike_report(names).startswith(said)
    assert summary.alike_report(names[4:]) == ""
