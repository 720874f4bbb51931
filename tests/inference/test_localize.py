"""A heat map at every moment of a video: what is written can be played, seen and read."""

import json
import shutil

import av
import numpy as np
import pytest
import soundfile
from media_files import make_video, noise, noisy_video
from PIL import Image

from cavmae_sync_jax import localize
from cavmae_sync_jax.inference import overlay, reading, similarity, timeline
from cavmae_sync_jax.utils.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("localize")


@pytest.fixture(scope="module")
def video(folder):
    return str(noisy_video(folder / "video.mp4", 12))


@pytest.fixture(scope="module")
def done(folder, model, video):
    return localize.run(model, video, folder / "out"), folder / "out"


def test_every_pair_has_its_match_and_map(done, model, video):
    told, output = done
    embedded = model.embed_video(video)
    assert told["match"] == pytest.approx(np.vecdot(embedded.audio, embedded.visual), abs=1e-5)
    assert told["times"] == embedded.times.tolist() == (np.arange(19) * 0.625).tolist()
    assert json.loads((output / "localize.json").read_text()) == told
    others = np.delete(embedded.audio, 3, axis=0) @ embedded.visual[3]
    expected = similarity.percentile(told["match"][3], others.astype(float))
    assert told["percentile"][3] == pytest.approx(expected, abs=100 / 18)
    assert len(set(told["segment"])) > 1 and len(told["segment"]) == 19
    with np.load(output / "localize.npz") as stored:
        maps = stored["maps"]
    assert maps.shape == (19, 4, 4)
    row, column = np.unravel_index(maps[5].argmax(), (4, 4))
    assert told["peak"][5] == [(column + 0.5) / 4, (row + 0.5) / 4]
    assert told["scale"] == {"low": np.median(maps), "high": np.percentile(maps, 99)}
    assert Image.open(output / "timeline.png").size[0] > 1000


def test_the_mp4_plays_in_browsers(done):
    _, output = done
    data = (output / "localize.mp4").read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(output / "localize.mp4")) as container:
        video, sound = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, video.pix_fmt) == ("h264", "yuv420p")
        assert sound.codec_context.name == "aac"
        assert float(video.duration * video.time_base) == pytest.approx(12, abs=0.1)
        assert float(sound.duration * sound.time_base) == pytest.approx(12, abs=0.1)
        samples = np.concatenate([f.to_ndarray()[0] for f in container.decode(sound)])
    expected = noise(12)
    own = np.array([np.abs(x).mean() for x in np.array_split(expected, 60)])
    heard = np.array([np.abs(x).mean() for x in np.array_split(samples[:192_000], 60)])
    assert np.corrcoef(own, heard)[0, 1] > 0.95


def test_the_log_mel_of_a_long_file_is_whole(model, video, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(localize, "_draw", lambda *given: drawn.append(given[3]))
    monkeypatch.setattr(localize, "BLOCK_SECONDS", 2.0)
    for columns in (1200, 3):  # as one column per row, and as columns longer than a block
        monkeypatch.setattr(localize, "COLUMNS", columns)
        localize.run(model, video, tmp_path / str(columns))
    rows, long = drawn
    assert len(rows) == 6 * 198 and len(long) == 2  # 400 rows each
    np.testing.assert_allclose(long, rows[:800].reshape(2, 400, -1).mean(axis=1), atol=1e-5)


def test_another_sound_is_searched_for_and_heard(folder, model, video):
    short = folder / "short.wav"
    soundfile.write(short, noise(3, seed=7), 16_000)
    told = localize.run(model, video, folder / "other", sound=str(short))
    own, sounds = model.embed_video(video), model.embed_sound(short).audio
    expected = own.visual @ sounds.mean(axis=0)
    assert told["match"] == pytest.approx(expected, abs=1e-5)
    picture = own._replace(visual=own.visual[7:8])
    assert told["match"][7] == pytest.approx(model.similarity(sounds, picture), abs=1e-5)
    # The sound is the same at all moments, so it is compared with the video's own.
    place = similarity.percentile(told["match"][7], (own.audio @ own.visual[7]).astype(float))
    assert told["percentile"][7] == pytest.approx(place, abs=100 / 18)
    assert np.ptp(told["percentile"]) > 0
    assert "better than " in localize.sentences(told)[1]
    assert "% of the video's own sounds do" in localize.sentences(told)[1]
    with av.open(str(folder / "other" / "localize.mp4")) as container:
        samples = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])
    assert np.abs(samples[: 3 * 16_000]).mean() > 0.01
    assert np.abs(samples[4 * 16_000 : 11 * 16_000]).max() < 0.01
    along = folder / "along.wav"
    soundfile.write(along, noise(12, seed=0), 16_000)
    told = localize.run(model, video, folder / "along", sound=str(along))
    windows = model.embed_sound(along).audio
    expected = np.vecdot(windows, model.embed_video(video).visual)
    assert told["match"] == pytest.approx(expected, abs=1e-5)
    assert told["percentile_among"] == "the sounds of other moments"


@pytest.mark.parametrize("columns", [2000, 6])  # the latter are longer than a window
def test_silent_moments_do_not_count(folder, model, monkeypatch, columns):
    monkeypatch.setattr(localize, "COLUMNS", columns)
    waves = noise(12, seed=3)
    waves[4 * 16_000 :] = 0
    file = noisy_video(folder / f"ends_{columns}.mkv", 12, waves=waves[None])
    told = localize.run(model, str(file), folder / f"ends_{columns}", method="cosine")
    times, window = np.array(told["times"]), model.pair_spec.audio_rows / 100
    begins = np.clip(times - window / 2, 0, 12 - window)
    silent = np.array(told["silent"])
    assert silent[begins > 4 + 0.02].all() and not silent[begins < 4 - 0.02].any()
    assert 0 < silent.sum() < len(silent)
    assert [place is None for place in told["percentile"]] == told["silent"]
    first, second, third = localize.sentences(told)
    match = np.array(told["match"])
    best = np.where(silent, -2, match).argmax()
    assert f"best {match[best]:.3f} at {times[best]:.1f} s" in first
    assert f"mean {match[~silent].mean():.3f}" in first
    assert second == f"Silent moments, which do not count: {silent.sum()} of {len(silent)}."
    # A moment is compared with the other ones that are heard.
    own = model.embed_video(file)
    heard = np.flatnonzero(~silent)
    others = own.audio[heard[heard != best]] @ own.visual[best]
    expected = similarity.percentile(match[best], others.astype(float))
    assert told["percentile"][best] == pytest.approx(expected, abs=100 / len(heard))
    assert "better than" in third


@pytest.mark.parametrize("along", [False, True])
@pytest.mark.parametrize("seconds", [10.0, 6.0])
def test_a_moment_is_silent_by_its_own_window(folder, model, video, seconds, along):
    """The windows of a clip of 10 s are spread over 10.24 s, as released."""
    waves = noise(seconds, seed=3)
    waves[int(4.6 * 16_000) :] = 0
    name = str(seconds)
    file = noisy_video(folder / f"own_{name}.mkv", seconds, waves=waves[None])
    sound = None
    if along:
        sound = str(folder / f"along_{name}.wav")
        soundfile.write(sound, waves, 16_000, subtype="FLOAT")
        file = noisy_video(folder / f"loud_{name}.mkv", seconds)
    output = folder / f"own_{name}_{along}"
    told = localize.run(model, str(file), output, sound=sound, method="cosine")
    info = reading.file_info(sound or str(file))
    parts = list(timeline.pairs_of_file(info, model.pair_spec))
    # Nothing of what sounds is in a window whose rows are all the same.
    expected = [
        not np.ptp(window[: round((1 - padded) * len(window))], axis=0).any()
        for part in parts
        for window, padded in zip(part.audio, part.padded, strict=True)
    ]
    assert told["silent"] == expected and 0 < sum(expected) < len(expected)


def test_a_video_that_is_silent_throughout_says_nothing(folder, model):
    file = noisy_video(folder / "nothing.mkv", 4, waves=0 * noise(4)[None])
    told = localize.run(model, str(file), folder / "nothing", method="cosine")
    assert all(told["silent"]) and told["percentile"] is None
    assert localize.sentences(told) == [
        "There is no sound at any moment, so the matches say nothing."
    ]


@pytest.mark.parametrize("beyond", [0.35, -0.35])
@pytest.mark.parametrize("seconds", [3, 12])  # a clip, and a longer file
def test_a_sound_of_nearly_the_videos_length_is_heard_at_its_moments(
    folder, model, seconds, beyond
):
    waves = noise(seconds + 1, seed=3)
    names = {}
    for name, length in (("exact", seconds), ("nearly", seconds + beyond)):
        names[name] = str(folder / f"{name}_{seconds}_{beyond}.wav")
        soundfile.write(names[name], waves[: round(length * 16_000)], 16_000)
    file = str(noisy_video(folder / f"silent_{seconds}.mkv", seconds))
    exact, nearly = (
        localize.run(model, file, folder / "nearly", sound=sound, method="cosine")
        for sound in names.values()
    )
    assert nearly["percentile_among"] == exact["percentile_among"] == "the sounds of other moments"
    assert len(nearly["match"]) == len(exact["match"])
    # Windows that the sound's end does not touch hold the same.
    times, window = np.array(exact["times"]), model.pair_spec.audio_rows / 100
    same = times + window / 2 < seconds - 0.5
    assert same.sum() > len(same) / 2
    found, expected = (np.array(told["match"])[same] for told in (nearly, exact))
    assert np.abs(found - expected).max() < 1e-3 < np.ptp(expected)


@pytest.mark.parametrize("seconds", [6, 12])  # a clip, and a longer file
def test_a_constant_sound_is_not_compared_with_silent_moments(folder, model, seconds):
    """The video's own sounds are the others, and of these only the ones that are heard."""
    waves = noise(seconds, seed=3)
    waves[2 * 16_000 :] = 0
    file = noisy_video(folder / f"quiet_{seconds}.mkv", seconds, waves=waves[None])
    short = folder / "another.wav"
    soundfile.write(short, noise(1, seed=7), 16_000)
    own = localize.run(model, str(file), folder / "quiet", method="cosine")
    told = localize.run(model, str(file), folder / "quiet", sound=str(short), method="cosine")
    heard = ~np.array(own["silent"])
    assert 0 < heard.sum() < len(heard) and not any(told["silent"])
    embedded = model.embed_video(file)
    expected = [
        similarity.percentile(value, (embedded.audio[heard] @ picture).astype(float))
        for value, picture in zip(told["match"], embedded.visual, strict=True)
    ]
    assert told["percentile"] == pytest.approx(expected, abs=100 / heard.sum())


def test_a_video_that_is_silent_throughout_has_no_sounds_to_compare_with(folder, model):
    file = noisy_video(folder / "mutely.mkv", 4, waves=0 * noise(4)[None])
    short = folder / "another.wav"
    soundfile.write(short, noise(1, seed=7), 16_000)
    told = localize.run(model, str(file), folder / "mutely", sound=str(short), method="cosine")
    assert told["percentile"] is None and told["percentile_among"] is None
    assert len(localize.sentences(told)) == 1


def test_a_video_whose_sound_ends_early_is_not_heard_along(folder, model, video):
    """Its file is as long as the video, but its sound is not: the mean of its windows counts."""
    half = noisy_video(folder / "half.mp4", 12, waves=noise(5, seed=3)[None])
    told = localize.run(model, video, folder / "half", sound=str(half))
    own, sounds = model.embed_video(video), model.embed_sound(half).audio
    assert len(sounds) < len(own.visual)
    assert told["match"] == pytest.approx(own.visual @ sounds.mean(axis=0), abs=1e-5)
    assert told["percentile_among"] == "the video's own sounds"


def test_the_first_channel_may_be_silent_for_a_while(folder, model, video):
    """Only a file that is silent in it all along is refused."""
    left, right = noise(12, seed=3), noise(12, seed=4)
    left[4 * 16_000 : 14 * 16_000] = 0
    for name, channels in (("a_while", (left, right)), ("always", (0 * left, right))):
        soundfile.write(folder / f"{name}.wav", np.stack(channels, axis=1), 16_000)
    told = localize.run(model, video, folder / "a_while", sound=str(folder / "a_while.wav"))
    assert np.isfinite(told["match"]).all()
    with av.open(str(folder / "a_while" / "localize.mp4")) as container:
        samples = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])
    levels = np.abs(samples[: 12 * 16_000]).reshape(12, -1).mean(axis=1)
    assert levels[:3].min() > 0.01 > 100 * levels[6:].max()
    with pytest.raises(UserError, match=r"always\.wav is silent in its first channel"):
        localize.run(model, video, folder / "always", sound=str(folder / "always.wav"))


@pytest.mark.parametrize("blocks", [2.0, 1000.0])
def test_blocks_of_a_long_file_may_be_silent_in_the_first_channel(
    folder, model, monkeypatch, blocks
):
    monkeypatch.setattr(timeline, "BLOCK_SECONDS", blocks)
    left, right = noise(16, seed=3), noise(16, seed=4)
    left[5 * 16_000 : 11 * 16_000] = 0
    whole = noisy_video(
        folder / f"whole{blocks}.mkv", 16, waves=np.stack([left, right]), layout="stereo"
    )
    assert len(model.embed_video(whole).visual) == 25
    never = noisy_video(
        folder / f"never{blocks}.mkv", 16, waves=np.stack([0 * left, right]), layout="stereo"
    )
    with pytest.raises(UserError, match="is silent in its first channel"):
        model.embed_video(never)


@pytest.mark.parametrize("seconds", [4, 12])
def test_a_video_without_sound_is_asked_for_another(tmp_path, model, video, seconds):
    """Its maps are those of the same pictures with a sound of their own."""
    heard = tmp_path / "heard.wav"
    soundfile.write(heard, noise(3, seed=7), 16_000)
    noisy_video(tmp_path / "loud.mp4", seconds)
    with av.open(str(tmp_path / "loud.mp4")) as loud, av.open(f"{tmp_path}/mute.mp4", "w") as mute:
        copy = mute.add_stream_from_template(loud.streams.video[0])
        for packet in loud.demux(video=0):
            if packet.size:
                packet.stream = copy
                mute.mux(packet)
    told = {}
    for name in ("loud", "mute"):
        file, output = str(tmp_path / f"{name}.mp4"), tmp_path / name
        told[name] = localize.run(model, file, output, sound=str(heard))
    np.testing.assert_allclose(told["mute"]["match"], told["loud"]["match"], atol=1e-6)
    assert told["mute"]["times"] == told["loud"]["times"]
    maps = [np.load(tmp_path / name / "localize.npz")["maps"] for name in ("loud", "mute")]
    np.testing.assert_allclose(*maps, atol=1e-5)
    assert told["mute"]["percentile"] is None
    assert len(localize.sentences(told["mute"])) == 1
    with av.open(str(tmp_path / "mute" / "localize.mp4")) as container:
        samples = np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])
    assert np.abs(samples[: 3 * 16_000]).mean() > 0.01


def test_a_still_picture_and_a_sound(folder, model):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "still.png")
    soundfile.write(folder / "sound.wav", noise(3, seed=7), 16_000)
    output = folder / "still"
    told = localize.run(model, str(folder / "still.png"), output, sound=str(folder / "sound.wav"))
    assert Image.open(output / "localize.png").size == (448, 448)
    with np.load(output / "localize.npz") as stored:
        (small,) = stored["maps"]
    sound, picture = (
        model.embed_sound(folder / "sound.wav"),
        model.embed_image(folder / "still.png"),
    )
    assert told["match"] == [model.similarity(sound, picture)]
    whole = model.heatmap(folder / "still.png", folder / "sound.wav")
    corners = [0, 0, -1], [0, -1, 0]
    np.testing.assert_allclose(whole[corners], small[corners], rtol=1e-5)
    assert whole.argmax() % 32 == pytest.approx(32 * told["peak"][0][0], abs=5)


def test_a_moment_among_equal_ones_is_in_the_middle(folder, model):
    # The window of a file that is so short is all of it, at every moment.
    noisy_video(folder / "blink.mp4", 0.5, waves=noise(1)[None, :8000])
    told = localize.run(model, str(folder / "blink.mp4"), folder / "blink")
    assert told["percentile"] == [50.0] * 16


def test_colour_is_where_the_map_is_high():
    grey = np.full((40, 40, 3), 100, np.uint8)
    small = np.array([[0, 0], [0, 1]], np.float32)
    shown = overlay.blend(grey, small, overlay.Scale(0.5, 1.0)).astype(int)
    assert (shown[:15, :15] == 100).all()
    assert np.abs(shown[35, 35] - 100).max() > 30
    assert (overlay.blend(grey, small, overlay.Scale(2.0, 3.0)) == 100).all()


def test_maps_between_moments():
    maps = np.arange(3, dtype=np.float32)[:, None, None]
    times = np.array([0.0, 1.0, 2.0])
    found = [
        float(overlay.between(maps, times, time)[0, 0]) for time in (-1.0, 0.25, 1.5, 2.0, 9.0)
    ]
    assert found == [0, 0.25, 1.5, 2, 2]


def test_mistakes_are_one_sentence(folder, model, tmp_path):
    soundfile.write(folder / "sound.wav", noise(3, seed=7), 16_000)
    Image.new("RGB", (40, 40)).save(tmp_path / "still.png")
    make_video(tmp_path / "mute.mp4", codecs=("libx264", None))
    for name, sentence in (
        (folder / "sound.wav", "is a sound: name a video or a picture"),
        (tmp_path / "still.png", "is a picture, which has no sound"),
        (tmp_path / "mute.mp4", "is a video without sound: name one by --sound"),
        (tmp_path, "is a folder"),
    ):
        with pytest.raises(UserError, match=sentence):
            localize.run(model, str(name), tmp_path / "out")
    own = shutil.copy(tmp_path / "still.png", tmp_path / "localize.png")
    before = own.read_bytes()
    with pytest.raises(UserError, match=r"localize.png would be overwritten: name another --out"):
        localize.run(model, str(own), tmp_path, sound=str(folder / "sound.wav"))
    assert own.read_bytes() == before
