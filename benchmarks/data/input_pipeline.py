"""Times the way from shard file to host batch, stage by stage, beside a PyTorch DataLoader.

    pip install -e ".[convert,test]"                    # PyTorch and soundfile, for the DataLoader
    python -m benchmarks.data.input_pipeline --config=configs/pretrain.py --config.batch_size=64
    python -m benchmarks.data.input_pipeline --config=configs/pretrain.py --data=DATASET \\
        --workers 2 8

Ours is `loader.train_batches`: a frame and its window of each clip, as training gets them. The
DataLoader does for the same clips what the authors' loader does, see `dataloader_baseline`. It gets
the same JPEGs and the same sound as files. The clips are generated: pictures with the spectrum of
photos, pulsing tones in pink noise. `--data` names a dataset to read instead. Then there is no
DataLoader, because a dataset holds no waveforms.

All rows except those with workers take turns in this process, where NumPy and PyTorch get one
thread. CPU time includes the workers'; other programs on the machine disturb it less. The stages
run in a separate thread, as in the pipeline; "the rest" is the difference between their sum and the
whole. Workers are timed in a running stream, after everything else.
"""

import argparse
import contextlib
import functools
import multiprocessing
import os
import tempfile
import time
import wave
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.fft
import tensorflow_datasets as tfds
import threadpoolctl
from jaxtyping import Float, Int16, UInt8
from ml_collections import ConfigDict

from benchmarks import timing
from cavmae_sync_jax.data import loader as data_loader
from cavmae_sync_jax.data.loader import PairSpec
from cavmae_sync_jax.media import audio, images
from cavmae_sync_jax.utils import cli, console
from cavmae_sync_jax.utils.errors import UserError
from data_prep.pipeline.clips import Clip, Preparation, Recording
from data_prep.pipeline.tfds_writer import write_dataset

STAGES = ("read the record", "parse it", "decode the JPEG", "cut the window")
REST = "shuffle, batch and the rest"
OURS, THEIRS, STAGED = "train_batches, workers=0", "DataLoader, num_workers=0", "stages"
COLUMNS = ("", "examples/s", "CPU ms an example", "of the CPU time")
LESS = 8  # as many times fewer examples for the DataLoader, which is slow
SLOPE, CONTRAST = 1.65, 50.0  # of pictures: at quality 95 a JPEG of 224² has 20 kB, as a photo
# Grain's shuffle takes 0.25 ms for each of 64 clips, and 0.003 for each of the two million of
# AudioSet: as few clips as these are counted so many times.
CLIPS_AT_LEAST = 2**16


@dataclass(frozen=True)
class GeneratedClip(Clip):
    """A clip out of a seed."""

    seed: int = 0

    def read(self, preparation: Preparation) -> Recording:
        """Draws the frames and the sound."""
        rng = np.random.default_rng(self.seed)
        waveform = sound(rng, round(preparation.clip_seconds * audio.SAMPLE_RATE))
        frames = [picture(rng, preparation.image_size) for _ in range(preparation.num_frames)]
        return Recording(np.stack(frames), waveform, preparation.clip_seconds, {})


def picture(rng: np.random.Generator, size: int) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """Noise with a photo's spectrum, its colours alike, as they are in photos."""
    frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None])
    frequency[0, 0] = np.inf
    noise = rng.standard_normal((2, 3, size, size // 2 + 1), np.float32)
    planes = scipy.fft.irfft2((noise[0] + 1j * noise[1]) * frequency**-SLOPE, (size, size))
    planes /= planes.std(axis=(1, 2), keepdims=True)
    colours = [planes[0], 0.9 * planes[0] + 0.4 * planes[1], 0.8 * planes[0] + 0.5 * planes[2]]
    return np.clip(128 + CONTRAST * np.stack(colours, axis=-1), 0, 255).astype(np.uint8)


def sound(rng: np.random.Generator, samples: int) -> Int16[np.ndarray, "{samples}"]:
    """Overtones that swell and fade, in pink noise."""
    frequency = np.maximum(np.fft.rfftfreq(samples, 1 / audio.SAMPLE_RATE), 20)
    noise = rng.standard_normal((2, len(frequency)))
    pink = scipy.fft.irfft((noise[0] + 1j * noise[1]) / np.sqrt(frequency), samples)
    phase = 2 * np.pi * np.arange(samples) / audio.SAMPLE_RATE
    hertz, pulse = rng.uniform(80, 400), rng.uniform(0.5, 4)
    tone = sum(np.sin(hertz * k * phase) / k for k in range(1, 20))
    mixed = 0.05 * pink / pink.std() + 0.1 * (0.5 + 0.5 * np.sin(pulse * phase)) * tone
    return np.clip(mixed * 32768, -32768, 32767).astype(np.int16)


def generate(folder: Path, config: ConfigDict, **splits: int) -> Path:
    """Prepares a dataset of generated clips of a config's sizes; splits are numbers by name."""
    clips = {
        split: [GeneratedClip(f"{split}{i}", "", seed=i) for i in range(count)]
        for split, count in splits.items()
    }
    preparation = Preparation(
        num_frames=config.data.num_frames,
        image_size=config.model.image_size,
        clip_seconds=config.data.clip_rows // audio.ROWS_PER_SECOND,
    )
    write_dataset(folder, clips, preparation, class_names=["none"], source="generated")
    return folder


class Records(data_loader.Records):
    """A split that is as long as a large one, see `CLIPS_AT_LEAST`."""

    @property
    def clips(self) -> int:
        """How many there are in truth."""
        return super().__len__()

    def __len__(self) -> int:
        return -(-CLIPS_AT_LEAST // self.clips) * self.clips

    def place(self, index: int) -> int:
        """The record that is counted as this one."""
        return index % self.clips


def write_files(files: Any, records: Records, clip_seconds: int) -> list[str]:
    """Writes the clips of a generated split as WAVs and JPEGs, for the DataLoader.

    Args:
      files: where to, a `dataloader_baseline.Files`.
      records: the split.
      clip_seconds: the clips' length.

    Returns:
      The clips' ids in the order of the records.
    """
    ids = []
    for index in range(records.clips):
        record = records[index]
        ids.append(record["clip_id"].decode())
        seed = int(ids[-1].removeprefix(records.split))
        waveform = sound(np.random.default_rng(seed), clip_seconds * audio.SAMPLE_RATE)
        with wave.open(str(files.sound(ids[-1])), "wb") as file:
            file.setparams((1, 2, audio.SAMPLE_RATE, 0, "NONE", "not compressed"))
            file.writeframes(waveform.tobytes())
        for frame, jpeg in enumerate(record["frames"]):
            path = files.frame(ids[-1], frame)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(jpeg)
    return ids


def stage_seconds(
    records: Records, raw: Sequence[bytes], pair_spec: PairSpec, clips: Sequence[int]
) -> list[float]:
    """CPU seconds of `STAGES` for one random frame of each of the clips, in this thread.

    Args:
      records: the split.
      raw: the split's records as bytes.
      pair_spec: how clips become pairs.
      clips: indices of records.
    """
    rng, clock = np.random.default_rng(0), time.thread_time
    lengths, spent = (pair_spec.clip_rows, pair_spec.audio_rows), np.zeros(len(STAGES))
    for clip in clips:
        frame, moments = int(rng.integers(pair_spec.num_frames)), [clock()]
        data = raw[clip % records.clips]
        moments.append(clock())
        record = records.features.deserialize_example_np(data)
        moments.append(clock())
        stored = len(record["frames"])
        frame = frame * stored // pair_spec.num_frames
        images.decode_jpeg(record["frames"][frame])
        moments.append(clock())
        seconds = audio.stored_seconds(record)
        audio.cut_window(record["fbank"], frame, stored, *lengths, seconds=seconds)
        moments.append(clock())
        spent += np.diff(moments)
    return spent.tolist()


def take(batches: Iterator[Any], count: int) -> None:
    """Waits for so many batches."""
    for _ in range(count):
        next(batches)


def pipeline(records: Records, config: ConfigDict, workers: int) -> Any:
    """The training's batches."""
    sizes = config.batch_size, config.seed, 0, workers, config.data.prefetch
    return data_loader.train_batches(records, PairSpec.of(config), *sizes)


class Turns(NamedTuple):
    """What one candidate took in each repeat, for so many examples."""

    examples: int
    seconds: list[float]
    cpu_seconds: list[float]

    def cells(self, peer: "Turns | None" = None) -> list[str]:
        """Examples per second, CPU ms per example, and both as multiples of a peer's speed."""
        ours = self._speeds()
        ratios = []
        if peer is not None:
            for mine, other in zip(ours, peer._speeds(), strict=True):
                times = [m / o for m, o in zip(mine, other, strict=True)]
                ratios.append(timing.Spread.of(times).text(1))
        cost = [1e3 / speed for speed in ours[1]]
        return [timing.Spread.of(ours[0]).text(0), timing.Spread.of(cost).text(3), *ratios]

    def _speeds(self) -> tuple[list[float], list[float]]:
        """Examples per second, and examples per second of CPU time, in each repeat."""
        whole, cpu = self.seconds, self.cpu_seconds
        return [self.examples / s for s in whole], [self.examples / s for s in cpu]


def cpu_seconds() -> float:
    """CPU seconds of this process and the workers that it has at present."""
    spent, ticks = time.process_time(), os.sysconf("SC_CLK_TCK")
    for worker in multiprocessing.active_children():
        stat = Path(f"/proc/{worker.pid}/stat").read_text(encoding="utf-8")
        user, system = stat.rpartition(")")[2].split()[11:13]
        spent += (int(user) + int(system)) / ticks
    return spent


def measure(
    candidates: Mapping[str, tuple[int, Callable[[], object]]], repeats: int, warmups: int = 1
) -> dict[str, Turns]:
    """Calls the candidates in turns; each comes with its number of examples."""
    spent: dict[str, list[float]] = {name: [] for name in candidates}
    with console.progress("time", len(candidates) * (warmups + repeats), "call") as bar:

        def call(name: str) -> None:
            began = cpu_seconds()
            candidates[name][1]()
            spent[name].append(cpu_seconds() - began)
            bar.update()

        calls = {name: functools.partial(call, name) for name in candidates}
        seconds = timing.interleaved(calls, repeats, warmups)
    return {
        name: Turns(examples, seconds[name], spent[name][-repeats:])
        for name, (examples, _) in candidates.items()
    }


def streamed(
    records: Records, config: ConfigDict, workers: int, batches: int, repeats: int
) -> Turns:
    """Times chunks of batches, one after the other, of workers that are in full swing."""
    with contextlib.closing(pipeline(records, config, workers)) as stream:
        take(stream, 2 * batches)  # what workers hold ready is not to be counted
        chunk = batches * config.batch_size, lambda: take(stream, batches)
        return measure({"": chunk}, repeats, warmups=0)[""]


def run(
    config: ConfigDict,
    data: str,
    clips: int,
    examples: int,
    repeats: int,
    workers: Sequence[int],
) -> None:
    """Prints the machine and the table; see the flags for what the arguments mean.

    Raises:
      UserError: if a number is below 1, PyTorch or soundfile is missing, or the dataset does not
        fit the config.
    """
    if min(config.batch_size, clips, examples, repeats, *workers, 1) < 1:
        raise UserError("the batch size and all numbers must be at least 1")
    loader = None if data else _loader()
    with tempfile.TemporaryDirectory() as scratch, threadpoolctl.threadpool_limits(1):
        folder = data or generate(Path(scratch) / "data", config, train=clips)
        records = Records(folder, config.data.train_split if data else "train")
        pair_spec, batches = PairSpec.of(config), max(1, examples // config.batch_size)
        count = batches * config.batch_size
        order = data_loader.order(len(records), config.seed, 0, count)
        raw = tfds.builder_from_directory(str(records.directory)).as_data_source(
            split=records.split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
        )
        staged: list[list[float]] = []

        def ours() -> None:
            with contextlib.closing(pipeline(records, config, 0)) as stream:
                take(stream, batches)

        def stages() -> None:
            with ThreadPoolExecutor(1) as pool:
                staged.append(pool.submit(stage_seconds, records, raw, pair_spec, order).result())

        candidates = {OURS: (count, ours), STAGED: (count, stages)}
        if loader is not None:
            files = loader.Files(Path(scratch))
            ids = write_files(files, records, config.data.clip_rows // audio.ROWS_PER_SECOND)
            model = config.model
            peers = loader.Clips(files, ids, pair_spec, model.audio_mean, model.audio_std)
            fewer = max(1, batches // LESS)
            places = [clip % records.clips for clip in order[: fewer * config.batch_size]]

            def theirs() -> None:
                take(loader.batches(peers, config.batch_size, places), fewer)

            candidates[THEIRS] = (len(places), theirs)
        turns = measure(candidates, repeats)
        rows = _rows(turns, np.array(staged[-repeats:]))
        for number in workers:
            several = streamed(records, config, number, batches, repeats)
            rows.append([f"train_batches, workers={number}", *several.cells()])
        print(timing.machine("grain", "numpy", "pillow", *(("torch",) if loader else ())))
        print(
            f"{records.clips} clips of {_kilobytes(records):.0f} kB, {pair_spec.num_frames} frames "
            f"of {pair_spec.image_size}², windows of {pair_spec.audio_rows} rows, batches of "
            f"{config.batch_size}, median (lowest–highest) of {repeats} repeats\n"
        )
        header = COLUMNS + (("× DataLoader", "× in CPU time") if loader else ())
        print(timing.table(header, [row + [""] * (len(header) - len(row)) for row in rows]))


def _rows(
    turns: Mapping[str, Turns], staged: Float[np.ndarray, "repeats stages"]
) -> list[list[str]]:
    ours, theirs = turns[OURS], turns.get(THEIRS)
    whole = np.array(ours.cpu_seconds)
    parts = [*staged.T, whole - staged.sum(axis=1)]
    speed, cost, *ratios = ours.cells(theirs)
    rows = [[OURS, speed, cost, "100%", *ratios]]
    for name, seconds in zip((*STAGES, REST), parts, strict=True):
        cost = timing.Spread.of((1e3 * seconds / ours.examples).tolist()).text(3)
        rows.append([f"– {name}", "", cost, f"{np.median(seconds / whole):.0%}"])
    if theirs is not None:
        rows.append([THEIRS, *theirs.cells()])
    return rows


def _kilobytes(records: Records) -> float:
    split = tfds.builder_from_directory(str(records.directory)).info.splits[records.split]
    return split.num_bytes / split.num_examples / 1e3


def _loader() -> Any:
    try:
        from benchmarks.data import dataloader_baseline
    except ImportError as error:
        raise UserError(
            f"{error.name} is missing: pip install '.[convert,test]', or give your own --data, "
            "which is timed without a DataLoader"
        ) from error
    return dataloader_baseline


def main() -> None:
    """Runs the command line."""
    arguments = cli.parser(__doc__)
    arguments.add_argument(
        "--data", default="", help="a dataset to read instead of generated clips"
    )
    arguments.add_argument("--clips", type=int, default=64, help="clips to generate")
    arguments.add_argument(
        "--examples", type=int, default=1024, help="examples per turn of our pipeline"
    )
    arguments.add_argument("--repeats", type=int, default=7, help="turns of each candidate")
    arguments.add_argument(
        "--workers", type=int, nargs="*", default=[2], help="further numbers of processes to time"
    )

    def start(args: argparse.Namespace, config: ConfigDict) -> None:
        run(config, args.data, args.clips, args.examples, args.repeats, args.workers)

    cli.main(arguments, start, config=True)


if __name__ == "__main__":
    main()
