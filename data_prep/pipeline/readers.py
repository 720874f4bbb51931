"""Files that a clip is made of: brought here from a bucket, pictures, sounds."""

import contextlib
import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
from etils import epath
from jaxtyping import Int16, UInt8
from PIL import Image

from cavmae_sync_jax.media import audio, decoding, images
from cavmae_sync_jax.media.demuxer import FirstChannel, MediaError, open_file
from cavmae_sync_jax.utils.errors import UserError

_BUCKETS = ("gs://", "s3://")
_ENDS_EARLY = 0.5  # seconds; a sound that ends this much before its promised end is damaged
# Pillow makes all of these RGB; of others, such as 16-bit grey, it would make white.
_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_CHUNKS = 100  # of a WAV, among which its samples are
_STREAMED = 0x7FFFF000  # sizes of a WAV from here on say that its writer didn't know


@contextlib.contextmanager
def local(path: str) -> Iterator[str]:
    """Gives a path on this machine: the path itself, or a copy of what lies in a bucket (gs://).

    Raises:
      MediaError: missing, if the file in the bucket is not there; whatever is raised meanwhile
        names the bucket's file instead of the copy.
    """
    if not path.startswith(_BUCKETS):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = str(Path(folder) / Path(path).name)
        try:
            epath.Path(path).copy(copy)
        except FileNotFoundError as error:
            raise MediaError("missing", f"There is no {path}.") from error
        except ImportError as error:
            raise UserError(f"{path} needs pip install '.[gcs]' ({error})") from error
        try:
            yield copy
        except MediaError as error:
            raise MediaError(error.reason, error.detail.replace(copy, path)) from error


def read_picture(path: str, modes: tuple[str, ...] = _MODES) -> UInt8[np.ndarray, "height width 3"]:
    """Reads a JPEG or PNG as RGB, whose colours must be of one of the given modes (of Pillow).

    Raises:
      MediaError: missing, too_large or unreadable.
    """
    with local(path) as here:
        _check_file(here)
        try:
            with Image.open(here, formats=("JPEG", "PNG")) as picture:
                images.check_size(here, picture.width, picture.height)
                if picture.mode not in modes:
                    wrong = f"{here} has the colours {picture.mode}, not RGB."
                    raise MediaError("unreadable", wrong)
                return np.asarray(picture.convert("RGB"))
        except MediaError:
            raise
        except Image.DecompressionBombError as error:
            raise MediaError("too_large", f"{here} claims too many pixels.") from error
        except (OSError, SyntaxError, ValueError) as error:
            raise MediaError("unreadable", f"{here} can't be read: {error}.") from error


def read_sound(path: str, seconds: decoding.Seconds) -> Int16[np.ndarray, " samples"]:
    """Returns the first channel of a sound's first `seconds` at 16 kHz.

    The samples are those of `media.read_clip`: resampled as 16-bit integers in the file's own
    layout, of which the first channel is taken (not a downmix).

    Raises:
      MediaError: missing, no_audio or unreadable, also where the file ends before it promises.
    """
    with local(path) as here:
        _check_file(here)
        return _decode_sound(here, round(seconds * audio.SAMPLE_RATE))


def _check_file(path: str) -> None:
    try:
        there = Path(path).is_file()
    except (OSError, ValueError) as error:  # a name that no file can have
        raise MediaError("missing", f"{path} can't be a file: {error}.") from error
    if not there:
        raise MediaError("missing", f"There is no {path}.")


def _decode_sound(path: str, wanted: int) -> Int16[np.ndarray, " samples"]:
    blocks, count = [], 0
    try:
        with open_file(path) as container:
            stream = container.streams.best("audio")
            if stream is None or stream.codec_context is None:
                raise MediaError("no_audio", f"{path} has no audio that can be read.")
            promised = (container.duration or 0) / av.time_base / _complete_share(path)
            channel = None
            for frame in itertools.chain(container.decode(stream), [None]):
                if channel is None and frame is not None:
                    channel = FirstChannel(path, frame)
                if channel is None or count >= wanted:
                    break
                blocks.append(channel.resample(frame))
                count += len(blocks[-1])
    except MediaError:
        raise
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise MediaError("unreadable", f"{path} can't be read: {error}.") from error
    if not count:
        raise MediaError("no_audio", f"{path} holds no sample.")
    # Codecs pad the end; the container knows where it is.
    ends = min(wanted, round(promised * audio.SAMPLE_RATE) or wanted)
    if count < ends - _ENDS_EARLY * audio.SAMPLE_RATE:
        raise MediaError("unreadable", f"{path} ends before the {promised:.2f} s it promises.")
    return np.concatenate(blocks)[:ends]


def _complete_share(path: str) -> float:
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
