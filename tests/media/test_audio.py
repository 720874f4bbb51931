"""The log-mel against torchaudio's values, and the windows against the reference's table."""

import csv
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
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
    fbank = audio.log_mel(waveform)
    assert fbank.dtype == np.float32
    np.testing.assert_allclose(fbank, expected, rtol=0, atol=2e-3)


def test_log_mel_ignores_a_constant_offset():
    noise = np.random.default_rng(0).normal(0, 0.1, 4000)
    np.testing.assert_allclose(audio.log_mel(noise + 0.4), audio.log_mel(noise), atol=1e-3)


@pytest.mark.parametrize(("hertz", "dtype"), [(1000.0, np.float32), (5000.0, np.float64)])
def test_log_mel_peaks_at_the_bin_of_a_tone(hertz, dtype):
    wave = np.sin(2 * np.pi * hertz * np.arange(8000) / audio.SAMPLE_RATE).astype(dtype)
    mel = 1127 * np.log(1 + np.array([20, hertz, 8000]) / 700)
    expected = (mel[1] - mel[0]) / (mel[2] - mel[0]) * (audio.BINS + 1) - 1
    assert abs(audio.log_mel(wave).mean(axis=0).argmax() - expected) <= 1


@given(st.integers(0, 5000))
def test_log_mel_has_only_windows_that_fit(samples):
    rows = 0 if samples < 400 else (samples - 400) // 160 + 1
    fbank = audio.log_mel(np.zeros(samples, np.float32))
    assert fbank.shape == (rows, 128)
    np.testing.assert_array_equal(fbank, SILENCE)


def test_ten_seconds_give_998_rows():
    assert audio.log_mel(np.zeros(10 * audio.SAMPLE_RATE, np.float32)).shape == (998, 128)


def test_log_mel_refuses_integers():
    with pytest.raises(TypeError):
        audio.log_mel(np.zeros(1000, np.int16))


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


def test_a_full_clip_is_padded_and_a_short_one_is_not():
    assert audio.timeline_rows(998, 1024) == 1024
    assert audio.timeline_rows(1100, 1024) == 1024
    assert audio.timeline_rows(973, 1024) == 1024
    assert audio.timeline_rows(972, 1024) == 972
    assert audio.timeline_rows(298, 1024) == 298


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
