"""Little datasets to inspect."""

import numpy as np
from media_files import make_video

from data_prep.inspection.dataset import open_dataset
from data_prep.pipeline.clips import Preparation, VideoClip
from data_prep.pipeline.executors import Engine
from data_prep.pipeline.tfds_writer import write_dataset

NAMES = ["dog", "cat", "owl"]


PREPARATION = Preparation(num_frames=4, image_size=32, clip_seconds=2)


def write(output, splits, preparation=PREPARATION):
    settings = {"class_names": NAMES, "source": "little", "engine": Engine(workers=1)}
    return write_dataset(output, splits, preparation, **settings)


def with_truth(folder):
    """One clip with truth, whose log-mel is stored as uint8."""
    mask = np.zeros((4, 48, 64), bool)
    mask[:2, :, 32:] = True  # the right half of the first two frames
    np.savez(
        folder / "truth.npz",
        frame_class=np.array([1, 1, -1, -1]),
        frame_mask=mask,
        event_class=np.array([1, 0]),
        event_start=np.array([0.0, 0.25], np.float32),
        event_end=np.array([0.75, 1.5], np.float32),
    )
    video = str(make_video(folder / "a.mp4", seconds=2, fps=10))
    clip = VideoClip("x" * 200, video, labels=("cat", "dog"), truth=str(folder / "truth.npz"))
    preparation = Preparation(num_frames=4, image_size=32, clip_seconds=2, fbank_dtype="uint8")
    write(folder / "out", {"train": [clip]}, preparation)
    return open_dataset(folder / "out")
