"""The sound of a file that need not have pictures."""

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from jaxtyping import Int16

from cavmae_sync_jax.media import audio, resampler
from cavmae_sync_jax.media.decoding import Seconds
from cavmae_sync_jax.media.demuxer import errors_of, open_file
from cavmae_sync_jax.media.errors import MediaError, check_file

_ENDS_EARLY = 0.5  # seconds; a sound that ends this much before its promised end is damaged
_LATE = 0.1  # seconds; sound that begins later than this after the file's start has silence before
_RUN_UP = 1.0  # seconds before a span, so that decoder and resampler have settled in it
_CHUNKS = 100  # of a WAV, among which its samples are
_STREAMED = 0x7FFFF000  # sizes of a WAV from here on say that its writer didn't know


def read_sound(
    path: str | Path, *, seconds: Seconds | None = None, channel: str = resampler.CHANNELS[0]
) -> Int16[np.ndarray, " samples"]:
    """Returns one channel of a sound, or of its first `seconds`, at 16 kHz.

    Args:
      path: a file of any format that FFmpeg reads.
      seconds: how much is read; None is all.
      channel: of `resampler.CHANNELS`.

    Raises:
      MediaError: as `read_span`; too_short for one row of log-mel.
    """
    waveform = read_span(path, 0.0, seconds, channel)
    if len(waveform) < audio.FEWEST_SAMPLES:
        least = audio.FEWEST_SAMPLES / resampler.SAMPLE_RATE
        what = f"{len(waveform) / resampler.SAMPLE_RATE:.3f} s of sound"
        raise MediaError("too_short", f"{path} has {what}, but the log-mel needs {least} s.")
    return waveform


def read_span(
    path: str | Path,
    start: Seconds,
    end: Seconds | None,
    channel: str = resampler.CHANNELS[0],
) -> Int16[np.ndarray, " samples"]:
    """Returns one channel of [start, end) at 16 kHz; it is short where the file ends before.

    Times are those of the file, whose earliest stream starts at 0. The samples are those of
    `decoding.read_clip`: resampled as 16-bit integers in the file's own layout. Little before the
    span is decoded, so memory and time do not grow with the file.

    Args:
      path: a file of any format that FFmpeg reads.
      start: in seconds.
      end: in seconds; None is the file's end.
      channel: of `resampler.CHANNELS`.

    Raises:
      MediaError: missing; no_audio, also in the span; unreadable, also where the file ends before
        it promises; silent, where only channels sound that aren't chosen.
    """
    check_file(path)
    try:
        with errors_of(path):
            found = _read(path, start, end, channel, max(0.0, start - _RUN_UP))
            if found is None and start > _RUN_UP:  # what can't be sought is read from its beginning
                found = _read(path, start, end, channel, 0.0)
    except MediaError:
        raise
    except ValueError as error:  # of PyAV, for headers that make no sense
        raise MediaError("unreadable", f"{path} can't be read: {error}.") from error
    if found is None or not found.samples.shape[1]:
        where = (
            "holds no sample" if end is None else f"has no audio from {start:.2f} to {end:.2f} s"
        )
        raise MediaError("no_audio", f"{path} {where}.")
    return resampler.chosen(path, found.samples, found.sounding)


class _Found(NamedTuple):
    """All channels that a choice needs, and the numbers of those that sound."""

    samples: Int16[np.ndarray, "channels samples"]
    sounding: set[int]


def _read(
    path: str | Path, start: Seconds, end: Seconds | None, channel: str, position: float
) -> _Found | None:
    """Does the work of `read_span` from `position` on; None if sound comes after `start` only."""
    rate = resampler.SAMPLE_RATE
    blocks, channels = [], None
    # Samples on the way: all, those before the span, silent ones before all.
    count = left = lead = 0
    with _open(path) as (container, stream):
        promised = _promised_end(container, stream) / _complete_share(path)
        origin = (container.start_time or 0) / av.time_base
        if position:
            container.seek(round((origin + position) * av.time_base))
        for frame in itertools.chain(container.decode(stream), [None]):
            if channels is None and frame is not None:
                if position and frame.pts is None:
                    return None
                time = (
                    0.0 if frame.pts is None else float(frame.pts * (frame.time_base or 0)) - origin
                )
                if not position:
                    count = lead = round(time * rate) if time > _LATE else 0
                left = round((start - time if position else start) * rate)
                if left < 0:
                    return None
                channels = resampler.Channels(path, frame, channel)
            if channels is None or (end is not None and count >= left + (end - start) * rate):
                break
            block = channels.resample(frame)
            # What lies before the span is counted, and not kept.
            blocks.append(block[:, max(0, left - count) :])
            count += block.shape[1]
    if channels is None:
        return None
    there = count - left if end is None else round((end - start) * rate)
    if promised:  # codecs pad the end, and the container knows where it is
        there = min(there, round((promised - start) * rate))
    if count - left < there - _ENDS_EARLY * rate:
        raise MediaError("unreadable", f"{path} ends before the {promised:.2f} s it promises.")
    samples = np.concatenate(blocks, axis=1)
    silent = np.zeros((len(samples), max(0, lead - left)), np.int16)
    samples = np.concatenate([silent, samples], axis=1)[:, : max(0, there)]
    return _Found(samples, channels.sounding)


def seconds_of(path: str | Path) -> float:
    """When the sound of a file without pictures ends, by its headers or else by its packets.

    Raises:
      MediaError: missing, no_audio or unreadable.
    """
    check_file(path)
    with errors_of(path), _open(path) as (container, stream):
        if promised := _promised_end(container, stream):
            return promised
        origin = (container.start_time or 0) / av.time_base
        ends = [
            float((packet.pts + (packet.duration or 0)) * packet.time_base) - origin
            for packet in container.demux(stream)
            if packet.pts is not None
        ]
        return max(ends, default=0.0)


@contextlib.contextmanager
def _open(path: str | Path) -> Iterator[tuple[av.container.InputContainer, av.AudioStream]]:
    """Opens a file with sound, which may begin late, and its best audio stream."""
    for patient in (False, True):
        with open_file(path, patient=patient) as container:
            stream = container.streams.best("audio")
            if isinstance(stream, av.AudioStream) and stream.codec_context is not None:
                yield container, stream
                return
    raise MediaError("no_audio", f"{path} has no audio that can be read.")


def _promised_end(container: av.container.InputContainer, stream: av.AudioStream) -> float:
    """Returns when the headers promise the sound to end, 0 where they don't tell."""
    whole = (container.duration or 0) / av.time_base
    if not container.streams.video:
        return whole
    if not stream.duration:
        return 0.0  # pictures may last longer
    own = float(((stream.start_time or 0) + stream.duration) * (stream.time_base or 0))
    own -= (container.start_time or 0) / av.time_base
    # Some containers count a stream's duration from the file's start.
    return min(own, whole) if whole else own


def _complete_share(path: str | Path) -> float:
    """Returns the part of a WAV's promised samples that is there; 1 for any other file."""
    with open(path, "rb") as file:
        if file.read(12)[:4] != b"RIFF":
            return 1.0
        for _ in range(_CHUNKS):
            head = file.read(8)
            size = int.from_bytes(head[4:], "little")
            if head[:4] == b"data":
                begin = file.tell()
                there = file.seek(0, os.SEEK_END) - begin
                return 1.0 if size >= _STREAMED else min(1.0, max(there, 1) / max(size, 1))
            file.seek(size + size % 2, os.SEEK_CUR)
    return 1.0
