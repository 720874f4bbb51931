"""Files that last longer, or begin later, than their headers say; sound that is not all there."""

import struct

import av
import numpy as np
import pytest
from media_files import make_video, number, tone

from cavmae_sync_jax.media import decoding, sound_files

RATE = 44_100


def note_matroska(data, seconds):
    at = data.index(b"\x44\x89\x88")  # the element Duration
    return data[: at + 3] + struct.pack(">d", 1000 * seconds) + data[at + 11 :]


def note_flv(data, seconds):
    at = data.index(b"duration") + 8
    return data[: at + 1] + struct.pack(">d", seconds) + data[at + 9 :]


def note_avi(data, seconds):
    data, at = bytearray(data), data.index(b"avih") + 8
    per_frame, count = struct.unpack_from("<I", data, at)[0], round(10 * seconds)
    assert per_frame == 100_000
    struct.pack_into("<I", data, at + 16, count)
    for _ in range(2):
        at = data.index(b"strh", at) + 8
        (whole,) = struct.unpack_from("<I", data, at + 32)
        struct.pack_into("<I", data, at + 32, round(whole * seconds / 10))
    return bytes(data)


KINDS = {
    "a.mkv": (("mpeg4", "ac3"), 48_000, note_matroska),
    "a.webm": (("libvpx", "libopus"), 48_000, note_matroska),
    "a.flv": (("flv1", "mp3"), RATE, note_flv),
    "a.avi": (("mpeg4", "mp3"), RATE, note_avi),
}


@pytest.mark.parametrize("name", KINDS)
def test_what_comes_after_a_length_noted_too_early_is_not_lost(tmp_path, name):
    codecs, rate, note = KINDS[name]
    waves = np.concatenate([tone(440, 6, rate), tone(880, 4, rate)])[None]
    options = {"deadline": "realtime"} if name == "a.webm" else {}
    path = make_video(
        tmp_path / name, seconds=10, fps=10, codecs=codecs, rate=rate, waves=waves,
        interleave=True, options=options,
    )  # fmt: skip
    path.write_bytes(note(path.read_bytes(), 4.0))
    assert decoding.probe(path).duration == pytest.approx(10, abs=0.2)
    content = decoding.read_clip(path, start=5, num_frames=5)
    assert [number(frame) for frame in content.frames] == pytest.approx([50, 5, 15, 25, 35], abs=1)
    late = np.abs(np.fft.rfft(content.waveform[32_000:64_000])).argmax() / 2
    assert late == pytest.approx(880, abs=2)


def boxes(data):
    at = 0
    while at < len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        yield kind, data[at : at + size]
        at += size


def test_fragments_of_a_stream_last_as_long_as_they_do(tmp_path):
    path = make_video(
        tmp_path / "a.mp4", seconds=20, fps=10, codecs=("libx264", "aac"), rate=48_000,
        options={"g": "20", "sc_threshold": "0"}, interleave=True,
        container_options={"movflags": "frag_keyframe+empty_moov+default_base_moof+delay_moov"},
    )  # fmt: skip
    found = list(boxes(path.read_bytes()))
    head = [box for kind, box in found if kind in (b"ftyp", b"moov")]
    fragments = [box for kind, box in found if kind in (b"moof", b"mdat")]
    path.write_bytes(b"".join(head + fragments[6:14]))  # from 6 to 14 s
    content = decoding.read_clip(path, num_frames=4)
    assert content.seconds == pytest.approx(8, abs=0.5)
    seen = [number(frame) for frame in content.frames]
    assert seen == pytest.approx([60 - 55, 80 - 55, 100 - 55, 120 - 110], abs=4)
    assert len(content.waveform) == pytest.approx(8 * 16_000, abs=8000)
    # With fragments missing between them, the sound has a gap.
    path.write_bytes(b"".join(head + fragments[:6] + fragments[10:]))
    content = decoding.read_clip(path, num_frames=4)
    assert content.notes == {"gap"} and content.seconds == pytest.approx(20, abs=0.2)


def write_mp3(path, wave, kilobits):
    """Writes an MP3 of frames alone, without tags."""
    with av.open(str(path), "w", options={"write_xing": "0", "id3v2_version": "0"}) as container:
        stream = container.add_stream("mp3", rate=RATE, layout="mono")
        stream.bit_rate = kilobits * 1000
        frame = av.AudioFrame.from_ndarray(wave[None].astype(np.float32), "fltp", "mono")
        frame.rate, frame.pts = RATE, 0
        cutter = av.AudioResampler("fltp", "mono", RATE, frame_size=1152)
        for block in cutter.resample(frame) + cutter.resample(None):
            container.mux(stream.encode(block))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize("order", ["loud first", "silent first"])
@pytest.mark.parametrize("name", ["a.aac", "a.mp3"])
def test_a_sound_whose_length_nobody_noted_is_not_guessed(tmp_path, name, order):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 10 * RATE)
    parts = [(noise, 192), (np.zeros_like(noise), 32)][:: 1 if order == "loud first" else -1]
    path = tmp_path / name
    if name == "a.aac":
        waves = np.concatenate([part for part, _ in parts])[None]
        make_video(path, waves=waves, rate=RATE, codecs=(None, "aac"), seconds=20)
    else:  # of a variable rate
        pieces = [write_mp3(tmp_path / f"{rate}.mp3", part, rate) for part, rate in parts]
        path.write_bytes(b"".join(piece.read_bytes() for piece in pieces))
    assert sound_files.seconds_of(path) == pytest.approx(20, abs=0.2)
    assert len(sound_files.read_span(path, 0, None)) == pytest.approx(320_000, abs=3200)
    late = np.abs(sound_files.read_span(path, 15, 17)).max()
    assert (late > 5000) == (order == "silent first")


@pytest.mark.parametrize("every", [1, 2.5, 5])
def test_a_long_frame_that_began_before_the_span_is_the_one_that_is_seen(tmp_path, every):
    path = make_video(
        tmp_path / "a.mkv", seconds=40, codecs=("mpeg4", "ac3"), rate=48_000,
        times=list(range(0, 40_000, round(1000 * every))),
    )  # fmt: skip
    for start in (0.7, 12.3, 13.8):
        content = decoding.read_clip(path, start=start, end=start + 10, num_frames=8)
        moments = [start + i * content.picture_seconds / 8 for i in range(8)]
        assert [number(frame) for frame in content.frames] == [int(m / every) for m in moments]


SLIDES = [0, 3000, 8000]  # as someone speaks, up to 18 s
STILL = list(range(0, 8000, 100))  # a recording in which nothing moves from 8 s on
SOUNDS = {"mute": None, "short": 6, "whole": 18}


@pytest.mark.parametrize("sound", SOUNDS)
@pytest.mark.parametrize("times", [SLIDES, STILL])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_last_picture_that_stands_longer_is_seen_up_to_its_end(tmp_path, name, times, sound):
    seconds = SOUNDS[sound]
    path = make_video(
        tmp_path / name, times=times, codecs=("mpeg4", seconds and "ac3"), rate=48_000,
        seconds=seconds, last_stands=18 - times[-1] / 1000, interleave=True,
    )  # fmt: skip
    for start, end in ((0, 18), (6, 9), (10, 16)):
        content = decoding.read_clip(
            path, start=start, end=end, num_frames=9, mute=seconds is None, gaps=sound == "short"
        )
        moments = [start + i * (end - start) / 9 for i in range(9)]
        seen = [sum(time <= 1000 * moment + 1 for time in times) - 1 for moment in moments]
        # Of the recording, one frame more or less.
        few = 0 if times == SLIDES else 1
        assert [number(one) for one in content.frames] == pytest.approx(
            [one % 55 for one in seen], abs=few
        )
        assert content.picture_seconds == pytest.approx(end - start, abs=0.02)


def test_a_file_that_breaks_off_before_its_last_picture_is_no_short_one(tmp_path):
    path = make_video(
        tmp_path / "a.mov", times=[*STILL, 8000], last_stands=10, codecs=("mpeg4", None),
        container_options={"movflags": "faststart"},
    )  # fmt: skip
    assert decoding.read_clip(path, num_frames=2, mute=True).seconds == pytest.approx(18)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(decoding.MediaError, match=r"ends before the 18\.00 s it promises"):
        decoding.read_clip(path, num_frames=2, mute=True)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
@pytest.mark.parametrize(
    ("times", "rate"),
    [
        ([1000 * i for i in range(10)], 1),
        ([500 * i for i in range(20)], 2),
        ([1000 * i // 3 for i in range(30)], 3),  # whole milliseconds
        ([1000 * i + 60 * (i % 2) for i in range(10)], 1),  # hardly off
        ([1000 * i + 300 * (i % 2) for i in range(10)], None),
        (SLIDES, None),  # off by less than half of a frame, which is a second
    ],
)
def test_a_low_rate_is_constant_if_its_pictures_are_on_time(tmp_path, name, times, rate):
    path = make_video(
        tmp_path / name, times=times, codecs=("mpeg4", "ac3"), rate=48_000, seconds=10,
        last_stands=10 - times[-1] / 1000, interleave=True,
    )  # fmt: skip
    content = decoding.read_clip(path, end=9.7, num_frames=8)
    by_time = [sum(time <= 1000 * i * 9.7 / 8 + 1 for time in times) - 1 for i in range(8)]
    by_rule = [i * int(9.7 * (rate or 0)) // 8 for i in range(8)]
    assert [number(one) for one in content.frames] == (by_rule if rate else by_time)
    whole = int(9.7 * rate) / rate if rate else 9.7
    assert content.picture_seconds == pytest.approx(whole, rel=0.02)


@pytest.mark.parametrize(
    ("settings", "noted"),
    [({}, False), ({"gap": (4, 5)}, True), ({"audio_start": 2.0}, True), ({"short": 5.0}, True)],
)
def test_missing_sound_is_noted(tmp_path, settings, noted):
    seconds = settings.pop("short", 10) - settings.get("audio_start", 0)
    path = make_video(
        tmp_path / "a.mkv", seconds=10, codecs=("mpeg4", "ac3"), rate=48_000,
        waves=tone(440, seconds, 48_000)[None], interleave=True, **settings,
    )  # fmt: skip
    assert ("gap" in decoding.read_clip(path, num_frames=2).notes) == noted


def test_the_headers_of_good_files_are_believed(tmp_path):
    path = make_video(tmp_path / "a.mkv", seconds=4, codecs=("mpeg4", "ac3"), rate=48_000)
    with av.open(str(path)) as container:
        assert decoding.probe(path).duration == container.duration / av.time_base
