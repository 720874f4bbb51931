"""The program that prepares videos, called as a user does, and what it writes."""

import subprocess
import sys
from pathlib import Path

import tensorflow_datasets as tfds
from etils import epath

from data_prep.sources.video_files import Video

ROOT = Path(__file__).parents[2]


def named(*names):
    return [Video(epath.Path("/v") / name, Path(name)) for name in names]


def program(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "data_prep.videos", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def splits_of(output):
    builder = tfds.builder_from_directory(output / "videos" / "1.0.0")
    return {
        split: {record["clip_id"].decode(): record for record in builder.as_data_source(split)}
        for split in builder.info.splits
    }
