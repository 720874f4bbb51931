"""Published benchmarks of localisation as datasets, and what is in them."""

import csv
import io

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from data_prep import localisation
from data_prep.pipeline.clips import Preparation

SMALL = Preparation(num_frames=1, image_size=32)


LEFT_HALF = [0.0, 0.0, 0.5, 1.0]


def prepare(folder, output, *flags):
    flags = (folder, f"--output={output}", "--image_size=32", "--workers=1", *flags)
    localisation.run(localisation._parser().parse_args(list(map(str, flags))))


def records_of(output, split="eval"):
    builder = tfds.builder_from_directory(next(output.glob("*/1.0.0")))
    return builder, {
        record["clip_id"].decode(): record for record in builder.as_data_source(split=split)
    }


def rejects_of(output):
    with (output / "rejects.csv").open(newline="") as file:
        return {row["clip_id"]: row["reason"] for row in csv.DictReader(file)}


def mask_of(record, frame=0):
    return np.asarray(Image.open(io.BytesIO(record["frame_mask"][frame])))
