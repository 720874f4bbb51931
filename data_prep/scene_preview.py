"""Draws a contact sheet of the objects that scenes are made of: a few instances of each class.

Each instance is shown at the size of a prepared frame. Beside it is the log-mel of three seconds of
its sound in background noise. Time runs to the right, and low frequencies are at the bottom.

Example:
  python -m data_prep.scene_preview objects.png
"""

import argparse
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from cavmae_sync_jax.media import audio
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError
from data_prep import scenes
from data_prep.synthetic import composer
from data_prep.synthetic.objects import Background, ObjectSource

_SIZE, _SHOWN = 128, 64  # pixels of a scene's side, and of a prepared frame's
_SECONDS = 3.0
_NAME_WIDTH = 150
_FBANK_WIDTH = 200
_FBANK_RANGE = (-16.0, 2.0)  # black and white


def contact_sheet(
    objects: ObjectSource, background: Background, instances: int, seed: int
) -> Image.Image:
    """Returns the sheet, a row for each class."""
    cell = _SIZE + _FBANK_WIDTH
    sheet = Image.new("RGB", (_NAME_WIDTH + instances * cell, _SIZE * len(objects.class_names)))
    pen = ImageDraw.Draw(sheet)
    for row, name in enumerate(objects.class_names):
        pen.text((8, row * _SIZE + _SIZE // 2), name, fill="white")
        for column in range(instances):
            rng = np.random.default_rng([seed, row, column])
            left, top = _NAME_WIDTH + column * cell, row * _SIZE
            picture, fbank = _instance(objects, background, row, rng)
            sheet.paste(Image.fromarray(picture), (left, top))
            sheet.paste(Image.fromarray(fbank).resize((_FBANK_WIDTH, _SIZE)), (left + _SIZE, top))
    return sheet


def _instance(
    objects: ObjectSource, background: Background, class_id: int, rng: np.random.Generator
) -> tuple[UInt8[np.ndarray, "height width 3"], UInt8[np.ndarray, "bins rows"]]:
    alone = composer.SceneSegment(0.0, _SECONDS, ((class_id, True),))
    scene = composer.stage(objects, background, _SIZE, [alone], rng)
    loudest = int(scene.layers[0].loudness.argmax())
    frame = Image.fromarray(composer.render(scene)[loudest])
    small = frame.resize((_SHOWN, _SHOWN), Image.Resampling.BICUBIC)
    low, high = _FBANK_RANGE
    fbank = np.clip(
        (audio.log_mel(scene.waveform, audio.SAMPLE_RATE).T[::-1] - low) / (high - low), 0, 1
    )
    picture = np.asarray(small.resize((_SIZE, _SIZE), Image.Resampling.NEAREST))
    return picture, (255 * fbank).astype(np.uint8)


def run(arguments: argparse.Namespace) -> None:
    """Draws the sheet that the command line asks for."""
    if arguments.instances < 1 or arguments.seed < 0:
        raise UserError("--instances must be at least 1 and --seed at least 0")
    if Path(arguments.picture).suffix.lower() != ".png":
        raise UserError(f"{arguments.picture} must end in .png")
    sheet = contact_sheet(
        scenes.find_objects(arguments),
        scenes.find_background(arguments),
        arguments.instances,
        arguments.seed,
    )
    try:
        sheet.save(arguments.picture)
    except OSError as error:
        raise UserError(f"{arguments.picture} can't be written: {error.strerror}") from error
    print(f"{arguments.picture} shows {arguments.instances} instances of each class.")


def _parser() -> argparse.ArgumentParser:
    parser = cli.parser(__doc__)
    parser.add_argument("picture", metavar="FILE.png", help="PNG file to write")
    scenes.add_sources(parser)
    parser.add_argument("--instances", type=int, default=4, help="instances of each class")
    return parser


def main() -> None:
    """Runs the command line."""
    cli.main(_parser(), run)


if __name__ == "__main__":
    main()
