"""One file under several names, several files of one name, archives of another kind than called."""

import collections
import errno
import io
import json
import os
import tarfile
import warnings
import zipfile

import pytest

from cavmae_sync_jax.media.errors import MediaError
from cavmae_sync_jax.utils.errors import UserError
from data_prep import videos
from data_prep.pipeline import archives, readers
from data_prep.sources import csv_files, folder_labels, segment_lists, segments, video_files


def folder(root, files=(), links=()):
    """Makes empty files, and links to them, in a folder."""
    for name in (*files, *(link for link, _ in links)):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
    for name in files:
        (root / name).write_bytes(b"")
    for name, target in links:
        os.symlink(root / target, root / name)
    return root


def find(root, skipped=None):
    return video_files.find_videos([str(root)], skipped)


def labels(root):
    rows = folder_labels.read(find(root)).rows
    return {video.name.as_posix(): row for video, row in rows.items()}


@pytest.mark.parametrize("fault", ["no room", "full meanwhile", "damaged"])
def test_a_full_disk_is_no_fault_of_an_archived_file(tmp_path, monkeypatch, fault):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("b.mp4", b"some bytes")
    usage = collections.namedtuple("usage", "free")

    def copy(*_):
        raise OSError(errno.ENOSPC if fault == "full meanwhile" else errno.EIO, "no more")

    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(9 if fault == "no room" else 2**30))
    monkeypatch.setattr("shutil.copyfileobj", copy)
    expected, said = UserError, r"a.zip/b.mp4 finds no room in .*TMPDIR, or take fewer --workers"
    if fault == "damaged":
        expected, said = MediaError, "a.zip/b.mp4 can't be read"
    with pytest.raises(expected, match=said), readers.local(str(tmp_path / "a.zip/b.mp4")):
        pass


def test_a_file_has_the_classes_of_all_folders_that_link_to_it(tmp_path):
    store = folder(tmp_path / "store", ["1.mp4", "2.mp4"])
    root = tmp_path / "in"
    links = [("dog/a.mp4", store / "1.mp4"), ("cat/b.mp4", store / "1.mp4")]
    folder(root, links=[*links, ("cat/c.mp4", store / "2.mp4")])
    assert {name: row.labels for name, row in labels(root).items()} == {
        "cat/b.mp4": ("cat", "dog"),
        "cat/c.mp4": ("cat",),
    }


def test_links_to_a_folder_beside_the_classes_are_not_lost(tmp_path):
    root = folder(
        tmp_path / "in", ["all/a.mp4"], [("dog/a.mp4", "all/a.mp4"), ("cat/a.mp4", "all/a.mp4")]
    )
    assert labels(root)["all/a.mp4"].labels == ("all", "cat", "dog")


@pytest.mark.parametrize("link", ["animal", "pet"])  # before the folder and behind it
def test_a_linked_folder_is_a_class_of_its_files(tmp_path, link):
    files = ["dog/a.mp4", "dog/more/b.mp4", "cat/c.mp4", "dog/notes.csv"]
    root = folder(tmp_path / "in", files, [(link, "dog")])
    skipped = collections.Counter()
    (root / "dog/circle").symlink_to(root)
    rows = folder_labels.read(find(root, skipped)).rows
    both = tuple(sorted(("dog", link)))
    found = {video.name.name: row.labels for video, row in rows.items()}
    assert found == {"a.mp4": both, "b.mp4": both, "c.mp4": ("cat",)}
    assert skipped == {".csv": 1}


def test_a_linked_folder_of_another_split_is_told(tmp_path):
    root = folder(tmp_path / "in", ["train/dog/a.mp4"], [("test", "train")])
    with pytest.raises(UserError, match=r"are one file in two splits"):
        labels(root)


def test_folders_that_link_to_each_other_end(tmp_path):
    names = [f"{number:02d}" for number in range(20)]
    root = folder(tmp_path / "in", [f"{name}/{name}.mp4" for name in names])
    for name in names:
        for other in set(names) - {name}:
            (root / name / f"to_{other}").symlink_to(root / other)
    assert len(find(root)) == len(names)


def test_one_file_in_two_splits_is_told(tmp_path):
    root = folder(tmp_path / "in", ["train/dog/a.mp4"], [("test/dog/b.mp4", "train/dog/a.mp4")])
    with pytest.raises(UserError, match=r"b\.mp4 .*a\.mp4 are one file in two splits"):
        labels(root)


def test_lists_may_name_a_file_by_its_links(tmp_path):
    links = [("pieces/--PJHxphWEs_30_40.mp4", "blobs/1.mp4"), ("rex.mp4", "blobs/1.mp4")]
    root = folder(tmp_path / "in", ["blobs/1.mp4"], links)
    (video,) = find(root)
    table = tmp_path / "labels.csv"
    table.write_text("video,label\nrex,dog\npieces/--PJHxphWEs_30_40.mp4,loud\n1.mp4,brown\n")
    read = csv_files.read_labels(table, video_files.Names([video]).called)
    assert read.rows[video].labels == ("dog", "loud", "brown") and not read.absent
    table.write_text("--PJHxphWEs,30,dog,train\n")
    found = segment_lists.read_segments(table, None)
    classes = csv_files.classes_of(["dog"])
    settings = {"trimmed": False, "seconds": 10.0, "eval_share": 0.0}
    made = segments.segment_clips([video], found, classes, **settings)
    (clip,) = made.splits["train"]
    assert clip.refusal is None and (clip.start, clip.cut_to) == (0.0, 10.0)


def test_two_names_of_one_id_are_one_file(tmp_path):
    links = [("x/--PJHxphWEs_out.mp4", "--PJHxphWEs.mp4")]
    found = find(folder(tmp_path / "in", ["--PJHxphWEs.mp4"], links))
    files = segments.SegmentFiles(found, {"--PJHxphWEs": [30.0]})
    (one,) = files.find("--PJHxphWEs", 30.0, 40.0, True)
    assert one.start == 30.0


def test_the_program_counts_links(tmp_path, capsys):
    root = folder(tmp_path / "in", ["a.mp4"], [("b.mp4", "a.mp4"), ("c.mp4", "a.mp4")])
    given = [str(root), f"--output={tmp_path / 'out'}", "--eval_share=0", "--dry_run"]
    videos.run(videos._parser().parse_args(given))
    said = capsys.readouterr().out
    assert "Media files: 1." in said and "Links to these files under further names: 2." in said


def pack(path, members, mode="w"):
    """Writes (name, content) pairs; a name may come twice."""
    if path.suffix == ".zip":
        with warnings.catch_warnings(), zipfile.ZipFile(path, "w") as packed:
            warnings.simplefilter("ignore")
            for name, content in members:
                packed.writestr(name, content)
        return path
    with tarfile.open(path, mode) as packed:
        for name, content in members:
            about = tarfile.TarInfo(name)
            about.size = len(content)
            packed.addfile(about, io.BytesIO(content))
    return path


@pytest.mark.parametrize("name", ["a.zip", "a.tar"])
def test_a_member_that_a_later_one_replaces_is_counted(tmp_path, name):
    members = [("x/a.mp4", b"1"), ("x/b.mp4", b"2"), ("x/a.mp4", b"3"), ("x//a.mp4", b"4")]
    skipped = collections.Counter()
    found = find(pack(tmp_path / name, members), skipped)
    assert [video.name.as_posix() for video in found] == ["x/a.mp4", "x/b.mp4"]
    assert skipped.total() == 2 and "replaced" in json.dumps(skipped)
    members = [("A.mp4", b"1"), ("a.mp4", b"2"), ("x/a.mp4", b"3")]
    skipped.clear()
    assert len(find(pack(tmp_path / f"b{name}", members), skipped)) == 3
    assert not skipped


@pytest.mark.parametrize(
    ("name", "mode"),
    [("a.tar", "w:gz"), ("a.tar.gz", "w:"), ("a.tgz", "w:"), ("a.zip", "w:"), ("a.zip", "w:gz")],
)
def test_an_archive_is_what_it_holds_whatever_its_name(tmp_path, name, mode):
    with (tmp_path / name).open("wb") as file, tarfile.open(fileobj=file, mode=mode) as packed:
        about = tarfile.TarInfo("dog/a.mp4")
        about.size = 3
        packed.addfile(about, io.BytesIO(b"abc"))
    (video,) = find(tmp_path / name)
    with readers.local(str(video.path)) as copy, open(copy, "rb") as file:
        assert file.read() == b"abc"


@pytest.mark.parametrize("outer", ["x.tar", "x.zip", "x.tar.gz/y.TAR", "dir"])
@pytest.mark.parametrize("inner", ["a.mp4", "b.zip/a.mp4"])
def test_an_archive_in_a_folder_that_is_called_like_one_is_read(tmp_path, outer, inner):
    (tmp_path / outer).mkdir(parents=True)
    packed = pack(tmp_path / outer / "c.zip", [(inner, b"abc")])
    for source in (tmp_path, tmp_path / outer, packed):
        (video,) = find(source)
        assert video.path.as_posix() == f"{packed}/{inner}"
        assert archives.size(str(video.path)) == 3
        with readers.local(str(video.path)) as copy, open(copy, "rb") as file:
            assert file.read() == b"abc"
    assert archives.split(f"{tmp_path / outer}/none.mp4") is None


def test_a_zip_that_is_called_tar_is_read(tmp_path):
    pack(tmp_path / "a.zip", [("a.mp4", b"1")]).rename(tmp_path / "a.tar")
    assert len(find(tmp_path / "a.tar")) == 1


@pytest.mark.parametrize(("mode", "kind"), [("w:xz", "xz"), ("w:bz2", "bzip2")])
def test_an_archive_that_must_be_unpacked_is_told(tmp_path, mode, kind):
    pack(tmp_path / "a.tar", [("a.mp4", b"1")], mode)
    with pytest.raises(UserError, match=rf"a\.tar is packed by {kind}: unpack it"):
        find(tmp_path)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a.tar.xz", "unpack archives of these kinds"),
        ("a.zip.001", "put their parts together"),
        ("a.tar.gz.partaa", "put their parts together"),
        ("a.mp4.part", "takes files of any name"),
    ],
)
def test_a_folder_of_nothing_but_packed_files_is_told_what_to_do(tmp_path, name, message):
    with pytest.raises(UserError, match=f"but 1 .*: .*{message}"):
        find(folder(tmp_path / "in", [name]))


def test_what_systems_keep_on_a_disk_is_none_of_ones_videos(tmp_path):
    names = ["a.mp4", "$RECYCLE.BIN/S-1/b.mp4", "#recycle/c.mp4", "@eaDir/a.mp4/d.mp4"]
    names += ["__MACOSX/e.mp4", "System Volume Information/f.mp4"]
    root = folder(tmp_path / "disk", names)
    (root / "lost+found").mkdir(mode=0)
    assert [video.name.as_posix() for video in find(root)] == ["a.mp4"]
    packed = pack(tmp_path / "disk.zip", [(name, b"") for name in names])
    assert [video.name.as_posix() for video in find(packed)] == ["a.mp4"]
