"""ADE20K-Sound's published layout to a dataset: a synthetic folder, whole and broken."""

import csv
import io
import subprocess
import sys

import media_files
import numpy as np
import pytest
import tensorflow_datasets as tfds
from ade20k_folders import HEADER, SMALL, Published, annotation, ids_of, write
from PIL import Image

from cavmae_sync_jax.media import audio, decoding
from cavmae_sync_jax.utils.errors import UserError
from data_prep import ade20k_sound
from data_prep.pipeline.clips import REASONS, Reject, prepare_clip
from data_prep.pipeline.readers import read_sound


def tone(seconds=3.0, rate=16_000, hertz=440):
    return media_files.tone(hertz, seconds, rate)


@pytest.fixture
def published(tmp_path):
    return Published(tmp_path / "published")


def stored(output):
    builder = tfds.builder_from_directory(next(output.glob("ade20k_sound/*")))
    records = builder.as_data_source(split="eval")
    return builder, {record["clip_id"].decode(): record for record in records}


def program(*arguments):
    command = [sys.executable, "-m", "data_prep.ade20k_sound", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_rows_become_examples_or_rejects_and_nothing_is_lost(published, tmp_path):
    published.image("a.jpg", ids_of(300, 5))
    published.image("sub/b.jpg", ids_of(5, 2610, height=60, width=40), grey=200)
    noise = np.random.default_rng(0).integers(-9000, 9000, 48_000, dtype=np.int16)
    published.sound("dog.wav", noise)
    published.sound("cat.flac", np.stack([tone(4, 44_100), 0 * tone(4, 44_100)], 1), 44_100)
    published.sound("silence.wav", 0 * tone())
    published.row("a.jpg", "vggsound/x/dog.wav", 300)
    published.row("a.jpg", "", 300)
    published.row("sub/b.jpg", "cat.flac", "2610.0")
    published.row("sub/b.jpg", "nan", 5)
    published.row("a.jpg", "dog.wav", 0)
    published.row("a.jpg", "cat.flac", 5)
    published.row("a.jpg", "silence.wav", 5)
    published.row("a.jpg", "gone.wav", 5)
    output = tmp_path / "data"
    done = program(published.save(), f"--output={output}", "--image_size=32", "--workers=2")
    assert done.returncode == 0, done.stderr
    assert "has 3 examples: 3 in eval" in done.stdout
    assert "2 clips were rejected (1 silent, 1 missing)" in done.stdout
    assert "3 rows without a vggsound_file or of class 0" in done.stdout
    builder, records = stored(output)
    assert builder.info.metadata["class_names"] == ["ade_5", "ade_300", "ade_2610"]
    assert builder.info.features["labels"].feature.names == ["ade_5", "ade_300", "ade_2610"]
    assert sorted(records) == ["a_2", "a_7", "b_4"]
    with (output / "rejects.csv").open(newline="") as file:
        rejects = list(csv.DictReader(file))
    assert [(r["clip_id"], r["reason"]) for r in rejects] == [
        ("a_8", "silent"),
        ("a_9", "missing"),
    ]
    for name, index, grey in (("a_2", 1, 100), ("a_7", 0, 100), ("b_4", 2, 200)):
        record = records[name]
        (image,) = (Image.open(io.BytesIO(data)) for data in record["frames"])
        assert image.size == (32, 32) and abs(np.asarray(image).mean() - grey) < 3
        (mask,) = (np.asarray(Image.open(io.BytesIO(data))) for data in record["frame_mask"])
        assert mask.dtype == bool and mask.shape == (32, 32)
        half = np.zeros((32, 32), bool)
        half[:, 16:] = True
        np.testing.assert_array_equal(mask, ~half if name == "a_2" else half)
        assert record["frame_class"].tolist() == [index] == list(record["labels"])
        assert len(record["events"]["class"]) == 0
    expected = audio.log_mel(noise / np.float32(32768), audio.SAMPLE_RATE)
    np.testing.assert_allclose(records["a_2"]["fbank"], expected, atol=0.02)
    assert len(records["a_7"]["fbank"]) == (64_000 - 400) // 160 + 1
    # The second channel is silent: a downmix would be quieter.
    loudest = records["b_4"]["fbank"].astype(np.float32).max()
    assert loudest == pytest.approx(audio.log_mel(tone(4), audio.SAMPLE_RATE).max(), abs=0.1)


def test_a_dataset_is_replaced_only_when_asked_and_only_by_a_whole_one(published, tmp_path):
    published.image("a.jpg", ids_of(3, 5))
    published.sound("a.wav", tone())
    published.row("a.jpg", "a.wav", 3)
    output = tmp_path / "data"
    table = ade20k_sound.read_table(published.save())
    write(output, table)
    with pytest.raises(UserError, match="--overwrite"):
        write(output, table)
    (published.folder / "audio" / "a.wav").unlink()
    message = r"none of the 1 clips .* \(1 missing\); the first: There is no .*a\.wav"
    with pytest.raises(UserError, match=message):
        write(output, table, overwrite=True)
    assert list(stored(output)[1]) == ["a_2"]
    published.sound("b.wav", tone())
    published.row("a.jpg", "b.wav", 5)
    table = ade20k_sound.read_table(published.save())
    summary = write(output, table, overwrite=True)
    assert summary.examples == {"eval": 1} and [r.reason for r in summary.rejects] == ["missing"]
    assert list(stored(output)[1]) == ["a_3"]
    assert sorted(path.name for path in output.iterdir()) == [
        *("ade20k_sound", "rejects.csv", "summary.json")
    ]


@pytest.mark.parametrize(
    ("image", "sound", "class_id", "reason"),
    [
        ("../outside.jpg", "a.wav", 3, "outside"),
        ("x/../../outside.jpg", "a.wav", 3, "outside"),
        ("/etc/outside.jpg", "a.wav", 3, "outside"),
        ("a.jpg", "x/..", 3, "outside"),
        ("a.jpg", "/", 3, "outside"),
        ("a.jpg\0", "a.wav", 3, "bad_name"),
        ("a.png", "a.wav", 3, "bad_name"),
        ("a.jpg", "a.wav", "dog", "bad_class"),
        ("a.jpg", "a.wav", "2.5", "bad_class"),
        ("a.jpg", "a.wav", "nan", "bad_class"),
        ("a.jpg", "a.wav", "", "bad_class"),
        ("a.jpg", "a.wav", 4, "no_mask"),
        ("gone.jpg", "a.wav", 3, "missing"),
        ("a.jpg", "gone.wav", 3, "missing"),
        ("a.jpg", "short.wav", 3, "too_short"),
        ("a.jpg", "broken.wav", 3, "unreadable"),
        ("a.jpg", "cut.flac", 3, "unreadable"),
        ("a.jpg", "picture.mp4", 3, "no_audio"),
        ("a.jpg", "empty.wav", 3, "no_audio"),
        ("broken.jpg", "a.wav", 3, "unreadable"),
        ("grey.jpg", "a.wav", 3, "unreadable"),
        ("turned.jpg", "a.wav", 3, "mask_shape"),
    ],
)
def test_what_cannot_be_used_says_why(published, tmp_path, image, sound, class_id, reason):
    published.image("a.jpg", ids_of(3, 5))
    published.image("broken.jpg", ids_of(3, 5))
    whole = (published.folder / "frames" / "broken.jpg").read_bytes()
    (published.folder / "frames" / "broken.jpg").write_bytes(whole[: len(whole) // 2])
    published.image("turned.jpg", ids_of(3, 5))
    annotation(ids_of(3, 5).T).save(published.folder / "annotations" / "turned_seg.png")
    published.image("grey.jpg", ids_of(3, 5))
    grey = Image.fromarray(np.full((40, 60), 3, np.uint8))
    grey.save(published.folder / "annotations" / "grey_seg.png")
    published.image("outside.jpg", ids_of(3, 5))
    for place in ("outside.jpg", "outside_seg.png"):
        (tmp_path / place).write_bytes(whole)
    published.sound("a.wav", tone())
    published.sound("short.wav", tone(0.5))
    published.sound("empty.wav", [])
    published.sound("cut.flac", np.random.default_rng(0).normal(0, 0.1, 48_000))
    flac = published.folder / "audio" / "cut.flac"
    flac.write_bytes(flac.read_bytes()[: flac.stat().st_size // 3])
    (published.folder / "audio" / "broken.wav").write_bytes(b"RIFF....")
    video = published.folder / "audio" / "picture.mp4"
    media_files.make_video(video, seconds=1, codecs=("libx264", None))
    published.row(image, sound, class_id)
    (row,) = published.rows()
    result = prepare_clip(row, SMALL)
    assert isinstance(result, Reject) and result.reason == reason
    assert result.reason in REASONS
    assert result.detail and "/" not in result.clip_id


def test_sounds_of_any_container_give_their_first_channel(published, tmp_path):
    waves = np.stack([tone(2, 48_000, 300), tone(2, 48_000, 3000)])
    for name in ("a.mp4", "a.mka"):
        path = media_files.make_video(
            published.folder / "audio" / name,
            seconds=2,
            waves=waves,
            rate=48_000,
            layout="stereo",
            codecs=("libx264" if name == "a.mp4" else None, "aac"),
        )
        samples = read_sound(str(path), 10)
        assert samples.dtype == np.int16 and abs(len(samples) - 32_000) < 700
        strongest = np.abs(np.fft.rfft(samples)).argmax() * 16_000 / len(samples)
        assert strongest == pytest.approx(300, abs=2)
        assert np.abs(samples).max() == pytest.approx(0.3 * 32768, rel=0.12)
        assert len(read_sound(str(path), 1.5)) == 24_000
    video = decoding.read_clip(published.folder / "audio" / "a.mp4").waveform
    samples = read_sound(str(published.folder / "audio" / "a.mp4"), 10)
    np.testing.assert_array_equal(samples[:31_000], video[:31_000])


def test_an_annotation_of_another_size_still_lies_on_its_image(published):
    published.image("a.jpg", ids_of(3, 5, height=40, width=60))
    annotation(ids_of(3, 5, height=80, width=120)).save(
        published.folder / "annotations" / "a_seg.png"
    )
    published.sound("a.wav", tone())
    published.row("a.jpg", "a.wav", 5)
    example = prepare_clip(published.rows()[0], SMALL)
    mask = np.asarray(Image.open(io.BytesIO(example["frame_mask"][0])))
    assert mask[:, 16:].all() and not mask[:, :16].any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "has no prompted_segmentation.csv"),
        ("", "lacks the columns image_location, vggsound_file, ade_class_id"),
        ("image_location,ade_class_id\na.jpg,3\n", "lacks the columns vggsound_file"),
        (f"{HEADER}\na.jpg,a.wav,,0,3\na.jpg,a.wav\n", "line 3: need 5 cells"),
        (f"{HEADER}\na.jpg,a.wav,,0,3,9\n", "line 2: need 5 cells"),
        (f"{HEADER}\na.jpg,,,0,3\na.jpg,a.wav,,0,0\n", "has no row with a vggsound_file"),
        (b"\xff\xfe\n", "UTF-8"),
    ],
)
def test_a_malformed_table_is_told_in_a_sentence(tmp_path, text, message):
    if text is not None:
        data = text.encode() if isinstance(text, str) else text
        (tmp_path / ade20k_sound.TABLE).write_bytes(data)
    with pytest.raises(UserError, match=message) as error:
        ade20k_sound.read_table(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_the_program_says_what_it_does_and_what_is_wrong(tmp_path):
    done = program("--help")
    assert done.returncode == 0 and "python -m data_prep.ade20k_sound ADE" in done.stdout
    done = program(tmp_path / "nowhere", f"--output={tmp_path / 'x'}")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert "nowhere has no prompted_segmentation.csv" in done.stderr
    assert not (tmp_path / "x").exists()
