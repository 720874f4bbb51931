"""The sound of a file that need not have pictures."""

import itertools
import os
from pathlib import Path

import av
import numpy as np
from jaxtyping import Int16

from cavmae_sync_jax.media import audio, resampler
from cavmae_sync_jax.media.demuxer import open_file
from cavmae_sync_jax.media.errors import MediaError, check_file

_ENDS_EARLY = 0.5  # seconds; a sound that ends this much before its promised end is damaged
_CHUNKS = 100  # of a WAV, among which its samples are
_STREAMED = 0x7FFFF000  # sizes of a WAV from here on say that its writer didn't know


def read_sound(
    path: str | Path, *, seconds: float | int | None = None, channel: str = resampler.CHANNELS[0]
) -> Int16[np.ndarray, " samples"]:
    """Returns one channel of a sound, or of its first `seconds`, at 16 kHz.

    The samples are those of `decoding.read_clip`: resampled as 16-bit integers in the file's own
    layout.

    Args:
      path: a file of any format that FFmpeg reads.
      seconds: how much is read; None is all.
      channel: of `resampler.CHANNELS`.

    Raises:
      MediaError: missing; no_audio; too_short for one row of log-mel; unreadable, also where the
        file ends before it promises; silent, where only channels sound that aren't chosen.
    """
    check_file(path)
    wanted = None if seconds is None else round(seconds * resampler.SAMPLE_RATE)
    blocks, count = [], 0
    try:
        with _open(path) as container:
            stream = container.streams.best("audio")
            promised = _duration(container, stream) / _complete_share(path)
            channels = None
            for frame in itertools.chain(container.decode(stream), [None]):
                if channels is None and frame is not None:
                    channels = resampler.Channels(path, frame, channel)
                if channels is None or (wanted is not None and count >= wanted):
                    break
                blocks.append(channels.resample(frame))
                count += blocks[-1].shape[1]
    except MediaError:
        raise
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise MediaError("unreadable", f"{path} can't be read: {error}.") from error
    if not count:
        raise MediaError("no_audio", f"{path} holds no sample.")
    # Codecs pad the end; the container knows where it is.
    ends = min(wanted or count, round(promised * resampler.SAMPLE_RATE) or wanted or count)
    if count < ends - _ENDS_EARLY * resampler.SAMPLE_RATE:
        raise MediaError("unreadable", f"{path} ends before the {promised:.2f} s it promises.")
    waveform = resampler.chosen(path, np.concatenate(blocks, axis=1)[:, :ends], channels.sounding)
    if len(waveform) < audio.FEWEST_SAMPLES:
        least = audio.FEWEST_SAMPLES / resampler.SAMPLE_RATE
        what = f"{len(waveform) / resampler.SAMPLE_RATE:.3f} s of sound"
        raise MediaError("too_short", f"{path} has {what}, but the log-mel needs {least} s.")
    return waveform


def _open(path: str | Path) -> av.container.InputContainer:
    """Opens a file with sound, which may begin late."""
    for patient in (False, True):
        container = open_file(path, patient=patient)
        stream = container.streams.best("audio")
        if stream is not None and stream.codec_context is not None:
            return container
        container.close()
    raise MediaError("no_audio", f"{path} has no audio that can be read.")


def _duration(container: av.container.InputContainer, stream: av.AudioStream) -> float:
    """Returns how many seconds of sound the headers promise, 0 where they don't tell."""
    if not container.streams.video:
        return (container.duration or 0) / av.time_base
    return float((stream.duration or 0) * stream.time_base)  # pictures may last longer


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
