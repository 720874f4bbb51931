"""The program that prepares a user's videos: what it finds, names, labels, splits and says."""

import collections
from pathlib import Path

import pytest
from etils import epath
from hypothesis import given
from hypothesis import strategies as st
from media_files import make_video
from video_program import named, program, splits_of

from cavmae_sync_jax.utils.errors import UserError
from data_prep import videos
from data_prep.sources import csv_files, video_files
from data_prep.sources.csv_files import LabelRow
from data_prep.sources.video_files import Video

ROOT = Path(__file__).parents[2]


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_links_to_folders_are_followed_but_not_in_circles(tmp_path):
    touch(tmp_path, "in/a.mp4", "out/b.mp4")
    (tmp_path / "in" / "more").symlink_to(tmp_path / "out")
    (tmp_path / "in" / "self").symlink_to(tmp_path / "in")
    (tmp_path / "out" / "back").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "nowhere.mp4").symlink_to(tmp_path / "gone.mp4")
    (tmp_path / "in" / "loop.mp4").symlink_to(tmp_path / "in" / "loop.mp4")
    found = video_files.find_videos([str(tmp_path / "in")])
    # Links to nothing are listed, too: their clips are rejected.
    names = ["a.mp4", "loop.mp4", "more/b.mp4", "nowhere.mp4"]
    assert [video.name.as_posix() for video in found] == names


def test_folders_are_searched_and_hidden_files_left_out(tmp_path):
    touch(tmp_path, "b.MP4", "a.webm", "sub/c.mov", "notes.txt", ".d.mp4", ".cache/e.mp4", "f.mp3")
    found = video_files.find_videos([str(tmp_path)])
    assert [video.name.as_posix() for video in found] == ["a.webm", "b.MP4", "sub/c.mov"]
    assert [video.path for video in found] == [tmp_path / video.name for video in found]


def test_lists_and_files_and_a_file_named_twice(tmp_path):
    touch(tmp_path, "in/a.mp4", "in/b.mp4", "out.mp4")
    listed = tmp_path / "in" / "list.txt"
    listed.write_text(f"b.mp4\n\n{tmp_path / 'out.mp4'}\n")
    found = video_files.find_videos(
        [str(listed), str(tmp_path / "in" / "a.mp4"), str(tmp_path / "in")]
    )
    assert [video.name.as_posix() for video in found] == ["b.mp4", "out.mp4", "a.mp4"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_lists_as_windows_writes_them(tmp_path, encoding):
    touch(tmp_path, "in/a ü.mp4", "b")
    listed = tmp_path / "list.txt"
    listed.write_bytes('"in\\a ü.mp4"\r\nb\r\n'.encode(encoding))
    found = video_files.find_videos([str(listed)])
    assert [video.name.as_posix() for video in found] == ["in/a ü.mp4", "b"]


def test_sources_without_videos_are_told(tmp_path):
    listed = tmp_path / "list.txt"
    listed.write_text("\ngone.mp4\n")
    for source, message in [
        (tmp_path / "absent", "no file or folder"),
        (tmp_path, "has no media files"),
        (listed, r"list\.txt names no file that is there, such as .gone\.mp4"),
    ]:
        with pytest.raises(UserError, match=message):
            video_files.find_videos([str(source)])
    touch(
        tmp_path, "in/a.unknown_video", "in/b.unknown_video", "in/c", "a.csv", "b.tar.xz", "c.rar"
    )
    with pytest.raises(UserError, match=r"but 2 \.unknown_video, 1 none: a \.txt list"):
        video_files.find_videos([str(tmp_path / "in")])
    with pytest.raises(UserError, match=r"a\.csv is not a video: .*--segments"):
        video_files.find_videos([str(tmp_path / "a.csv")])
    for name in ("b.tar.xz", "c.rar"):
        with pytest.raises(UserError, match=r"can't be read as it is \(\.tar, .*unpack it"):
            video_files.find_videos([str(tmp_path / name)])
    listed.write_bytes(b"\xff\xfe\n")
    with pytest.raises(UserError, match="UTF-8"):
        video_files.find_videos([str(listed)])


def test_a_source_is_not_told_what_another_one_lacks(tmp_path):
    touch(tmp_path, "in/a.mp4", "in/b.rar", "docs/c.pdf", "empty/.hidden")
    listed = tmp_path / "list.txt"
    listed.write_text("in/a.mp4\ngone.mp4\n")
    for first, second, message in [
        (listed, "empty", r"empty has no media files \([^)]*\)$"),
        (tmp_path / "in", "docs", r"docs has no media files .*, but 1 \.pdf: a \.txt list"),
    ]:
        with pytest.raises(UserError, match=message):
            video_files.find_videos([str(first), str(tmp_path / second)])
    skipped, absent = collections.Counter(), []
    video_files.find_videos([str(listed), str(tmp_path / "in")], skipped, absent)
    assert (skipped, absent) == ({".rar": 1}, ["gone.mp4"])


def test_ids_are_stems_unless_files_share_them():
    files = named("x/a.mp4", "y/a.mp4", "b.mp4", "c.mp4", "c.webm", "sub/d.e.mp4")
    assert video_files.clip_ids(files) == [
        "x__a.mp4",
        "y__a.mp4",
        "b",
        "c.mp4",
        "c.webm",
        "d.e",
    ]


@given(st.lists(st.text(st.characters(exclude_characters="\0/"), min_size=1), min_size=1))
def test_ids_never_have_path_separators(parts):
    twice = [Video(epath.Path("x") / "/".join(parts), Path("/".join(parts)))] * 2
    for video_list in (twice, twice[:1]):
        for clip_id in video_files.clip_ids(video_list):
            assert not {"/", "\\"} & set(clip_id)
            clip_id.encode()


@pytest.mark.parametrize(
    ("duration", "count"),
    [(3.0, 1), (10.9, 1), (11.1, 2), (59.99, 6), (60.0, 6), (60.9, 6), (61.0, 7), (61.5, 7)],
)
def test_long_files_give_consecutive_clips(duration, count):
    clips = videos.split_clips(named("a.mp4")[0], "a", ("dog",), duration, 10.0)
    assert len(clips) == count
    assert [(clip.start, clip.end) for clip in clips] == [
        (10.0 * k, 10.0 * (k + 1)) for k in range(count)
    ]
    ids = [clip.clip_id for clip in clips]
    assert ids == (["a"] if count == 1 else [f"a_{10 * k:06d}" for k in range(count)])
    assert {clip.labels for clip in clips} == {("dog",)}


def test_labels_by_name_or_path(tmp_path):
    files = named("a.mp4", "x/b.mp4", "y/b.mp4")
    table = tmp_path / "labels.csv"
    table.write_text("\ufeffvideo,label\na.mp4,dog\na.mp4,cat\na.mp4,dog\nx/b.mp4,cat\n")
    found = csv_files.read_labels(table, video_files.Names(files).called)
    assert found.rows == {
        files[0]: LabelRow(("dog", "cat"), None),
        files[1]: LabelRow(("cat",), None),
    }
    assert not found.absent and not found.ambiguous


def test_labels_by_stem_of_absent_files_and_of_two(tmp_path):
    files = named("a.mp4", "x/b.mp4", "y/b.mp4", "c.mp4.mkv", "c.mp4")
    table = tmp_path / "labels.csv"
    table.write_text("video,label\na,dog\nz.mp4,cat\nx/b,cat\nc.mp4,cow\nz.mp4,dog\n")
    found = csv_files.read_labels(table, video_files.Names(files).called)
    assert found.rows == {
        files[0]: LabelRow(("dog",), None),
        files[1]: LabelRow(("cat",), None),
        files[4]: LabelRow(("cow",), None),  # a file that is called so goes first
    }
    assert found.absent == ["z.mp4"]
    table.write_text("video,label\na,dog\nb.mp4,cat\n")
    found = csv_files.read_labels(table, video_files.Names(files).called)
    assert set(found.ambiguous) == {files[1], files[2]}
    assert "line 3: 'b.mp4' may be /v/x/b.mp4 or /v/y/b.mp4" in found.ambiguous[files[1]]


@pytest.mark.parametrize(
    "name",
    [
        *(
            "a.MP4",
            "a.webm",
            "A",
            "x/ü ö.mkv",
            "u\u0308 o\u0308",
            "x\\ü ö.mkv",
            "./x/ü ö",
            "/v/a.mp4",
        ),
        *("X/Ü Ö.mov", " a.mp4 ", "/v/a.mp4"),
    ],
)
def test_a_name_means_its_file_however_lists_write_it(tmp_path, name):
    files = named("a.mp4", "x/ü ö.mkv", "b.mp4")
    table = tmp_path / "labels.csv"
    table.write_text(f"Video, Label\n{name},dog\n")
    rows = csv_files.read_labels(table, video_files.Names(files).called).rows
    assert rows == {files["a" not in name.lower()]: LabelRow(("dog",), None)}


@pytest.mark.parametrize(
    "text",
    [
        *("video,label,split\na.mp4,dog,Train\n", "split,label,video\r\nTRAIN,dog,a.mp4\r\n"),
        *("\ufeffvideo;label;split\na.mp4;dog;train\n", "video\tlabel\tsplit\na.mp4\tdog\ttrain\n"),
        "File Name,Category,Set\na.mp4,dog,test\na.mp4,dog,test\n".replace("test", "train"),
        ",video_path,labels,subset\n0,a.mp4,dog,train\n",
        '"video";"label";"split"\r\n"a.mp4";"dog";"train"\r\n',
        ("video;label;split\na.mp4;dog, barking;train\n", ("dog, barking",)),
        ("video\tlabel\tsplit\na.mp4\tdog, barking; cat\ttrain\n", ("dog, barking; cat",)),
        ("video,split\na.mp4,train\n", ()),
        ("video,label,split\na.mp4,,train\n", ()),
        "video,label,split\na.mp4,dog,training\n".encode("utf-16"),
    ],
)
def test_labels_as_spreadsheets_write_them(tmp_path, text):
    text, labels = text if isinstance(text, tuple) else (text, ("dog",))
    (file,) = named("a.mp4")
    table = tmp_path / "labels.csv"
    table.write_bytes(text if isinstance(text, bytes) else text.encode())
    rows = csv_files.read_labels(table, video_files.Names([file]).called).rows
    assert rows == {file: LabelRow(labels, "train")}


def test_splits_have_the_names_that_lists_give_them(tmp_path):
    files = named("a.mp4", "b.mp4", "c.mp4", "d.mp4")
    table = tmp_path / "labels.csv"
    table.write_text("video,label,split\na,x,train\nb,x,test\nc,x,val\nd,x,eval\n")
    rows = csv_files.read_labels(table, video_files.Names(files).called).rows
    assert [rows[file].split for file in files] == ["train", "eval", "val", "eval"]
    assert videos.assign_splits(files, rows, 0.1) == {
        "train": files[:1],
        "eval": [files[1], files[3]],
        "val": [files[2]],
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("movie,label\na.mp4,dog\n", "must begin with the header"),
        ("video,label,class\na.mp4,dog,cat\n", "line 1: the header may have .*'label'"),
        ("video,label,fps\na.mp4,dog,25\n", "line 1: .* leave out the column 'fps'"),
        ("", "must begin with the header"),
        ("video,label\na.mp4\n", "line 2: need 2 cells"),
        ("video,label\na.mp4,dog,cat\n", "line 2: need 2 cells"),
        ("video,label\na.mp4,dog\n,cat\n", "line 3: need 2 cells"),
        ("video,lable\na.mp4,dog\n", "line 1: .* leave out the column 'lable'"),
        ("video,label\nz.mp4,dog\n", r"no row of .* names one of the videos, such as 'z\.mp4'"),
        (
            "video,label,split\na.mp4,dog,dev\n",
            "line 2: split must be one of train, ",
        ),
        ("video,label,split\na.mp4,dog,train\na.mp4,cat,eval\n", "line 3: .* in train already"),
    ],
)
def test_a_malformed_labels_csv_is_told_with_its_line(tmp_path, text, message):
    table = tmp_path / "labels.csv"
    table.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        files = named("a.mp4", "x/b.mp4", "y/b.mp4")
        csv_files.read_labels(table, video_files.Names(files).called)
    assert str(table) in str(error.value)


def test_a_missing_or_binary_labels_csv_is_told(tmp_path):
    for content in (None, b"\xff\xfe\x00"):
        if content:
            (tmp_path / "labels.csv").write_bytes(content)
        with pytest.raises(UserError, match=r"labels\.csv can't be read"):
            csv_files.read_labels(tmp_path / "labels.csv", video_files.Names(named("a.mp4")).called)


def test_the_hash_gives_about_the_share_and_stays():
    files = named(*(f"{k}.mp4" for k in range(2000)))
    splits = videos.assign_splits(files, {}, 0.1)
    assert 150 < len(splits["eval"]) < 250
    fewer = videos.assign_splits(files[::3], {}, 0.1)
    assert set(fewer["eval"]) == set(splits["eval"]) & set(files[::3])
    assert set(splits["eval"]) <= set(videos.assign_splits(files, {}, 0.2)["eval"])


def test_splits_by_column_and_without_eval():
    files = named("a.mp4", "b.mp4")
    rows = {files[0]: LabelRow(("x",), "eval"), files[1]: LabelRow(("x",), "train")}
    assert videos.assign_splits(files, rows, 0.1) == {"train": [files[1]], "eval": [files[0]]}
    assert videos.assign_splits(files, {}, 0.0) == {"train": files}
    # With a split column, a file that the CSV doesn't name is in no split.
    assert videos.assign_splits(files, {files[0]: rows[files[0]]}, 0.1) == {"eval": [files[0]]}
    with pytest.raises(UserError, match="--eval_share=0"):
        videos.assign_splits(files, {}, 1e-9)


def test_the_program_from_files_to_dataset(tmp_path):
    folder, output = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    make_video(folder / "long.mp4", seconds=7, fps=4)
    make_video(folder / "short.webm", seconds=2, codecs=("libvpx-vp9", "libopus"), rate=48_000)
    make_video(folder / "mute.mov", codecs=("libx264", None))
    (folder / "broken.mp4").write_text("nothing")
    labels = tmp_path / "labels.csv"
    labels.write_text(
        "video,label,split\nlong.mp4,rain,train\nlong.mp4,bell,train\nshort.webm,bell,eval\n"
        "mute.mov,bell,train\nbroken.mp4,rain,eval\n"
    )
    command = [folder, f"--output={output}", f"--labels={labels}", "--workers=1"]
    command += ["--num_frames=4", "--image_size=32", "--clip_seconds=3"]
    done = program(*command)
    assert done.returncode == 0, done.stderr
    assert "3 examples: 2 in train, 1 in eval" in done.stdout
    assert "2 clips were rejected (" in done.stdout
    assert "1 no_audio" in done.stdout
    assert "1 unreadable" in done.stdout
    splits = splits_of(output)
    assert set(splits["train"]) == {"long_000000", "long_000003"}
    assert set(splits["eval"]) == {"short"}
    assert list(splits["train"]["long_000003"]["labels"]) == [1, 0]  # bell is 0, rain is 1
    assert len(splits["train"]["long_000003"]["fbank"]) == 298
    again = program(*command)
    assert again.returncode == 2
    assert again.stderr.strip().splitlines()[-1].endswith("replace it with --overwrite")
    strict = program(*command, "--overwrite", "--max_reject_share=0.3")
    assert strict.returncode == 3
    assert (
        strict.stderr.strip()
        .splitlines()[-1]
        .partition(": ")[2]
        .startswith("error: 40.0% of the clips were rejected")
    )
    assert set(splits_of(output)["train"]) == set(splits["train"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent", "--output=out"], "there is no file or folder absent"),
        ([".", "--output=out", "--eval_share=1"], "--eval_share"),
        ([".", "--output=out", "--clip_seconds=0.5"], "--clip_seconds"),
        ([".", "--output=out", "--workers=0"], "--workers"),
        ([".", "--output=out", "--num_frames=0"], "num_frames"),
        ([".", "--output=out", "--time_limit=0"], "--time_limit"),
        ([".", "--output=out", "--max_reject_share=2"], "--max_reject_share"),
        ([".", "--output=out", "--trimmed"], "--segments"),
        ([".", "--output=out", "--segments=a.csv", "--labels=b.csv"], "--labels"),
        ([".", "--output=out", "--beam_pipeline_options=a=b"], "--runner"),
    ],
)
def test_a_mistake_ends_in_one_sentence(arguments, message):
    parsed = videos._parser().parse_args(arguments)
    with pytest.raises(UserError, match=message):
        videos.run(parsed)


def test_all_rejected_is_a_failure(tmp_path):
    (tmp_path / "broken.mp4").write_text("nothing")
    done = program(tmp_path, f"--output={tmp_path / 'out'}", "--eval_share=0", "--workers=1")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "1 unreadable" in done.stderr
    assert "broken" in (tmp_path / "out" / "rejects.csv").read_text()


def test_help_shows_an_example():
    done = program("--help")
    assert done.returncode == 0
    assert "python -m data_prep.videos" in done.stdout
