"""Frames meet their own sound, from real files to the pairs of a training.

In these files the grey of the picture and the pitch of the sound both tell the time, modulo PERIOD.
"""

import functools

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from media_files import make_video

from cavmae_sync_jax.data.loader import PairSpec
from cavmae_sync_jax.media import audio, decoding, images
from data_prep.pipeline.clips import Preparation, VideoClip, prepare_clip

PERIOD, FPS, RATE = 6.0, 20, 16_000
DARKEST, LIGHTEST, LOWEST, HIGHEST = 20, 235, 12, 120  # grey levels; bins of the log-mel
WINDOW = 48


def mel(hertz):
    return 1127 * np.log(1 + hertz / 700)


BIN = (mel(8000) - mel(20)) / 129


def hertz_at(time):
    centre = LOWEST + (HIGHEST - LOWEST) * (time % PERIOD) / PERIOD
    return 700 * (np.exp((mel(20) + BIN * (centre + 1)) / 1127) - 1)


def picture(number, size):
    grey = DARKEST + (LIGHTEST - DARKEST) * (number / FPS % PERIOD) / PERIOD
    return np.full((size[1], size[0], 3), round(grey), np.uint8)


def write(path, seconds, *, sound_ends=None, sound_begins=0.0, **options):
    time = np.arange(round((sound_ends or seconds) * RATE)) / RATE
    time = time[time >= sound_begins]
    wave = 0.3 * np.sin(2 * np.pi * np.cumsum(hertz_at(time)) / RATE)
    return make_video(
        path, seconds=seconds, fps=FPS, picture=picture, waves=wave[None], rate=RATE,
        codecs=("mpeg4", "pcm_s16le" if path.suffix in (".mkv", ".mov") else "mp2"),
        audio_start=sound_begins, size=(32, 32), **options,
    )  # fmt: skip


def seen(image):
    """The time that the grey of a picture tells."""
    return (image.mean() - DARKEST) / (LIGHTEST - DARKEST) * PERIOD


def heard(row):
    """The time that the pitch of a row of log-mel tells."""
    power = np.exp(row.astype(np.float64))
    near = np.arange(max(0, power.argmax() - 3), min(128, power.argmax() + 4))
    return ((power[near] @ near / power[near].sum()) - LOWEST) / (HIGHEST - LOWEST) * PERIOD


def apart(one, other):
    return abs((one - other + PERIOD / 2) % PERIOD - PERIOD / 2)


def worst(clip, num_frames, window_spread="clip", edges=2 * WINDOW):
    """How far frames are from the middles of their windows, where these don't touch an edge."""
    preparation = Preparation(
        num_frames=num_frames, image_size=32, clip_seconds=60, min_seconds=0.4
    )
    example = prepare_clip(clip, preparation)
    rows, distances = len(example["fbank"]), [0.0]
    pairs = PairSpec(num_frames, 7000, WINDOW, 128, 32, window_spread)
    for frame in range(num_frames):
        time = audio.frame_time(
            frame, num_frames, WINDOW, sound_rows=rows, seconds=example["seconds"], clip_rows=7000
        )
        if 0 < time.first_row < rows - WINDOW:
            window = pairs.pair(example, frame)["audio"]
            middle = window[WINDOW // 2 - 1 : WINDOW // 2 + 1].mean(axis=0)
            distances.append(
                apart(seen(images.decode_jpeg(example["frames"][frame])), heard(middle))
            )
    assert len(distances) > 3 or num_frames < 9 or example["seconds"] < 1
    return max(distances)


@pytest.mark.parametrize("name", ["a.mkv", "a.mov", "a.ts", "a.mpg"])
def test_frames_meet_their_sound_in_every_container(tmp_path, name):
    path = write(tmp_path / name, 9.0, container_options={"output_ts_offset": "17.3"})
    assert worst(VideoClip("a", str(path)), 16) < 0.1
    assert worst(VideoClip("a", str(path), 2.3, 7.9), 7) < 0.1


@functools.cache
def a_minute(folder):
    return write(folder / "long.mkv", 60.0)


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.floats(0.5, 60), st.floats(0, 1), st.integers(1, 24))
def test_frames_meet_their_sound_at_any_length(tmp_path_factory, seconds, place, num_frames):
    path = a_minute(tmp_path_factory.getbasetemp())
    start = place * (60 - seconds)
    assert worst(VideoClip("a", str(path), start, start + seconds), num_frames) < 0.1


@pytest.mark.parametrize("sound_ends", [4.55, 5.45])
def test_sound_and_picture_that_end_apart(tmp_path, sound_ends):
    # By less than the half second from which on either is filled up.
    path = write(tmp_path / "a.mkv", 5.0, sound_ends=sound_ends)
    assert worst(VideoClip("a", str(path)), 16) < 0.1
    example = prepare_clip(VideoClip("a", str(path)), Preparation(image_size=32))
    assert example["seconds"] == pytest.approx(5.0, abs=0.02)
    assert len(example["fbank"]) == pytest.approx(100 * sound_ends, abs=6)


def test_sound_that_begins_late_meets_its_frames(tmp_path):
    path = write(tmp_path / "a.mkv", 8.0, sound_begins=1.5)
    assert worst(VideoClip("a", str(path), 1.6, 8.0), 16) < 0.1


@pytest.mark.parametrize("seconds", [5.3, 8.3])
def test_the_released_spread_does_not_look_at_a_clips_length(tmp_path, seconds):
    path = write(tmp_path / "a.mkv", seconds)
    example = prepare_clip(VideoClip("a", str(path)), Preparation(image_size=32))
    fbank = example["fbank"]
    ours = PairSpec(16, 1024, WINDOW, 128, 32).pair(example, 6)["audio"]
    released = PairSpec(16, 1024, WINDOW, 128, 32, "padded").pair(example, 6)["audio"]
    centre = round(6 * seconds * 100 / 16) - WINDOW // 2
    np.testing.assert_array_equal(ours, fbank[centre : centre + WINDOW])
    np.testing.assert_array_equal(released, fbank[384 - WINDOW // 2 : 384 + WINDOW // 2])
    last = PairSpec(16, 1024, WINDOW, 128, 32, "padded").pair(example, 15)["audio"]
    assert not last.any()


@pytest.mark.parametrize("seconds", [3.0, 30.0])
def test_the_python_interface_pairs_files_of_any_length(tmp_path, seconds):
    # As docs/inference.md has it.
    clip = decoding.read_clip(write(tmp_path / "a.mkv", seconds), image_size=32)
    fbank = audio.log_mel(clip.waveform / 32768, audio.SAMPLE_RATE)
    for i in range(2, 14):
        window = audio.cut_window(fbank, i, 16, 1024, WINDOW, seconds=clip.picture_seconds)
        middle = window[WINDOW // 2 - 1 : WINDOW // 2 + 1].mean(axis=0)
        assert apart(seen(clip.frames[i]), heard(middle)) < 0.1
