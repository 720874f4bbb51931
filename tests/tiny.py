"""A tiny model's config and tiny real videos, for tests that need the whole way."""

import pathlib

import av
import numpy as np
from ml_collections import ConfigDict

from configs import demo

RATE = 16_000


def config(data_dir="", **overrides) -> ConfigDict:
    """The demo's recipe at the smallest sizes; overrides are dotted keys with __ for the dot."""
    tiny = demo.get_config()
    tiny.update_from_flattened_dict(
        {
            "batch_size": 8,
            "epochs": 6.0,
            "warmup_share": 0.0,
            "log_every": 2,
            "checkpoint_every": 4,
            "data.dir": str(data_dir),
            "data.num_frames": 4,
            "model.image_size": 32,
            "model.image_patch": 16,
            "model.audio_rows": 96,
            "model.width": 16,
            "model.depth": 2,
            "model.heads": 2,
            "model.decoder_width": 8,
            "model.decoder_heads": 2,
            "model.registers": 2,
        }
        | {key.replace("__", "."): value for key, value in overrides.items()}
    )
    return tiny


def write_video(path: pathlib.Path, colour: int, hertz: float, seconds: int = 4) -> None:
    """Writes an MP4 of one grey level, growing brighter, with a tone."""
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=4, options={"preset": "ultrafast"})
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        sound = container.add_stream("aac", rate=RATE, layout="mono")
        for index in range(4 * seconds):
            pixels = np.full((48, 64, 3), colour + index, np.uint8)
            frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode())
        time = np.arange(seconds * RATE) / RATE
        wave = (np.sin(2 * np.pi * hertz * time) * 8000).astype(np.int16)
        for start in range(0, len(wave), 1024):
            block = np.ascontiguousarray(wave[None, start : start + 1024])
            frame = av.AudioFrame.from_ndarray(block, format="s16", layout="mono")
            frame.rate, frame.pts = RATE, start
            container.mux(sound.encode(frame))
        container.mux(sound.encode())
