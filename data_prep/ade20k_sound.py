"""Prepares ADE20K-Sound, images prompted by sounds (paper Table 3), as a dataset to evaluate on.

FOLDER is the published one: prompted_segmentation.csv, frames/, audio/ and annotations/. A row of
the CSV with a vggsound_file and an ade_class_id other than 0 makes one example of the split eval:
the image, the log-mel of the sound's first --clip_seconds, the class, and the mask of its pixels.
Rows that can't be used are listed with the reason in OUTPUT/rejects.csv.

Example:
  python -m data_prep.ade20k_sound ADE20KSoundPrompted --output=data/ade20k_sound
"""

import argparse
import contextlib
import csv
import io
import itertools
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import av
import numpy as np
from jaxtyping import Bool, Int16, UInt8
from PIL import Image

from cavmae_sync_jax import audio, cli, media
from cavmae_sync_jax.cli import UserError
from cavmae_sync_jax.media import MediaError
from data_prep import datasets
from data_prep.clips import Clip, Preparation, Reject

SOURCE, SPLIT = "ade20k_sound", "eval"
TABLE = "prompted_segmentation.csv"
COLUMNS = ("image_location", "vggsound_file", "ade_class_id")
# Why a row makes no example, besides `media.REASONS`.
REASONS = {
    "outside": "a name in the row would leave the folder",
    "bad_name": "the image is no .jpg, so that its annotation has no name",
    "bad_class": "the class is no whole number above 0",
    "missing": "the image, the sound or the annotation is not there",
    "no_mask": "no pixel of the stored image is of the class",
    "mask_shape": "image and annotation have different proportions",
}
_ENDS_EARLY = 0.5  # seconds; a sound that ends this much before its promised end is damaged


@dataclass(frozen=True, kw_only=True)
class Row(Clip):
    """A row of the CSV: `path` is its image, `truth` its annotation, `labels` its class's name.

    `sound` is the sound's path, `class_id` ADE20K's id of the class, `class_index` its place among
    the dataset's class names, `refusal` why the row's own text makes it unusable.
    """

    sound: str = ""
    class_id: int = 0
    class_index: int = 0
    refusal: Reject | None = None


class Table(NamedTuple):
    """The kept rows, the class names in the labels' order, and how many rows were left out."""

    rows: list[Row]
    class_names: list[str]
    left_out: int


def read_table(folder: str | Path) -> Table:
    """Reads the CSV of the published folder.

    A vggsound_file that is empty or "nan" is none: the publisher's reader takes it for a number.

    Raises:
      UserError: the folder or its CSV is missing, malformed or without a row to keep.
    """
    folder, kept, left_out = Path(folder), [], 0
    path = folder / TABLE
    if not path.is_file():
        raise UserError(f"{folder} has no {TABLE}: give the folder of ADE20K-Sound as published")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
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
    """Returns what "7" or "7.0" says, None for anything but a whole number of 0 or more."""
    with contextlib.suppress(ValueError):
        value = float(text)
        if value >= 0 and value.is_integer():
            return int(value)
    return None


def _row(
    folder: Path,
    classes: list[int],
    line: int,
    location: str,
    sound: str,
    number: str,
    class_id: int | None,
) -> Row:
    """Returns a row with its files' places, or with why it can't have them."""
    where = f"{folder / TABLE}, line {line}"
    image, recording = PurePosixPath(location), PurePosixPath(sound).name
    stem = image.stem.encode("utf-8", "replace").decode().replace("\\", "__")
    refusal = None
    if image.is_absolute() or ".." in (*image.parts, recording) or not recording:
        refusal = "outside", f"{where}: {location!r} or {sound!r} is no file of the folder"
    elif image.suffix != ".jpg":
        refusal = "bad_name", f"{where}: the image {location!r} does not end in .jpg"
    elif class_id is None:
        refusal = "bad_class", f"{where}: the ade_class_id {number!r} is no class"
    clip_id = f"{stem}_{line}"
    if refusal is not None:
        return Row(clip_id, where, truth="", refusal=Reject(clip_id, where, *refusal))
    return Row(
        clip_id,
        str(folder / "frames" / image),
        labels=(f"ade_{class_id}",),
        truth=str(folder / "annotations" / image.with_name(f"{image.stem}_seg.png")),
        sound=str(folder / "audio" / recording),
        class_id=class_id,
        class_index=classes.index(class_id),
    )


def prepare_row(row: Row, preparation: Preparation) -> datasets.Example | Reject:
    """Returns the example of a row, or why there is none. Depends on nothing but its arguments.

    The example has the fields of `clips.prepare_clip`, with one frame and its truth. `events` are
    empty: nobody has said when in the sound the class is heard.
    """
    if row.refusal is not None:
        return row.refusal
    try:
        frame, mask = _frame_and_mask(row, preparation.image_size)
        waveform = read_sound(row.sound, preparation.clip_seconds)
        fbank = audio.log_mel(waveform / np.float32(32768))
        seconds = len(waveform) / audio.SAMPLE_RATE
        if np.ptp(waveform.astype(np.int32)) == 0:
            raise MediaError("silent", f"{row.sound} is silent.")
        if seconds < preparation.min_seconds or not len(fbank):
            raise MediaError(
                "too_short",
                f"{row.sound} has {seconds:.2f} s, "
                f"but {preparation.min_seconds:g} s are asked for.",
            )
    except MediaError as error:
        return Reject(row.clip_id, row.path, error.reason, error.detail)
    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return {
        "clip_id": row.clip_id,
        "frames": [media.encode_jpeg(frame, preparation.jpeg_quality)],
        "fbank": fbank.astype(np.float16),
        "labels": list(row.labels),
        "frame_class": np.array([row.class_index], np.int64),
        "frame_mask": [buffer.getvalue()],
        "events": {"class": [], "start": [], "end": []},
    }


def _frame_and_mask(
    row: Row, size: int
) -> tuple[UInt8[np.ndarray, "size size 3"], Bool[np.ndarray, "size size"]]:
    image = _read_picture(row.path)
    colours = _read_picture(row.truth, ("RGB", "RGBA", "P")).astype(np.int32)
    mask = colours[:, :, 0] // 10 * 256 + colours[:, :, 1] == row.class_id
    # The annotation may have been scaled, if only it still lies on the image once both are stored.
    sides = [[size * side / min(one.shape[:2]) for side in one.shape[:2]] for one in (image, mask)]
    if not np.allclose(*sides, rtol=0, atol=1):
        raise MediaError(
            "mask_shape",
            f"{row.path} has {image.shape[1]} x {image.shape[0]} pixels, but {row.truth} has "
            f"{mask.shape[1]} x {mask.shape[0]}.",
        )
    nearest = Image.Resampling.NEAREST
    stored = media.resize_and_crop(mask.astype(np.uint8), size, nearest) > 0
    if not stored.any():
        raise MediaError("no_mask", f"{row.truth} shows no pixel of the class {row.class_id}.")
    return media.resize_and_crop(image, size), stored


def _read_picture(
    path: str, modes: tuple[str, ...] | None = None
) -> UInt8[np.ndarray, "height width 3"]:
    """Reads a JPEG or PNG, whose colours must be of one of the given modes (of Pillow)."""
    if not Path(path).is_file():
        raise MediaError("missing", f"There is no {path}.")
    try:
        with Image.open(path, formats=("JPEG", "PNG")) as picture:
            size = f"{picture.width} x {picture.height}"
            if picture.width * picture.height > media.MAX_PIXELS:
                raise MediaError("too_large", f"{path} has {size} pixels.")
            if modes and picture.mode not in modes:
                raise MediaError("unreadable", f"{path} has the colours {picture.mode}, not RGB.")
            return np.asarray(picture.convert("RGB"))
    except MediaError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise MediaError("unreadable", f"{path} can't be read: {error}.") from error


def read_sound(path: str, seconds: media.Seconds) -> Int16[np.ndarray, " samples"]:
    """Returns the first channel of a sound's first `seconds` at 16 kHz.

    The samples are those of `media.read_clip`: resampled as 16-bit integers in the file's own
    layout, of which the first channel is taken (not a downmix).

    Raises:
      MediaError: missing, no_audio or unreadable, also where the file ends before it promises.
    """
    if not Path(path).is_file():
        raise MediaError("missing", f"There is no {path}.")
    wanted, blocks, count = round(seconds * audio.SAMPLE_RATE), [], 0
    try:
        with av.open(
            str(Path(path).absolute()),
            options={"protocol_whitelist": "file"},
            metadata_errors="replace",
        ) as container:
            stream = container.streams.best("audio")
            if stream is None or stream.codec_context is None:
                raise MediaError("no_audio", f"{path} has no audio that can be read.")
            promised = (container.duration or 0) / av.time_base
            resampler = None
            for frame in itertools.chain(container.decode(stream), [None]):
                if resampler is None and frame is not None:
                    resampler = av.AudioResampler("s16p", frame.layout, audio.SAMPLE_RATE)
                if resampler is None or count >= wanted:
                    break
                for block in resampler.resample(frame):
                    blocks.append(block.to_ndarray()[0])
                    count += block.samples
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


def run(arguments: argparse.Namespace) -> None:
    """Prepares the dataset that the command line asks for and prints what came of it."""
    if arguments.workers < 1:
        raise UserError(f"--workers must be at least 1, not {arguments.workers}")
    preparation = Preparation(
        num_frames=1,
        image_size=arguments.image_size,
        clip_seconds=arguments.clip_seconds,
        min_seconds=arguments.min_seconds,
    )
    table = read_table(arguments.folder)
    summary = datasets.write_dataset(
        arguments.output,
        {SPLIT: table.rows},
        preparation,
        class_names=table.class_names,
        source=SOURCE,
        workers=arguments.workers,
        overwrite=arguments.overwrite,
        prepare=prepare_row,
    )
    print(summary.report())
    if table.left_out:
        print(f"{table.left_out} rows without a vggsound_file or of class 0 were left out.")


def _parser() -> argparse.ArgumentParser:
    defaults = Preparation()
    parser = cli.parser(__doc__)
    parser.add_argument("folder", metavar="FOLDER", help="ADE20KSoundPrompted as published")
    parser.add_argument("--output", required=True, help="folder to write the dataset to")
    parser.add_argument(
        "--image_size", type=int, default=defaults.image_size, help="pixels of a stored side"
    )
    parser.add_argument(
        "--clip_seconds", type=float, default=defaults.clip_seconds, help="cut longer sounds"
    )
    parser.add_argument(
        "--min_seconds", type=float, default=defaults.min_seconds, help="reject shorter sounds"
    )
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a dataset that OUTPUT holds already"
    )
    return parser


def main() -> None:
    """Runs the command line."""
    cli.main(_parser(), run)


if __name__ == "__main__":
    main()
