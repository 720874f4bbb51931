"""The program on files and lists as people have them: nothing is lost, nothing goes silently."""

import csv
import json
import tarfile
import zipfile

import numpy as np
import pytest
from hostile_files import recording
from media_files import make_video, number, tone
from video_program import named, splits_of

from cavmae_sync_jax.data import loader
from cavmae_sync_jax.media import decoding
from cavmae_sync_jax.media.images import decode_jpeg
from cavmae_sync_jax.utils.errors import UserError
from data_prep import videos
from data_prep.pipeline.clips import Preparation, Reject, VideoClip, prepare_clip
from data_prep.pipeline.executors import Failure
from data_prep.sources import lengths, video_files

SMALL = Preparation(num_frames=4, image_size=32)
SILENCE, SOUND = np.zeros(32_000), tone(440, 2, 16_000)
FLAGS = ("--num_frames=4", "--image_size=32", "--workers=1", "--eval_share=0")


@pytest.fixture(scope="module")
def ten(tmp_path_factory):
    return make_video(tmp_path_factory.mktemp("media") / "ten.mp4", seconds=10, fps=2)


@pytest.fixture(scope="module")
def twenty_four(tmp_path_factory):
    return make_video(tmp_path_factory.mktemp("media") / "twenty_four.mp4", seconds=24, fps=2)


def prepare(tmp_path, files, *arguments, segments=None, labels=None):
    """Runs the program on copies of files; returns the summary."""
    for name, source in files.items():
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(source if isinstance(source, bytes) else source.read_bytes())
    given = [str(tmp_path / "in"), f"--output={tmp_path / 'out'}", *FLAGS, *arguments]
    for flag, text in (("segments", segments), ("labels", labels)):
        if text is not None:
            (tmp_path / f"{flag}.csv").write_text(text)
            given.append(f"--{flag}={tmp_path / f'{flag}.csv'}")
    videos.run(videos._parser().parse_args(given))
    if "--dry_run" in arguments:
        return None
    return json.loads((tmp_path / "out/summary.json").read_text())


def rejects(tmp_path):
    with (tmp_path / "out/rejects.csv").open(newline="") as file:
        return {row["clip_id"]: row for row in csv.DictReader(file)}


def test_a_vggsound_folder_of_many_downloaders(tmp_path, ten, twenty_four, capsys):
    lines = "---g-f_I2yQ,1,cat,train\n--0PQM4-hqg,30,dog,train\n--PJHxphWEs,5,dog,train\n"
    lines += "--ZhevVpy1s,7,cat,train\n-0abcdefghi,30,cat,train\n-1abcdefghi,3,cat,train\n"
    lines += "-2abcdefghi,0,cat,test\n"
    files = {
        "---g-f_I2yQ_1000_11000.mp4": ten,
        "--0PQM4-hqg_30.0-40.0_out.mp4": ten,
        "A dog barks [--PJHxphWEs].mp4": twenty_four,
        "a/--ZhevVpy1s.mp4": twenty_four,
        "b/--ZhevVpy1s.webm": ten,
        "-0abcdefghi_30_40.mp4": twenty_four,
        "-1abcdefghi.mp4": ten,
        "another.mp4": ten,
        "notes.txt": b"",
        "late.mp4.part": b"",
    }
    summary = prepare(tmp_path, files, "--max_reject_share=1", segments=lines)
    said = capsys.readouterr().out
    examples = splits_of(tmp_path / "out")
    assert set(examples) == {"train"}
    assert set(examples["train"]) == {
        "---g-f_I2yQ_000001",
        "--0PQM4-hqg_000030",
        "--PJHxphWEs_000005",
    }
    whole = examples["train"]["--PJHxphWEs_000005"]
    assert [number(decode_jpeg(frame)) for frame in whole["frames"]] == [10, 15, 20, 25]
    told = rejects(tmp_path)
    assert {name: row["reason"] for name, row in told.items()} == {
        "--ZhevVpy1s_000007": "ambiguous",
        "-0abcdefghi_000030": "wrong_length",
        "-1abcdefghi_000003": "wrong_length",
        "-2abcdefghi_000000": "missing",
    }
    assert "a/--ZhevVpy1s.mp4 or " in told["--ZhevVpy1s_000007"]["detail"]
    assert "lasts 24.00 s, but 10.00 s by its name" in told["-0abcdefghi_000030"]["detail"]
    assert "--trimmed" in told["-1abcdefghi_000003"]["detail"]
    assert summary["files"] == 8 and summary["skipped"] == {".part": 1, ".txt": 1}
    assert summary["names_without_row"] == {"count": 1, "names": ["another.mp4"]}
    assert summary["splits"]["eval"]["rejects"] == {"missing": 1}
    assert summary["splits"]["train"]["clips"] == 6 and summary["splits"]["train"]["examples"] == 3
    assert said.index("rejected already: 1 missing") < said.index("has 3 examples")
    assert "There is no split 'eval'" in said and "'another.mp4'" in said


def test_labels_of_absent_files_by_stem_and_for_test(tmp_path, ten, twenty_four):
    labels = "video,label,split\na,dog,train\ngone.mp4,cat,train\nb.mp4,cat,test\nc,dog,val\n"
    files = {"a.mp4": twenty_four, "b.mp4": ten, "c.mp4": ten, "d.mp4": ten}
    summary = prepare(tmp_path, files, labels=labels)
    assert {name: set(split) for name, split in splits_of(tmp_path / "out").items()} == {
        "train": {"a_000000", "a_000010"},
        "eval": {"b"},
        "val": {"c"},
    }
    assert summary["rows_without_file"] == {"count": 1, "names": ["gone.mp4"]}
    assert summary["names_without_row"] == {"count": 1, "names": ["d.mp4"]}
    assert summary["tails_left_out"] == {"count": 1, "seconds": pytest.approx(4.0, abs=0.1)}


def test_a_rest_is_kept_on_demand_and_its_padding_counted(tmp_path, twenty_four):
    summary = prepare(tmp_path, {"a.mp4": twenty_four}, "--min_seconds=4")
    assert set(splits_of(tmp_path / "out")["train"]) == {"a_000000", "a_000010", "a_000020"}
    assert summary["tails_left_out"]["count"] == 0
    assert summary["splits"]["train"]["padded_seconds"] == pytest.approx(6.0, abs=0.1)


def archive(path, members):
    """Packs files under other names; a tar gets a link, too."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as packed:
            for name, source in members.items():
                packed.write(source, name)
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as packed:
            link = tarfile.TarInfo("../link.mp4")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            packed.addfile(link)
            for name, source in members.items():
                packed.add(source, name)
    return path


@pytest.mark.parametrize("name", ["videos.tar", "vggsound_00.tar.gz", "videos.zip"])
def test_archives_are_read_as_they_are(tmp_path, ten, twenty_four, name):
    text = tmp_path / "x.txt"
    text.write_text("no video")
    members = {
        "./scratch/---g-f_I2yQ_000001.mp4": ten,
        "scratch/a//--0PQM4-hqg.mp4": twenty_four,
        "../outside.mp4": ten,
        "._hidden.mp4": ten,
        "notes.txt": text,
        "-0abcdefghi.mp4": text,
    }
    packed = archive(tmp_path / name, members)
    lines = "---g-f_I2yQ,1,cat,train\n--0PQM4-hqg,7,dog,train\n-0abcdefghi,0,dog,train\n"
    summary = prepare(tmp_path, {name: packed}, segments=lines)
    examples = splits_of(tmp_path / "out")["train"]
    assert set(examples) == {"---g-f_I2yQ_000001", "--0PQM4-hqg_000007"}
    expected = prepare_clip(VideoClip("a", str(twenty_four), 7.0, 17.0), SMALL)
    found = examples["--0PQM4-hqg_000007"]
    assert list(found["frames"]) == expected["frames"]
    np.testing.assert_array_equal(found["fbank"], expected["fbank"])
    assert summary["files"] == 3 and summary["skipped"] == {".txt": 1}
    (row,) = rejects(tmp_path).values()
    assert row["reason"] == "unreadable"
    assert row["path"] == str(tmp_path / "in" / name / "-0abcdefghi.mp4")
    assert row["path"] in row["detail"]


def test_links_in_an_archive_lead_to_its_files_only(tmp_path, ten):
    path = tmp_path / "in/links.tar"
    path.parent.mkdir()
    links = {
        "dog/--0PQM4-hqg_30_40.mp4": (tarfile.LNKTYPE, "./all/--0PQM4-hqg_30_40.mp4"),
        "test/link.mp4": (tarfile.SYMTYPE, "../all/--0PQM4-hqg_30_40.mp4"),
        "cat/---g-f_I2yQ_1_11.mp4": (tarfile.SYMTYPE, "../blobs/4711"),
        "out/--PJHxphWEs_30_40.mp4": (tarfile.SYMTYPE, "../../../../etc/passwd"),
        "out/-0abcdefghi_1_11.mp4": (tarfile.SYMTYPE, "-0abcdefghi_1_11.mp4"),
    }
    with tarfile.open(path, "w") as packed:
        packed.add(ten, "./all/--0PQM4-hqg_30_40.mp4")
        packed.add(ten, "blobs/4711")
        for name, (kind, target) in links.items():
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, target
            packed.addfile(link)
    lines = "--0PQM4-hqg,30,dog,train\n---g-f_I2yQ,1,cat,train\n--PJHxphWEs,30,dog,train\n"
    summary = prepare(tmp_path, {}, segments=lines + "-0abcdefghi,1,dog,train\n")
    # The hard link is a copy; the symbolic one is the same file.
    assert summary["files"] == 5
    examples = splits_of(tmp_path / "out")["train"]
    assert set(examples) == {"--0PQM4-hqg_000030", "---g-f_I2yQ_000001"}
    assert {row["reason"] for row in rejects(tmp_path).values()} == {"missing"}
    assert len(rejects(tmp_path)) == 2


def test_damaged_archives_and_members_are_told(tmp_path, ten):
    for name in ("a.tar", "b.tar.gz", "c.zip"):
        (tmp_path / name).write_bytes(b"no archive at all")
        with pytest.raises(UserError, match=f"the archive .*{name} can't be read"):
            video_files.find_videos([str(tmp_path / name)])
    whole = archive(tmp_path / "d.tar", {"a.mp4": ten, "b.mp4": ten})
    found = video_files.find_videos([str(whole)])
    assert [str(video.path) for video in found] == [f"{whole}/a.mp4", f"{whole}/b.mp4"]
    assert lengths.duration(f"{whole}/c.mp4").reason == "missing"
    whole.write_bytes(whole.read_bytes()[: ten.stat().st_size + 4000])
    assert lengths.duration(f"{whole}/b.mp4").reason in ("missing", "unreadable")
    (tmp_path / "e.zip").mkdir()  # a folder that is called like an archive
    (tmp_path / "e.zip/a.mp4").write_bytes(ten.read_bytes())
    assert lengths.duration(str(tmp_path / "e.zip/a.mp4")) == pytest.approx(10, abs=0.1)


def test_a_dry_run_decodes_nothing_and_leaves_nothing(tmp_path, capsys):
    files = {"--PJHxphWEs_30_40.mp4": b"", "x.mp4": b"", "y.mkv": b""}
    prepare(tmp_path, files, "--dry_run", segments="--PJHxphWEs,30,dog,train\n-0bcdefghij,1,a,test")
    said = capsys.readouterr().out
    assert "Split train: clips 1, files 1." in said
    assert "Split eval: clips 1, files 0, rejected already: 1 missing." in said
    assert "Files that no list names: 2, such as 'x.mp4', 'y.mkv'." in said
    prepare(tmp_path, files, "--dry_run")
    assert "Split train: clips 3, files 3." in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_without_a_file_for_any_row_it_ends_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(decoding, "probe", None)
    with pytest.raises(UserError, match=r"2 missing.*No list names 'x\.mp4'"):
        lines = "--PJHxphWEs,30,dog,train\n--0PQM4-hqg,30,dog,test\n"
        prepare(tmp_path, {"x.mp4": b""}, segments=lines)
    assert len(rejects(tmp_path)) == 2
    with pytest.raises(UserError, match="compute_stats is of the split 'train', which has no clip"):
        lines = "--PJHxphWEs,30,dog,train\nx_000000000,0,dog,test\n"
        prepare(tmp_path, {"x_000000000.mp4": b""}, "--compute_stats", segments=lines)


def test_pieces_of_another_length_than_their_names_say_are_rejected(ten, twenty_four):
    def reason(path, start, end, **settings):
        result = prepare_clip(VideoClip("a", str(path), start, end, **settings), SMALL)
        return result.reason if isinstance(result, Reject) else None

    assert reason(twenty_four, 0.0, 10.0, cut_to=10.0) == "wrong_length"
    assert reason(ten, 0.0, 10.0, cut_to=8.5) == "wrong_length"
    assert reason(ten, 0.0, 10.0, cut_to=9.5) is None
    assert reason(ten, 0.0, 10.0, cut_to=12.0) is None  # the video ended before
    assert reason(ten, 3.0, 13.0, listed=(3.0, 13.0)) == "wrong_length"
    assert reason(ten, 30.0, 40.0, listed=(30.0, 40.0)) == "wrong_length"
    assert reason(ten, 0.5, 10.0, listed=(0.5, 10.0)) is None
    assert reason(twenty_four, 16.0, 26.0, listed=(16.0, 26.0)) is None


def test_a_passing_failure_is_asked_again_and_a_lasting_one_is_a_reject():
    asked = []

    def ask(paths):
        asked.append(list(paths))
        for path in paths:
            if path == "slow" and len(asked) > 1:
                yield path, 40.0
            elif path == "good":
                yield path, 12.0
            else:
                yield path, Failure({"mute": "no_audio"}.get(path, "too_slow"), "It took long.")

    known = lengths.durations(["good", "slow", "mute", "stuck"], ask)
    assert asked == [["good", "slow", "mute", "stuck"], ["slow", "stuck"]]
    assert known["good"] == 12.0 and known["slow"] == 40.0
    stuck, slow = named("stuck", "slow")
    (clip,) = videos.split_clips(stuck, "stuck", (), known["stuck"], 10.0)
    assert clip.refusal == ("too_slow", "/v/stuck: It took long.")
    assert len(videos.split_clips(slow, "slow", (), known["slow"], 10.0)) == 4


def test_a_training_is_told_of_the_longest_clip_before_it_begins(tmp_path, twenty_four):
    prepare(tmp_path, {"a.mp4": twenty_four}, "--clip_seconds=12")
    records = loader.Records(tmp_path / "out", "train")
    assert records.longest_rows == len(records[0]["fbank"]) > 1190
    spec = loader.PairSpec(4, 1024, 96, 128, 32)
    for begin in (
        lambda: loader.train_batches(records, spec, 2, 0, 0, 0, 1),
        lambda: loader.clip_batches(records, spec, 1, 0, 1),
    ):
        with pytest.raises(UserError, match=f"set --config.data.clip_rows={records.longest_rows}"):
            begin()
    wide = spec._replace(clip_rows=records.longest_rows)
    batch = next(loader.train_batches(records, wide, 2, 0, 0, 0, 1))
    assert np.isfinite(batch["audio"]).all()


def test_stills_and_hdr_are_counted_in_the_summary(tmp_path, ten, capsys):
    grey = np.full((48, 64, 3), 90, np.uint8)
    still = make_video(tmp_path / "still.mp4", seconds=10, fps=2, picture=lambda *_: grey)
    summary = prepare(tmp_path, {"a.mp4": ten, "b.mp4": still, "c.mp4": still})
    train = summary["splits"]["train"]
    assert (train["examples"], train["still"], train["damaged"], train["hdr"]) == (3, 2, 0, 0)
    said = capsys.readouterr().out
    assert "Examples with the note 'still' (all frames show the same picture): 2." in said
    assert "'hdr'" not in said


def test_silence_that_sounds_elsewhere_is_counted(tmp_path, ten, capsys):
    silent = np.zeros((2, 160_000))
    right = silent + np.array([[0], [1]]) * tone(440, 10, 16_000)
    make = {"seconds": 10, "fps": 2, "layout": "stereo", "codecs": ("mpeg4", "ac3")}
    files = {
        "a.mp4": ten,
        "all.mkv": make_video(tmp_path / "all.mkv", waves=silent, rate=48_000, **make),
        "right.mkv": make_video(tmp_path / "r.mkv", waves=right.repeat(3, 1), rate=48_000, **make),
        "track.mkv": recording(tmp_path / "track.mkv", [SILENCE, SOUND]),
    }
    summary = prepare(tmp_path, files, "--max_reject_share=1")
    assert summary["splits"]["train"]["rejects"] == {"silent": 3}
    assert summary["splits"]["train"]["silent_but_elsewhere"] == 2
    assert "Silent clips that sound in another channel or track: 2;" in capsys.readouterr().out
    told = {name: row["detail"] for name, row in rejects(tmp_path).items()}
    assert "--audio_channel" in told["right"] and "-map 0:a:1" in told["track"]
    assert "but sounds" not in told["all"]
