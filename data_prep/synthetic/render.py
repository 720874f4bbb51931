"""One scene to its files: an MP4 (H.264 and AAC) and the truth in an .npz."""

import signal
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import threadpoolctl
from jaxtyping import Float, UInt8

from cavmae_sync_jax.media.audio import SAMPLE_RATE
from cavmae_sync_jax.utils.errors import UserError
from data_prep.synthetic import composer
from data_prep.synthetic.objects import Background, ObjectSource

SPLITS = ("train", "val", "eval")  # the order is part of the random seed
_AAC_SAMPLES = 1024


@dataclass(frozen=True)
class SceneRenderer:
    """All that the scenes of a dataset have in common."""

    objects: ObjectSource
    background: Background
    size: int
    seconds: float
    num_frames: int
    seed: int


def generator(seed: int, split: str, number: int) -> np.random.Generator:
    """Returns the random generator of a clip; no two clips of any splits share one."""
    return np.random.default_rng([seed, SPLITS.index(split), number])


def render_clip(renderer: SceneRenderer, split: str, number: int, path: Path) -> tuple[str, ...]:
    """Writes a clip's video to `path`, its truth beside it, and returns the classes that sound.

    The truth file is described in `clips.VideoClip.read`. The same arguments give the same bytes.
    """
    rng = generator(renderer.seed, split, number)
    scene = composer.compose(
        renderer.objects, renderer.background, renderer.size, renderer.seconds, rng
    )
    write_video(path, composer.render(scene), scene.waveform)
    truth = composer.truth(scene, renderer.num_frames)
    unfinished = path.with_suffix(".partial.npz")
    np.savez_compressed(
        unfinished,
        **truth._asdict(),
        event_class=np.array([event.class_id for event in scene.events], np.int64),
        event_start=np.array([event.start for event in scene.events], np.float32),
        event_end=np.array([event.end for event in scene.events], np.float32),
    )
    unfinished.replace(path.with_suffix(".npz"))  # says that the video is complete, too
    return sounding(renderer, path)


def sounding(renderer: SceneRenderer, path: Path) -> tuple[str, ...]:
    """Returns the classes that sound in a clip, in order, from its truth."""
    with np.load(path.with_suffix(".npz")) as truth:
        classes = truth["event_class"].tolist()
    return tuple(dict.fromkeys(renderer.objects.class_names[index] for index in classes))


_renderer: SceneRenderer | None = None  # of this process, if it is a worker


def start_worker(renderer: SceneRenderer) -> None:
    """Gives a worker process its renderer once, because that may hold many photos and sounds."""
    global _renderer
    _renderer = renderer
    # Ctrl-C is the parent's to handle, and the other cores are the other workers'.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threadpoolctl.threadpool_limits(1)


def render_in_worker(split: str, number: int, path: Path) -> None:
    """Calls `render_clip` with the renderer of `start_worker`, unless that was done before."""
    assert _renderer is not None
    if not path.with_suffix(".npz").exists():
        render_clip(_renderer, split, number, path)


def write_video(
    path: Path,
    video: UInt8[np.ndarray, "frames height width 3"],
    waveform: Float[np.ndarray, " samples"],
) -> None:
    """Encodes RGB frames (`composer.FRAME_RATE` per second) and 16 kHz mono audio.

    Raises:
      UserError: the file can't be written, for example because the disk is full.
    """
    try:
        with av.open(str(path), "w") as container:
            # With mbtree, x264 now and then gives other bits for the same frames in one thread too.
            picture = container.add_stream(
                "libx264",
                rate=composer.FRAME_RATE,
                options={"preset": "veryfast", "crf": "18", "mbtree": "0"},
            )
            picture.height, picture.width = video.shape[1:3]
            picture.pix_fmt = "yuv420p"
            picture.thread_count = 1
            sound = container.add_stream(
                "aac", rate=SAMPLE_RATE, layout="mono", options={"aac_coder": "fast"}
            )
            sound.bit_rate = 96_000
            for index, pixels in enumerate(video):
                frame = av.VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts = index
                container.mux(picture.encode(frame))
            container.mux(picture.encode())
            for first in range(0, len(waveform), _AAC_SAMPLES):
                block = waveform[None, first : first + _AAC_SAMPLES].astype(np.float32)
                samples = av.AudioFrame.from_ndarray(block, "fltp", "mono")
                samples.rate, samples.pts = SAMPLE_RATE, first
                container.mux(sound.encode(samples))
            container.mux(sound.encode())
    except (OSError, av.error.FFmpegError) as error:
        raise UserError(f"{path} can't be written: {error.strerror}") from error
