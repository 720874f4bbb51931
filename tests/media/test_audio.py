"""The log-mel against torchaudio's values, and the windows against the reference's table."""

import csv
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cavmae_sync_jax.media import audio

GOLDEN = Path(__file__).parents[1] / "golden"
SILENCE = np.log(np.float32(2.0**-23))


@pytest.mark.parametrize(
    "name", ["video_left_channel", "tone_dc", "silence", "noise", "one_window"]
)
def test_log_mel_equals_torchaudio(name):
    with np.load(GOLDEN / "fbank.npz", allow_pickle=False) as golden:
        waveform, expected = golden[f"in/{name}"], golden[f"fbank/{name}"]
    if waveform.dtype == np.int16:
        waveform = waveform / np.float32(32768)
    fbank = audio.log_mel(waveform, audio.SAMPLE_RATE)
    assert fbank.dtype == np.float32
    np.testing.assert_allclose(fbank, expected, rtol=0, atol=2e-3)


def test_log_mel_ignores_a_constant_offset():
    noise = np.random.default_rng(0).normal(0, 0.1, 4000)
    np.testing.assert_allclose(
        audio.log_mel(noise + 0.4, audio.SAMPLE_RATE),
        audio.log_mel(noise, audio.SAMPLE_RATE),
        atol=1e-3,
    )


@pytest.mark.parametrize(("hertz", "dtype"), [(1000.0, np.float32), (5000.0, np.float64)])
def test_log_mel_peaks_at_the_bin_of_a_tone(hertz, dtype):
    wave = np.sin(2 * np.pi * hertz * np.arange(8000) / audio.SAMPLE_RATE).astype(dtype)
    mel = 1127 * np.log(1 + np.array([20, hertz, 8000]) / 700)
    expected = (mel[1] - mel[0]) / (mel[2] - mel[0]) * (audio.BINS + 1) - 1
    assert abs(audio.log_mel(wave, audio.SAMPLE_RATE).mean(axis=0).argmax() - expected) <= 1


@settings(deadline=None)
@given(st.integers(400, 5000))
def test_log_mel_has_only_windows_that_fit(samples):
    rows = (samples - 400) // 160 + 1
    fbank = audio.log_mel(np.zeros(samples, np.float32), audio.SAMPLE_RATE)
    assert fbank.shape == (rows, 128)
    np.testing.assert_array_equal(fbank, SILENCE)


@pytest.mark.parametrize(("samples", "rate"), [(0, 16_000), (399, 16_000), (800, 44_100)])
def test_log_mel_refuses_less_than_a_row(samples, rate):
    with pytest.raises(ValueError, match=r"needs 400 samples at 16000 Hz \(25 ms\), not \d+"):
        audio.log_mel(np.full(samples, 0.1), rate)


@pytest.mark.parametrize(("hertz", "rate"), [(440, 44_100), (3000, 48_000), (1000, 8000)])
def test_log_mel_resamples_other_rates(hertz, rate):
    there, here = (
        audio.log_mel(np.sin(2 * np.pi * hertz * np.arange(2 * one) / one) / 2, one)
        for one in (rate, 16_000)
    )
    assert there.shape == here.shape
    loud = here[10:-10].mean(axis=0) > here.mean(axis=0).max() - 4
    np.testing.assert_allclose(there[10:-10, loud], here[10:-10, loud], atol=0.05)
    assert there.mean(axis=0).argmax() == here.mean(axis=0).argmax()
    assert hertz != 440 or there.mean(axis=0).argmax() == 23


@pytest.mark.parametrize("rate", [0, 999, 2_000_000])
def test_log_mel_refuses_rates_that_sound_does_not_have(rate):
    with pytest.raises(ValueError, match="sample_rate must be 1000 to 1000000 Hz"):
        audio.log_mel(np.zeros(8000), rate)


def test_ten_seconds_give_998_rows():
    assert audio.log_mel(np.zeros(10 * audio.SAMPLE_RATE, np.float32), audio.SAMPLE_RATE).shape == (
        998,
        128,
    )


def test_log_mel_of_minutes_needs_little_memory_and_is_that_of_its_parts():
    waveform = np.random.default_rng(0).uniform(-0.3, 0.3, 240 * 16_000).astype(np.float32)
    tracemalloc.start()
    whole = audio.log_mel(waveform, 16_000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100e6  # bytes; one array of all its windows is 38 MB
    for first in (4090, 12_280, 23_980):
        part = audio.log_mel(waveform[160 * first : 160 * first + 160 * 17 + 400], 16_000)
        np.testing.assert_allclose(whole[first : first + 18], part, atol=1e-3)


def test_log_mel_refuses_integers():
    with pytest.raises(TypeError):
        audio.log_mel(np.zeros(1000, np.int16), audio.SAMPLE_RATE)


def test_window_start_equals_the_reference():
    with (GOLDEN / "segment_starts.csv").open() as file:
        rows = [{name: int(cell) for name, cell in row.items()} for row in csv.DictReader(file)]
    assert len(rows) > 500
    for row in rows:
        start = audio.window_start(
            row["frame_index"], row["num_frames"], row["spectrogram_length"], row["segment_length"]
        )
        assert start == row["start"], row


@given(st.integers(1, 32), st.integers(1, 1200), st.integers(1, 1200))
def test_windows_stay_inside_and_move_forward(num_frames, clip_rows, window_rows):
    starts = [audio.window_start(i, num_frames, clip_rows, window_rows) for i in range(num_frames)]
    assert starts == sorted(starts)
    assert starts[0] == 0
    assert starts[-1] <= max(0, clip_rows - window_rows)


def test_a_window_of_odd_length_has_as_many_rows_on_both_sides():
    assert audio.window_start(1, 2, 100, 11) == 45  # of the rows 45 to 55, 50 is in the middle
    time = audio.frame_time(1, 2, 11, sound_rows=98, seconds=1.0)
    assert (time.first_row, time.rows) == (45, 11)


def centre(seconds, frame=12, window=96, **settings):
    """The row that a window of 96 rows is centred on, in a clip whose sound is as long."""
    rows = max(0, round((seconds or 0) * 100) - 2)
    settings = {"sound_rows": rows, "seconds": seconds} | settings
    return audio.frame_time(frame, 16, window, **settings).first_row + window // 2


@pytest.mark.parametrize("seconds", [9.94, 10.0, 10.5])
def test_a_clip_of_nominal_length_follows_the_reference(seconds):
    assert centre(seconds) == 768
    assert centre(seconds, clip_rows=2048) == round(seconds * 75)


@pytest.mark.parametrize("seconds", [2.0, 5.3, 8.3, 9.9, 30.0, 59.9])
def test_any_other_clip_is_spread_over_its_own_seconds(seconds):
    assert centre(seconds) == pytest.approx(seconds * 75, abs=0.51)
    assert centre(seconds, frame=4) == pytest.approx(seconds * 25, abs=0.51)


@pytest.mark.parametrize("seconds", [5.3, 8.3])
def test_padded_spread_takes_every_clip_for_a_nominal_one(seconds):
    assert centre(seconds, frame=6, spread="padded") == 384
    last = audio.frame_time(15, 16, 416, sound_rows=528, seconds=5.3, spread="padded")
    assert (last.first_row, last.rows) == (608, 0)
    assert last.padded_share == 1


def test_sound_that_ends_before_the_picture_keeps_its_place():
    # Sound to 4.55 s in a clip of 5 s: windows are spread over the 5 s that frames are spread over.
    assert centre(5.0, sound_rows=453) == 375
    last = audio.frame_time(15, 16, 96, sound_rows=453, seconds=5.0)
    assert (last.first_row, last.rows, last.padded_share) == (453 - 96, 96, 0)


def test_the_log_mel_of_version_0_1_0_tells_the_seconds():
    for rows, spread_over in ((998, 1024), (1100, 1024), (973, 1024), (972, 972), (298, 298)):
        assert centre(None, sound_rows=rows) == round(spread_over * 0.75)
    time = audio.frame_time(4, 16, 96, sound_rows=298, seconds=None)
    assert time.moment == pytest.approx(0.745)


def test_times_are_on_the_files_timeline():
    time = audio.frame_time(3, 4, 100, sound_rows=498, seconds=5.0, start=20.0)
    assert time.moment == 23.75
    assert (time.begin, time.end) == pytest.approx((23.25, 24.25))
    tiny = audio.frame_time(0, 1, 416, sound_rows=98, seconds=1.0)
    assert tiny.padded_share == pytest.approx(1 - 98 / 416)


@given(st.floats(0.5, 60), st.integers(1, 64), st.integers(1, 1100), st.floats(0, 1), st.data())
def test_windows_are_centred_where_the_edges_allow(seconds, frames, window, ends_early, data):
    sound_rows = max(1, round((seconds - min(0.5, ends_early * seconds)) * 100) - 2)
    frame = data.draw(st.integers(0, frames - 1))
    time = audio.frame_time(frame, frames, window, sound_rows=sound_rows, seconds=seconds)
    assert time.moment == pytest.approx(frame * seconds / frames)
    nominal = 9.93 < seconds < 10.55
    middle, off = (time.begin + time.end) / 2, 0.31 if nominal else 0.0101
    if nominal:
        sound_rows = min(sound_rows, 1024)  # and padded to it
    else:
        assert time.rows == min(window, sound_rows)
    if time.first_row + window < sound_rows:
        assert middle >= time.moment - off
    if time.first_row > 0:
        assert middle <= time.moment + off


def _numbered(rows):
    """An fbank whose row r holds r + 1 everywhere."""
    return np.repeat(np.arange(1, rows + 1, dtype=np.float16)[:, None], audio.BINS, axis=1)


def test_cut_window_of_a_full_clip():
    fbank = _numbered(998)
    first = audio.cut_window(fbank, 5, 16, 1024, 416)
    assert first.dtype == np.float16
    np.testing.assert_array_equal(first, fbank[112 : 112 + 416])
    last = audio.cut_window(fbank, 15, 16, 1024, 416)
    np.testing.assert_array_equal(last[:390], fbank[608:])
    np.testing.assert_array_equal(last[390:], 0)


def test_cut_window_of_a_short_clip_has_no_padding_but_of_a_very_short_one():
    last = audio.cut_window(_numbered(500), 15, 16, 1024, 416)
    np.testing.assert_array_equal(last[:, 0], np.arange(85, 501))
    tiny = audio.cut_window(_numbered(100), 15, 16, 1024, 416)
    np.testing.assert_array_equal(tiny[:100, 0], np.arange(1, 101))
    np.testing.assert_array_equal(tiny[100:], 0)


def test_cut_window_ignores_rows_past_the_clip():
    window = audio.cut_window(_numbered(1100), 15, 16, 1024, 1100)
    np.testing.assert_array_equal(window[:1024, 0], np.arange(1, 1025))
    np.testing.assert_array_equal(window[1024:], 0)


@given(st.integers(0, 1100), st.integers(0, 15), st.integers(1, 1200))
def test_cut_window_keeps_its_shape(rows, frame, window_rows):
    window = audio.cut_window(_numbered(rows), frame, 16, 1024, window_rows)
    assert window.shape == (window_rows, audio.BINS)


def test_cut_window_follows_the_nominal_length_that_it_is_given():
    window = audio.cut_window(_numbered(498), 3, 4, 512, 100)  # 375 of 500, were it no clip
    np.testing.assert_array_equal(window[:, 0], np.arange(384 - 50 + 1, 384 + 50 + 1))


@pytest.mark.parametrize(("seconds", "centre"), [(10.3, 750), (10.3125, 773)])
def test_a_clip_is_nominal_up_to_three_percent_of_its_length(seconds, centre):
    time = audio.frame_time(3, 4, 10, sound_rows=1000, seconds=seconds, clip_rows=1000)
    assert time.first_row == centre - 5


@pytest.mark.parametrize(("record", "seconds"), [({"seconds": np.float32(2.5)}, 2.5), ({}, None)])
def test_a_record_of_version_0_1_0_stores_no_seconds(record, seconds):
    assert audio.stored_seconds(record) == seconds


def test_uint8_costs_half_and_errs_little():
    fbank = np.random.default_rng(0).uniform(-15.94, 11, (50, 128)).astype(np.float32)
    codes = audio.quantize(fbank)
    assert codes.nbytes * 2 == fbank.astype(np.float16).nbytes
    back = audio.dequantize(codes)
    assert back.dtype == np.float16
    assert np.abs(back - fbank).max() < 28 / 255 / 2 + 0.005  # half a step and float16's rounding
    window = audio.cut_window(codes, 0, 2, 40, 60)
    np.testing.assert_array_equal(window[:40], back[:40])
    assert not window[40:].any()
    ends = audio.dequantize(audio.quantize(np.array([[-99.0, 99.0]], np.float32)))
    np.testing.assert_array_equal(ends, [[-16, 12]])
