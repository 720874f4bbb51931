"""Sound of any rate and any number of channels to one channel at 16 kHz (FFmpeg's resampler)."""

import sys
from pathlib import Path

import av
import numpy as np
from jaxtyping import Float, Float32, Int16

from cavmae_sync_jax.media.errors import MediaError

SAMPLE_RATE = 16_000
# What becomes of several channels: the first one, as in the reference; their mean; the one with
# the most energy in the clip.
CHANNELS = ("first", "mix", "loudest")
EVERYTHING = (0, sys.maxsize)
# What is said of silence in a channel or track where another one sounds.
SOUNDS_ELSEWHERE = "but sounds in"

# Hertz. Resampled to 16 kHz, a few bytes of anything slower would fill the memory, and so would the
# filter for anything faster.
_SLOWEST, _FASTEST = 1000, 1_000_000
# Samples are 1 at full scale; far above, they don't fit the resampler's integers.
_LOUDEST = 2**15


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
    """Decoded audio that keeps its format, at 16 kHz, as the channels that `choice` needs.

    These are one for "first" and "mix". For "loudest" they are all: which one it is only the whole
    clip tells, see `chosen`.
    """

    def __init__(self, path: str | Path, like: av.AudioFrame, choice: str):
        """Takes the file, for errors, the first frame, and one of `CHANNELS`.

        Raises:
          MediaError: unreadable, where the rate is none that sound has.
        """
        if not _SLOWEST <= like.rate <= _FASTEST:
            raise MediaError("unreadable", f"{path} has audio at {like.rate} Hz.")
        self._path, self._count, self._choice = path, like.layout.nb_channels, choice
        self.sounding: set[int] = set()  # channels whose samples differ, from 1
        # Interleaved, for PyAV's access to planes is out of bounds where there are 8 or more.
        self._resampler = av.AudioResampler("s16", like.layout, SAMPLE_RATE)
        # Frames are short, and each call costs more than its samples.
        self._waiting, self._block = av.AudioFifo(), like.rate
        self._nothing = np.zeros((self._count if choice == "loudest" else 1, 0), np.int16)
        self._is_float = like.format.name in ("flt", "dbl")

    def resample(
        self, frame: av.AudioFrame | None, inside: tuple[int, int] = EVERYTHING
    ) -> Int16[np.ndarray, "channels samples"]:
        """Takes a frame; returns what is ready, as 16-bit integers. None brings all that is left.

        Args:
          frame: decoded.
          inside: from which sample to which of what is returned one listens to what is `sounding`.

        Raises:
          MediaError: unreadable, where floating-point samples aren't finite.
        """
        if frame is not None and self._is_float:
            samples = frame.to_ndarray()
            if not (np.abs(samples) < _LOUDEST).all():
                raise MediaError("unreadable", f"{self._path} has samples that are no sound.")
        if frame is not None:
            frame.pts = None  # whoever calls knows the time
            self._waiting.write(frame)
            if self._waiting.samples < self._block:
                return self._nothing
        blocks = []
        if self._waiting.samples:
            blocks += self._resampler.resample(self._waiting.read())
        if frame is None:
            blocks += self._resampler.resample(None)
        parts, begin = [self._nothing], 0
        for block in blocks:
            channels = block.to_ndarray().reshape(-1, self._count).T
            first, end = (max(0, place - begin) for place in inside)
            self._listen(channels[:, first:end])
            parts.append(self._chosen(channels))
            begin += channels.shape[1]
        return np.concatenate(parts, axis=1)

    def _listen(self, channels: Int16[np.ndarray, "channels samples"]) -> None:
        for number in set(range(1, self._count + 1)) - self.sounding:
            if channels[number - 1].size and np.ptp(channels[number - 1].astype(np.int32)):
                self.sounding.add(number)

    def _chosen(self, channels: Int16[np.ndarray, "channels samples"]) -> np.ndarray:
        if self._choice == "first":
            return channels[:1]
        if self._choice == "mix":
            return np.rint(channels.mean(axis=0, keepdims=True)).astype(np.int16)
        return channels


def chosen(
    path: str | Path, channels: Int16[np.ndarray, "channels samples"], sounding: set[int]
) -> Int16[np.ndarray, " samples"]:
    """Returns the loudest of the channels that `Channels` gave for a clip.

    Raises:
      MediaError: silent, where it is, although the clip has other channels that sound.
    """
    energies = np.square(channels.astype(np.float32)).sum(axis=1)
    waveform = np.ascontiguousarray(channels[int(energies.argmax())])
    if sounding and waveform.size and np.ptp(waveform.astype(np.int32)) == 0:
        numbers = ", ".join(map(str, sorted(sounding)))
        detail = f"{path} is silent in its first channel, {SOUNDS_ELSEWHERE} {numbers}"
        raise MediaError("silent", f"{detail}: use --audio_channel=loudest or mix.")
    return waveform
