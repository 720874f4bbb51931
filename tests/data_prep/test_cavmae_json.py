"""CAV-MAE's layout to a dataset: lists, class lists, audio of any rate, extracted frames."""

import csv
import dataclasses
import io
import json
import sys

import media_files
import numpy as np
import pytest
import tensorflow_datasets as tfds
from extracted_clips import CLASSES, Extracted
from PIL import Image

from cavmae_sync_jax.media import audio
from cavmae_sync_jax.utils.errors import UserError
from data_prep import cavmae_json
from data_prep.cavmae_json import Entry, Places
from data_prep.pipeline.clips import REASONS, Preparation, Reject, prepare_clip

SMALL = Preparation(num_frames=4, image_size=32)


@pytest.fixture
def extracted(tmp_path):
    return Extracted(tmp_path / "extracted")


def program(monkeypatch, capsys, *arguments):
    """Runs the program in this process; returns exit status, stdout and stderr."""
    monkeypatch.setattr(sys, "argv", ["cavmae_json", *map(str, arguments)])
    status = 0
    try:
        cavmae_json.main()
    except SystemExit as end:
        status = end.code
    return status, *capsys.readouterr()


def greys(example):
    images = (np.asarray(Image.open(io.BytesIO(data))) for data in example["frames"])
    return [round((float(image.mean()) - 20) / 14, 1) for image in images]


def rejects(output):
    with (output / "rejects.csv").open(newline="") as file:
        return [(row["clip_id"], row["reason"]) for row in csv.DictReader(file)]


def test_lists_become_a_dataset_and_nothing_is_lost(extracted, tmp_path, monkeypatch, capsys):
    noise = np.random.default_rng(0).integers(-9000, 9000, 48_000, dtype=np.int16)
    extracted.frames("a")
    extracted.sound("a.wav", noise)
    extracted.entry("a", labels="/m/0bt9lr,/m/09x0r")
    extracted.clip("b", labels="")
    extracted.entry("gone")
    extracted.entry("quiet", "")
    extracted.frames("silent")
    extracted.sound("silent.wav", np.zeros(32_000))
    extracted.entry("silent")
    extracted.clip("cut")
    (extracted.folder / "frames" / "frame_2" / "cut.jpg").unlink()
    extracted.entry("../../etc/passwd")
    train = extracted.save("train.json")
    extracted.clip("c", labels="/m/05zppz")
    evaluation = extracted.save("eval.json")
    output = tmp_path / "data"
    flags = [f"train={train}", f"eval={evaluation}", f"--classes={extracted.classes}"]
    flags += [f"--output={output}", "--num_frames=4", "--image_size=32", "--workers=1"]
    status, out, err = program(monkeypatch, capsys, *flags, "--max_reject_share=0.7")
    assert status == 0, err
    assert "has 3 examples: 2 in train, 1 in eval" in out
    builder = tfds.builder_from_directory(output / "cavmae_json" / "1.0.0")
    assert builder.info.metadata["source"] == "cavmae_json"
    assert builder.info.metadata["class_names"] == list(CLASSES.names)
    assert builder.info.metadata["has_truth"] is False
    assert builder.info.features["labels"].feature.names == list(CLASSES.names)
    records = {
        record["clip_id"].decode(): (split, record)
        for split in ("train", "eval")
        for record in builder.as_data_source(split=split)
    }
    found = {name: (split, list(record["labels"])) for name, (split, record) in records.items()}
    assert found == {"a": ("train", [2, 0]), "b": ("train", []), "c": ("eval", [1])}
    expected = audio.log_mel(noise / np.float32(32768), audio.SAMPLE_RATE)
    np.testing.assert_allclose(records["a"][1]["fbank"], expected, atol=0.02)
    assert greys(records["a"][1]) == [0, 1, 2, 3]
    assert sorted(rejects(output)) == [
        ("..__..__etc__passwd", "outside"),
        ("cut", "frames_missing"),
        ("gone", "missing"),
        ("quiet", "missing"),
        ("silent", "silent"),
    ]
    status, _, err = program(monkeypatch, capsys, *flags)
    assert status == 2 and "--overwrite" in err
    status, _, err = program(monkeypatch, capsys, *flags, "--overwrite")
    assert status == 3 and "62.5% of the clips were rejected" in err


@pytest.mark.parametrize(
    ("name", "rate", "seconds"),
    [("low.wav", 8_000, 3), ("high.wav", 44_100, 3), ("flac.flac", 48_000, 2.5)],
)
def test_sounds_are_resampled_from_the_left_channel_and_cut(extracted, name, rate, seconds):
    left, right = (media_files.tone(hertz, seconds, rate) for hertz in (440, 2000))
    extracted.sound(name, np.stack([left, right], axis=1), rate)
    extracted.frames("a")
    extracted.entry("a", f"audio/{name}")
    (entry,) = extracted.read()
    recording = entry.read(SMALL)
    assert recording.seconds == pytest.approx(seconds, abs=1e-3)
    # The same tone, made at 16 kHz: not the right channel's, and not at half the loudness.
    expected = audio.log_mel(media_files.tone(440, seconds, 16_000), audio.SAMPLE_RATE)
    fbank = np.asarray(prepare_clip(entry, SMALL)["fbank"], np.float32)
    assert len(fbank) == len(expected)
    loud = expected[20:-20] > expected.max() - 3
    np.testing.assert_allclose(fbank[20:-20][loud], expected[20:-20][loud], atol=0.05)
    assert fbank[20:-20][expected[20:-20] < expected.max() - 12].max() < expected.max() - 8
    short = entry.read(Preparation(num_frames=4, image_size=32, clip_seconds=1.5))
    assert short.seconds == 1.5 and len(short.waveform) == 24_000
    np.testing.assert_array_equal(short.waveform, recording.waveform[:24_000])


def test_frames_are_scaled_and_cropped_one_by_one(extracted):
    extracted.clip("a")
    wide = np.random.default_rng(0).integers(0, 255, (6, 9, 3), dtype=np.uint8)
    wide = wide.repeat(16, axis=0).repeat(16, axis=1)
    Image.fromarray(wide).save(extracted.folder / "frames" / "frame_1" / "a.jpg", quality=95)
    tall = Image.fromarray(np.full((70, 30), 90, np.uint8))
    tall.save(extracted.folder / "frames" / "frame_3" / "a.jpg")
    (entry,) = extracted.read()
    frames = entry.read(SMALL).frames
    assert frames.shape == (4, 32, 32, 3) and frames.dtype == np.uint8
    scaled = Image.fromarray(wide).resize((48, 32), Image.Resampling.BICUBIC).crop((8, 0, 40, 32))
    assert np.abs(frames[1].astype(int) - np.asarray(scaled)).mean() < 6
    assert abs(frames[2].mean() - 48) < 2 and abs(frames[3].mean() - 90) < 2


def test_the_stored_frames_nearest_in_time_are_taken(extracted):
    assert cavmae_json.chosen_frames(16, 16) == list(range(16))
    assert cavmae_json.chosen_frames(16, 8) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert cavmae_json.chosen_frames(16, 10) == [0, 2, 3, 5, 6, 8, 10, 11, 13, 14]
    assert cavmae_json.chosen_frames(10, 16) == list(range(16))
    for stored in range(1, 40):
        for count in range(1, stored + 1):
            numbers = np.array(cavmae_json.chosen_frames(stored, count))
            assert numbers[0] == 0 and numbers[-1] < stored and (np.diff(numbers) > 0).all()
            apart = np.abs(numbers / stored - np.arange(count) / count)
            assert apart.max() <= 0.5 / stored + 1e-9
    extracted.clip("a")
    extracted.frames("a", 16)
    (entry,) = extracted.read()
    assert entry.stored == 16
    assert greys(prepare_clip(entry, SMALL)) == [0, 4, 8, 12]


def test_ten_frames_are_refused_until_asked_for(extracted, tmp_path, monkeypatch, capsys):
    for name in ("a", "b"):
        extracted.clip(name)
        extracted.frames(name, 10)
    path = extracted.save()
    output = tmp_path / "data"
    flags = [f"train={path}", f"--classes={extracted.classes}", f"--output={output}"]
    flags += ["--image_size=32", "--workers=1"]
    status, _, err = program(monkeypatch, capsys, *flags)
    assert status == 2 and not output.exists()
    assert f"{extracted.folder / 'frames'} has 10 frame_* folders" in err
    assert "public extraction script" in err and "frame_15" in err
    assert "--num_frames=10" in err
    status, out, err = program(monkeypatch, capsys, *flags, "--num_frames=10")
    assert status == 0 and "2 in train" in out, err


def test_each_split_and_folder_is_looked_at_once(extracted, monkeypatch):
    extracted.clip("a")
    extracted.frames("b", 3, root="few")
    extracted.sound("b.wav", media_files.tone(440, 2, 16_000))
    extracted.entry("b", root="few")
    extracted.entry("c", root="few")
    path = extracted.save()
    counted, count = [], cavmae_json._count_frames
    monkeypatch.setattr(
        cavmae_json, "_count_frames", lambda root: counted.append(root) or count(root)
    )
    splits = cavmae_json.read_splits([f"train={path}"], CLASSES, Places(), 4)
    assert sorted(counted) == [str(extracted.folder / name) for name in ("few", "frames")]
    result = prepare_clip(splits["train"][1], SMALL)
    assert isinstance(result, Reject) and result.reason == "frames_missing"
    assert str(extracted.folder / "few/frame_3/b.jpg") in result.detail
    for name in ("d", "e"):
        extracted.entry(name, root="few")
    few = extracted.save("few.json")
    with pytest.raises(UserError, match=r"'eval': \S+/few has 3 frame_\* folders, but --num_fr"):
        cavmae_json.read_splits([f"train={path}", f"eval={few}"], CLASSES, Places(), 4)
    extracted.sound("e.wav", media_files.tone(440, 2, 16_000))
    splits = cavmae_json.read_splits([f"train={few}"], CLASSES, Places(), 3)
    assert [entry.stored for entry in splits["train"]] == [3, 3]


def broken(extracted, kind):
    """Adds the clip "a", broken in some way, and returns its entry."""
    extracted.clip("a")
    frame, sound = extracted.folder / "frames/frame_1/a.jpg", extracted.folder / "audio/a.wav"
    match kind:
        case "no frame":
            for number in range(4):
                (extracted.folder / f"frames/frame_{number}/a.jpg").unlink()
        case "cut frame":
            frame.write_bytes(frame.read_bytes()[:400])
        case "text frame":
            frame.write_text("no picture")
        case "no sound":
            sound.unlink()
        case "folder":
            extracted.entries[0]["wav"] = "audio"
        case "text sound":
            sound.write_text("no sound")
        case "no sample":
            extracted.sound("a.wav", np.zeros(0))
        case "short":
            extracted.sound("a.wav", media_files.tone(440, 0.5, 16_000))
        case "silent":
            extracted.sound("a.wav", np.zeros(32_000))
        case "silent left":
            waves = media_files.tone(440, 2, 16_000)
            extracted.sound("a.wav", np.stack([0 * waves, waves], axis=1))
        case "cut flac":
            noise = np.random.default_rng(0).normal(0, 0.1, 48_000)
            extracted.sound("a.flac", noise)
            sound = sound.with_suffix(".flac")
            sound.write_bytes(sound.read_bytes()[:20_000])
            extracted.entries[0]["wav"] = "audio/a.flac"
        case "video":
            media_files.make_video(
                extracted.folder / "audio/a.mp4", seconds=1, codecs=("libx264", None)
            )
            extracted.entries[0]["wav"] = "audio/a.mp4"
        case "empty":
            extracted.entries[0]["wav"] = " "
        case _:
            extracted.entries[0]["video_id"] = kind
    (entry,) = extracted.read()
    return entry


@pytest.mark.parametrize(
    ("kind", "reason", "named"),
    [
        ("no frame", "frames_missing", "frame_0/a.jpg"),
        ("cut frame", "unreadable", "frame_1/a.jpg"),
        ("text frame", "unreadable", "frame_1/a.jpg"),
        ("no sound", "missing", "audio/a.wav"),
        ("folder", "missing", "audio"),
        ("text sound", "unreadable", "audio/a.wav"),
        ("no sample", "no_audio", "audio/a.wav"),
        ("short", "too_short", "audio/a.wav"),
        ("silent", "silent", "audio/a.wav"),
        ("silent left", "silent", "audio/a.wav"),
        ("cut flac", "unreadable", "audio/a.flac"),
        ("video", "no_audio", "audio/a.mp4"),
        ("empty", "missing", "list.json, entry 1"),
        ("../frame_0/a", "outside", "list.json, entry 1"),
        ("/a", "outside", "list.json, entry 1"),
        ("..\\a", "outside", "list.json, entry 1"),
        ("..", "outside", "list.json, entry 1"),
        ("\ud800", "outside", "list.json, entry 1"),
        ("a\0", "frames_missing", "frame_0/a"),
    ],
)
def test_what_cannot_be_used_says_why(extracted, kind, reason, named):
    result = prepare_clip(broken(extracted, kind), SMALL)
    assert isinstance(result, Reject) and result.reason == reason and reason in REASONS
    assert str(extracted.folder) in result.detail and named in result.detail
    assert "/" not in result.clip_id and "\\" not in result.clip_id
    result.clip_id.encode()


def test_an_entry_survives_json_and_links_are_followed(extracted, tmp_path):
    extracted.clip("a..b", labels="/m/09x0r, /m/0bt9lr,,/m/09x0r")
    (extracted.folder / "frames").rename(tmp_path / "elsewhere")
    (extracted.folder / "frames").symlink_to(tmp_path / "elsewhere")
    (entry,) = extracted.read()
    assert entry.labels == ("Speech", "Dog") and entry.refusal is None
    row = json.loads(json.dumps(dataclasses.asdict(entry)))
    again = Entry(**{k: tuple(v) if isinstance(v, list) else v for k, v in row.items()})
    assert again == entry
    first, second = prepare_clip(entry, SMALL), prepare_clip(again, SMALL)
    assert first["frames"] == second["frames"] and len(first["frames"]) == 4


def test_paths_start_where_they_are_told_to(extracted, tmp_path):
    def found(places=None, **paths):
        extracted.entries = [{"video_id": "a", "labels": "", **paths}]
        (entry,) = extracted.read(places)
        return entry.path, entry.frames

    here = extracted.folder
    relative = {"wav": "audio/a.wav", "video_path": "frames//"}
    assert found(**relative) == (f"{here}/audio/a.wav", f"{here}/frames")
    assert found(Places("/r"), **relative) == ("/r/audio/a.wav", "/r/frames")
    absolute = {"wav": "/old/a.wav", "video_path": "/older/b/"}
    assert found(Places("/r"), **absolute) == ("/old/a.wav", "/older/b")
    places = Places("/r", ["/old=/new", "/older/=gs=/x"])
    assert found(places, **absolute) == ("/new/a.wav", "gs=/x/b")
    places.check_used()
    template = {"wav": "<YOUR_PATH>/audio/a.wav", "video_path": "<YOUR_PATH>/frames/"}
    place = Places(replace=[f"<YOUR_PATH>={here}/"])
    assert found(place, **template) == (f"{here}/audio/a.wav", f"{here}/frames")
    place = Places(replace=["/ol=/new"])
    assert found(place, **absolute) == ("/old/a.wav", "/older/b")
    with pytest.raises(UserError, match="--replace=/ol=/new is for no wav"):
        place.check_used()
    assert found(wav="gs://bucket/a.wav", video_path="frames")[0] == "gs://bucket/a.wav"
    for wrong in (["/old"], ["=/new"], ["/old="], ["/a=/b", "/a/=/c"]):
        with pytest.raises(UserError, match="--replace=OLD=NEW"):
            Places(replace=wrong)


def test_files_that_are_not_there_are_told_at_once(extracted, monkeypatch, capsys, tmp_path):
    extracted.entry("a", "/data/sls/audio/a.wav", root="/data/sls/frames/")
    output = tmp_path / "out"
    flags = [f"train={extracted.save()}", f"--classes={extracted.classes}", f"--output={output}"]
    status, _, err = program(monkeypatch, capsys, *flags, "--num_frames=4")
    assert status == 2 and "/data/sls/frames does not exist" in err and "--replace" in err
    replace = f"--replace=/data/sls/frames={extracted.folder}/audio"
    status, _, err = program(monkeypatch, capsys, *flags, replace)
    assert status == 2 and "/audio has no folder frame_0" in err
    extracted.frames("a")
    replace = f"--replace=/data/sls/frames={extracted.folder}/frames"
    status, _, err = program(monkeypatch, capsys, *flags, replace, "--num_frames=4")
    assert status == 2 and "'train': no audio file is there, such as /data/sls/audio/a.wav" in err
    with pytest.raises(UserError, match="folder of frames nothing://x can't be read"):
        Places().find_frames("nothing://x/", "")
    (extracted.folder / "frames" / "frame_1").rename(extracted.folder / "frames" / "frame_01")
    status, _, err = program(monkeypatch, capsys, *flags, replace, "--num_frames=4")
    assert status == 2 and "has the folder frame_3, but not frame_1" in err
    status, _, err = program(monkeypatch, capsys, *flags, "--workers=0", "--num_frames=0")
    assert status == 2 and "num_frames must be at least 1" in err
    assert not output.exists()
    status, out, _ = program(monkeypatch, capsys, "--help")
    assert status == 0 and "python -m data_prep.cavmae_json train=train.json" in out


ENTRY = {"video_id": "a", "wav": "a.wav", "video_path": "f", "labels": ""}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "can't be read: No such file"),
        (b"\xff\xff", "can't be read as JSON"),
        ('{"data": [\n  {"video_id" "a"}]}', "line 2, column 15, is not valid JSON: Expecting"),
        ("", "line 1, column 1, is not valid JSON"),
        ("[" * 100_000, "can't be read as JSON"),
        ("1" * 5000, "can't be read as JSON"),
        ("[]", r'must be \{"data": \[\{"video_id": "…", "wav"'),
        ({"data": {}}, r'must be \{"data"'),
        ({}, r'must be \{"data"'),
        (ENTRY, r'must be \{"data"'),
        ({"data": []}, "has no entry"),
        ({"data": [ENTRY, "b"]}, "entry 2, must be an object with video_id, wav"),
        ({"data": [ENTRY, [ENTRY]]}, "entry 2, must be an object"),
        ({"data": [ENTRY, {"wav": "a"}]}, "entry 2, lacks video_id, video_path, labels"),
        ({"data": [ENTRY | {"wav": None}]}, "entry 1, wav must be text, not null"),
        ({"data": [ENTRY | {"video_id": 7}]}, "entry 1, video_id must be text, not 7"),
        ({"data": [ENTRY | {"labels": ["x"]}]}, r"labels must be text, not \[\"x\"\]"),
        ({"data": [ENTRY | {"labels": ENTRY}]}, r"labels must be text, not \[\"a\", "),
        ({"data": [ENTRY, ENTRY | {"video_id": " "}]}, "entry 2, has an empty video_id"),
        (
            {"data": [ENTRY, ENTRY | {"video_id": "b", "labels": "/m/09x0r,/m/05zppx"}]},
            "entry 2, video_id 'b': '/m/05zppx' is not in the list .*did you mean '/m/05zppz'",
        ),
        ({"data": [ENTRY | {"labels": "vgg_47"}]}, "'vgg_47' is not in the list of classes"),
    ],
)
def test_a_malformed_list_is_told_in_a_sentence(tmp_path, content, message):
    path = tmp_path / "list.json"
    if content is not None:
        text = content if isinstance(content, str | bytes) else json.dumps(content)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message) as error:
        cavmae_json.read_list(path, CLASSES, Places())
    assert str(path) in str(error.value) and len(str(error.value)) < 300


def test_a_clip_comes_once(extracted):
    extracted.clip("a")
    extracted.clip("b")
    first = extracted.save("one.json")
    extracted.clip("c")
    extracted.entry("b")
    second = extracted.save("two.json")
    lists = [f"train={first}", f"eval={second}"]
    message = r"'b' comes twice: \S+/one\.json, entry 2, and \S+/two\.json, entry 2$"
    with pytest.raises(UserError, match=message):
        cavmae_json.read_splits(lists, CLASSES, Places(), 4)
    extracted.clip("c")
    second = extracted.save("two.json")
    splits = cavmae_json.read_splits([f"all_of={first}", f"all_of={second}"], CLASSES, Places(), 4)
    assert {name: len(entries) for name, entries in splits.items()} == {"all_of": 3}
    for wrong in (str(first), f"={first}", "train=", f"../x={first}", f"all={first}"):
        with pytest.raises(UserError, match="must be SPLIT=JSON"):
            cavmae_json.read_splits([wrong], CLASSES, Places(), 4)


def test_reading_a_list_touches_no_clip(tmp_path, monkeypatch):
    entries = [ENTRY | {"video_id": f"v{i}", "video_path": f"f{i % 2}/"} for i in range(3000)]
    path = tmp_path / "list.json"
    path.write_text(json.dumps({"data": entries}))
    looked = []
    monkeypatch.setattr(cavmae_json, "_count_frames", lambda root: looked.append(root) or 4)
    monkeypatch.setattr(cavmae_json.os.path, "exists", None)
    monkeypatch.setattr(cavmae_json.readers, "read_sound", None)
    listed = cavmae_json.read_list(path, CLASSES, Places())
    assert len(listed) == 3000 and len(looked) == 2
    assert len({id(entry.frames) for entry in listed}) == 2
