"""One clip of a media file to one example of a dataset: a pure function, for any pool to run."""

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool
from PIL import Image

from cavmae_sync_jax import audio, media
from cavmae_sync_jax.cli import UserError


@dataclass(frozen=True)
class Clip:
    """A span of a media file that should become an example.

    `end` None means `Preparation.clip_seconds` after `start` (seconds); a file may end earlier.
    `labels` are class names. `truth` is the path of an .npz, see `prepare_clip`, or None.
    """

    clip_id: str
    path: str
    start: media.Seconds = 0.0
    end: media.Seconds | None = None
    labels: tuple[str, ...] = ()
    truth: str | None = None


@dataclass(frozen=True)
class Preparation:
    """The choices that are stored with a dataset and that training can't change any more.

    Attributes:
      num_frames: frames stored a clip.
      image_size: height and width of a stored frame in pixels.
      clip_seconds: length of a clip in seconds; the last clip of a file may be shorter.
      min_seconds: clips shorter than this are rejected.
      jpeg_quality: of stored frames, 1 to 100.
    """

    num_frames: int = 16
    image_size: int = 224
    clip_seconds: media.Seconds = 10.0
    min_seconds: media.Seconds = 1.0
    jpeg_quality: int = 95

    def __post_init__(self):
        if self.num_frames < 1:
            raise UserError(f"num_frames must be at least 1, not {self.num_frames}")
        if self.image_size < 8:
            raise UserError(f"image_size must be at least 8 pixels, not {self.image_size}")
        if not 0 < self.min_seconds <= self.clip_seconds < float("inf"):
            raise UserError(
                f"clip_seconds ({self.clip_seconds:g}) must be at least min_seconds "
                f"({self.min_seconds:g}), and both above 0"
            )
        if not 1 <= self.jpeg_quality <= 100:
            raise UserError(f"jpeg_quality must be from 1 to 100, not {self.jpeg_quality}")


@dataclass(frozen=True)
class Reject:
    """A clip that did not become an example; `reason` is a key of `media.REASONS`."""

    clip_id: str
    path: str
    reason: str
    detail: str


def prepare_clip(clip: Clip, preparation: Preparation) -> dict[str, Any] | Reject:
    """Returns the example of a clip, or why there is none. Depends on nothing but its arguments.

    The example holds `clip_id`; `frames`, a list of JPEGs; `fbank`, the log-mel of the whole clip
    as float16 `[rows, 128]`, not normalised; `labels`. Clips with a truth file also get
    `frame_class`, `frame_mask` (a list of 1-bit PNGs in the frames' geometry) and `events`.

    A truth file holds, for T frames and E events: `frame_class` int64 [T], an index of the class
    names, -1 where nothing sounds; `frame_mask` bool [T, height, width] at the video's resolution,
    the pixels of what sounds; `event_class` int64 [E], `event_start` and `event_end` float32 [E],
    in seconds from the clip's start.

    Raises:
      UserError: the truth file is missing or doesn't fit the clip.
    """
    end = clip.start + preparation.clip_seconds if clip.end is None else clip.end
    try:
        frames, waveform, seconds = media.read_clip(
            clip.path,
            start=clip.start,
            end=end,
            num_frames=preparation.num_frames,
            image_size=preparation.image_size,
        )
        if np.ptp(waveform.astype(np.int32)) == 0:
            raise media.MediaError("silent", f"{clip.path} is silent where the clip is.")
        fbank = audio.log_mel(waveform / np.float32(32768))
        if seconds < preparation.min_seconds or len(fbank) == 0:
            raise media.MediaError(
                "too_short",
                f"{clip.path} gives a clip of {seconds:.2f} s, "
                f"but {preparation.min_seconds:g} s are asked for.",
            )
    except media.MediaError as error:
        return Reject(clip.clip_id, clip.path, error.reason, error.detail)
    example = {
        "clip_id": clip.clip_id,
        "frames": [media.encode_jpeg(frame, preparation.jpeg_quality) for frame in frames],
        "fbank": fbank.astype(np.float16),
        "labels": list(clip.labels),
    }
    if clip.truth is not None:
        example |= _read_truth(clip, preparation)
    return example


def _read_truth(clip: Clip, preparation: Preparation) -> dict[str, Any]:
    try:
        with np.load(clip.truth, allow_pickle=False) as file:
            truth = dict(file)
        classes, masks = truth["frame_class"], truth["frame_mask"]
        events = [truth[f"event_{field}"] for field in ("class", "start", "end")]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{clip.truth} isn't a readable truth file ({error})") from error
    info = media.probe(clip.path)
    expected = (preparation.num_frames, info.height, info.width)
    if classes.shape != expected[:1] or masks.shape != expected or masks.dtype != np.bool_:
        raise UserError(
            f"{clip.truth} has a frame_mask of {masks.dtype} {masks.shape} and a frame_class of "
            f"{classes.shape}, but {clip.path} needs bool {expected} and {expected[:1]}"
        )
    if len({field.shape for field in events}) != 1 or events[0].ndim != 1:
        raise UserError(f"{clip.truth} has event fields of different lengths")
    return {
        "frame_class": classes.astype(np.int64),
        "frame_mask": [_encode_mask(mask, preparation.image_size) for mask in masks],
        "events": dict(zip(("class", "start", "end"), events, strict=True)),
    }


def _encode_mask(mask: Bool[np.ndarray, "height width"], size: int) -> bytes:
    nearest = Image.Resampling.NEAREST
    scaled = media.resize_and_crop(mask.astype(np.uint8) * 255, size, nearest)
    buffer = io.BytesIO()
    Image.fromarray(scaled > 0).save(buffer, "PNG")
    return buffer.getvalue()
