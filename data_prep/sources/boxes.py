"""Pictures whose sounding objects have boxes: VGG-SS and Flickr-SoundNet, as they are published."""

import collections
import dataclasses
import json
import math
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int16, UInt8

from cavmae_sync_jax.data.dataset_dir import SOUNDING
from cavmae_sync_jax.media import audio, boxes, decoding, images
from cavmae_sync_jax.media.errors import MediaError
from cavmae_sync_jax.utils import clip_names, listing, path_names
from cavmae_sync_jax.utils.errors import UserError
from data_prep.pipeline import readers
from data_prep.pipeline.clips import Preparation, Recording, VideoClip, clip_name, encode_mask
from data_prep.pipeline.summary import Findings
from data_prep.sources import benchmarks, csv_files, segments, video_files
from data_prep.sources.benchmarks import Benchmark
from data_prep.sources.csv_files import EVAL
from data_prep.sources.segment_lists import Segment

VGGSS_BOXES = "vggss.json"
PICTURES, SOUNDS, ANNOTATIONS, PUBLISHED = "frames", "audio", "Annotations", "Data"
_OF_PICTURES, _OF_SOUNDS = (".jpg", ".jpeg", ".png"), (".wav", ".flac", ".mp3", ".m4a", ".ogg")
SECONDS = 10.0  # of VGGSound's clips; their boxes are of the frame in the middle
_FLICKR_SIDE = 256  # pixels of the pictures that Flickr-SoundNet's boxes are drawn on
_FLICKR_WEIGHT = 0.5  # of a box: a pixel counts fully once two of three annotators agree
_LARGEST_XML = 2**20


@dataclass(frozen=True)
class BoxedClip(VideoClip):
    """A picture with its sound and its boxes: two files, or the middle of a video's span.

    Attributes:
      sides: left, top, right and bottom of each box, one box after another, as shares of the
        picture.
      weight: of every box, see `media.boxes.consensus`.
      class_index: of what sounds, among the dataset's class names.
      sound: path of the sound; empty where `path` is a video.
    """

    sides: tuple[float, ...] = ()
    weight: float = 1.0
    class_index: int = 0
    sound: str = ""

    @property
    def has_truth(self) -> bool:
        """Every picture has boxes."""
        return True

    @property
    def extras(self) -> tuple[str, ...]:
        """The boxes themselves."""
        return ("boxes",)

    def read(self, preparation: Preparation) -> Recording:
        """Reads picture and sound. The whole picture is scaled to a square, as its boxes are.

        `frame_mask` holds the pixels in any box.
        """
        picture, waveform, notes = self._contents(preparation)
        size = preparation.image_size
        four = np.array(self.sides, np.float64).reshape(-1, 4)
        weights = [self.weight] * len(four)
        agreed = boxes.consensus([tuple(map(float, box)) for box in four], weights, size)
        if not agreed.any():
            raise MediaError("no_mask", f"{self.path}: its boxes hold no pixel.")
        names = ("left", "top", "right", "bottom")
        truth = {
            "frame_class": np.array([self.class_index], np.int64),
            "frame_mask": [encode_mask(agreed > 0, size)],
            "frame_silent_class": [],
            "frame_silent_mask": [],
            "events": {"class": [], "start": [], "end": []},
            "boxes": {
                "frame": np.zeros(len(four), np.int64),
                **dict(zip(names, four.T.astype(np.float32), strict=True)),
                "weight": np.array(weights, np.float32),
            },
        }
        frame = images.stretch(picture, size)
        seconds = len(waveform) / audio.SAMPLE_RATE
        return Recording(frame[None], waveform, seconds, truth, notes=notes)

    def _contents(
        self, preparation: Preparation
    ) -> tuple[UInt8[np.ndarray, "height width 3"], Int16[np.ndarray, " samples"], frozenset[str]]:
        channel = preparation.audio_channel
        if self.sound:
            waveform = readers.read_sound(self.sound, preparation.clip_seconds, channel)
            return readers.read_picture(self.path), waveform, frozenset()
        with readers.media(self.path) as path:
            self._check_length(path)
            # The second of two frames is the one in the middle.
            content = decoding.read_clip(
                path, start=self.start, end=self.end, num_frames=2, audio_channel=channel
            )
        return content.frames[1], content.waveform, content.notes


def read_vggss(
    folder: epath.PathLike,
    boxes_file: epath.PathLike | None,
    wanted: set[str] | None,
    *,
    trimmed: bool,
) -> Benchmark:
    """Reads VGG-SS: its boxes, and frames/ID.jpg with audio/ID.wav, or VGGSound's own videos.

    Args:
      folder: of pictures and sounds, or of videos under the names that `SegmentFiles` understands.
      boxes_file: vggss.json as published; None takes it from the folder.
      wanted: names of `benchmarks.read_list`.
      trimmed: whether videos called ID hold nothing but their segment.

    Raises:
      UserError: the folder or the boxes are missing or malformed.
    """
    folder = epath.Path(folder)
    path = epath.Path(boxes_file) if boxes_file else folder / VGGSS_BOXES
    entries = _vggss_entries(path)
    names, note = benchmarks.chosen(list(entries), wanted, str(path))
    classes = csv_files.classes_of([entries[name][0] for name in names])
    findings = None
    if (folder / PICTURES).is_dir():
        clips = _pairs(folder, names)
    else:
        clips, findings = _middles(
            folder, {name: entries[name][0] for name in names}, path, trimmed
        )
    boxed = []
    for name, clip in zip(names, clips, strict=True):
        label, sides = entries[name]
        index = classes.names.index(label)
        fields = {"labels": (label,), "sides": sides, "class_index": index}
        boxed.append(dataclasses.replace(clip, **fields))
    return Benchmark({EVAL: boxed}, classes.names, findings=findings, notes=(note,) if note else ())


def _vggss_entries(path: epath.Path) -> dict[str, tuple[str, tuple[float, ...]]]:
    """Returns the class and the boxes of each clip of vggss.json."""
    try:
        listed = json.loads(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path} can't be read: give vggss.json by --boxes ({error})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON: {error}") from error
    found: dict[str, tuple[str, tuple[float, ...]]] = {}
    for number, entry in enumerate(listed if isinstance(listed, list) else [None], 1):
        try:
            name, label = entry["file"], entry["class"]
            sides = tuple(side for box in entry["bbox"] for side in _four(box))
            if not (isinstance(name, str) and isinstance(label, str) and name and label.strip()):
                raise ValueError("file and class must be text")
            if name in found:
                raise ValueError(f"the file {name!r} comes a second time")
        except (TypeError, KeyError, ValueError, OverflowError) as error:
            why = error if isinstance(error, ValueError) else "no file, class and bbox of 4 numbers"
            raise UserError(f"{path}, entry {number}, is none of VGG-SS: {why}") from error
        found[name] = label.strip(), sides
    if not found:
        raise UserError(f"{path} has no entry")
    return found


def _four(box: Any) -> list[float]:
    if not isinstance(box, list) or len(box) != 4 or not all(map(math.isfinite, box)):
        raise ValueError(f"a box is {box!r}, not 4 numbers")
    return list(map(float, box))


def _pairs(folder: epath.Path, names: Iterable[str]) -> list[BoxedClip]:
    """Returns a clip of frames/NAME and audio/NAME for each name."""
    pictures = benchmarks.files_by_stem(folder / PICTURES, *_OF_PICTURES)
    sounds = benchmarks.files_by_stem(folder / SOUNDS, *_OF_SOUNDS)
    return [_pair(name, pictures.get(name, ()), sounds.get(name, ()), folder) for name in names]


def _pair(
    name: str, pictures: Sequence[str], sounds: Sequence[str], folder: epath.Path
) -> BoxedClip:
    if len(pictures) == len(sounds) == 1:
        return BoxedClip(clip_name(name), pictures[0], sound=sounds[0])
    found = {"picture": pictures, "sound": sounds}
    if lacking := " and ".join(what for what, paths in found.items() if not paths):
        refusal = "missing", f"{folder} has no {lacking} of {name!r}."
    else:
        several = " or ".join(max(found.values(), key=len))
        refusal = "ambiguous", f"{name!r} may be {several}; keep one of them."
    return BoxedClip(clip_name(name), f"{folder}/{name}", refusal=refusal)


def _middles(
    folder: epath.Path, labels: Mapping[str, str], path: epath.Path, trimmed: bool
) -> tuple[list[BoxedClip], Findings]:
    """Returns a clip of VGGSound's videos for each name, ID_000030, and what the folder holds."""
    spans = []
    for name, label in labels.items():
        video, start = clip_names.split_start(name)
        if start is None:
            raise UserError(f"{path}: the file {name!r} has no start in seconds behind its id")
        spans.append(Segment(video, float(start), None, (label,), EVAL, True, str(path)))
    skipped = collections.Counter()
    videos = video_files.find_videos([str(folder)], skipped)
    classes = csv_files.classes_of(list(labels.values()))
    made = segments.segment_clips(
        videos, spans, classes, trimmed=trimmed, seconds=SECONDS, eval_share=0.0
    )
    by_id = {clip.clip_id: clip for clip in made.splits[EVAL]}
    if len(by_id) < len(labels):
        raise UserError(f"{path} names a span of a video twice")
    fields = [field.name for field in dataclasses.fields(VideoClip)]
    clips = []
    for span in spans:
        clip = by_id[clip_names.with_start(clip_name(span.video), span.start)]
        clips.append(BoxedClip(**{name: getattr(clip, name) for name in fields}))
    unused = [str(video.name) for video in made.unused]
    return clips, Findings(len(videos), skipped, unused=unused)


def read_flickr(folder: epath.PathLike, wanted: set[str] | None) -> Benchmark:
    """Reads Flickr-SoundNet: Annotations/ID.xml with frames/ID.jpg and audio/ID.wav, or with Data/.

    Data/ is the layout in which it is downloaded: a folder per pair, whose picture and sound have
    the id in their path.

    Args:
      folder: the published one.
      wanted: names of `benchmarks.read_list`.

    Raises:
      UserError: a folder is missing or empty.
    """
    folder = epath.Path(folder)
    annotations = benchmarks.files_by_stem(folder / ANNOTATIONS, ".xml")
    names, note = benchmarks.chosen(sorted(annotations), wanted, str(folder / ANNOTATIONS))
    if (folder / PICTURES).is_dir():
        clips = _pairs(folder, names)
    else:
        clips = _published(folder / PUBLISHED, names)
    boxed = [
        _with_boxes(clip, annotations[name][0]) for clip, name in zip(clips, names, strict=True)
    ]
    return Benchmark({EVAL: boxed}, (SOUNDING,), notes=(note,) if note else ())


def _published(folder: epath.Path, names: Iterable[str]) -> list[BoxedClip]:
    """Returns the clips of pairs that lie in a folder each."""
    try:
        inside = path_names.matching(folder, "*/*")
        paths = sorted(str(path) for path in inside if not listing.is_hidden(path.name))
    except (OSError, ImportError) as error:
        raise UserError(f"{folder} can't be read: {error}") from error
    if not paths:
        raise UserError(
            f"{folder.parent} has neither {PICTURES}/ and {SOUNDS}/ nor {PUBLISHED}/*/*"
        )
    found: dict[str, dict[str, list[str]]] = collections.defaultdict(
        lambda: {"picture": [], "sound": []}
    )
    for path in paths:
        extension = epath.Path(path).suffix.lower()
        kinds = {"picture": _OF_PICTURES, "sound": _OF_SOUNDS}
        for kind in (kind for kind, extensions in kinds.items() if extension in extensions):
            for name in re.findall(r"[0-9]+", "/".join(epath.Path(path).parts[-2:])):
                if path not in found[name][kind]:
                    found[name][kind].append(path)
    return [_pair(name, found[name]["picture"], found[name]["sound"], folder) for name in names]


def _with_boxes(clip: BoxedClip, path: str) -> BoxedClip:
    """Returns a clip with the boxes of an annotation of Flickr-SoundNet."""
    if clip.refusal is not None:
        return clip
    try:
        sides = read_annotation(epath.Path(path).read_bytes())
    except (OSError, ValueError, OverflowError, LookupError, ET.ParseError) as error:
        return dataclasses.replace(clip, refusal=("bad_boxes", f"{path}: {error}."))
    return dataclasses.replace(clip, sides=sides, weight=_FLICKR_WEIGHT)


def read_annotation(data: bytes) -> tuple[float, ...]:
    """Returns the sides of all annotators' boxes, one after another, as shares of the picture.

    A box is a `bbox` below an annotator's element. Its first child is its number. The next four are
    left, top, right and bottom in pixels of 256.

    Raises:
      ValueError: there is no box, one of them has no such numbers, or the file is too long.
      xml.etree.ElementTree.ParseError: it is not valid XML.
    """
    if len(data) > _LARGEST_XML:
        raise ValueError(f"it has {len(data)} bytes, more than any annotation")
    sides: list[float] = []
    for box in ET.fromstring(data).iterfind("*/bbox"):
        pixels = [int((child.text or "").strip()) for child in box][1:5]
        if len(pixels) != 4:
            raise ValueError("a bbox has not 5 children")
        sides += [pixel / _FLICKR_SIDE for pixel in pixels]
    if not sides:
        raise ValueError("it has no bbox")
    return tuple(sides)
