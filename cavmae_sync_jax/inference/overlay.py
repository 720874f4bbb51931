"""Heat maps laid over pictures, and a video of them with its sound (H.264 and AAC in MP4)."""

import functools
import os
import pathlib
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import NamedTuple

import av
import matplotlib
import numpy as np
from jaxtyping import Float, Float32, Int16, UInt8
from PIL import Image

from cavmae_sync_jax.media.audio import SAMPLE_RATE

COLOURS = "turbo"
STRENGTH = 0.7  # of the colour where a map is highest
HIGH = 99.0  # percentile of the maps that is shown as highest
_LUMA = (0.299, 0.587, 0.114)


class Scale(NamedTuple):
    """The values of a map that are shown as nothing and as the strongest colour."""

    low: float
    high: float

    @classmethod
    def of(cls, maps: Float32[np.ndarray, "*shape"]) -> "Scale":
        """One scale for all maps of a file, so that colours can be compared over time."""
        return cls(float(np.median(maps)), float(np.percentile(maps, HIGH)))


class Moment(NamedTuple):
    """What is shown and heard from a moment on: pictures, and 16 kHz sound as long as they last."""

    pictures: Iterable[UInt8[np.ndarray, "size size 3"]]
    waveform: Int16[np.ndarray, " samples"]


def blend(
    picture: UInt8[np.ndarray, "height width 3"],
    small: Float32[np.ndarray, "rows columns"],
    scale: Scale,
) -> UInt8[np.ndarray, "height width 3"]:
    """Lays a map over a picture: the higher, the more colour; grey below the scale's low end."""
    height, width = picture.shape[:2]
    resized = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
    span = max(scale.high - scale.low, np.finfo(np.float32).tiny)
    heat = np.clip((np.asarray(resized) - np.float32(scale.low)) / np.float32(span), 0, 1)
    colours = _palette()[(heat * 255).astype(np.uint8)]
    share = np.float32(STRENGTH) * heat[..., None]
    grey = picture @ np.array(_LUMA, np.float32)
    return (grey[..., None] * (1 - share) + colours * share).round().astype(np.uint8)


@functools.cache
def _palette() -> Float32[np.ndarray, "256 3"]:
    return (255 * matplotlib.colormaps[COLOURS](np.arange(256))[:, :3]).astype(np.float32)


def between(
    maps: Float32[np.ndarray, "pairs rows columns"],
    times: Float[np.ndarray, " pairs"],
    time: float,
) -> Float32[np.ndarray, "rows columns"]:
    """The map at a moment, interpolated between the two nearest; held at both ends."""
    place = float(np.interp(time, times, np.arange(len(times))))
    first = int(place)
    second = min(first + 1, len(maps) - 1)
    share = np.float32(place - first)
    return maps[first] * (1 - share) + maps[second] * share


def write_video(path: str | os.PathLike, size: int, fps: int, moments: Iterator[Moment]) -> None:
    """Writes an MP4 that browsers play; it appears complete or not at all.

    Args:
      path: the file.
      size: height and width in pixels, even.
      fps: pictures per second.
      moments: the content, in order.
    """
    place = pathlib.Path(path)
    partial = place.with_name(f".{place.name}.partial")
    options = {"movflags": "+faststart"}  # so that it plays before it is loaded
    try:
        with av.open(str(partial), "w", format="mp4", options=options) as container:
            video = container.add_stream("libx264", rate=fps, options={"crf": "20"})
            video.width = video.height = size
            video.pix_fmt = "yuv420p"
            video.thread_count = 0
            sound = container.add_stream("aac", rate=SAMPLE_RATE, layout="mono")
            cutter = av.AudioResampler(sound.format.name, "mono", SAMPLE_RATE, frame_size=1024)
            shown = heard = 0
            for moment in moments:
                for picture in moment.pictures:
                    frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                    frame.pts, frame.time_base = shown, Fraction(1, fps)
                    shown += 1
                    container.mux(video.encode(frame))
                block = av.AudioFrame.from_ndarray(moment.waveform[None], "s16", "mono")
                block.rate, block.pts = SAMPLE_RATE, heard
                heard += len(moment.waveform)
                for piece in cutter.resample(block):
                    container.mux(sound.encode(piece))
            for piece in cutter.resample(None):
                container.mux(sound.encode(piece))
            container.mux(video.encode())
            container.mux(sound.encode())
        partial.replace(place)
    finally:
        partial.unlink(missing_ok=True)
