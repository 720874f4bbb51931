"""The sound of a file that need not have pictures."""

import contextlib
import functools
import os
import struct
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from jaxtyping import Int16

from cavmae_sync_jax.media import audio, resampler
from cavmae_sync_jax.media.decoding import Seconds
from cavmae_sync_jax.media.demuxer import Source, best_stream, demux, errors_of, open_file
from cavmae_sync_jax.media.errors import MediaError, check_file
from cavmae_sync_jax.media.frames import decoded
from cavmae_sync_jax.media.span_sound import RAGGED_END, SpanReader

_CHUNKS = 100  # of a WAV, among which its samples are
# FFmpeg guesses the length of these formats from the bit rate of their beginning. The rest may have
# another.
_GUESSED = (
    *("aac", "ac3", "amr", "amrnb", "amrwb", "dts", "dtshd", "eac3", "g722", "gsm", "loas"),
    *("mlp", "sbc", "truehd"),
)
_ID3, _FIRST_FRAME = 10, 256  # bytes, of tags' heads and of where an MP3 counts its frames
# The part of an MP3 that may be tags behind its end, which no MP3 counts.
_UNCOUNTED = 1 / 16
_COUNTS_BOTH = 3  # flags of an MP3 that counts its frames and its bytes
_REMEMBERED = 64  # files, of which a long one is read in many spans
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
            sound = SpanReader(path, start, until, channel, gaps)
            with Source(path, ("audio",)) as source:
                for one in decoded(source, "audio", start):
                    if sound.take(one):
                        break
            waveform, sound_end, _ = sound.finish()
    except MediaError:
        raise
    except ValueError as error:  # of PyAV, for headers that make no sense
        raise MediaError("unreadable", f"{path} can't be read: {error}.") from error
    if promised and end is not None and sound_end < until - RAGGED_END:
        raise MediaError("unreadable", f"{path} ends before the {promised:.2f} s it promises.")
    return waveform[: round((sound_end - start) * resampler.SAMPLE_RATE)]


def _promise(path: str | Path) -> float:
    """Returns when a file promises its sound to end, 0 if it doesn't say."""
    with _open(path) as (container, stream):
        return _promised_end(path, container, stream) / _complete_share(path)


def seconds_of(path: str | Path) -> float:
    """When the sound of a file without pictures ends, by its headers or else by its packets.

    Raises:
      MediaError: missing, no_audio or unreadable.
    """
    check_file(path)
    with errors_of(path), _open(path) as (container, stream):
        if promised := _promised_end(path, container, stream):
            return promised
    state = os.stat(path)
    return _end_of_packets(str(path), state.st_mtime_ns, state.st_size)


@functools.lru_cache(maxsize=_REMEMBERED)
def _end_of_packets(path: str, changed: int, size: int) -> float:
    """Returns when the last packet ends; the other arguments make that of a changed file anew."""
    with errors_of(path), _open(path) as (container, stream):
        origin = (container.start_time or 0) / av.time_base
        ends = [
            float((packet.pts + (packet.duration or 0)) * packet.time_base) - origin
            for packet in demux(container, stream)
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


def _promised_end(
    path: str | Path, container: av.container.InputContainer, stream: av.AudioStream
) -> float:
    """Returns when the headers promise the sound to end, 0 where they don't tell."""
    name = container.format.name
    if name in _GUESSED or (name == "mp3" and not _counts_itself(path)):
        return 0.0
    whole = (container.duration or 0) / av.time_base
    if len(container.streams) == 1:
        return whole
    if not stream.duration:
        return 0.0  # other streams may last longer
    own = float(((stream.start_time or 0) + stream.duration) * (stream.time_base or 0))
    own -= (container.start_time or 0) / av.time_base
    # Some containers count a stream's duration from the file's start.
    return min(own, whole) if whole else own


def _counts_itself(path: str | Path) -> bool:
    """Returns whether an MP3 begins with the numbers of its frames and of the bytes that are there.

    FFmpeg guesses the length of one that was cut, and loses the end of several in one file.
    """
    with open(path, "rb") as file:
        begin, head = 0, file.read(_ID3)
        if head.startswith(b"ID3"):  # four digits to the base of 128
            begin = _ID3 + functools.reduce(lambda size, digit: size << 7 | digit, head[6:])
        there = file.seek(0, os.SEEK_END) - begin
        file.seek(begin)
        first = file.read(_FIRST_FRAME)
    place = max(first.find(b"Xing"), first.find(b"Info"))
    if not 0 <= place <= len(first) - 16:
        return False
    flags, _, size = struct.unpack_from(">III", first, place + 4)
    return flags & _COUNTS_BOTH == _COUNTS_BOTH and abs(there - size) <= size * _UNCOUNTED


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
