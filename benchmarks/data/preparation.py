"""Times the preparation of clips on one core, and what their records weigh and take to read.

    python -m benchmarks.data.preparation
    python -m benchmarks.data.preparation --videos=FOLDER    # your own instead of synthetic ones

Synthetic videos are 10 s of H.264 (25 frames per second) and AAC (stereo, 44.1 kHz), of a picture
with detail at all scales that moves, at the two sizes in which AudioSet and VGGSound are mostly
found. The decoding row is a plain PyAV pass over every frame and sample of the same files. The peer
does what CAV-MAE's scripts do, see `extraction_baseline`; it needs opencv-python-headless and
imageio-ffmpeg, and is left out without them. All three take turns. Seconds are of the processor,
not of the clock.
"""

import argparse
import importlib.util
import tempfile
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import tensorflow_datasets as tfds
import threadpoolctl
from etils import epath
from jaxtyping import UInt8
from PIL import Image

from benchmarks.data import extraction_baseline
from benchmarks.timing import Spread, machine, table
from cavmae_sync_jax.media import audio, images
from cavmae_sync_jax.media import decoding as media_decoding
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError
from data_prep.pipeline import shards, tfds_writer
from data_prep.pipeline.clips import FBANK_DTYPES, Preparation, VideoClip
from data_prep.pipeline.executors import Engine
from data_prep.sources import video_files

SIZES = ((320, 240), (640, 360))
SECONDS, FRAME_RATE, SAMPLE_RATE = 10, 25, 44_100
MILLIONS, EXAMPLES = 2, 3000  # of clips to prepare; examples per second that a training reads


def run(folder: str, videos: int, repeats: int) -> None:
    """Prints the tables."""
    print(machine("av", "array-record", "tensorflow-datasets", "numpy"))
    with tempfile.TemporaryDirectory() as scratch, threadpoolctl.threadpool_limits(1):
        if folder:
            found = video_files.find_videos([folder])[:videos]
            groups = {folder: [str(video.path) for video in found]}
        else:
            groups = {}
            for size in SIZES:
                paths = [Path(scratch) / f"{size[0]}_{number}.mp4" for number in range(videos)]
                for number, path in enumerate(paths):
                    write_video(path, size, np.random.default_rng(number))
                groups["{} × {}".format(*size)] = [str(path) for path in paths]
        seconds = speed(groups, repeats)
        stored = {
            dtype: storage(Path(scratch) / dtype, next(iter(groups.values())), dtype)
            for dtype in FBANK_DTYPES
        }
    arithmetic(seconds, stored)


def write_video(path: Path, size: tuple[int, int], rng: np.random.Generator) -> None:
    """Writes a synthetic video, see the module."""
    width, height = size
    canvas = noise_picture(2 * height, 2 * width, rng)
    noise = rng.normal(0, 0.1, (2, SECONDS * SAMPLE_RATE))
    loudness = 0.2 + np.abs(np.sin(np.linspace(0, 20, noise.shape[1])))
    with av.open(str(path), "w") as container:
        picture = container.add_stream("libx264", rate=FRAME_RATE, options={"crf": "23"})
        picture.width, picture.height, picture.pix_fmt = width, height, "yuv420p"
        sound = container.add_stream("aac", rate=SAMPLE_RATE, layout="stereo")
        for index in range(SECONDS * FRAME_RATE):
            share = index / (SECONDS * FRAME_RATE)
            top, left = int(share * height), int(share * width)
            view = canvas[top : top + height, left : left + width]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(view), format="rgb24")
            frame.pts = index
            container.mux(picture.encode(frame))
        container.mux(picture.encode())
        whole = av.AudioFrame.from_ndarray((noise * loudness).astype(np.float32), "fltp", "stereo")
        whole.rate, whole.pts, whole.time_base = SAMPLE_RATE, 0, Fraction(1, SAMPLE_RATE)
        cutter = av.AudioResampler("fltp", "stereo", SAMPLE_RATE, frame_size=1024)
        for block in cutter.resample(whole) + cutter.resample(None):
            container.mux(sound.encode(block))
        container.mux(sound.encode())


def noise_picture(
    height: int, width: int, rng: np.random.Generator
) -> UInt8[np.ndarray, "{height} {width} 3"]:
    """A picture with as much contrast at each scale as photographs have (amplitude ~ size)."""
    total = np.zeros((height, width, 3), np.float32)
    for side in (4, 8, 16, 32, 64, 128):
        coarse = rng.uniform(-1, 1, (side, side, 3)).astype(np.float32)
        for channel in range(3):
            layer = Image.fromarray(coarse[:, :, channel]).resize((width, height), 3)
            total[:, :, channel] += np.asarray(layer) * 4 / side
    return np.clip(128 + 90 * total, 0, 255).astype(np.uint8)


def speed(groups: dict[str, list[str]], repeats: int) -> dict[str, float]:
    """Prints clips per second and core; returns the processor's seconds per clip of each group."""
    preparation = Preparation()
    job = shards.Job(shards.Schema((), preparation.num_frames, False, "float16"), preparation)
    rows, prepared = [], {}
    peers = all(importlib.util.find_spec(name) for name in ("cv2", "imageio_ffmpeg"))

    def whole(path: str) -> None:
        record = shards.prepare_record(VideoClip("clip", path), job)
        if not isinstance(record, shards.Record):
            raise UserError(f"{path} gives no example: {record.detail}")

    for name, paths in groups.items():
        ours, decoding, peer = [], [], []
        for _ in range(repeats):
            ours += each(whole, paths, 1)
            decoding += each(decode, paths, 1)
            if peers:
                peer.append(extraction_baseline.extract_all(paths, preparation.num_frames))
        content = [media_decoding.read_clip(path, end=SECONDS, image_size=224) for path in paths]
        fbank = each(
            lambda clip: audio.log_mel(clip.waveform / np.float32(32768), audio.SAMPLE_RATE),
            content,
            repeats,
        )
        jpeg = each(
            lambda clip: [images.encode_jpeg(frame, 95) for frame in clip.frames], content, repeats
        )
        prepared[name] = Spread.of(ours).median
        shares = [Spread.of(part).median / prepared[name] for part in (fbank, jpeg)]
        rows.append(
            [
                name,
                Spread.of([1 / second for second in ours]).text(),
                Spread.of([1 / second for second in decoding]).text(),
                f"{prepared[name] / Spread.of(decoding).median:.2f}",
                f"{min(ours) / min(decoding):.2f}",
                Spread.of([1 / second for second in peer]).text() if peer else "–",
                *(f"{share:.0%}" for share in shares),
            ]
        )
    head = (
        "videos, clips/s/core, decoding alone, time over decoding, of the fastest passes, "
        "CAV-MAE's way, log-mel's share, JPEG's share"
    )
    print(table(head.split(", "), rows), flush=True)
    return prepared


def each(work: Callable, items: Sequence, repeats: int) -> list[float]:
    """The processor's seconds an item, `repeats` times, after a warm-up with the first."""
    work(items[0])
    seconds = []
    for _ in range(repeats):
        began = time.process_time()
        for item in items:
            work(item)
        seconds.append((time.process_time() - began) / len(items))
    return seconds


def decode(path: str) -> None:
    """Decodes all frames and samples of a file, in one thread, and throws them away."""
    with av.open(path) as container:
        container.streams.video[0].thread_count = 1
        for packet in container.demux():
            packet.decode()


def storage(output: Path, paths: Sequence[str], dtype: str) -> tuple[float, float]:
    """Returns a clip's bytes on the disk, and records read per second, warm, on one core."""
    clips = [VideoClip(f"{number}", path) for number, path in enumerate(list(paths) * 4)]
    summary = tfds_writer.write_dataset(
        output,
        {"train": clips},
        Preparation(fbank_dtype=dtype),
        class_names=(),
        source="speed",
        engine=Engine(workers=1),
    )
    files = list(epath.Path(summary.directory).glob("*array_record*"))
    source = tfds.builder_from_directory(str(summary.directory)).as_data_source(split="train")
    began, read = time.process_time(), 0
    while time.process_time() - began < 2:
        for index in range(len(source)):
            _ = source[index]
        read += len(source)
    rate = read / (time.process_time() - began)
    return sum(file.stat().length for file in files) / len(source), rate


def arithmetic(seconds: dict[str, float], stored: dict[str, tuple[float, float]]) -> None:
    """Prints what millions of clips take, from what a few have taken."""
    rows = [
        [
            dtype,
            f"{size / 1e3:.0f} kB",
            f"{rate:,.0f}",
            f"{MILLIONS * size / 1e6:.2f} TB",
            f"{EXAMPLES * size / 1e9:.2f} GB/s",
        ]
        for dtype, (size, rate) in stored.items()
    ]
    head = "log-mel, a clip, records read/s/core"
    print(
        table([*head.split(", "), f"{MILLIONS} million", f"{EXAMPLES:,} examples/s"], rows)
        + "\n"
        + "\n".join(
            f"{MILLIONS} million clips like {name}: {MILLIONS * 1e6 * second / 3600:.0f} core-hours"
            for name, second in seconds.items()
        )
    )


def main() -> None:
    """Runs the command line."""
    parser = cli.parser(__doc__)
    parser.add_argument("--videos", default="", help="folder of videos to time, of any length")
    parser.add_argument("--count", type=int, default=8, help="videos of each size")
    parser.add_argument("--repeats", type=int, default=5, help="passes over them")

    def start(arguments: argparse.Namespace) -> None:
        run(arguments.videos, arguments.count, arguments.repeats)

    cli.main(parser, start)


if __name__ == "__main__":
    main()
