"""Prepares ADE20K-Sound, images prompted by sounds (paper Table 3), as a dataset to evaluate on.

FOLDER is the published one, with prompted_segmentation.csv, frames/, audio/ and annotations/. A row
of the CSV with a vggsound_file and an ade_class_id other than 0 becomes one example of the split
eval: the image, the log-mel of the sound's first --clip_seconds, the class, and the mask of its
pixels.
Rows that can't be used are listed with the reason in OUTPUT/rejects.csv.

Example:
  python -m data_prep.ade20k_sound ADE20KSoundPrompted --output=data/ade20k_sound
"""

import argparse
import contextlib
import csv
import io
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import NamedTuple

import numpy as np
from etils import epath
from jaxtyping import Bool, UInt8
from PIL import Image

from cavmae_sync_jax.media import audio, images
from cavmae_sync_jax.media.decoding import MediaError
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError
from data_prep.pipeline import flags, readers
from data_prep.pipeline.clips import Clip, Preparation, Recording, clip_name, encode_mask

SOURCE, SPLIT = "ade20k_sound", "eval"
TABLE = "prompted_segmentation.csv"
COLUMNS = ("image_location", "vggsound_file", "ade_class_id")


@dataclass(frozen=True)
class Prompt(Clip):
    """A row of the CSV: `path` is its image, `labels` its class's name.

    Attributes:
      annotation: path of the image with the classes of its pixels.
      sound: path of the sound.
      class_id: ADE20K's id of the class.
      class_index: its place among the dataset's class names.
    """

    annotation: str = ""
    sound: str = ""
    class_id: int = 0
    class_index: int = 0

    @classmethod
    def stored_name(cls) -> str:
        """The name that the class had in version 0.1.0."""
        return "Row"

    @property
    def has_truth(self) -> bool:
        """Every image has its annotation."""
        return True

    def read(self, preparation: Preparation) -> Recording:
        """Reads image, sound and mask, which are one frame with its truth.

        `events` are empty: it is not known when in the sound the class is heard. So are the fields
        of silent objects.
        """
        frame, mask = self._frame_and_mask(preparation.image_size)
        waveform = readers.read_sound(
            self.sound, preparation.clip_seconds, preparation.audio_channel
        )
        truth = {
            "frame_class": np.array([self.class_index], np.int64),
            "frame_mask": [encode_mask(mask, preparation.image_size)],
            "frame_silent_class": [],
            "frame_silent_mask": [],
            "events": {"class": [], "start": [], "end": []},
        }
        return Recording(frame[None], waveform, len(waveform) / audio.SAMPLE_RATE, truth)

    def _frame_and_mask(
        self, size: int
    ) -> tuple[UInt8[np.ndarray, "size size 3"], Bool[np.ndarray, "size size"]]:
        image = readers.read_picture(self.path)
        colours = readers.read_picture(self.annotation, ("RGB", "RGBA", "P")).astype(np.int32)
        mask = colours[:, :, 0] // 10 * 256 + colours[:, :, 1] == self.class_id
        # The annotation may have been scaled, if only it still lies on the image once both are
        # stored.
        sides = [
            [size * side / min(one.shape[:2]) for side in one.shape[:2]] for one in (image, mask)
        ]
        if not np.allclose(*sides, rtol=0, atol=1):
            raise MediaError(
                "mask_shape",
                f"{self.path} has {image.shape[1]} x {image.shape[0]} pixels, but "
                f"{self.annotation} has {mask.shape[1]} x {mask.shape[0]}.",
            )
        nearest = Image.Resampling.NEAREST
        stored = images.resize_and_crop(mask.astype(np.uint8), size, nearest) > 0
        if not stored.any():
            wanted = f"the class {self.class_id}"
            raise MediaError("no_mask", f"{self.annotation} shows no pixel of {wanted}.")
        return images.resize_and_crop(image, size), stored


class Table(NamedTuple):
    """The kept rows, the class names in the labels' order, and how many rows were left out."""

    rows: list[Prompt]
    class_names: list[str]
    left_out: int


def read_table(folder: epath.PathLike) -> Table:
    """Reads the CSV of the published folder, which may lie in a bucket.

    A vggsound_file that is empty or "nan" is none: the publisher's reader takes it for a number.

    Raises:
      UserError: the folder or its CSV is missing, malformed or without a row to keep.
    """
    folder, kept, left_out = epath.Path(folder), [], 0
    path = folder / TABLE
    if not path.is_file():
        raise UserError(f"{folder} has no {TABLE}: give the folder of ADE20K-Sound as published")
    try:
        text = path.read_bytes().decode("utf-8-sig")
        reader = csv.DictReader(io.StringIO(text, newline=""))
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise UserError(f"{path} lacks the columns {', '.join(missing)}")
        for cells in reader:
            if None in cells or None in cells.values():
                count = len(reader.fieldnames)
                raise UserError(f"{path}, line {reader.line_num}: need {count} cells")
            location, sound, number = (cells[name].strip() for name in COLUMNS)
            class_id = _whole_number(number)
            if sound.lower() in ("", "nan") or class_id == 0:
                left_out += 1
            else:
                kept.append((reader.line_num, location, sound, number, class_id))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path} can't be read as a CSV file in UTF-8: {error}") from error
    if not kept:
        raise UserError(f"{path} has no row with a vggsound_file and an ade_class_id other than 0")
    classes = sorted({class_id for *_, class_id in kept if class_id is not None})
    rows = [_row(folder, classes, *values) for values in kept]
    return Table(rows, [f"ade_{class_id}" for class_id in classes], left_out)


def _whole_number(text: str) -> int | None:
    """Returns the number of "7" or "7.0", None for anything but a whole number from 0 on."""
    with contextlib.suppress(ValueError):
        value = float(text)
        if value >= 0 and value.is_integer():
            return int(value)
    return None


def _row(
    folder: epath.Path,
    classes: list[int],
    line: int,
    location: str,
    sound: str,
    number: str,
    class_id: int | None,
) -> Prompt:
    """Returns a row with its files' places, or with why it can't have them."""
    where = f"{folder / TABLE}, line {line}"
    image, recording = PurePosixPath(location), PurePosixPath(sound).name
    clip_id = f"{clip_name(image.stem)}_{line}"
    refusal = None
    if image.is_absolute() or ".." in (*image.parts, recording) or not recording:
        refusal = "outside", f"{where}: {location!r} or {sound!r} is not a file in the folder"
    elif image.suffix != ".jpg":
        refusal = "bad_name", f"{where}: the image {location!r} does not end in .jpg"
    elif class_id is None:
        refusal = "bad_class", f"{where}: the ade_class_id {number!r} is not a class"
    if refusal is not None:
        return Prompt(clip_id, where, refusal=refusal)
    return Prompt(
        clip_id,
        str(folder / "frames" / image),
        labels=(f"ade_{class_id}",),
        annotation=str(folder / "annotations" / image.with_name(f"{image.stem}_seg.png")),
        sound=str(folder / "audio" / recording),
        class_id=class_id,
        class_index=classes.index(class_id),
    )


def run(arguments: argparse.Namespace) -> None:
    """Prepares the dataset that the command line asks for and prints a summary."""
    preparation = flags.preparation(arguments, num_frames=1)
    table = read_table(arguments.folder)
    summary = flags.write(
        arguments, {SPLIT: table.rows}, preparation, class_names=table.class_names, source=SOURCE
    )
    if table.left_out:
        print(f"{table.left_out} rows without a vggsound_file or of class 0 were left out.")
    flags.finish(arguments, summary)


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    parser.add_argument("folder", metavar="FOLDER", help="ADE20KSoundPrompted as published")
    flags.add_flags(parser, without=("num_frames",))
    return parser


def main() -> None:
    """Runs the command line."""
    cli.main(_parser(), run)


if __name__ == "__main__":
    main()
