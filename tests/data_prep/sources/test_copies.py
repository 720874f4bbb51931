"""Copies of a file are one file, however they are called; other files of one name are others."""

import json
import shutil
import zipfile

import pytest
from media_files import make_video

from cavmae_sync_jax.utils.errors import UserError
from data_prep import videos
from data_prep.sources import csv_files, folder_labels, video_files


def find(root):
    return video_files.without_copies(video_files.find_videos([str(root)]))


def folder(root, contents):
    for name, content in contents.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


@pytest.mark.parametrize(
    "name",
    ["a (1).mp4", "a(2).mp4", "a - Copy.mp4", "a - Copy (2).mp4", "a copy.mp4", "a copy 2.mp4",
     "Copy of a.mp4", "A.MP4", "sub/a.mp4"],
)  # fmt: skip
def test_a_copy_is_the_same_file(tmp_path, name):
    (video,) = find(folder(tmp_path, {"a.mp4": b"xyz", name: b"xyz"}))
    assert {one.as_posix() for one in video.names} == {"a.mp4", name}
    assert len(find(folder(tmp_path, {name: b"xy!"}))) == 2  # of one size
    assert len(find(folder(tmp_path, {name: b"xyz!"}))) == 2


def test_other_names_and_empty_files_are_not_compared(tmp_path):
    contents = {"a.mp4": b"xyz", "b.mp4": b"xyz", "a1.mp4": b"xyz", "c.mp4": b"", "s/c.mp4": b""}
    assert len(find(folder(tmp_path, contents))) == 5


def test_an_archive_that_lies_beside_its_files_gives_none_twice(tmp_path):
    folder(tmp_path, {"x/a.mp4": b"xyz", "x/b.mp4": b"123"})
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as packed:
        for name in ("a.mp4", "b.mp4"):
            packed.write(tmp_path / "x" / name, name)
        packed.writestr("c.mp4", b"new")
    assert [video.name.name for video in find(tmp_path)] == ["a.mp4", "b.mp4", "c.mp4"]


def test_copies_have_the_labels_of_all_their_folders_and_one_split(tmp_path):
    (video,) = found = find(folder(tmp_path / "in", {"dog/a.mp4": b"xyz", "cat/a.mp4": b"xyz"}))
    assert set(folder_labels.read(found).rows[video].labels) == {"dog", "cat"}
    table = tmp_path / "labels.csv"
    table.write_text("video,label\ndog/a.mp4,loud\ncat/a.mp4,old\n")
    read = csv_files.read_labels(table, video_files.Names(found).called)
    assert read.rows == {video: csv_files.LabelRow(("loud", "old"), None)}
    contents = {"train/dog/a.mp4": b"xyz", "test/dog/a.mp4": b"xyz"}
    with pytest.raises(UserError, match="one file in two splits"):
        folder_labels.read(find(folder(tmp_path / "two", contents)))


def test_files_of_one_name_in_two_sources_have_ids_of_their_own(tmp_path):
    for source, content in (("A", b"xyz"), ("B", b"123")):
        folder(tmp_path / source, {"a.mp4": content, f"{source}.mp4": content})
        folder(tmp_path / "more" / source, {"a.mp4": content * 2})
    found = video_files.find_videos([str(tmp_path / "A"), str(tmp_path / "B")])
    assert video_files.clip_ids(found) == ["A", "A__a.mp4", "B", "B__a.mp4"]
    sources = [tmp_path / "A", tmp_path / "more/A"]  # these have one name, too
    ids = video_files.clip_ids(video_files.find_videos(map(str, sources)))
    assert len(set(ids)) == 3 and ids[0] == "A"


def test_the_program_counts_a_copy_once(tmp_path, capsys):
    make_video(tmp_path / "in.mp4", seconds=2)
    for name in ("in/a.mp4", "in/a (1).mp4", "in/b.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(tmp_path / "in.mp4", tmp_path / name)
    flags = ("--num_frames=2", "--image_size=32", "--workers=1", "--eval_share=0")
    given = [str(tmp_path / "in"), f"--output={tmp_path / 'out'}", *flags]
    videos.run(videos._parser().parse_args(given))
    summary = json.loads((tmp_path / "out/summary.json").read_text())
    assert (summary["files"], summary["copies"], summary["links"]) == (2, 1, 0)
    assert summary["splits"]["train"]["examples"] == 2
    assert "Copies of these files, which count once: 1." in capsys.readouterr().out
