"""Decoding: which frames and samples are read from files whose content tells."""

import av
import numpy as np
import pytest
from media_files import CLOCKWISE, make_video, number, tone
from PIL import Image
from scipy import signal

from cavmae_sync_jax.media import decoding, demuxer, images


def frame_numbers(read):
    return [number(frame) for frame in read.frames]


def lag(read, expected):
    """Samples by which `read` comes after `expected`."""
    correlation = signal.correlate(read[: len(expected)].astype(float), expected)
    return int(correlation.argmax()) - (len(expected) - 1)


def chirp(seconds, rate):
    time = np.arange(round(seconds * rate)) / rate
    return 0.3 * np.sin(2 * np.pi * (200 + 150 * time) * time)


def reason(path, **span):
    with pytest.raises(decoding.MediaError) as error:
        decoding.read_clip(path, **span)
    assert error.value.reason in decoding.REASONS
    assert str(path) in error.value.detail
    return error.value.reason


FORMATS = {
    "b-frames.mp4": {"options": {"bf": "3", "g": "12"}},
    "vp9-opus.webm": {"codecs": ("libvpx-vp9", "libopus"), "rate": 48_000},
    "mpeg4-pcm.mov": {"codecs": ("mpeg4", "pcm_s16le")},
    "mp3.mkv": {"codecs": ("libx264", "mp3")},
    "aac.ts": {},
}


@pytest.mark.parametrize("name", FORMATS)
def test_frames_are_those_of_the_rule(tmp_path, name):
    path = make_video(tmp_path / name, seconds=3, fps=10, **FORMATS[name])
    assert frame_numbers(decoding.read_clip(path)) == [int(i * 30 / 16) for i in range(16)]


@pytest.mark.parametrize("name", FORMATS)
def test_frames_are_exact_after_a_seek(tmp_path, name):
    path = make_video(tmp_path / name, seconds=5, fps=10, **FORMATS[name])
    read = decoding.read_clip(path, start=3.0, end=4.6, num_frames=8)
    if name == "aac.ts":  # its video begins 1 frame after its audio
        assert set(frame_numbers(read)) <= set(range(29, 46))
    else:
        assert frame_numbers(read) == list(range(30, 46, 2))


def test_rule_counts_whole_frames(tmp_path):
    path = make_video(tmp_path / "a.mp4", seconds=5, fps=10)
    read = decoding.read_clip(path, end=3.99, num_frames=5)
    assert frame_numbers(read) == [int(i * 39 / 5) for i in range(5)]


def test_fewer_frames_than_asked_for_repeat(tmp_path):
    path = make_video(tmp_path / "slow.mp4", seconds=4, fps=2)
    assert frame_numbers(decoding.read_clip(path)) == [int(i * 8 / 16) for i in range(16)]


def test_one_frame_fills_the_clip(tmp_path):
    path = make_video(tmp_path / "still.mp4", times=[0], waves=tone(440, 3, 16_000)[None])
    assert frame_numbers(decoding.read_clip(path, num_frames=4)) == [0] * 4


def test_variable_frame_rate_goes_by_time(tmp_path):
    times = [*range(0, 1000, 50), *range(1000, 3000, 500)]
    path = make_video(tmp_path / "vfr.mp4", times=times, waves=tone(440, 3, 16_000)[None])
    shown = [max(k for k, at in enumerate(times) if at <= 1000 * i * 3 / 6) for i in range(6)]
    assert frame_numbers(decoding.read_clip(path, end=3.0, num_frames=6)) == shown
    late = decoding.read_clip(path, start=1.2, end=2.7, num_frames=3)
    assert frame_numbers(late) == [20, 21, 22]


def test_video_that_ends_early_stands_still(tmp_path):
    waves = tone(440, 4, 16_000)[None]
    path = make_video(tmp_path / "early.mp4", seconds=2, fps=10, waves=waves)
    read = decoding.read_clip(path, end=4.0, num_frames=8)
    assert frame_numbers(read) == [0, 5, 10, 15, 19, 19, 19, 19]
    assert len(read.waveform) == 64_000


def test_video_that_begins_late_stands_still(tmp_path):
    waves = tone(440, 4, 16_000)[None]
    times = list(range(1000, 4000, 100))
    path = make_video(tmp_path / "late.mkv", times=times, waves=waves)
    read = decoding.read_clip(path, end=4.0, num_frames=8)
    assert frame_numbers(read) == [0, 0, 0, 5, 10, 15, 20, 25]


def test_a_still_picture_that_is_replaced_after_the_span(tmp_path):
    waves = tone(440, 6, 16_000)[None]
    path = make_video(tmp_path / "slides.mp4", times=[0, 5500], waves=waves)
    assert frame_numbers(decoding.read_clip(path, start=2, end=4, num_frames=3)) == [0, 0, 0]


def test_a_cut_without_encoding_begins_where_it_says(tmp_path):
    whole = make_video(tmp_path / "whole.mp4", seconds=4, fps=10, options={"g": "5"})
    path = tmp_path / "cut.mp4"
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        streams = {
            stream.index: target.add_stream_from_template(stream) for stream in source.streams
        }
        for packet in source.demux():
            if packet.dts is not None:
                shift = round(1.2 / packet.time_base)
                packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
                packet.stream = streams[packet.stream.index]
                target.mux(packet)
    with av.open(str(path)) as container:
        assert any(packet.is_discard for packet in container.demux(video=0))
    read = decoding.read_clip(path, end=2.0, num_frames=10)
    assert frame_numbers(read) == [12 + 2 * i for i in range(10)]


def test_stored_rotation_is_applied(tmp_path):
    path = make_video(tmp_path / "phone.mov", size=(64, 48), matrix=CLOCKWISE)
    frames = decoding.read_clip(path, num_frames=2).frames
    assert frames.shape == (2, 64, 48, 3)
    red = frames[0, :, :, 0].astype(int) - frames[0, :, :, 1] > 150
    assert red[:20, -14:].all()  # the upper left corner has become the upper right one
    assert not red[:, :28].any()


def test_image_size_gives_squares(tmp_path):
    path = make_video(tmp_path / "a.mp4", size=(96, 48))
    read = decoding.read_clip(path, num_frames=3, image_size=32)
    assert read.frames.shape == (3, 32, 32, 3)
    whole = decoding.read_clip(path, num_frames=3).frames
    np.testing.assert_array_equal(read.frames[1], images.resize_and_crop(whole[1], 32))


@pytest.mark.parametrize("start", [0.0, 1.5])
@pytest.mark.parametrize("name, passes", [("b-frames.mp4", 2), ("mp3.mkv", 3)])
def test_a_clip_takes_few_passes(tmp_path, monkeypatch, name, passes, start):
    path = make_video(tmp_path / name, interleave=True, **FORMATS[name])
    opened = []
    open_file = demuxer.open_file
    monkeypatch.setattr(
        demuxer, "open_file", lambda *args, **more: opened.append(args) or open_file(*args, **more)
    )
    decoding.read_clip(path, start=start)
    # Headers, sound and time stamps; then pictures. The end that Matroska notes is looked at, too.
    assert len(opened) == passes


@pytest.mark.parametrize("layout", ["stereo", "5.1"])
def test_audio_is_the_first_channel_and_no_downmix(tmp_path, layout):
    channels = {"stereo": 2, "5.1": 6}[layout]
    waves = np.stack([tone(300 * (c + 1), 2, 48_000, 0.2) for c in range(channels)])
    path = make_video(
        tmp_path / "many.mov",
        seconds=2,
        codecs=("libx264", "pcm_s16le"),
        rate=48_000,
        layout=layout,
        waves=waves,
    )
    expected = np.round(tone(300, 2, 16_000, 0.2) * 32768)
    read = decoding.read_clip(path).waveform
    assert read.dtype == np.int16
    assert len(read) == 32_000
    np.testing.assert_allclose(read[200:-200], expected[200:-200], atol=8)


def test_audio_at_16_khz_is_bit_exact(tmp_path):
    samples = np.random.default_rng(0).integers(-32768, 32767, 48_000, np.int16)
    path = make_video(
        tmp_path / "exact.mov", codecs=("mpeg4", "pcm_s16le"), waves=samples[None] / 32768
    )
    np.testing.assert_array_equal(decoding.read_clip(path).waveform, samples)
    after_seek = decoding.read_clip(path, start=1.25, end=2.5)
    np.testing.assert_array_equal(after_seek.waveform, samples[20_000:40_000])
    assert after_seek.seconds == 1.25


@pytest.mark.parametrize("name", FORMATS)
def test_audio_is_in_step_after_a_seek(tmp_path, name):
    rate = FORMATS[name].get("rate", 16_000)
    waves = chirp(5, rate)[None]
    path = make_video(tmp_path / name, seconds=5, waves=waves, **FORMATS[name])
    expected = chirp(5, 16_000)[48_000:64_000]
    read = decoding.read_clip(path, start=3.0, end=4.0).waveform
    # Compressed formats keep an encoder delay of some 20 ms if the container can't tell it.
    assert abs(lag(read, expected)) <= (1100 if name in ("mp3.mkv", "aac.ts") else 32)


def test_decoder_and_resampler_have_settled_at_both_ends(tmp_path):
    waves = tone(3000, 5, 44_100)[None]
    path = make_video(tmp_path / "a.mp4", seconds=5, rate=44_100, waves=waves, options={"g": "5"})
    waveform = decoding.read_clip(path, start=3.0, end=4.0).waveform / 32768
    for part in (waveform[:32], waveform[-32:]):
        assert np.sqrt(np.mean(part**2)) == pytest.approx(0.3 / np.sqrt(2), rel=0.1)


def test_sound_is_silent_in_a_gap_and_in_step_after_it(tmp_path):
    path = make_video(
        tmp_path / "gap.mkv",
        codecs=("libx264", "pcm_s16le"),
        seconds=4,
        waves=chirp(4, 16_000)[None],
        gap=(1.0, 2.0),
    )
    waveform = decoding.read_clip(path).waveform
    assert not waveform[17_000:31_000].any()
    assert lag(waveform[40_000:], chirp(4, 16_000)[40_000:60_000]) <= 16


def test_sound_after_a_seek_into_mpeg_that_the_decoder_stumbles_over(tmp_path):
    path = make_video(
        tmp_path / "a.mpg",
        seconds=8,
        fps=25,
        codecs=("mpeg2video", "mp2"),
        waves=chirp(8, 44_100)[None],
        rate=44_100,
    )
    waveform = decoding.read_clip(path, start=5, end=6).waveform
    assert abs(lag(waveform, chirp(8, 16_000)[80_000:96_000])) < 1100


def test_aac_padding_is_cut_at_the_duration(tmp_path):
    path = make_video(tmp_path / "a.mp4", seconds=2, rate=44_100)
    with av.open(str(path)) as container:
        decoded = sum(frame.samples for frame in container.decode(audio=0))
    assert decoded >= 2 * 44_100  # PyAV 19 cuts the padding by itself
    assert len(decoding.read_clip(path).waveform) == 32_000


def test_audio_that_begins_late_comes_after_silence(tmp_path):
    path = make_video(
        tmp_path / "late.mkv", codecs=("libx264", "pcm_s16le"), seconds=2, audio_start=0.5
    )
    waveform = decoding.read_clip(path).waveform
    assert not waveform[:7950].any()
    assert np.abs(waveform[8050:9000].astype(int)).max() > 5000


def test_audio_that_ends_early_is_followed_by_silence_unless_by_little(tmp_path):
    for seconds, samples in (1.0, 48_000), (2.8, 44_800):
        waves = tone(440, seconds, 16_000)[None]
        path = make_video(
            tmp_path / f"{seconds}.mov", codecs=("mpeg4", "pcm_s16le"), seconds=3, waves=waves
        )
        waveform = decoding.read_clip(path).waveform
        assert len(waveform) == samples
        assert not waveform[round(seconds * 16_000) :].any()
        assert waveform[: round(seconds * 16_000)].any()


def test_probe(tmp_path):
    path = make_video(tmp_path / "a.mp4", seconds=3, fps=10, size=(64, 48), layout="stereo")
    info = decoding.probe(path)
    assert info == (pytest.approx(3.0, abs=0.1), 10.0, 64, 48, 2)


@pytest.mark.parametrize("codecs", [("libx264", "aac"), ("libx264", None)])
def test_a_picture_is_read_without_its_sound(tmp_path, codecs):
    path = make_video(tmp_path / "a.mp4", codecs=codecs, seconds=5)
    media = decoding.read_clip(path, num_frames=10, mute=True)
    assert frame_numbers(media) == [5 * i for i in range(10)]
    assert len(media.waveform) == 0
    assert decoding.probe(path, mute=True).duration == pytest.approx(5, abs=0.05)


def test_a_file_without_a_stored_duration(tmp_path):
    live = {"live": "1"}
    path = make_video(tmp_path / "live.webm", container_options=live, **FORMATS["vp9-opus.webm"])
    with av.open(str(path)) as container:
        assert container.duration is None
    assert decoding.probe(path).duration == pytest.approx(3.0, abs=0.05)
    assert frame_numbers(decoding.read_clip(path, num_frames=3)) == [0, 10, 20]


def test_unusable_files_say_why(tmp_path):
    text = tmp_path / "text.mp4"
    text.write_text("no video\n" * 100)
    whole = make_video(tmp_path / "whole.mp4").read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole[: len(whole) // 2])
    assert reason(text) == "unreadable"
    assert reason(cut) == "unreadable"
    assert reason(tmp_path / "absent.mp4") == "unreadable"
    assert reason(tmp_path) == "unreadable"
    assert reason(make_video(tmp_path / "mute.mp4", codecs=("libx264", None))) == "no_audio"
    assert reason(make_video(tmp_path / "blind.mp4", codecs=(None, "aac"))) == "no_video"
    assert reason(tmp_path / "whole.mp4", start=3.5) == "too_short"


def test_a_cover_picture_is_no_video(tmp_path):
    path = make_video(tmp_path / "song.mp4", codecs=("mjpeg", "aac"), times=[0], cover=True)
    assert reason(path) == "no_video"


def test_damaged_frames_are_not_used(tmp_path):
    path = make_video(tmp_path / "a.mkv", codecs=("mpeg4", "pcm_s16le"))
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    damaged = bytearray(path.read_bytes())
    for position, size in packets[8:20]:
        begin, end = position + 10 + size // 3, position + 10 + 2 * size // 3
        damaged[begin:end] = bytes(end - begin)
    path.write_bytes(damaged)
    assert reason(path) == "unreadable"


def test_a_truncated_file_is_not_taken_for_a_short_one(tmp_path):
    front = {"movflags": "faststart"}
    path = make_video(
        tmp_path / "a.mov", seconds=6, codecs=("mpeg4", "pcm_s16le"), container_options=front
    )
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    assert reason(path) == "unreadable"


def test_streams_that_don_t_reach_the_span(tmp_path):
    waves = tone(440, 6, 16_000)[None]
    short_video = make_video(tmp_path / "v.mp4", seconds=2, waves=waves)
    assert reason(short_video, start=3.0) == "no_video"
    short_audio = make_video(tmp_path / "a.mp4", seconds=6, waves=waves[:, :32_000])
    assert reason(short_audio, start=3.0) == "no_audio"


def test_too_large_a_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(images, "MAX_PIXELS", 64 * 48 - 1)
    assert reason(make_video(tmp_path / "a.mp4")) == "too_large"


@pytest.mark.parametrize("span", [{"start": -1}, {"start": 2, "end": 2}, {"num_frames": 0}])
def test_spans_that_make_no_sense(tmp_path, span):
    with pytest.raises(ValueError, match="nothing to read"):
        decoding.read_clip(tmp_path / "any.mp4", **span)


@pytest.mark.parametrize(("shape", "size"), [((48, 64), 32), ((64, 48), 24), ((30, 30), 30)])
def test_resize_and_crop_keeps_the_centre(shape, size):
    rows, columns = np.indices(shape)
    image = np.stack([rows * 3, columns * 3, 0 * rows], axis=-1).astype(np.uint8)
    out = images.resize_and_crop(image, size)
    assert out.shape == (size, size, 3)
    centre = out[size // 2 - 1 : size // 2 + 1, size // 2 - 1 : size // 2 + 1].mean((0, 1))
    np.testing.assert_allclose(centre[:2], [(shape[0] - 1) * 1.5, (shape[1] - 1) * 1.5], atol=1.5)
    # The short side is whole, so its gradient spans nearly all values.
    short = int(shape[1] < shape[0])
    assert np.ptp(out[:, :, short].astype(int)) >= (min(shape) - 1) * 3 - 6


@pytest.mark.parametrize("aspect", [1, 16 / 11])
@pytest.mark.parametrize("shape", [(240, 320), (360, 640), (854, 480), (333, 500), (40, 900)])
def test_the_square_is_that_of_the_whole_scaled_picture(shape, aspect):
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (*shape, 3), np.uint8)
    sides = shape[0], shape[1] * aspect
    height, width = (int(224 * side / min(sides) + 1e-9) for side in sides)
    left, top = round((width - 224) / 2), round((height - 224) / 2)
    for resample, off in ((Image.Resampling.BICUBIC, 1), (Image.Resampling.NEAREST, 0)):
        whole = Image.fromarray(picture).resize((width, height), resample)
        expected = np.asarray(whole.crop((left, top, left + 224, top + 224)), int)
        found = images.resize_and_crop(picture, 224, resample, pixel_aspect=aspect)
        assert np.abs(found - expected).max() <= off
        assert (found != expected).mean() < 0.001


def test_encode_jpeg_is_close():
    image = images.resize_and_crop(np.full((40, 40, 3), 90, np.uint8), 32)
    from io import BytesIO

    from PIL import Image

    decoded = np.asarray(Image.open(BytesIO(images.encode_jpeg(image, 95))))
    np.testing.assert_allclose(decoded, image, atol=2)
