"""AVSBench's single and multiple sources, as they are published: pictures with masks."""

import collections
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Bool
from PIL import Image

from cavmae_sync_jax.data.dataset_dir import SOUNDING
from cavmae_sync_jax.media import audio, images
from cavmae_sync_jax.utils.errors import UserError
from data_prep.pipeline import readers
from data_prep.pipeline.clips import Clip, Preparation, Recording, clip_name, encode_mask
from data_prep.sources import csv_files
from data_prep.sources.benchmarks import Benchmark

SECONDS, PICTURES = 5.0, 5
# A picture is the last of its second. With a frame for 0 s before them, frame i belongs to i s.
FRAMES = PICTURES + 1
_MASK_MODES = ("1", "L", "P", "RGB", "RGBA")


class _Subset(NamedTuple):
    """How one of the two subsets is laid out."""

    table: str
    data: str
    # Where a clip's files are below the folder of their kind, and what its pictures are called.
    pictures: str
    sounds: str
    masks: str
    picture: str
    named: bool  # whether the table has the column category
    left_out: tuple[str, ...]  # splits without a mask for each picture


SUBSETS = (
    _Subset(
        "s4_meta_data.csv",
        "s4_data",
        "{split}/{category}/{name}",
        "{split}/{category}",
        "{split}/{category}/{name}",
        "{name}_{number}.png",
        True,
        ("train",),
    ),
    _Subset(
        "ms3_meta_data.csv",
        "ms3_data",
        "{name}",
        "{split}",
        "{split}/{name}",
        "{name}.mp4_{number}.png",
        False,
        (),
    ),
)


@dataclass(frozen=True)
class MaskedClip(Clip):
    """Pictures of which each has a mask: `path` is the sound's.

    Attributes:
      pictures: their paths, a second apart.
      masks: the paths of their masks, where what isn't black sounds.
      class_index: of what sounds, among the dataset's class names.
    """

    pictures: tuple[str, ...] = ()
    masks: tuple[str, ...] = ()
    class_index: int = 0

    @property
    def has_truth(self) -> bool:
        """Every picture has its mask."""
        return True

    def read(self, preparation: Preparation) -> Recording:
        """Reads pictures, masks and sound. Each picture is scaled to a square as a whole.

        The first frame repeats the second one and has no class. A picture in which nothing is
        marked has none, either.
        """
        size = preparation.image_size
        waveform = readers.read_sound(
            self.path, preparation.clip_seconds, preparation.audio_channel
        )
        pictures = [images.stretch(readers.read_picture(path), size) for path in self.pictures]
        masks = [_mask(path, size) for path in self.masks]
        classes = [self.class_index if mask.any() else -1 for mask in masks]
        truth = {
            "frame_class": np.array([-1, *classes], np.int64),
            "frame_mask": [encode_mask(m, size) for m in (np.zeros_like(masks[0]), *masks)],
            "frame_silent_class": [],
            "frame_silent_mask": [],
            "events": {"class": [], "start": [], "end": []},
        }
        frames = np.stack([pictures[0], *pictures])
        seconds = len(waveform) / audio.SAMPLE_RATE
        return Recording(frames, waveform, seconds, truth, picture_seconds=float(FRAMES))


def _mask(path: str, size: int) -> Bool[np.ndarray, "size size"]:
    colours = readers.read_picture(path, _MASK_MODES)
    marked = (colours > 0).any(axis=2).astype(np.uint8)
    return images.stretch(marked, size, Image.Resampling.NEAREST) > 0


class _Row(NamedTuple):
    """A row of a table: a clip's name, its category ("" where there is none), split and place."""

    name: str
    category: str
    split: str
    where: str


def read(folder: epath.PathLike) -> Benchmark:
    """Reads Single-source or Multi-sources; the test clips become the split eval.

    Of the single sources the split train is left out, for only the first of five pictures has a
    mask there. The multiple sources have one class, `SOUNDING`.

    Raises:
      UserError: the folder is neither, its table is malformed, or no row can be used.
    """
    folder = epath.Path(folder)
    for subset in SUBSETS:
        if (folder / subset.table).is_file():
            return _read(folder, subset)
    tables = " nor ".join(subset.table for subset in SUBSETS)
    raise UserError(f"{folder} has neither {tables}: give Single-source or Multi-sources")


def _read(folder: epath.Path, subset: _Subset) -> Benchmark:
    rows = _rows(folder / subset.table, subset.named)
    kept = [row for row in rows if row.split not in subset.left_out]
    if not kept:
        raise UserError(f"{folder / subset.table} has no row of another split than train")
    names = [row.category for row in kept] if subset.named else [SOUNDING]
    classes = csv_files.classes_of(names).names
    splits = collections.defaultdict(list)
    for row in kept:
        splits[csv_files.SPLITS[row.split]].append(
            _clip(folder / subset.data, subset, row, classes)
        )
    left = len(rows) - len(kept)
    note = f"{left} clips of train were left out: only one of five pictures has a mask there."
    return Benchmark(dict(splits), classes, FRAMES, SECONDS, notes=(note,) if left else ())


def _rows(path: epath.Path, named: bool) -> list[_Row]:
    """Returns the rows of a table, whose first column is the clip's name."""
    needed = ["split", *(["category"] if named else [])]
    rows: list[_Row] = []
    with csv_files.lines_of(path) as lines:
        header = next(iter(lines), [])
        missing = [column for column in needed if column not in header]
        if missing:
            raise UserError(f"{path}: the header lacks {', '.join(missing)}")
        for cells in lines:
            if len(cells) != len(header):
                raise UserError(f"{lines.where}: need {len(header)} cells, not {len(cells)}")
            row = dict(zip(header, (cell.strip() for cell in cells), strict=True))
            if row["split"] not in csv_files.SPLITS:
                known = ", ".join(csv_files.SPLITS)
                raise UserError(f"{lines.where}: split must be one of {known}: {row['split']!r}")
            category = row["category"] if named else ""
            if named and not category:
                raise UserError(f"{lines.where}: the category is empty")
            rows.append(_Row(cells[0].strip(), category, row["split"], lines.where))
    return rows


def _clip(data: epath.Path, subset: _Subset, row: _Row, classes: tuple[str, ...]) -> MaskedClip:
    clip_id = clip_name(row.name)
    parts = (row.name, row.category) if subset.named else (row.name,)
    if any(part in ("", ".", "..") or "/" in part or "\\" in part for part in parts):
        why = f"{row.where}: {' and '.join(map(repr, parts))} is not a file in the folder"
        return MaskedClip(clip_id, row.where, refusal=("outside", why))
    fields = row._asdict()

    def within(kind: str, pattern: str, name: str, **more: int) -> str:
        return str(data / kind / pattern.format(**fields) / name.format(**fields, **more))

    numbers = range(1, PICTURES + 1)
    return MaskedClip(
        clip_id,
        within("audio_wav", subset.sounds, "{name}.wav"),
        labels=(row.category,) if subset.named else (),
        pictures=tuple(
            within("visual_frames", subset.pictures, subset.picture, number=n) for n in numbers
        ),
        masks=tuple(
            within("gt_masks", subset.masks, "{name}_{number}.png", number=n) for n in numbers
        ),
        class_index=classes.index(row.category) if subset.named else 0,
    )
