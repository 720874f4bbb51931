"""The sound of a file that need not have pictures."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from jaxtyping import Int16

from cavmae_sync_jax.media import audio, resampler
from cavmae_sync_jax.media.decoding import Seconds
from cavmae_sync_jax.media.demuxer import best_stream, errors_of, open_file
from cavmae_sync_jax.media.errors import MediaError, check_file
from cavmae_sync_jax.media.span_sound import RAGGED_END, read_waveform

_CHUNKS = 100  # of a WAV, among which its samples are
# Formats whose length FFmpeg guesses from the bit rate of their beginning, and the rest may have
# another. Of an MP3 it does so where a header is missing or seems wrong.
_GUESSED = (
    *("aac", "ac3", "amr", "amrnb", "amrwb", "dts", "dtshd", "eac3", "g722", "gsm", "loas"),
    *("mlp", "mp3", "sbc", "truehd"),
)
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
    gaps: bool = False,
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
      gaps: whether a part of the file without sound is silent, or empty after the sound's end.

    Raises:
      MediaError: missing; no_audio, also in the span unless it may be a gap; unreadable, also where
        the file ends before it promises; silent, where only channels sound that aren't chosen.
    """
    check_file(path)
    start = float(start)
    try:
        with errors_of(path):
            promised = _promise(path)
            until = promised or (seconds_of(path) if end is None else float(end))
            until = until if end is None else min(until, float(end))
            gaps = gaps and not (start <= 0 and end is not None and 0 < promised <= end)
            if until <= start and gaps:
                return np.zeros(0, np.int16)
            if until <= start:
                raise MediaError("no_audio", f"{path} has no audio after {start:.2f} s.")
            waveform, sound_end, _ = read_waveform(path, start, until, channel, ("audio",), gaps)
    except MediaError:
        raise
    except ValueError as error:  # of PyAV, for headers that make no sense
        raise MediaError("unreadable", f"{path} can't be read: {error}.") from error
    if promised and end is not None and sound_end < until - RAGGED_END:
        raise MediaError("unreadable", f"{path} ends before the {promised:.2f} s it promises.")
    return waveform[: round((sound_end - start) * resampler.SAMPLE_RATE)]


def _promise(path: str | Path) -> float:
    """Returns when a file promises its sound to end, 0 where it doesn't tell."""
    with _open(path) as (container, stream):
        return _promised_end(container, stream) / _complete_share(path)


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
            stream = best_stream(container, "audio")
            if stream is not None and stream.codec_context is not None:
                yield container, stream
                return
    raise MediaError("no_audio", f"{path} has no audio that can be read.")


def _promised_end(container: av.container.InputContainer, stream: av.AudioStream) -> float:
    """Returns when the headers promise the sound to end, 0 where they don't tell."""
    if container.format.name in _GUESSED:
        return 0.0
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
