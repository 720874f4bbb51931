"""The sound of a span of a file: one channel, in step with the file's timeline.

All times are seconds on the file's own timeline, on which its earliest stream starts at 0.
"""

import contextlib
import itertools
import math
from pathlib import Path

import av
import numpy as np
from jaxtyping import Int16

from cavmae_sync_jax.media.demuxer import BOTH, Kind, best_stream, decoded, open_file
from cavmae_sync_jax.media.errors import MediaError
from cavmae_sync_jax.media.resampler import CHANNELS, SAMPLE_RATE, Channels, chosen

# All in seconds. A stream that ends this much before the span's end counts as covering it.
RAGGED_END = 0.5
# Time stamps that go back by more than this begin again, as where two files are made one.
RESTART = 0.5
# Up to this part of a span's audio may be damaged.
_MOST_LOST = 0.01
# Audio is decoded this much past the span, so that its end isn't the resampler's end.
_RUN_OUT = 0.1
# Timestamps this much off what the samples before them add up to are a gap, not rounding.
_GAP = 0.05


class _Run:
    """Decoded audio without a gap or change of format, on its way into the waveform of a span."""

    def __init__(self, begin: float, frame: av.AudioFrame, index: int, channels: Channels):
        """Takes the time of the first frame, and the index in the waveform that belongs to it."""
        self._begin, self._rate, self._kind, self._taken = begin, frame.rate, _kind(frame), 0
        self._index, self._channels = index, channels

    def next_time(self) -> float:
        """When the next frame should begin, in seconds."""
        return self._begin + self._taken / self._rate

    def continues_with(self, time: float, frame: av.AudioFrame) -> bool:
        """Whether a frame follows without a gap, in the same format."""
        return abs(time - self.next_time()) <= _GAP and _kind(frame) == self._kind

    def add(self, frame: av.AudioFrame | None, sound: "_Sound") -> None:
        """Puts what a frame (None: the end) brings to its place."""
        self._taken += 0 if frame is None else frame.samples
        # What sounds before or after the span is no sound of it.
        samples = self._channels.resample(frame, (-self._index, sound.length - self._index))
        if samples.shape[1]:
            sound.put(self._index, samples)
            self._index += samples.shape[1]
            sound.sounding |= self._channels.sounding


def _kind(frame: av.AudioFrame) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.rate


class _Sound:
    """The audio of a span while it is being read."""

    def __init__(self, samples: int):
        self.channels = np.zeros((1, samples), np.int16)
        self.filled = 0  # samples up to the last one that was put
        self._there = np.zeros(samples, np.bool_)
        self.sounding: set[int] = set()

    @property
    def length(self) -> int:
        """Samples of the span."""
        return self.channels.shape[1]

    def has(self, begin: float, seconds: float) -> bool:
        """Whether the first sample of the span that lies in these seconds of it is there."""
        first, end = (round(time * SAMPLE_RATE) for time in (begin, begin + seconds))
        first = max(first, 0)
        return first < min(end, len(self._there)) and bool(self._there[first])

    def put(self, index: int, samples: Int16[np.ndarray, "channels samples"]) -> None:
        """Puts samples to where they begin; those outside of the span are dropped."""
        if len(samples) > len(self.channels):
            more = np.zeros((len(samples) - len(self.channels), self.channels.shape[1]), np.int16)
            self.channels = np.concatenate([self.channels, more])
        low, high = max(index, 0), min(index + samples.shape[1], self.channels.shape[1])
        if low < high:
            self.channels[: len(samples), low:high] = samples[:, low - index : high - index]
            self._there[low:high] = True
            self.filled = max(self.filled, high)


def read_waveform(
    path: str | Path,
    start: float,
    end: float,
    channel: str,
    kinds: tuple[Kind, ...] = BOTH,
    gaps: bool = False,
) -> tuple[np.ndarray, float, frozenset[str]]:
    """Returns the audio of the span (int16), when it ends, and notes.

    The file needs streams of all `kinds`. With `gaps`, a span without audio is silent. It then ends
    at its start where no audio follows.
    """
    sound, run, lost = _Sound(round((end - start) * SAMPLE_RATE)), None, 0.0
    usual = end - start  # of a packet that doesn't know how long it lasts: beyond what is bearable
    broken, reached, restarts, goes_on = False, -math.inf, False, False
    for one in decoded(path, "audio", start, kinds=kinds):
        time, frame = one.time, one.frame
        assert not isinstance(frame, av.VideoFrame)  # of an audio stream
        follows = run is not None and one.source.is_bare and not broken
        if time is None or follows:
            time = 0.0 if run is None else run.next_time()
        if time > end + _RUN_OUT:
            goes_on = True
            break
        if time < reached - RESTART:
            if run is not None and abs(time - run.next_time()) > RESTART:
                run.add(None, sound)
                run = None
            # What fills a hole is no second timeline: one time stamp may have been too large.
            if frame is not None and sound.has(time - start, frame.samples / frame.rate):
                restarts = True
                continue
        if one.damaged and time >= start:
            lost += one.seconds or usual
        if frame is None:
            broken = True
            continue
        usual = frame.samples / frame.rate
        # After a loss the time stamps tell the place, although it is nearly where the run ended.
        broken = broken and one.time is not None
        if run is not None and (broken or not run.continues_with(time, frame)):
            run.add(None, sound)
            run = None
        broken = False
        if run is None:
            index = round((time - start) * SAMPLE_RATE)
            run = _Run(time, frame, index, Channels(path, frame, channel))
        run.add(frame, sound)
        reached = max(reached, run.next_time())
    if run is not None:
        run.add(None, sound)
    if lost > _MOST_LOST * (end - start):
        share = f"{min(1.0, lost / (end - start)):.1%}"
        raise MediaError("unreadable", f"{path}: {share} of its sound is damaged.")
    if sound.filled == 0 and gaps:
        return sound.channels[0], end if goes_on else start, frozenset()
    if sound.filled == 0:
        raise MediaError("no_audio", f"{path} has no audio from {start:.2f} to {end:.2f} s.")
    audio_end = start + sound.filled / SAMPLE_RATE
    if restarts and audio_end < end - RAGGED_END:
        raise MediaError("unreadable", f"{path}: its sound's time stamps stop at {reached:.2f} s.")
    waveform = chosen(path, sound.channels, sound.sounding)
    waveform = waveform[: sound.filled] if audio_end >= end - RAGGED_END else waveform
    notes = {"damaged": bool(lost), "restarts": restarts}
    return waveform, audio_end, frozenset(note for note, holds in notes.items() if holds)


def sounding_tracks(path: str | Path, start: float, end: float) -> list[int]:
    """Returns which tracks sound in the span, from 1, besides the one that is read."""
    with open_file(path) as container:
        tracks, read = container.streams.audio, best_stream(container, "audio")
        others = [number for number, track in enumerate(tracks, 1) if track is not read]
    return [number for number in others if _sounds(path, number, start, end)]


def _sounds(path: str | Path, number: int, start: float, end: float) -> bool:
    """Whether a track can be decoded and changes its value within the span."""
    channels = None
    with contextlib.suppress(av.error.FFmpegError, ValueError), open_file(path) as container:
        stream = container.streams.audio[number - 1]
        origin = (container.start_time or 0) / av.time_base
        if start > 0:
            container.seek(round((origin + start) * av.time_base))
        for frame in itertools.chain(container.decode(stream), [None]):
            if frame is not None:
                time = 0.0
                if frame.pts is not None:
                    time = float(frame.pts * (frame.time_base or 0)) - origin
                if time + frame.samples / frame.rate <= start:
                    continue
                frame = None if time >= end else frame
            if channels is None and frame is not None:
                channels = Channels(path, frame, CHANNELS[0])
            if channels is not None:
                channels.resample(frame)
            if frame is None or (channels is not None and channels.sounding):
                break
    return channels is not None and bool(channels.sounding)
