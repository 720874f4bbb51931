"""One clip of a source to one example of a dataset: a pure function that any engine can run."""

import abc
import io
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Int16, UInt8
from PIL import Image

from cavmae_sync_jax.media import audio, decoding, images, span_sound
from cavmae_sync_jax.media.errors import MediaError
from cavmae_sync_jax.media.resampler import CHANNELS, SOUNDS_ELSEWHERE
from cavmae_sync_jax.utils.errors import UserError
from data_prep.pipeline import readers

# Why a clip makes no example.
REASONS = decoding.REASONS | {
    "missing": "a file of the clip is not there",
    "ambiguous": "the clip may be one of several files",
    "wrong_length": "the file's length is not what its name or its list says",
    "outside": "a name in the source's list would leave its folder",
    "frames_missing": "there are fewer frames than --num_frames",
    "bad_name": "the image is no .jpg, so that its annotation has no name",
    "bad_class": "the class is not a whole number above 0",
    "no_mask": "no pixel of the stored image is of the class, or in a box",
    "bad_boxes": "the file with the picture's boxes can't be read, or holds none",
    "mask_shape": "image and annotation have different proportions",
    "crashed": "the process that prepared it died, by a decoder's fault or for lack of memory",
    "too_slow": "preparing it took longer than --time_limit",
    "failed": "preparing it raised an unexpected error",
}
PASSING = ("crashed", "too_slow", "failed")  # another try may end otherwise
# Notes that an example stores, so that they can be counted.
NOTES = decoding.NOTES | {"still": "all frames show the same picture"}
# Fields of an example that only some sources have, see `prepare_clip`.
EXTRAS = ("boxes", "label_modalities")
# Grey levels by which, on average, frames of a still picture may differ.
_STILL = 1.0
FBANK_DTYPES = {"float16": np.float16, "uint8": np.uint8}
# Seconds by which a file may differ from what its name says: cuts are at frames, codecs pad.
ROUGH_LENGTH = 1.0

Example = dict[str, Any]


@dataclass(frozen=True)
class Preparation:
    """The choices that are stored with a dataset, which a training can't change.

    Attributes:
      num_frames: frames stored a clip.
      image_size: height and width of a stored frame in pixels.
      clip_seconds: length of a clip in seconds; the last clip of a file may be shorter.
      min_seconds: clips shorter than this are rejected.
      jpeg_quality: of stored frames, 1 to 100.
      fbank_dtype: of the stored log-mel: float16, or uint8 (`audio.quantize`), which halves it.
      audio_channel: of the sound, of `resampler.CHANNELS`.
    """

    num_frames: int = 16
    image_size: int = 224
    clip_seconds: decoding.Seconds = 10.0
    min_seconds: decoding.Seconds = 1.0
    jpeg_quality: int = 95
    fbank_dtype: str = "float16"
    audio_channel: str = CHANNELS[0]

    def __post_init__(self):
        if self.num_frames < 1:
            raise UserError(f"--num_frames must be at least 1, not {self.num_frames}")
        if self.image_size < 8:
            raise UserError(f"--image_size must be at least 8 pixels, not {self.image_size}")
        if not 0 < self.min_seconds <= self.clip_seconds < float("inf"):
            raise UserError(
                f"--clip_seconds ({self.clip_seconds:g}) must be at least --min_seconds "
                f"({self.min_seconds:g}), and both must be above 0"
            )
        if not 1 <= self.jpeg_quality <= 100:
            raise UserError(f"--jpeg_quality must be from 1 to 100, not {self.jpeg_quality}")
        if self.fbank_dtype not in FBANK_DTYPES:
            known = ", ".join(FBANK_DTYPES)
            raise UserError(f"--fbank_dtype must be one of {known}, not {self.fbank_dtype!r}")
        if self.audio_channel not in CHANNELS:
            known = ", ".join(CHANNELS)
            raise UserError(f"--audio_channel must be one of {known}, not {self.audio_channel!r}")


class Recording(NamedTuple):
    """What a clip holds once it is read.

    `waveform` is one channel at 16 kHz, `seconds` the clip's length; `truth` has the fields of an
    example's truth, see `prepare_clip`, or is empty. The frames are spread over `picture_seconds`,
    None where that is `seconds`. `notes` are keys of `NOTES`.
    """

    frames: UInt8[np.ndarray, "frames size size 3"]
    waveform: Int16[np.ndarray, " samples"]
    seconds: float
    truth: Example
    picture_seconds: float | None = None
    notes: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Clip(abc.ABC):
    """A future example: each source's subclass defines how it is read.

    Fields are text, numbers or tuples of them, for a list of clips is stored as JSON.

    Attributes:
      clip_id: unique in the dataset; never a path.
      path: the file that a reject names.
      labels: class names.
      refusal: (reason, detail) where the source knows already that the clip can't be used.
    """

    clip_id: str
    path: str
    labels: tuple[str, ...] = field(default=(), kw_only=True)
    refusal: tuple[str, str] | None = field(default=None, kw_only=True)

    @classmethod
    def stored_name(cls) -> str:
        """The class's name in a shard's fingerprint, which outlives a change of the class's own."""
        return cls.__name__

    @property
    def has_truth(self) -> bool:
        """Whether `read` brings truth."""
        return False

    @property
    def extras(self) -> tuple[str, ...]:
        """Which of `EXTRAS` an example of this clip has."""
        return ()

    @property
    def label_modalities(self) -> tuple[str, ...]:
        """How each of `labels` is perceived, of `dataset_dir.MODALITIES`, for that extra."""
        return ()

    @abc.abstractmethod
    def read(self, preparation: Preparation) -> Recording:
        """Reads the clip. Depends on nothing but the clip's files and the arguments.

        Raises:
          MediaError: the clip can't be used; the reason is a key of `REASONS`.
          UserError: the clip's truth is missing or doesn't fit it.
        """


@dataclass(frozen=True)
class VideoClip(Clip):
    """A span of a media file.

    `end` None means `Preparation.clip_seconds` after `start` (seconds); a file may end earlier.
    `truth` is the path of an .npz, see `read`, or None. `cut_to` is how many seconds the file lasts
    if it is the piece of a video that its name says, None for a whole video. `listed` is the span
    of the video that a list names, None without such a list.
    """

    start: decoding.Seconds = 0.0
    end: decoding.Seconds | None = None
    truth: str | None = field(default=None, kw_only=True)
    cut_to: decoding.Seconds | None = field(default=None, kw_only=True)
    listed: tuple[decoding.Seconds, ...] | None = field(default=None, kw_only=True)

    @property
    def has_truth(self) -> bool:
        """Whether there is a truth file."""
        return self.truth is not None

    def read(self, preparation: Preparation) -> Recording:
        """Reads the span, see `decoding.read_clip`, and the truth file.

        A truth file holds, for T frames and E events: `frame_class` int64 [T], an index of the
        class names, -1 where nothing sounds; `frame_mask` bool [T, height, width] at the video's
        resolution, the pixels of what sounds; `event_class` int64 [E], `event_start` and
        `event_end` float32 [E], in seconds from the clip's start. It may hold `frame_silent_class`
        and `frame_silent_mask` of the same shapes: an object on screen that makes no sound.
        """
        end = self.start + preparation.clip_seconds if self.end is None else self.end
        with readers.media(self.path) as path:
            self._check_length(path)
            content = decoding.read_clip(
                path,
                start=self.start,
                end=end,
                num_frames=preparation.num_frames,
                image_size=preparation.image_size,
                audio_channel=preparation.audio_channel,
            )
            if not np.ptp(content.waveform.astype(np.int32)):
                self._name_other_tracks(path, end)
        truth = {} if self.truth is None else self._read_truth(preparation)
        return Recording(
            content.frames,
            content.waveform,
            content.seconds,
            truth,
            content.picture_seconds,
            content.notes,
        )

    def _check_length(self, path: str) -> None:
        """Refuses a file whose length does not fit its name or its list: it holds another span."""
        if self.cut_to is None and self.listed is None:
            return
        lasts = decoding.probe(path).duration
        if self.cut_to is not None:
            if lasts > self.cut_to + ROUGH_LENGTH:
                raise MediaError(
                    "wrong_length",
                    f"{path} lasts {lasts:.2f} s, but {self.cut_to:.2f} s by its name: where in it "
                    "the segment lies is unknown; cut it exactly (yt-dlp: "
                    "--force-keyframes-at-cuts).",
                )
            return
        begin, end = self.listed
        if begin > 0 and abs(lasts - (end - begin)) <= ROUGH_LENGTH and lasts < end - ROUGH_LENGTH:
            raise MediaError(
                "wrong_length",
                f"{path} lasts {lasts:.2f} s, as if it held nothing but its segment, which ends at "
                f"{end:.2f} s of the video: if such files do, give --trimmed.",
            )

    def _name_other_tracks(self, path: str, end: decoding.Seconds) -> None:
        """Names other tracks that sound beside a silent one: cameras and recorders write such."""
        if tracks := span_sound.sounding_tracks(path, float(self.start), float(end)):
            numbers = ", ".join(map(str, tracks))
            raise MediaError(
                "silent",
                f"{path} is silent in the sound track that players take, {SOUNDS_ELSEWHERE} track "
                f"{numbers}: make a copy with that track alone (ffmpeg -i FILE -map 0:v "
                f"-map 0:a:{tracks[0] - 1} -c copy COPY).",
            )

    def _read_truth(self, preparation: Preparation) -> Example:
        try:
            with np.load(self.truth, allow_pickle=False) as file:
                truth = dict(file)
            classes, masks = truth["frame_class"], truth["frame_mask"]
            events = [truth[f"event_{name}"] for name in ("class", "start", "end")]
        except Exception as error:  # a damaged zip file raises nearly anything
            why = f"{type(error).__name__}: {error}"
            raise UserError(f"{self.truth} isn't a readable truth file ({why})") from error
        info = decoding.probe(self.path)
        expected = (preparation.num_frames, info.height, info.width)
        if classes.shape != expected[:1] or masks.shape != expected or masks.dtype != np.bool_:
            raise UserError(
                f"{self.truth} has a frame_mask of {masks.dtype} {masks.shape} and a frame_class "
                f"of {classes.shape}, but {self.path} needs bool {expected} and {expected[:1]}"
            )
        if len({one.shape for one in events}) != 1 or events[0].ndim != 1:
            raise UserError(f"{self.truth} has event fields of different lengths")
        whole = [one.dtype.kind in "iu" for one in (classes, events[0])]
        if not all(whole) or not all(np.isfinite(one).all() for one in events):
            raise UserError(f"{self.truth} has classes or times that are no such numbers")
        silent_classes = truth.get("frame_silent_class", classes[:0])
        silent_masks = truth.get("frame_silent_mask", masks[:0])
        if (len(silent_classes) or len(silent_masks)) and (
            silent_classes.shape != classes.shape
            or silent_classes.dtype.kind not in "iu"
            or silent_masks.shape != expected
            or silent_masks.dtype != np.bool_
        ):
            raise UserError(
                f"{self.truth} has frame_silent_class and frame_silent_mask of other shapes or "
                "types than frame_class and frame_mask: write both like those, or neither"
            )
        return {
            "frame_class": classes.astype(np.int64),
            "frame_mask": [encode_mask(mask, preparation.image_size) for mask in masks],
            "frame_silent_class": silent_classes.astype(np.int64),
            "frame_silent_mask": [
                encode_mask(mask, preparation.image_size) for mask in silent_masks
            ],
            "events": dict(zip(("class", "start", "end"), events, strict=True)),
        }


@dataclass(frozen=True)
class Reject:
    """A clip that did not become an example; `reason` is a key of `REASONS`."""

    clip_id: str
    path: str
    reason: str
    detail: str


def prepare_clip(clip: Clip, preparation: Preparation) -> Example | Reject:
    """Returns the example of a clip, or why there is none. Depends on nothing but its arguments.

    The example holds `clip_id`; `frames`, a list of JPEGs; `fbank`, the log-mel of the whole clip
    `[rows, 128]`, not normalised; `seconds`, over which the frames are spread (see
    `audio.frame_time`); `labels`; `notes`, keys of `NOTES`. Clips with truth also get
    `frame_class`, `frame_mask` (a list of 1-bit PNGs in the frames' geometry) and `events`.
    `frame_silent_class` and `frame_silent_mask` are the same of an object that makes no sound; both
    are empty where the source says nothing of it.

    Of the extras, `boxes` says what `frame_mask` was made of: for each box its `frame`, its `left`,
    `top`, `right` and `bottom` as shares of the stored frame, and its `weight`, see
    `media.boxes.consensus`. `label_modalities` says how each of `labels` is perceived.

    Raises:
      UserError: the clip's truth is missing or doesn't fit it.
    """
    try:
        if clip.refusal is not None:
            raise MediaError(*clip.refusal)
        recording = clip.read(preparation)
        if np.ptp(recording.waveform.astype(np.int32)) == 0:
            raise MediaError("silent", f"{clip.path} is silent where the clip is.")
        too_few = len(recording.waveform) < audio.FEWEST_SAMPLES
        if recording.seconds < preparation.min_seconds or too_few:
            raise MediaError(
                "too_short",
                f"{clip.path} gives a clip of {recording.seconds:.2f} s, "
                f"but {preparation.min_seconds:g} s are asked for.",
            )
    except MediaError as error:
        return Reject(clip.clip_id, clip.path, error.reason, error.detail)
    fbank = audio.log_mel(recording.waveform / np.float32(32768), audio.SAMPLE_RATE)
    stored = audio.quantize if preparation.fbank_dtype == "uint8" else np.float16
    tagged = "label_modalities" in clip.extras
    tags = {"label_modalities": list(clip.label_modalities)} if tagged else {}
    jpegs = [images.encode_jpeg(frame, preparation.jpeg_quality) for frame in recording.frames]
    return {
        "clip_id": clip.clip_id,
        "frames": jpegs,
        "fbank": stored(fbank),
        "seconds": recording.picture_seconds or recording.seconds,
        "labels": list(clip.labels),
        "notes": sorted(recording.notes | ({"still"} if is_still(recording.frames) else set())),
        **recording.truth,
        **tags,
    }


def is_still(frames: UInt8[np.ndarray, "frames height width 3"]) -> bool:
    """Returns whether several frames all show the same picture."""
    first = frames[0].astype(np.int16)
    # From the last one on, which differs most where anything moves.
    return len(frames) > 1 and all(
        np.abs(frame - first).mean() <= _STILL for frame in frames[:0:-1]
    )


def encode_mask(mask: Bool[np.ndarray, "height width"], size: int) -> bytes:
    """Returns a mask in the geometry of stored frames, as a 1-bit PNG."""
    nearest = Image.Resampling.NEAREST
    scaled = images.resize_and_crop(mask.astype(np.uint8) * 255, size, nearest)
    buffer = io.BytesIO()
    Image.fromarray(scaled > 0).save(buffer, "PNG")
    return buffer.getvalue()


def clip_name(text: str) -> str:
    """Returns text that a source takes for a name as one that can be part of a clip's id."""
    # Bytes that are not text are written as numbers, so that two names stay two ids.
    text = text.encode("utf-8", "backslashreplace").decode()
    return text.replace("/", "__").replace("\\", "__")
