"""Sounds alone and pictures alone, and the choice of a channel."""

import wave

import av
import numpy as np
import pytest
from media_files import make_video, tone
from PIL import Image

from cavmae_sync_jax.media import audio, decoding, images, sound_files
from cavmae_sync_jax.media.errors import MediaError
from data_prep.pipeline.clips import Preparation, Reject, VideoClip, prepare_clip

STEREO_48K = {"codecs": ("mpeg4", "pcm_s16le"), "rate": 48_000, "layout": "stereo"}


def write_wav(path, waves, rate):
    with wave.open(str(path), "wb") as file:
        file.setparams((len(waves), 2, rate, 0, "NONE", "not compressed"))
        file.writeframes(np.round(np.asarray(waves).T * 32767).astype("<i2").tobytes())
    return path


def pitch(waveform):
    return np.abs(np.fft.rfft(waveform)).argmax() * 16_000 / len(waveform)


def reason(function, *arguments, **settings):
    with pytest.raises(MediaError) as error:
        function(*arguments, **settings)
    return error.value.reason, error.value.detail


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_sound_alone(tmp_path, rate):
    path = write_wav(tmp_path / "a.wav", [tone(440, 2, rate)], rate)
    waveform = sound_files.read_sound(path)
    assert len(waveform) == 32_000
    assert pitch(waveform) == pytest.approx(440, abs=1)
    assert len(sound_files.read_sound(path, seconds=0.5)) == 8000
    other = audio.log_mel(tone(440, 2, rate), rate)
    assert audio.log_mel(waveform / 32768, 16_000).mean(0).argmax() == other.mean(0).argmax()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e9])
@pytest.mark.parametrize(("name", "kind"), [("a.wv", "fltp"), ("a.mka", "flt")])
def test_floats_that_are_no_sound_are_refused(tmp_path, name, kind, value):
    samples = tone(440, 2, 16_000).astype(np.float32)
    for wrong in (False, True):
        samples[9000] = value if wrong else samples[9000]
        with av.open(str(tmp_path / name), "w") as container:
            codec = {"fltp": "wavpack", "flt": "pcm_f32le"}[kind]
            stream = container.add_stream(codec, rate=16_000, layout="mono", format=kind)
            for begin in range(0, len(samples), 1000):
                part = samples[None, begin : begin + 1000].copy()
                frame = av.AudioFrame.from_ndarray(part, kind, "mono")
                frame.rate, frame.pts = 16_000, begin
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        if not wrong:
            read = sound_files.read_sound(tmp_path / name) / 32768
            np.testing.assert_allclose(read, samples, rtol=0, atol=1e-4)
    with pytest.raises(MediaError, match=r"has samples that are no sound\.$"):
        sound_files.read_sound(tmp_path / name)


def test_the_sound_of_a_video_alone(tmp_path):
    path = make_video(tmp_path / "a.mp4", codecs=(None, "aac"))
    assert pitch(sound_files.read_sound(path)) == pytest.approx(440, abs=1)


def sweep(seconds, rate):
    """A tone that rises by 20 Hz per second, so that every moment sounds otherwise."""
    time = np.arange(round(seconds * rate)) / rate
    return 0.3 * np.sin(2 * np.pi * (100 + 10 * time) * time)


@pytest.mark.parametrize("codec", ["a.wav", "a.flac", "a.mp3", "a.mka", "a.aac"])
def test_a_span_is_that_part_of_the_whole(tmp_path, codec):
    rate, path = 44_100, tmp_path / codec
    coders = {"wav": "pcm_s16le", "flac": "flac", "mp3": "mp3"}
    coder = coders.get(path.suffix[1:], "aac")
    make_video(path, seconds=20, waves=sweep(20, rate)[None], rate=rate, codecs=(None, coder))
    whole = sound_files.read_span(path, 0, None)
    assert sound_files.seconds_of(path) == pytest.approx(len(whole) / 16_000, abs=0.1)
    for start, end in ((0, 2), (0.5, 1.5), (7.25, 9), (18, 19.5)):
        part = sound_files.read_span(path, start, end)
        assert len(part) == round((end - start) * 16_000)
        # Containers round times to 1 ms, which are 16 samples.
        inner, first = part[16:-16].astype(float), round(start * 16_000)
        lags = [whole[first + lag :][: len(inner)] for lag in range(33)]
        errors = [np.abs(inner - one).mean() for one in lags if len(one) == len(inner)]
        assert min(errors) < 0.12 * np.abs(inner).mean()
    assert reason(sound_files.read_span, path, 30, 31)[0] == "no_audio"


def write_guessed(path, coder, loudness, write_xing="0"):
    """Writes a sound, of one loudness per 10 s, that does not tell its length."""
    rate = 44_100
    wave = np.random.default_rng(0).uniform(-1, 1, 10 * rate)
    wave = np.concatenate([loud * wave for loud in loudness]).astype(np.float32)
    with av.open(str(path), "w", options={"write_xing": write_xing}) as file:
        sound = file.add_stream(coder, rate=rate, layout="mono")
        sound.codec_context.flags |= av.codec.context.Flags.qscale  # as many bits as it needs
        cutter = av.AudioResampler(
            sound.format.name, "mono", rate, frame_size=sound.codec_context.frame_size
        )
        whole = av.AudioFrame.from_ndarray(wave[None], "fltp", "mono")
        whole.rate, whole.pts = rate, 0
        for block in [*cutter.resample(whole), *cutter.resample(None), None]:
            file.mux(sound.encode(block))
    return path


@pytest.mark.parametrize(("name", "coder"), [("a.aac", "aac"), ("a.mp3", "libmp3lame")])
@pytest.mark.parametrize("loudness", [(0, 0, 0.5), (0.5, 0, 0)])
def test_a_length_that_ffmpeg_guesses_is_not_believed(tmp_path, name, coder, loudness):
    path = write_guessed(tmp_path / name, coder, loudness)
    with av.open(str(path)) as file:
        assert abs(file.duration / av.time_base - 30) > 2
    assert sound_files.seconds_of(path) == pytest.approx(30, abs=0.1)
    assert len(sound_files.read_span(path, 0, None)) == pytest.approx(480_000, abs=1600)
    last = sound_files.read_span(path, 28, 29)
    assert len(last) == 16_000 and (np.abs(last).mean() > 1000) == (loudness[-1] > 0)


def test_an_mp3_that_was_cut_is_as_long_as_its_rest(tmp_path):
    path = write_guessed(tmp_path / "a.mp3", "libmp3lame", (0.5, 0, 0.5), write_xing="1")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    whole = sound_files.read_span(path, 0, None)
    assert len(whole) / 16_000 == pytest.approx(sound_files.seconds_of(path), abs=0.1)
    assert 10 < sound_files.seconds_of(path) < 20


def test_several_mp3s_in_one_file_are_all_read(tmp_path):
    one = write_guessed(tmp_path / "a.mp3", "libmp3lame", (0.5,), write_xing="1").read_bytes()
    (tmp_path / "b.mp3").write_bytes(3 * one)
    assert sound_files.seconds_of(tmp_path / "b.mp3") == pytest.approx(30, abs=0.3)
    assert len(sound_files.read_span(tmp_path / "b.mp3", 0, None)) == pytest.approx(
        480_000, abs=4800
    )


def test_an_mp3_that_counts_itself_is_believed(tmp_path, monkeypatch):
    path = write_guessed(tmp_path / "a.mp3", "libmp3lame", (0.5, 0), write_xing="1")
    path.write_bytes(path.read_bytes() + b"TAG" + bytes(125))
    monkeypatch.setattr(sound_files, "_end_of_packets", None)  # it would read all of the file
    assert sound_files.seconds_of(path) == pytest.approx(20, abs=0.1)


def test_damage_outside_of_a_span_is_no_matter(tmp_path):
    path = write_wav(tmp_path / "a.wav", [tone(440, 4, 16_000)], 16_000)
    path.write_bytes(path.read_bytes()[: 44 + 2 * 32_000])
    assert len(sound_files.read_span(path, 0, 2)) == 32_000
    assert len(sound_files.read_span(path, 1.5, None)) == 8000
    found, detail = reason(sound_files.read_span, path, 0, 4)
    assert found == "unreadable" and "ends before the 4.00 s it promises" in detail


@pytest.mark.parametrize("samples", [0, 300, 399])
def test_sound_of_less_than_a_row_is_refused(tmp_path, samples):
    path = write_wav(tmp_path / "a.wav", [tone(440, 1, 16_000)[:samples]], 16_000)
    found, detail = reason(sound_files.read_sound, path)
    assert found == ("too_short" if samples else "no_audio")
    assert str(path) in detail
    whole = write_wav(tmp_path / "b.wav", [tone(440, 1, 16_000)[:400]], 16_000)
    assert len(sound_files.read_sound(whole)) == 400


def test_a_picture_alone(tmp_path):
    colours = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.png")
    np.testing.assert_array_equal(images.read_picture(tmp_path / "a.png"), colours)
    Image.fromarray(colours[:, :, 0]).save(tmp_path / "grey.jpg")
    assert images.read_picture(tmp_path / "grey.jpg").shape == (20, 30, 3)
    assert reason(images.read_picture, tmp_path / "b.png")[0] == "missing"
    (tmp_path / "c.png").write_text("no picture")
    assert reason(images.read_picture, tmp_path / "c.png")[0] == "unreadable"


CHANNELS = {
    # channels' amplitudes: pitch (300 Hz a channel) and amplitude of first, mix, loudest
    (0.1, 0.3): ((300, 0.1), (600, 0.15), (600, 0.3)),
    (0.4, 0.2): ((300, 0.4), (300, 0.2), (300, 0.4)),
    (0.0, 0.3): (None, (600, 0.15), (600, 0.3)),
}


@pytest.mark.parametrize("amplitudes", CHANNELS)
@pytest.mark.parametrize("kind", ["wav", "mov"])
def test_the_choice_of_a_channel(tmp_path, amplitudes, kind):
    waves = np.stack([tone(300 * (c + 1), 2, 48_000, a) for c, a in enumerate(amplitudes)])
    path = tmp_path / f"a.{kind}"
    if kind == "wav":
        write_wav(path, waves, 48_000)
    else:
        make_video(path, seconds=2, waves=waves, **STEREO_48K)

    def read(channel):
        if kind == "wav":
            return sound_files.read_sound(path, channel=channel)
        return decoding.read_clip(path, audio_channel=channel).waveform

    for channel, expected in zip(("first", "mix", "loudest"), CHANNELS[amplitudes], strict=True):
        if expected is None:
            found, detail = reason(read, channel)
            assert found == "silent"
            assert f"{path} is silent in its first channel, but sounds in 2" in detail
            assert "--audio_channel=loudest" in detail
            continue
        waveform = read(channel)
        assert pitch(waveform) == pytest.approx(expected[0], abs=1)
        part = waveform[1600:-1600] / 32768  # whole periods
        assert np.abs(np.fft.rfft(part)).max() * 2 / len(part) == pytest.approx(
            expected[1], rel=0.05
        )


def test_channels_of_six_that_sound_are_named(tmp_path):
    waves = np.stack([tone(300, 2, 48_000, 0.2 * (c in (2, 4))) for c in range(6)])
    path = make_video(tmp_path / "a.mov", seconds=2, waves=waves, **STEREO_48K | {"layout": "5.1"})
    reject = prepare_clip(VideoClip("a", str(path)), Preparation(num_frames=1, image_size=8))
    assert isinstance(reject, Reject)
    assert reject.reason == "silent"
    assert "sounds in 3, 5: use --audio_channel" in reject.detail
    for channel in ("mix", "loudest"):
        preparation = Preparation(num_frames=1, image_size=8, audio_channel=channel)
        assert len(prepare_clip(VideoClip("a", str(path)), preparation)["fbank"]) == 198


@pytest.mark.parametrize("codec", ["ac3", "eac3", "pcm_s16le"])
def test_what_a_codec_leaks_into_a_silent_channel_is_no_sound(tmp_path, codec):
    rng = np.random.default_rng(0)
    # The noise of an input without a plug, beside a loud one.
    quiet = 0 if codec != "pcm_s16le" else rng.uniform(-2e-4, 2e-4, 96_000)
    waves = np.stack([np.zeros(96_000) + quiet, rng.uniform(-0.3, 0.3, 96_000)])
    settings = STEREO_48K | {"codecs": ("mpeg4", codec)}
    path = make_video(tmp_path / "a.mkv", seconds=2, waves=waves, **settings)
    found, detail = reason(decoding.read_clip, path)
    assert found == "silent" and "but sounds in 2: use --audio_channel=loudest" in detail
    assert np.abs(decoding.read_clip(path, audio_channel="loudest").waveform).max() > 5000
    waves = np.stack([0.001 * tone(440, 2, 48_000)] * 2)  # a quiet recording is one
    path = make_video(tmp_path / "b.mkv", seconds=2, waves=waves, **settings)
    assert decoding.read_clip(path).waveform.any()


def test_channels_that_cancel_each_other_out_are_told(tmp_path):
    waves = np.stack([tone(440, 2, 48_000), -tone(440, 2, 48_000)])
    path = make_video(tmp_path / "a.mov", seconds=2, waves=waves, **STEREO_48K)
    found, detail = reason(decoding.read_clip, path, audio_channel="mix")
    assert found == "silent" and "cancel each other out: use --audio_channel=first" in detail
    assert decoding.read_clip(path).waveform.any()


def test_sound_outside_of_a_silent_span_does_not_count(tmp_path):
    wave_ = np.where(np.arange(8 * 48_000) < 4 * 48_000, 0, tone(440, 8, 48_000))
    path = make_video(tmp_path / "a.mov", seconds=8, waves=np.stack([wave_] * 2), **STEREO_48K)
    assert not decoding.read_clip(path, start=1, end=3.9).waveform.any()
    reject = prepare_clip(VideoClip("a", str(path), 1.0, 3.9), Preparation(image_size=8))
    assert reject.reason == "silent" and "--audio_channel" not in reject.detail


def test_silence_everywhere_names_no_flag(tmp_path):
    path = make_video(tmp_path / "a.mov", seconds=2, waves=np.zeros((2, 96_000)), **STEREO_48K)
    reject = prepare_clip(VideoClip("a", str(path)), Preparation(num_frames=1, image_size=8))
    assert reject.reason == "silent"
    assert "--audio_channel" not in reject.detail


@pytest.mark.parametrize("name", ["a.mka", "a.m4a", "a.ogg", "a.mkv", "a.mp4"])
def test_what_comes_after_a_gap_keeps_its_place(tmp_path, name):
    coder = {"ogg": "libopus", "mka": "ac3", "mkv": "ac3"}.get(name[2:], "aac")
    picture = "mpeg4" if name.endswith(("mkv", "mp4")) else None
    path = make_video(
        tmp_path / name, seconds=8, waves=sweep(8, 48_000)[None], rate=48_000,
        codecs=(picture, coder), gap=(3, 5), interleave=True,
    )  # fmt: skip
    whole = sound_files.read_span(path, 0, None)
    assert len(whole) == pytest.approx(8 * 16_000, abs=800)
    assert np.abs(whole[round(3.2 * 16_000) : round(4.8 * 16_000)]).max() == 0
    # At 6.5 s the sweep is at 100 Hz and 20 Hz for each second.
    assert pitch(whole[round(6.25 * 16_000) : round(6.75 * 16_000)]) == pytest.approx(230, abs=4)
    part = sound_files.read_span(path, 4, 7)
    assert len(part) == 3 * 16_000
    assert np.abs(part[: round(0.8 * 16_000)]).max() == 0
    assert pitch(part[round(2.25 * 16_000) : round(2.75 * 16_000)]) == pytest.approx(230, abs=4)


@pytest.mark.parametrize("channels", [1, 2])
def test_what_sounds_beside_a_span_is_no_sound_of_it(tmp_path, channels):
    rate = 16_000
    sound, silence = tone(440, 2, rate), np.zeros(4 * rate)
    wave = np.concatenate([silence, sound, silence, sound])
    path = write_wav(tmp_path / "a.wav", [wave] * channels, rate)
    for start, end in ((0, 4), (6.1, 9.5), (6.1, 10)):
        assert not sound_files.read_span(path, start, end)[:-16].any()
    if channels == 2:
        right = np.concatenate([silence, sound, silence, sound])
        path = write_wav(tmp_path / "b.wav", [np.zeros(len(right)), right], rate)
        assert reason(sound_files.read_span, path, 0, 6)[0] == "silent"
        assert not sound_files.read_span(path, 6.1, 9.5).any()


def test_a_part_of_a_video_without_sound_or_picture(tmp_path):
    settings = {"seconds": 12, "interleave": True, "rate": 16_000}
    early = make_video(tmp_path / "early.mp4", waves=tone(440, 4, 16_000)[None], **settings)
    late = make_video(
        tmp_path / "late.mp4", waves=tone(440, 4, 16_000)[None], audio_start=8.0, **settings
    )
    still = make_video(
        tmp_path / "still.mp4", times=[0], waves=tone(440, 12, 16_000)[None], interleave=True
    )
    part = {"num_frames": 4, "gaps": True}
    for path, start in ((early, 8), (late, 0)):
        assert reason(decoding.read_clip, path, start=start, end=start + 4)[0] == "no_audio"
        clip = decoding.read_clip(path, start=start, end=start + 4, **part)
        assert len(clip.waveform) == 64_000 and not clip.waveform.any()
        assert len({frame.tobytes() for frame in clip.frames}) == 4
        assert reason(sound_files.read_span, path, start, start + 4)[0] == "no_audio"
        heard = sound_files.read_span(path, start, start + 4, gaps=True)
        assert len(heard) == (64_000 if path is late else 0) and not heard.any()
    assert reason(decoding.read_clip, still, start=8, end=12)[0] == "no_video"
    clip = decoding.read_clip(still, start=8, end=12, **part)
    assert pitch(clip.waveform) == pytest.approx(440, abs=1)
    assert len({frame.tobytes() for frame in clip.frames}) == 1


def test_a_gap_is_no_excuse_for_a_file_that_was_cut_or_has_no_sound(tmp_path):
    path = make_video(tmp_path / "a.mkv", seconds=12, interleave=True)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    found, detail = reason(decoding.read_clip, path, start=8, end=12, gaps=True)
    assert found == "unreadable" and "it promises" in detail
    path = make_video(tmp_path / "b.mp4", seconds=4, gap=(0, 9))
    assert reason(decoding.read_clip, path, gaps=True)[0] == "no_audio"
