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

from cavmae_sync_jax.media.demuxer import best_stream, demux, open_file
from cavmae_sync_jax.media.errors import MediaError
from cavmae_sync_jax.media.frames import Decoded
from cavmae_sync_jax.media.resampler import SAMPLE_RATE, Channels, Choice

# All in seconds. A stream that ends this much before the span's end counts as covering it.
RAGGED_END = 0.5
# Time stamps that go back by more than this begin again, as where two files are made one.
RESTART = 0.5
# Up to this part of a span's audio may be damaged.
_MOST_LOST = 0.01
# Sound may be missing for this long without a note: codecs need a little to begin.
_SHORT_GAP = 0.1
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
        samples = self._channels.resample(frame)
        if samples.shape[1]:
            sound.put(self._index, samples)
            self._index += samples.shape[1]


def _kind(frame: av.AudioFrame) -> tuple[str, str, int]:
    return frame.format.name, frame.layout.name, frame.rate


class _Sound:
    """The audio of a span while it is being read."""

    def __init__(self, samples: int, choice: str):
        self._channels = np.zeros((1, samples), np.int16)
        self.filled = 0  # samples up to the last one that was put
        self._there = np.zeros(samples, np.bool_)
        self._choice = Choice(choice)

    def has(self, begin: float, seconds: float) -> bool:
        """Whether the first sample of the span that lies in these seconds of it is there."""
        first, end = (round(time * SAMPLE_RATE) for time in (begin, begin + seconds))
        first = max(first, 0)
        return first < min(end, len(self._there)) and bool(self._there[first])

    def missing_seconds(self, samples: int) -> float:
        """How many seconds of the first `samples` were not put."""
        return (samples - int(self._there[:samples].sum())) / SAMPLE_RATE

    def put(self, index: int, samples: Int16[np.ndarray, "channels samples"]) -> None:
        """Puts samples to where they begin; those outside of the span are dropped."""
        low, high = max(index, 0), min(index + samples.shape[1], len(self._there))
        if low >= high:
            return
        part = self._choice.take(samples[:, low - index : high - index])
        if len(part) > len(self._channels):
            more = np.zeros((len(part) - len(self._channels), len(self._there)), np.int16)
            self._channels = np.concatenate([self._channels, more])
        self._channels[: len(part), low:high] = part
        self._there[low:high] = True
        self.filled = max(self.filled, high)

    def chosen(self, path: str | Path) -> Int16[np.ndarray, " samples"]:
        """Returns the one channel, see `resampler.Choice.chosen`."""
        return self._choice.chosen(path, self._channels)


class SpanReader:
    """Makes the waveform of a span of the frames that `frames.decode` brings."""

    def __init__(
        self, path: str | Path, start: float, end: float, channel: str, gaps: bool = False
    ):
        """Takes the file, for errors, the span, and one of `resampler.CHANNELS`.

        With `gaps`, a span without audio is silent.
        """
        self._path, self._start, self._end, self._gaps = path, start, end, gaps
        self._sound, self._lost = _Sound(round((end - start) * SAMPLE_RATE), channel), 0.0
        self._run: _Run | None = None
        # Of a packet that doesn't know how long it lasts: beyond what is bearable.
        self._usual = end - start
        self._broken, self._reached, self._restarts = False, -math.inf, False
        self._goes_on = False  # after the span

    def take(self, one: Decoded) -> bool:
        """Takes the next frame or loss; returns whether no more are needed.

        Raises:
          MediaError: unreadable.
        """
        time, frame, run = one.time, one.frame, self._run
        assert not isinstance(frame, av.VideoFrame)  # of an audio stream
        follows = run is not None and one.source.is_bare and not self._broken
        if time is None or follows:
            time = 0.0 if run is None else run.next_time()
        self._goes_on |= time >= self._end
        if time > self._end + _RUN_OUT:
            return True
        if time < self._reached - RESTART:
            if run is not None and abs(time - run.next_time()) > RESTART:
                self._end_run()
            # What fills a hole is no second timeline: one time stamp may have been too large.
            if frame is not None and self._has(time, frame):
                self._restarts = True
                return False
        if one.damaged and time >= self._start:
            self._lost += one.seconds or self._usual
        if frame is None:
            self._broken = True
            return False
        self._usual = frame.samples / frame.rate
        # After a loss the time stamps tell the place, although it is nearly where the run ended.
        broken, self._broken = self._broken and one.time is not None, False
        if self._run is not None and (broken or not self._run.continues_with(time, frame)):
            self._end_run()
        if self._run is None:
            index = round((time - self._start) * SAMPLE_RATE)
            self._run = _Run(time, frame, index, Channels(self._path, frame))
        self._run.add(frame, self._sound)
        self._reached = max(self._reached, self._run.next_time())
        return False

    def _has(self, time: float, frame: av.AudioFrame) -> bool:
        return self._sound.has(time - self._start, frame.samples / frame.rate)

    def _end_run(self) -> None:
        if self._run is not None:
            self._run.add(None, self._sound)
        self._run = None

    def finish(self) -> tuple[np.ndarray, float, frozenset[str]]:
        """Returns the audio of the span (int16), when it ends, and notes.

        A span without audio ends as the span does if audio follows, else as it begins.

        Raises:
          MediaError: unreadable, no_audio, or silent, see `resampler.Choice.chosen`.
        """
        self._end_run()
        path, start, end, sound = self._path, self._start, self._end, self._sound
        if self._lost > _MOST_LOST * (end - start):
            share = f"{min(1.0, self._lost / (end - start)):.1%}"
            raise MediaError("unreadable", f"{path}: {share} of its sound is damaged.")
        if sound.filled == 0 and self._gaps:
            return sound.chosen(path), end if self._goes_on else start, frozenset({"gap"})
        if sound.filled == 0:
            raise MediaError("no_audio", f"{path} has no audio from {start:.2f} to {end:.2f} s.")
        audio_end = start + sound.filled / SAMPLE_RATE
        if self._restarts and audio_end < end - RAGGED_END:
            stop = f"stop at {self._reached:.2f} s"
            raise MediaError("unreadable", f"{path}: its sound's time stamps {stop}.")
        waveform = sound.chosen(path)
        waveform = waveform[: sound.filled] if audio_end >= end - RAGGED_END else waveform
        gap = sound.missing_seconds(len(waveform)) > max(_SHORT_GAP, _MOST_LOST * (end - start))
        notes = {"damaged": bool(self._lost), "restarts": self._restarts, "gap": gap}
        return waveform, audio_end, frozenset(note for note, holds in notes.items() if holds)


def sounding_tracks(path: str | Path, start: float, end: float) -> list[int]:
    """Returns which tracks sound in the span, from 1, besides the one that is read."""
    with open_file(path) as container:
        tracks, read = container.streams.audio, best_stream(container, "audio")
        others = [number for number, track in enumerate(tracks, 1) if track is not read]
    return [number for number in others if _sounds(path, number, start, end)]


def _sounds(path: str | Path, number: int, start: float, end: float) -> bool:
    """Whether a track can be decoded and changes its value within the span."""
    channels, sounds = None, False
    with contextlib.suppress(av.error.FFmpegError, ValueError), open_file(path) as container:
        stream = container.streams.audio[number - 1]
        origin = (container.start_time or 0) / av.time_base
        if start > 0:
            container.seek(round((origin + start) * av.time_base))
        frames = (frame for packet in demux(container, stream) for frame in stream.decode(packet))
        for frame in itertools.chain(frames, [None]):
            if frame is not None:
                time = 0.0
                if frame.pts is not None:
                    time = float(frame.pts * (frame.time_base or 0)) - origin
                if time + frame.samples / frame.rate <= start:
                    continue
                frame = None if time >= end else frame
            if channels is None and frame is not None:
                channels = Channels(path, frame)
            if channels is not None:
                parts = channels.resample(frame).astype(np.int32)
                sounds = bool(parts.size and np.ptp(parts, axis=1).any())
            if frame is None or sounds:
                break
    return sounds
