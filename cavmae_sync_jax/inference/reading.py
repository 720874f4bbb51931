"""Reads spans of a file: pictures as a dataset stores them, and sound at 16 kHz.

Within `workers.within`, other processes decode. They import this module, so it imports no JAX. All
times are seconds.
"""

import contextlib
import mimetypes
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import av
import numpy as np
from jaxtyping import Int16, Num, UInt8
from PIL import ExifTags, Image, UnidentifiedImageError, features

from cavmae_sync_jax.inference import workers
from cavmae_sync_jax.media import (
    audio,
    decoding,
    demuxer,
    images,
    resampler,
    sound_files,
    span_sound,
)
from cavmae_sync_jax.media.errors import MediaError
from cavmae_sync_jax.utils.errors import UserError

Kind = Literal["video", "mute", "sound", "picture"]  # "mute" is a video without sound
Seconds = decoding.Seconds

JPEG_QUALITY = 95  # as data_prep stores frames, if nobody asks for another
# What brings a picture upright, by the orientation that its EXIF tells.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_HEIF = (b"heic", b"heix", b"heim", b"heis", b"mif1")  # brands of its still pictures
PICTURES = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
PICTURES += ("AVIF",) if "avif" in features.modules and features.check("avif") else ()
# Samples are 1 at full scale. Far above, somebody forgot to divide whole numbers.
LOUDEST = 4.0
MOST_CHANNELS = 64


class FileInfo(NamedTuple):
    """What a file is, its length in seconds (0 for a picture), and a video's pictures per second.

    `fps` is 0 where the file does not say it.
    """

    path: str
    kind: Kind
    seconds: float
    fps: float = 0.0


class Span(NamedTuple):
    """A part of a file to read: [start, end) in seconds, and how many pictures of it.

    `size` is the pictures' height and width in pixels. Of a `block`, others are read, too: it may
    be silent in its first channel.
    """

    path: str
    kind: Kind
    start: float
    end: float
    pictures: int
    size: int
    block: bool = False


class Content(NamedTuple):
    """What a span holds: JPEGs in the model's size (none of a sound), and the sound at 16 kHz.

    The pictures are spread over `seconds`. `refused` says why the sound of a block is not its own,
    but silence.
    """

    jpegs: list[bytes]
    waveform: Int16[np.ndarray, " samples"]
    seconds: float
    refused: str = ""


def file_info(path: str | os.PathLike, *, mute: bool = False) -> FileInfo:
    """Says what a file is, and how long.

    Args:
      path: of the file.
      mute: whether it may be a video without sound.

    Raises:
      UserError: if it is not there, a folder, or neither video nor sound nor picture.
    """
    return workers.call(_file_info, os.fspath(path), mute)


def _file_info(name: str, mute: bool) -> FileInfo:
    if os.path.isdir(name):
        raise UserError(f"{name} is a folder: give a file")
    if not os.path.exists(name):
        raise UserError(f"there is no file {name}")
    if os.path.isfile(name) and _is_picture(name):
        return FileInfo(name, "picture", 0.0)
    with demuxer.errors_of(name):
        if os.path.isfile(name) and _is_heif(name):
            raise MediaError("unreadable", f"{name} is a HEIF picture: save it as a JPEG or PNG.")
        with demuxer.open_file(name) as container:
            streams = container.streams
            if not (streams.video or streams.audio):
                raise MediaError("unreadable", f"{name} has neither sound nor picture.")
            real = [s for s in streams.video if not s.disposition & _COVER]
            if streams.audio and not real:
                return FileInfo(name, "sound", sound_files.seconds_of(name))
        try:
            found = decoding.probe(name)
        except MediaError as error:
            if error.reason != "no_audio":
                raise
            if (mimetypes.guess_type(name)[0] or "").startswith("image/"):
                why = f"{name} is no picture of a kind that is read"
                kinds = ", ".join(PICTURES)
                raise MediaError("unreadable", f"{why} ({kinds}): save it as JPEG.") from error
            if mute:
                found = decoding.probe(name, mute=True)
                return FileInfo(name, "mute", found.duration, found.fps)
            how = "a video needs one, so give one of its pictures instead"
            raise MediaError("no_audio", f"{name} has no audio stream: {how}.") from error
        return FileInfo(name, "video", found.duration, found.fps)


_COVER = av.stream.Disposition.attached_pic


def _is_picture(path: str) -> bool:
    try:
        with images.opened(path, PICTURES):
            return True
    except UnidentifiedImageError:
        return False
    except Exception as error:  # of any class: libraries for each kind raise their own
        # It claims to be one, and reading it will say what is wrong; or it can't be read at all.
        return getattr(error, "errno", None) is None


def _is_heif(path: str) -> bool:
    """Whether a file is a picture as phones make them, whose tiles no decoder here joins."""
    with open(path, "rb") as file:
        head = file.read(12)
    return head[4:8] == b"ftyp" and head[8:] in _HEIF


def read_picture(path: str | os.PathLike, size: int) -> bytes:
    """Reads a still picture as a dataset stores it: upright, `size` pixels square, as a JPEG.

    Raises:
      UserError: if it is none, damaged, or too large.
    """
    return workers.call(_read_picture, os.fspath(path), size)


def _read_picture(path: str, size: int) -> bytes:
    return as_stored(_decode_picture(path), size)


def _decode_picture(path: str) -> UInt8[np.ndarray, "height width 3"]:
    with demuxer.errors_of(path):
        try:
            with images.opened(path, PICTURES) as picture:
                images.check_size(path, *picture.size)
                images.check_mode(path, picture.mode)
                upright = _upright(picture)
                if upright.has_transparency_data:  # what is hidden may be anything
                    page = Image.new("RGBA", upright.size, "white")
                    upright = Image.alpha_composite(page, upright.convert("RGBA"))
                return np.asarray(upright.convert("RGB"))
        except Image.DecompressionBombError as error:
            raise MediaError("too_large", f"{path} has too many pixels.") from error
        except Exception as error:  # of any class: libraries for each kind raise their own
            seen = isinstance(error, MediaError | UserError | MemoryError)
            if seen or getattr(error, "errno", None) is not None:
                raise
            raise MediaError(
                "unreadable", f"{path} is no readable picture: save it as JPEG."
            ) from error


def _upright(picture: Image.Image) -> Image.Image:
    """The picture as its EXIF says that it is held; as it is, if the EXIF is damaged."""
    turn = None
    with contextlib.suppress(Exception):  # of any class, as damaged tags are
        turn = _TURNS.get(picture.getexif().get(ExifTags.Base.Orientation))
    return picture if turn is None else picture.transpose(turn)


def as_stored(image: UInt8[np.ndarray, "height width 3"], size: int) -> bytes:
    """A picture as a dataset stores it: scaled, cut to the central square, and as a JPEG.

    Raises:
      UserError: if it is too large or too long.
    """
    with workers.as_user_errors():
        images.check_size("the array", image.shape[1], image.shape[0])
    return images.encode_jpeg(images.resize_and_crop(image, size), JPEG_QUALITY)


def read_span(span: Span) -> Content:
    """Reads a part of a file; depends on nothing but the file and the argument.

    A video without sound is read as if it were silent.

    Raises:
      MediaError: the span can't be read, see `media.decoding`.
    """
    try:
        return _read_span(span)
    except MediaError as error:
        if error.reason != "silent" or not span.block:
            raise
        silence = np.zeros(round((span.end - span.start) * audio.SAMPLE_RATE), np.int16)
        mute = Content([], silence, span.end - span.start)
        if span.kind == "video":
            mute = _read_span(span._replace(kind="mute"))
        return mute._replace(refused=str(error).rstrip("."))


def _read_span(span: Span) -> Content:
    if span.kind == "sound":
        waveform = _read_sound(span.path, span.start, span.end)
        return Content([], waveform, span.end - span.start)
    with _heard(span.path):
        clip = decoding.read_clip(
            span.path,
            start=span.start,
            end=span.end,
            num_frames=span.pictures,
            image_size=span.size,
            gaps=True,
            mute=span.kind == "mute",
        )
    jpegs = [images.encode_jpeg(frame, JPEG_QUALITY) for frame in clip.frames]
    silence = np.zeros(round(clip.seconds * audio.SAMPLE_RATE), np.int16)
    waveform = silence if span.kind == "mute" else clip.waveform
    return Content(jpegs, waveform, clip.picture_seconds)


def contents(spans: Sequence[Span]) -> Iterator[Content]:
    """Yields what spans hold, in their order; workers read some spans ahead.

    Raises:
      UserError: if one can't be read, takes too long, or makes the decoder crash.
    """
    yield from workers.stream(read_span, spans)


def sound_of(video: FileInfo) -> FileInfo:
    """A video's sound, which is as long as the video, or ends over half a second before it.

    Raises:
      UserError: if it can't be read.
    """
    end = workers.call(sound_files.seconds_of, video.path)
    early = end < video.seconds - span_sound.RAGGED_END
    return video._replace(kind="sound", seconds=end if early else video.seconds)


def read_sound(path: str, start: Seconds, end: Seconds) -> Int16[np.ndarray, " samples"]:
    """Reads a part of a sound: the first channel at 16 kHz; short where the file is.

    It is silence where only other channels sound.

    Raises:
      UserError: if there is none, or it can't be read.
    """
    return workers.call(_read_block, path, start, end)


def _read_block(path: str, start: Seconds, end: Seconds) -> Int16[np.ndarray, " samples"]:
    return read_span(Span(path, "sound", start, end, 0, 0, block=True)).waveform


def _read_sound(path: str, start: Seconds, end: Seconds) -> Int16[np.ndarray, " samples"]:
    with _heard(path):
        return sound_files.read_span(path, start, end, gaps=True)


@contextlib.contextmanager
def _heard(path: str) -> Iterator[None]:
    """Says of a silent first channel what the model's user can do, who chooses no channel."""
    try:
        yield
    except MediaError as error:
        if error.reason != "silent":
            raise
        raise MediaError(
            "silent",
            f"{path} is silent in its first channel, which is the one that counts: make a copy "
            "with the channel that sounds.",
        ) from error


def as_waveform(
    samples: Num[np.ndarray, "*shape"], sample_rate: int
) -> Int16[np.ndarray, " samples"]:
    """Samples of any rate, `[samples]` or `[channels, samples]`, as a file of them would be read.

    Floats are 1 at full scale, whole numbers their type's largest. The first channel counts.

    Raises:
      UserError: if they are no sound.
    """
    if samples.ndim not in (1, 2) or not samples.size:
        raise UserError(
            f"a sound is [samples] or [channels, samples], not of shape {list(samples.shape)}"
        )
    if samples.ndim == 2 and len(samples) > MOST_CHANNELS:
        raise UserError(f"a sound is [channels, samples], not {list(samples.shape)}: transpose it")
    if not 1000 <= sample_rate <= 1_000_000:
        raise UserError(f"sample_rate must be from 1000 to 1000000 Hz, not {sample_rate}")
    first = samples if samples.ndim == 1 else samples[0]
    if first.dtype.newbyteorder("=") in (np.int16, np.int32):
        first = first / (np.iinfo(first.dtype).max + 1.0)
    elif not np.issubdtype(first.dtype, np.floating):
        raise UserError(f"samples must be float, int16 or int32, not {first.dtype}")
    if not np.isfinite(first).all():
        raise UserError("the sound has samples that are not finite")
    if np.abs(first).max() > LOUDEST:
        raise UserError(
            f"the sound has samples up to {np.abs(first).max():.3g}, but 1 is the full scale: "
            "divide them by their largest possible value"
        )
    at_16_khz = resampler.resample(first.astype(np.float32), sample_rate)
    return np.rint(at_16_khz * 32768).astype(np.int16)


def local_copy(data: bytes, folder: str) -> str:
    """Writes a file's bytes into a folder, for the decoders read files only."""
    path = Path(folder) / "given"
    path.write_bytes(data)
    return str(path)
