"""Files to embeddings: retrieval's numbers for clips, true times and flat memory for any length."""

import subprocess
import sys

import jax.numpy as jnp
import media_files
import numpy as np
import pytest
import tiny
from media_files import noise, noisy_video
from PIL import Image

from cavmae_sync_jax.data.loader import PairSpec, Records
from cavmae_sync_jax.distributed import sharding
from cavmae_sync_jax.evals.metrics import retrieval as retrieval_metrics
from cavmae_sync_jax.inference import features, reading, similarity, timeline
from cavmae_sync_jax.media import audio
from cavmae_sync_jax.utils.errors import UserError
from data_prep.pipeline.clips import Preparation, VideoClip
from data_prep.pipeline.executors import Engine
from data_prep.pipeline.tfds_writer import write_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("model")


@pytest.fixture(scope="module")
def prepared(folder):
    """Three files, of 10, 5 and 10.3 s, and the dataset that preparation makes of them."""
    files = [
        noisy_video(folder / f"{i}.mp4", seconds, seed=i)
        for i, seconds in enumerate((10, 5, 10.25))
    ]
    clips = [VideoClip(path.stem, str(path), end=None) for path in files]
    write_dataset(
        folder / "prepared",
        {"eval": clips},
        Preparation(num_frames=16, image_size=32),
        class_names=[],
        source="videos",
        engine=Engine(workers=1),
    )
    return files, Records(folder / "prepared", "eval")


def test_a_clip_gets_the_numbers_of_retrieval(model, prepared):
    files, records = prepared
    expected = features.extract(features.embeddings, model, records, sharding.make_mesh())
    place = {name: i for i, name in enumerate(records.ids(list(range(len(records)))))}
    found = [model.embed_video(path) for path in files]
    for path, one in zip(files, found, strict=True):
        for name in ("audio", "visual"):
            rows = getattr(one, name)
            assert rows.dtype == np.float32
            whole = similarity.unit(expected[name][place[path.stem]])
            np.testing.assert_allclose(rows, whole, rtol=0, atol=1e-6)
            assert np.ptp(rows, axis=0).max() > 1e-3
    for strategy in similarity.STRATEGIES:
        matrix = retrieval_metrics.STRATEGIES[strategy](expected["audio"], expected["visual"])
        for i in (0, 2):
            for j in (0, 1):
                own = model.similarity(found[i], found[j], strategy)
                theirs = matrix[place[files[i].stem], place[files[j].stem]]
                assert own == pytest.approx(theirs, abs=1e-6)
    np.testing.assert_allclose(found[0].times, np.arange(16) * 0.625)
    np.testing.assert_allclose(found[1].times, np.arange(16) * 5 / 16)
    # Row 960 of 1024 is the last window's centre, and 10 s have 998 rows.
    assert found[0].padded[:12].max() == 0 and found[0].padded[-1] == pytest.approx(10 / 96)


def test_bytes_are_a_file_too(model, prepared):
    files, _ = prepared
    whole, again = model.embed_video(files[1]), model.embed_video(files[1].read_bytes())
    np.testing.assert_array_equal(whole.visual, again.visual)


# How a clip's windows are spread says nothing of longer files.
@pytest.mark.parametrize(("blocks", "spread"), [(7.0, "clip"), (1000.0, "padded")])
def test_each_picture_of_a_long_file_meets_its_own_sound(
    folder, model, monkeypatch, blocks, spread
):
    monkeypatch.setattr(timeline, "BLOCK_SECONDS", blocks)
    path = folder / "long.mp4"
    if not path.exists():
        noisy_video(path, 30)
    info = reading.file_info(path)
    spec = PairSpec.of(model.config)._replace(window_spread=spread)
    parts = list(timeline.pairs_of_file(info, spec))
    times = np.concatenate([part.times for part in parts])
    np.testing.assert_allclose(times, np.arange(48) * 0.625)
    waveform = reading.read_sound(str(path), 0, 30)
    fbank = audio.log_mel(waveform / np.float32(32768), 16_000).astype(np.float16)
    windows = np.concatenate([part.audio for part in parts])
    for time, window in zip(times, windows, strict=True):
        start = min(max(0, round(100 * time) - 48), len(fbank) - 96)
        # AAC draws noise, from a state that depends on where decoding began: nearly equal.
        errors = [np.abs(window - fbank[at : at + 96]).mean() for at in (start, max(start - 1, 1))]
        assert errors[0] < 0.01 < 20 * errors[0] + 0.1 < errors[1]
    visual = np.concatenate([part.visual for part in parts])
    (whole,) = timeline.pairs_of_file(info, spec, 20, 30, None)
    np.testing.assert_array_equal(whole.visual, visual[32:])
    assert max(part.padded.max() for part in parts) == 0


def test_windows_at_other_moments_than_a_clips_are_centred(model):
    spec = PairSpec.of(model.config)
    waveform = np.random.default_rng(0).integers(-9999, 9999, 160_000, np.int16)
    (found,) = timeline.pairs_of_waveform(waveform, spec, every=1.0)
    fbank = audio.log_mel(waveform / np.float32(32768), 16_000).astype(np.float16)
    for time, window in zip(range(10), found.audio, strict=True):
        start = min(max(0, 100 * time - 48), len(fbank) - 96)
        np.testing.assert_array_equal(window, fbank[start : start + 96])


def test_windows_at_the_end_hold_sound_that_ends_before_its_file(model):
    spec, rows = PairSpec.of(model.config), model.config.model.audio_rows
    waveform = np.random.default_rng(0).integers(-9999, 9999, round(60.05 * 16_000), np.int16)
    info = reading.FileInfo("early.mkv", "sound", 60.3)
    spans = timeline._spans(info, spec, 0.0, info.seconds, 0.1)
    assert len(spans) == 2 and spans[1].end - spans[1].start < 0.5
    contents = [
        reading.Content([], waveform[round(s.start * 16e3) : round(s.end * 16e3)], s.end - s.start)
        for s in spans
    ]
    found = list(timeline._streamed(contents, spans, spec, 0.1, info))
    windows = np.concatenate([pairs.audio for pairs in found])
    whole = audio.log_mel(waveform / np.float32(32768), 16_000).astype(np.float16)
    np.testing.assert_allclose(windows[-1], whole[-rows:], rtol=5e-3, atol=5e-3)
    assert len(windows) == 603 and (windows != 0).all()
    assert max(pairs.padded.max() for pairs in found) == 0


def test_memory_does_not_grow_with_the_length(model):
    # Eight hours of sound would be 3 GB of log-mel; what is held at once is one block of it.
    spec = PairSpec.of(model.config)
    block = np.zeros(240 * 16_000, np.int16)
    info = reading.FileInfo("day.mp4", "sound", 8 * 3600.0)
    spans = timeline._spans(info, spec, 0.0, info.seconds, 0.625)
    largest = seen = 0
    contents = (reading.Content([], block, 240.0) for _ in spans[:10])
    for pairs in timeline._streamed(contents, spans[:10], spec, 0.625, info):
        seen += len(pairs.times)
        largest = max(largest, len(pairs.times))
    assert seen == 10 * 384 and largest <= 384 + 4 and len(spans) == 120


def test_a_sound_of_any_rate_is_heard_as_its_file(folder, model):
    import soundfile

    for rate, channels in ((44_100, 1), (48_000, 2)):
        samples = np.stack([media_files.tone(440 * (c + 1), 3, rate) for c in range(channels)])
        path = folder / f"{rate}.wav"
        soundfile.write(path, samples.T, rate, subtype="FLOAT")
        of_file, of_samples = model.embed_sound(path), model.embed_sound(samples, rate)
        assert of_file.visual is None and of_file.audio.shape[0] == 16
        np.testing.assert_allclose(of_file.audio, of_samples.audio, atol=1e-3)
    whole = model.embed_sound(noise(25), 16_000)
    np.testing.assert_allclose(whole.times, np.arange(40) * 0.625)
    whole = model.embed_sound((9999 * noise(3)).astype("<i2"), 16_000)
    swapped = model.embed_sound((9999 * noise(3)).astype(">i2"), 16_000)
    np.testing.assert_array_equal(whole.audio, swapped.audio)
    other = model.embed_sound(media_files.tone(440, 3, 44_100), 16_000)
    assert np.abs(other.audio - of_samples.audio).max() > 1e-3


def test_a_videos_sound_is_its_own(model, prepared):
    files, _ = prepared
    alone, both = model.embed_sound(files[0]), model.embed_video(files[0])
    np.testing.assert_allclose(alone.audio, both.audio, atol=1e-4)
    picture = model.embed_image(np.full((48, 64, 3), 90, np.uint8))
    assert picture.audio is None and picture.visual.shape == (1, 16)
    # Of other timelines, the mean of all cosines.
    expected = (both.audio @ picture.visual.T).mean()
    assert model.similarity(both, picture) == pytest.approx(expected, abs=1e-6)


def test_little_sound_says_how_much_is_padding(model):
    short = model.embed_sound(noise(0.5), 16_000)
    assert short.padded == pytest.approx(np.full(16, 1 - 48 / 96))
    assert model.embed_sound(noise(0.1)[:640], 16_000).padded == pytest.approx(1 - 2 / 96)
    with pytest.raises(UserError, match="the sound has 19 ms of sound: 25 ms"):
        model.embed_sound(noise(0.1)[:300], 16_000)


def test_upright_as_the_camera_was_held(folder, model):
    picture = np.zeros((60, 40, 3), np.uint8)
    picture[:30] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = folder / "turned.jpg"
    Image.fromarray(np.rot90(picture)).save(path, exif=exif, quality=95)
    # Scaled, so that only the middle 40 rows are left: red above, black below.
    found = model.picture(path).astype(int)
    assert found[:12, :, 0].min() > 200 and found[20:].max() < 60
    np.testing.assert_allclose(found, model.picture(picture), atol=60)
    assert model.embed_image(path).visual.shape == (1, 16)


@pytest.mark.parametrize(
    ("samples", "rate", "sentence"),
    [
        (np.array([0.1, np.nan] * 500), 16_000, "not finite"),
        (np.ones(1000) * 20_000, 16_000, "1 is the full scale"),
        (np.zeros((1000, 2)), 16_000, "transpose it"),
        (np.zeros(1000, np.uint8), 16_000, "float, int16 or int32"),
        (np.zeros(1000), 10, "from 1000 to"),
        (np.zeros(1000), None, "need their sample_rate"),
        (np.zeros(0), 16_000, "not of shape"),
    ],
)
def test_bad_samples_are_one_sentence(model, samples, rate, sentence):
    with pytest.raises(UserError, match=sentence):
        model.embed_sound(samples, rate)


def test_mistakes_of_arguments(model, prepared):
    path = prepared[0][0]
    with pytest.raises(UserError, match=r"has 10.00 s, and nothing in the span"):
        model.embed_video(path, start=11)
    with pytest.raises(UserError, match="every must be above 0"):
        model.embed_video(path, every=0)
    both = model.embed_video(path, start=2, end=4, every=0.5)
    np.testing.assert_allclose(both.times, [2, 2.5, 3, 3.5])
    with pytest.raises(UserError, match="is a video: use embed_video, and localize for its maps"):
        model.heatmap(prepared[0][0], prepared[0][0])
    with pytest.raises(UserError, match="there is no strategy 'best'"):
        model.similarity(both, both, "best")
    with pytest.raises(UserError, match="vectors of one model, not of 16 and of 8 numbers"):
        model.similarity(np.ones((2, 16)), np.ones((2, 8)))
    with pytest.raises(UserError, match="similarity needs visual vectors"):
        model.similarity(both, model.embed_sound(path))


def test_files_in_worker_processes(model, prepared, tmp_path):
    files, _ = prepared
    (tmp_path / "text.mp4").write_text("nothing")
    given = [files[0], tmp_path / "text.mp4", files[1]]
    results = {}
    for name, _, parts in model.embed_files(given, workers=1):
        results[name] = parts if isinstance(parts, UserError) else list(parts)
    assert "text.mp4 can't be read" in str(results[str(given[1])])
    (whole,) = results[str(files[1])]
    np.testing.assert_array_equal(whole.visual, model.embed_video(files[1]).visual)


def test_vectors_are_float32_whatever_computes_them(model):
    half = model._replace(module=model.module.clone(dtype="bfloat16"))
    assert isinstance(half, type(model))
    shapes = {m: np.zeros((1, *model.module.raw_shape(m))) for m in ("audio", "visual")}
    for tokens in (half.encode_audio(shapes["audio"]), half.encode_image(shapes["visual"])):
        assert {part.dtype for part in tokens} == {jnp.dtype("float32")}


def test_heatmaps_follow_the_sound(model):
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (40, 40, 3)).astype(np.uint8)
    sound = model.embed_sound(noise(3), 16_000)
    heat = model.heatmap(picture, sound, "cosine")
    assert heat.shape == (32, 32) and heat.dtype == np.float32
    patches = np.asarray(model.encode_image(model.picture(picture)[None]).patch_tokens)
    query = sound.audio.mean(axis=0)
    expected = similarity.unit(patches[0]) @ similarity.unit(query)
    corners = heat[[0, 0, -1, -1], [0, -1, 0, -1]]
    np.testing.assert_allclose(corners, expected[[0, 3, 12, 15]], atol=1e-5)
    maps = model.maps(np.stack([model.picture(picture)] * 11), np.repeat(sound.audio, 11, 0)[:11])
    assert maps.shape == (11, 4, 4) and np.ptp(maps, axis=0).max() < 1e-4 < np.ptp(maps[0])
    with pytest.raises(UserError, match="there is no method 'best'"):
        model.heatmap(picture, sound, "best")


KINDS = ("BytesIO", "Image", "NoneType")
WRONG_KINDS = """
import io, sys
import cavmae_sync_jax
from PIL import Image
model = cavmae_sync_jax.load(sys.argv[1])
picture = Image.new("RGB", (40, 40))
for call in (model.embed_video, model.embed_sound, model.embed_image):
    for given in (io.BytesIO(b"RIFF"), picture, None):
        if call == model.embed_sound and given is picture:
            continue  # numbers
        try:
            call(given)
        except cavmae_sync_jax.utils.errors.UserError as error:
            print(call.__name__, error)
"""


def test_what_is_no_file_is_a_sentence(workdir):
    # In a process of its own, for the tests check all annotations before.
    command = [sys.executable, "-c", WRONG_KINDS, str(workdir)]
    done = subprocess.run(command, cwd=tiny.ROOT, capture_output=True, text=True)
    image = "give a picture's path, bytes, or uint8 array [height, width, 3], not"
    assert done.stdout.splitlines() == [
        *(f"embed_video give a file's path or its bytes, not {kind}" for kind in KINDS),
        *(f"embed_sound give a sound's path, bytes or samples, not {kind}" for kind in KINDS[::2]),
        *(f"embed_image {image} {kind}" for kind in KINDS),
    ], done.stderr


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_as_on_a_white_page(model, tmp_path, mode):
    hidden = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    hidden.paste((200, 200, 200, 255), (20, 0, 40, 40))
    hidden.convert(mode).save(tmp_path / "logo.png")
    seen = model.picture(tmp_path / "logo.png").astype(int)
    assert seen[:, :12].min() > 245 and np.abs(seen[:, 20:] - 200).max() < 10


def test_loading_is_silent(workdir):
    code = f"import cavmae_sync_jax; cavmae_sync_jax.load({str(workdir)!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tiny.ROOT, check=True
    )
    assert done.stdout == done.stderr == ""


def test_percentiles_are_places():
    others = np.array([0.1, 0.2, 0.3, 0.4])
    assert similarity.percentile(0.35, others) == 75
    assert similarity.percentile(0.2, others) == 37.5
