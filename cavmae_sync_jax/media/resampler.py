"""Resamples sound of any rate and any number of channels to one channel at 16 kHz (FFmpeg)."""

from pathlib import Path

import av
import numpy as np
from jaxtyping import Float, Float32, Int16

from cavmae_sync_jax.media.errors import MediaError

SAMPLE_RATE = 16_000
# What becomes of several channels: the first one, as in the reference; their mean; the one with
# the most energy in the clip.
CHANNELS = ("first", "mix", "loudest")
# What is said of silence in a channel or track where another one sounds.
SOUNDS_ELSEWHERE = "but sounds in"

# A channel with less than this part of the loudest one's energy, which is -50 dB, is silent: what
# is in it has leaked there in the codec, or is the noise of an input that nothing is plugged into.
_INAUDIBLE = 1e-5
_NOTHING = 1.0  # the energy of less than the last bit

# Hertz. Resampled to 16 kHz, a few bytes of anything slower would fill the memory, and so would the
# filter for anything faster.
_SLOWEST, _FASTEST = 1000, 1_000_000
# Samples are 1 at full scale; far above, they don't fit the resampler's integers.
_LOUDEST = 2**15
_PLANES_OUT_OF_BOUNDS = 8


def resample(
    waveform: Float[np.ndarray, " samples"], sample_rate: int
) -> Float32[np.ndarray, " resampled"]:
    """Returns a waveform in [-1, 1] at 16 kHz, as a file with these samples would be read.

    Raises:
      ValueError: the rate is none that sound has.
    """
    if not _SLOWEST <= sample_rate <= _FASTEST:
        raise ValueError(f"sample_rate must be {_SLOWEST} to {_FASTEST} Hz, not {sample_rate}")
    if not waveform.size:
        return np.zeros(0, np.float32)
    whole = av.AudioFrame.from_ndarray(waveform.astype(np.float32)[None], "flt", "mono")
    whole.rate = sample_rate
    resampler = av.AudioResampler("s16", "mono", SAMPLE_RATE)
    blocks = resampler.resample(whole) + resampler.resample(None)
    samples = np.concatenate([block.to_ndarray()[0] for block in blocks])
    return samples / np.float32(32768)


class Channels:
    """Decoded audio that keeps its format, at 16 kHz, with all of its channels."""

    def __init__(self, path: str | Path, like: av.AudioFrame):
        """Takes the file, for errors, and the first frame.

        Raises:
          MediaError: unreadable, where the rate is none that sound has.
        """
        if not _SLOWEST <= like.rate <= _FASTEST:
            raise MediaError("unreadable", f"{path} has audio at {like.rate} Hz.")
        self._path, self._count = path, like.layout.nb_channels
        # Interleaved, for PyAV's access to planes is out of bounds where there are 8 or more.
        self._resampler = av.AudioResampler("s16", like.layout, SAMPLE_RATE)
        # Frames are short, and each call costs more than its samples. More than half a second would
        # not stay in the processor's cache.
        self._waiting, self._block = av.AudioFifo(), like.rate // 2
        self._nothing = np.zeros((self._count, 0), np.int16)
        can_be_read = self._count < _PLANES_OUT_OF_BOUNDS or not like.format.is_planar
        self._is_float = like.format.packed.name in ("flt", "dbl") and can_be_read

    def resample(self, frame: av.AudioFrame | None) -> Int16[np.ndarray, "channels samples"]:
        """Takes a frame; returns what is ready, as 16-bit integers. None brings all that is left.

        Raises:
          MediaError: unreadable, where floating-point samples aren't finite.
        """
        if frame is not None:
            frame.pts = None  # whoever calls knows the time
            self._waiting.write(frame)
            if self._waiting.samples < self._block:
                return self._nothing
        blocks = []
        if (block := self._waiting.read()) is not None:
            if self._is_float and not (np.abs(block.to_ndarray()) < _LOUDEST).all():
                raise MediaError("unreadable", f"{self._path} has samples that are no sound.")
            blocks += self._resampler.resample(block)
        if frame is None:
            blocks += self._resampler.resample(None)
        parts = (block.to_ndarray().reshape(-1, self._count).T for block in blocks)
        return np.concatenate([self._nothing, *parts], axis=1)


class Choice:
    """The channels of a clip that one of `CHANNELS` needs, and how loud all of them are."""

    def __init__(self, choice: str):
        """Takes one of `CHANNELS`."""
        self._choice = choice
        self._sums = np.zeros((2, 0))  # of samples and of their squares, per channel
        self._samples = np.zeros(0)

    def take(
        self, channels: Int16[np.ndarray, "channels samples"]
    ) -> Int16[np.ndarray, "needed samples"]:
        """Takes a part of the clip; returns one channel, or all of which one is the loudest."""
        exact = np.ascontiguousarray(channels, np.float64)  # sums of interleaved samples are slow
        if (grown := len(channels) - len(self._samples)) > 0:
            self._sums = np.pad(self._sums, ((0, 0), (0, grown)))
            self._samples = np.pad(self._samples, (0, grown))
        self._sums[:, : len(channels)] += exact.sum(axis=1), np.einsum("ij,ij->i", exact, exact)
        self._samples[: len(channels)] += channels.shape[1]
        if self._choice == "first":
            return channels[:1]
        if self._choice == "mix":
            return np.rint(exact.mean(axis=0, keepdims=True)).astype(np.int16)
        return channels

    def chosen(
        self, path: str | Path, channels: Int16[np.ndarray, "needed samples"]
    ) -> Int16[np.ndarray, " samples"]:
        """Returns the loudest of what `take` has returned.

        Raises:
          MediaError: silent, where nothing is heard of it beside the clip's other channels.
        """
        energies = np.square(channels.astype(np.float32)).sum(axis=1)
        waveform = np.ascontiguousarray(channels[int(energies.argmax())])
        means, squares = self._sums / np.maximum(self._samples, 1)
        levels = squares - np.square(means)
        audible = levels.max(initial=0.0) * _INAUDIBLE
        if levels.max(initial=0.0) < _NOTHING or _variance(waveform) > audible:
            return waveform
        if self._choice == "mix":
            what = "its channels are mixed, for they cancel each other out"
            raise MediaError("silent", f"{path} is silent when {what}: use --audio_channel=first.")
        numbers = ", ".join(
            str(number) for number, level in enumerate(levels, 1) if level > audible
        )
        detail = f"{path} is silent in its first channel, {SOUNDS_ELSEWHERE} {numbers}"
        raise MediaError("silent", f"{detail}: use --audio_channel=loudest or mix.")


def _variance(waveform: Int16[np.ndarray, " samples"]) -> float:
    exact = waveform.astype(np.float64)
    exact -= exact.mean()
    return float(exact @ exact) / len(exact)
