"""Which files of folders and lists are embedded: all that are named as media, and no others."""

import os

import numpy as np
import pytest
from PIL import Image, features

from cavmae_sync_jax import embed
from cavmae_sync_jax.inference import reading
from cavmae_sync_jax.utils import listing
from cavmae_sync_jax.utils.errors import UserError


def names(root, sources=None):
    found = embed.find_files([str(source) for source in sources or [root]])
    return [os.path.relpath(path, root) for path in found]


def test_all_media_of_a_folder_are_found_and_the_others_counted(tmp_path, capfd):
    media = ["a.MP4", "b.wmv", "c.vob", "d.mka", "e.m4b", "f.opus", "g.wma", "h.avif", "i.heic"]
    for name in (*media, "x.txt", "y.csv", "z.csv", "README", "._a.MP4", ".cache/j.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert names(tmp_path) == media
    said = "".join(capfd.readouterr())
    assert f"left out in {tmp_path}, which are not named as media: 2 .csv, 1 none, 1 .txt" in said


def test_linked_folders_are_followed_once(tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "store/a.mp4").touch()
    (tmp_path / "in/real").mkdir(parents=True)
    (tmp_path / "in/linked").symlink_to(tmp_path / "store")
    (tmp_path / "in/real/circle").symlink_to(tmp_path / "in")
    assert names(tmp_path / "in") == ["linked/a.mp4"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lists_as_other_programs_write_them(tmp_path, encoding):
    (tmp_path / "sub").mkdir()
    for name in ("a b.mp4", "sub/c.wav"):
        (tmp_path / name).touch()
    text = '# mine\r\n"a b.mp4"\r\nsub\\c.wav\r\ngone.mp4\r\n'
    (tmp_path / "list.txt").write_bytes(text.encode(encoding))
    # What is not there is refused when its turn comes, so that it is told.
    assert names(tmp_path, [tmp_path / "list.txt"]) == ["a b.mp4", "sub/c.wav", "gone.mp4"]
    (tmp_path / "list.txt").write_bytes(b"\xff\xfea")
    with pytest.raises(UserError, match=r"list\.txt isn't a list of paths in UTF-8"):
        names(tmp_path, [tmp_path / "list.txt"])


@pytest.mark.parametrize("line", [None, "gs://bucket/a.mp4", '"gs://bucket/a.mp4"'])
def test_files_in_a_bucket_are_to_be_copied(tmp_path, monkeypatch, line):
    def unreachable(path):
        raise AssertionError(f"asked for {path}")

    monkeypatch.setattr(listing, "_is_file", unreachable)
    source = "gs://bucket/a.mp4"
    if line:
        source = tmp_path / "list.txt"
        source.write_text(f"{line}\n")
    with pytest.raises(UserError, match=r"^gs://bucket/a\.mp4 lies in a bucket: copy it"):
        names(tmp_path, [source])


def test_a_picture_of_another_kind_is_no_mute_video(tmp_path):
    image = Image.fromarray(np.full((32, 32, 3), 90, np.uint8))
    image.save(tmp_path / "a.ico")
    with pytest.raises(UserError, match=r"a\.ico is no picture of a kind .*: save it as JPEG"):
        reading.file_info(tmp_path / "a.ico")
    if features.check("avif"):
        image.save(tmp_path / "a.avif")
        assert reading.file_info(tmp_path / "a.avif").kind == "picture"
