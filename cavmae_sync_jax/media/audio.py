"""Waveform to log-mel filter bank (fbank), and the window of the fbank that belongs to a frame.

The fbank is Kaldi's, with the settings of CAV-MAE: 16 kHz, window 25 ms, shift 10 ms, 128 bins
from 20 Hz to 8 kHz, symmetric Hann window, pre-emphasis 0.97, no dither. A window that does not fit
into the waveform is left out. The fbank is not normalised here; that is the model's own business.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Shaped, UInt8
from librosa import hz_to_mel
from scipy import fft

from cavmae_sync_jax.media.resampler import SAMPLE_RATE, resample

BINS = 128
ROWS_PER_SECOND = 100
# Clips may have this much more than the nominal rows, which are cut off.
LONGEST = 1.05
# Rows that the reference pads or cuts a clip of 10 s to.
CLIP_ROWS = 1024
# Over what the windows of a clip are spread: its own seconds, or always `clip_rows`, as released.
SPREADS = ("clip", "padded")

# Of 16 kHz: one row of log-mel.
FEWEST_SAMPLES = 400

_WINDOW = FEWEST_SAMPLES
_SHIFT = SAMPLE_RATE // ROWS_PER_SECOND
_FFT = 512
# Rows that are computed together, so that they stay in the processor's cache.
_BLOCK = 128
_LOWEST_HZ = 20.0
_PRE_EMPHASIS = 0.97
# Energies below this count as this.
FLOOR = np.float32(2.0**-23)
# Log-mel energies as whole numbers: 0 is just below the floor, 255 above any sound in [-1, 1].
_CODES = np.linspace(-16, 12, 256, dtype=np.float32).astype(np.float16)
# A clip is of nominal length within this part of it; so 10 s are, of 1024 rows.
_NEARLY = 0.03
# In version 0.1.0, from this part of the nominal rows on.
_FULL_SHARE = 0.95


def log_mel(
    waveform: Float[np.ndarray, " samples"], sample_rate: int
) -> Float32[np.ndarray, "rows 128"]:
    """Returns the natural-log mel energies of a waveform in [-1, 1].

    Any rate but 16 kHz is resampled to it, as the sound of a file is. The mean of the whole
    waveform is subtracted first. `rows` is `(samples - 400) // 160 + 1`, of samples at 16 kHz.
    int16 samples must be divided by 32768 before.

    Args:
      waveform: one channel.
      sample_rate: of the waveform, in Hz.

    Raises:
      TypeError: the waveform isn't floating-point.
      ValueError: the waveform isn't one-dimensional, or is shorter than one row (25 ms).
    """
    if not np.issubdtype(waveform.dtype, np.floating):
        raise TypeError(f"log_mel takes floating-point samples in [-1, 1], not {waveform.dtype}")
    if waveform.ndim != 1:
        raise ValueError(f"log_mel takes one channel [samples], not the shape {waveform.shape}")
    if sample_rate != SAMPLE_RATE:
        waveform = resample(waveform, sample_rate)
    if waveform.size < _WINDOW:
        raise ValueError(
            f"log_mel needs {_WINDOW} samples at {SAMPLE_RATE} Hz (25 ms), not {waveform.size}"
        )
    waveform = (waveform - waveform.mean(dtype=np.float64)).astype(np.float32)
    windows = np.lib.stride_tricks.sliding_window_view(waveform, _WINDOW)[::_SHIFT]
    power = np.empty((len(windows), _FFT // 2), np.float32)
    scratch = np.zeros((_BLOCK, _FFT), np.float32)
    for row in range(0, len(windows), _BLOCK):
        block = slice(row, row + _BLOCK)
        _power(windows[block], scratch[: len(windows) - row], power[block])
    mel = power @ _mel_filters()
    return np.log(np.maximum(mel, FLOOR, out=mel), out=mel)


def _power(
    windows: Float32[np.ndarray, "rows 400"],
    scratch: Float32[np.ndarray, "rows 512"],
    power: Float32[np.ndarray, "rows 256"],
) -> None:
    """Puts the power spectrum of windows into `power`; the end of each row of `scratch` is zero."""
    windows = windows - windows.mean(axis=1, keepdims=True)
    emphasised, factor = scratch[:, :_WINDOW], np.float32(-_PRE_EMPHASIS)
    np.multiply(windows[:, :-1], factor, out=emphasised[:, 1:])
    # Kaldi takes the sample before the first one to be equal to it.
    np.multiply(windows[:, 0], factor, out=emphasised[:, 0])
    emphasised += windows
    emphasised *= _hann()
    spectrum = fft.rfft(scratch, axis=1)[:, : _FFT // 2]  # NumPy takes eight times as long
    np.square(spectrum.real, out=power)
    power += np.square(spectrum.imag)


def quantize(fbank: Float[np.ndarray, "rows bins"]) -> UInt8[np.ndarray, "rows bins"]:
    """Returns log-mel as whole numbers 0 to 255 for -16 to 12, rounded to 0.055 at most."""
    low, high = np.float32(_CODES[0]), np.float32(_CODES[-1])
    return np.clip(np.rint((fbank - low) * (255 / (high - low))), 0, 255).astype(np.uint8)


def dequantize(fbank: Shaped[np.ndarray, "rows bins"]) -> Float[np.ndarray, "rows bins"]:
    """Returns what `quantize` has made as float16, and any other log-mel as it is."""
    return _CODES[fbank] if fbank.dtype == np.uint8 else fbank


class FrameTime(NamedTuple):
    """When a frame is shown, and which sound belongs to it.

    Attributes:
      moment: of the frame, in seconds on the file's timeline.
      begin: of its window of sound, in seconds on the file's timeline.
      end: of its window, in seconds on the file's timeline.
      first_row: the window's first row in the log-mel of the clip.
      rows: of the window that the log-mel has; zeros fill up the rest.
      padded_share: the part of the window that is filled up, from 0 to 1.
    """

    moment: float
    begin: float
    end: float
    first_row: int
    rows: int
    padded_share: float


def frame_time(
    frame: int,
    num_frames: int,
    window_rows: int,
    *,
    sound_rows: int,
    seconds: float | int | None,
    start: float | int = 0.0,
    clip_rows: int | None = CLIP_ROWS,
    spread: str = SPREADS[0],
) -> FrameTime:
    """Returns a frame's moment and its window: the one rule for all that pairs frames with sound.

    The moment of frame i of T is `start + i * seconds / T`. The window is centred on it, and moved
    inside the clip where it would stick out. A window longer than the clip starts at row 0.

    A clip of nearly the nominal length follows the reference: it is padded or cut to `clip_rows`,
    and the centres are `round(i * clip_rows / T)`. With 1024 rows for 10 s they come up to 0.3 s
    after the moments. Any other clip has its own rows, of which no window leaves any out for
    padding.

    Args:
      frame: its number, from 0.
      num_frames: frames that are spread over the clip.
      window_rows: length of the window in rows of 10 ms.
      sound_rows: rows of the clip's log-mel.
      seconds: that the frames are spread over. None, for a dataset of version 0.1.0, is the length
        of the log-mel, and a clip then is of nominal length from 95 % of it on.
      start: of the clip, in seconds on the file's timeline.
      clip_rows: the nominal length of a clip (`config.data.clip_rows`). None: this is no clip, but
        a file of any length, whose windows are all centred.
      spread: of `SPREADS`; "padded" takes every clip for one of nominal length, as released.
    """
    length = sound_rows / ROWS_PER_SECOND if seconds is None else seconds
    if clip_rows is not None and (
        spread == "padded" or _is_nominal(seconds, sound_rows, clip_rows)
    ):
        first = window_start(frame, num_frames, clip_rows, window_rows)
        sound_rows = min(sound_rows, clip_rows)
    else:
        centre = round(frame * length * ROWS_PER_SECOND / num_frames)
        first = _first_row(centre, sound_rows, window_rows)
    rows = min(max(0, sound_rows - first), window_rows)
    begin = start + first / ROWS_PER_SECOND
    return FrameTime(
        start + frame * length / num_frames,
        begin,
        begin + window_rows / ROWS_PER_SECOND,
        first,
        rows,
        1 - rows / window_rows,
    )


def stored_seconds(record: Mapping[str, Any]) -> float | None:
    """Returns what an example stores for `frame_time`; version 0.1.0 stored nothing: None."""
    return float(record["seconds"]) if "seconds" in record else None


def _is_nominal(seconds: float | int | None, sound_rows: int, clip_rows: int) -> bool:
    if seconds is None:
        return sound_rows >= _FULL_SHARE * clip_rows
    return abs(seconds * ROWS_PER_SECOND - clip_rows) <= _NEARLY * clip_rows


def window_start(frame: int, num_frames: int, clip_rows: int, window_rows: int) -> int:
    """Returns the first fbank row of the window of `frame` in a clip of `clip_rows`, as released.

    The window is centred on `round(frame * clip_rows / num_frames)`, rounded half to even, and
    moved inside the clip where it would stick out. A window longer than the clip starts at 0.
    """
    return _first_row(round(frame * clip_rows / num_frames), clip_rows, window_rows)


def _first_row(centre: int, clip_rows: int, window_rows: int) -> int:
    return max(0, min(centre - window_rows // 2, clip_rows - window_rows))


def cut_window(
    fbank: Shaped[np.ndarray, "rows bins"],
    frame: int,
    num_frames: int,
    clip_rows: int,
    window_rows: int,
    *,
    seconds: float | int | None = None,
    spread: str = SPREADS[0],
) -> Shaped[np.ndarray, "{window_rows} bins"]:
    """Returns the window of a whole clip's fbank that belongs to `frame`, in the fbank's type.

    `frame_time` says where it lies. Rows that the clip doesn't have are zero. Normalisation
    comes after this, so that the padding is normalised like everything else. What `quantize` has
    made comes back as log-mel.
    """
    time = frame_time(
        frame,
        num_frames,
        window_rows,
        sound_rows=len(fbank),
        seconds=seconds,
        clip_rows=clip_rows,
        spread=spread,
    )
    rows = dequantize(fbank[time.first_row : time.first_row + time.rows])
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
