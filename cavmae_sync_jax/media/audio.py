"""Waveform to log-mel filter bank (fbank), and the window of the fbank that belongs to a frame.

The fbank is Kaldi's, with the settings of CAV-MAE: 16 kHz, window 25 ms, shift 10 ms, 128 bins
from 20 Hz to 8 kHz, symmetric Hann window, pre-emphasis 0.97, no dither, and windows only where
they fit into the waveform. It is not normalised here; that is the model's own business.
"""

import functools

import numpy as np
from jaxtyping import Float, Float32, Shaped, UInt8
from librosa import hz_to_mel

SAMPLE_RATE = 16_000
BINS = 128
ROWS_PER_SECOND = 100
# Clips may have this much more than the nominal rows, which are cut off.
LONGEST = 1.05

_WINDOW = 400
_SHIFT = SAMPLE_RATE // ROWS_PER_SECOND
_FFT = 512
_LOWEST_HZ = 20.0
_PRE_EMPHASIS = 0.97
_FLOOR = np.float32(2.0**-23)
# Log-mel energies as whole numbers: 0 is just below the floor, 255 above any sound in [-1, 1].
_CODES = np.linspace(-16, 12, 256, dtype=np.float32).astype(np.float16)
# A clip this much shorter than the nominal length is a short clip, not one with a ragged end.
_FULL_SHARE = 0.95


def log_mel(waveform: Float[np.ndarray, " samples"]) -> Float32[np.ndarray, "rows 128"]:
    """Returns the natural-log mel energies of a 16 kHz waveform in [-1, 1].

    The mean of the whole waveform is subtracted first. `rows` is `(samples - 400) // 160 + 1`, and
    zero for fewer than 400 samples. int16 samples must be divided by 32768 before.

    Raises:
      TypeError: the waveform isn't floating-point.
      ValueError: the waveform isn't one-dimensional.
    """
    if not np.issubdtype(waveform.dtype, np.floating):
        raise TypeError(f"log_mel takes floating-point samples in [-1, 1], not {waveform.dtype}")
    if waveform.ndim != 1:
        raise ValueError(f"log_mel takes one channel [samples], not the shape {waveform.shape}")
    if waveform.size < _WINDOW:
        return np.zeros((0, BINS), np.float32)
    waveform = (waveform - waveform.mean(dtype=np.float64)).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(waveform, _WINDOW)[::_SHIFT]
    windows = windows - windows.mean(axis=1, keepdims=True)
    # Kaldi takes the sample before the first one to be equal to it.
    previous = np.concatenate([windows[:, :1], windows[:, :-1]], axis=1)
    windows = (windows - np.float32(_PRE_EMPHASIS) * previous) * _hann()
    spectrum = np.fft.rfft(windows, _FFT, axis=1)[:, : _FFT // 2]
    power = np.square(spectrum.real) + np.square(spectrum.imag)
    return np.log(np.maximum(power @ _mel_filters(), _FLOOR))


def quantize(fbank: Float[np.ndarray, "rows bins"]) -> UInt8[np.ndarray, "rows bins"]:
    """Returns log-mel as whole numbers 0 to 255 for -16 to 12, rounded to 0.055 at most."""
    low, high = np.float32(_CODES[0]), np.float32(_CODES[-1])
    return np.clip(np.rint((fbank - low) * (255 / (high - low))), 0, 255).astype(np.uint8)


def dequantize(fbank: Shaped[np.ndarray, "rows bins"]) -> Float[np.ndarray, "rows bins"]:
    """Returns what `quantize` has made as float16, and any other log-mel as it is."""
    return _CODES[fbank] if fbank.dtype == np.uint8 else fbank


def window_start(frame: int, num_frames: int, clip_rows: int, window_rows: int) -> int:
    """Returns the first fbank row of the window that belongs to `frame` (0-based).

    The window is centred on `round(frame * clip_rows / num_frames)`, rounded half to even, and
    moved inside the clip where it would stick out. A window longer than the clip starts at 0.
    """
    centre = round(frame * clip_rows / num_frames)
    start = max(0, centre - window_rows // 2)
    if start + window_rows > clip_rows:
        start = max(0, clip_rows - window_rows)
    return start


def timeline_rows(fbank_rows: int, clip_rows: int) -> int:
    """Returns how many rows the frames of a clip are spread over.

    The reference always takes the nominal `clip_rows` (1024 for the 998 rows of 10 s) and pads.
    For a clip that is clearly shorter this would pair its late frames with padding, so a clip
    with under 95 % of the nominal rows is spread over its own rows.
    """
    return clip_rows if fbank_rows >= _FULL_SHARE * clip_rows else fbank_rows


def cut_window(
    fbank: Shaped[np.ndarray, "rows bins"],
    frame: int,
    num_frames: int,
    clip_rows: int,
    window_rows: int,
) -> Shaped[np.ndarray, "{window_rows} bins"]:
    """Returns the window of a whole clip's fbank that belongs to `frame`, in the fbank's type.

    Rows past `clip_rows` are ignored; rows that the clip doesn't have are zero. Normalisation
    comes after this, so that the padding is normalised like everything else. What `quantize` has
    made comes back as log-mel.
    """
    timeline = timeline_rows(len(fbank), clip_rows)
    start = window_start(frame, num_frames, timeline, window_rows)
    rows = dequantize(fbank[start : min(start + window_rows, clip_rows)])
    window = np.zeros((window_rows, fbank.shape[1]), rows.dtype)
    window[: len(rows)] = rows
    return window


@functools.cache
def _hann() -> Float32[np.ndarray, "400"]:
    return np.hanning(_WINDOW).astype(np.float32)


@functools.cache
def _mel_filters() -> Float32[np.ndarray, "256 128"]:
    """Triangles that are straight in mel, not in Hz; the Nyquist bin belongs to none of them."""
    edges = np.linspace(
        hz_to_mel(_LOWEST_HZ, htk=True), hz_to_mel(SAMPLE_RATE / 2, htk=True), BINS + 2
    )
    mels = hz_to_mel(np.arange(_FFT // 2) * SAMPLE_RATE / _FFT, htk=True)[:, None]
    step = edges[1] - edges[0]
    rising = (mels - edges[:-2]) / step
    falling = (edges[2:] - mels) / step
    return np.maximum(0, np.minimum(rising, falling)).astype(np.float32)
