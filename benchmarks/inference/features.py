"""Times the evaluations' forward pass: all frames and windows of clips, nothing masked.

    python -m benchmarks.inference.features --config=configs/demo.py --clips=64
    python -m benchmarks.inference.features --config=configs/pretrain.py --clips=8 --repeats=2

The last command suits a CPU; a GPU or a TPU takes --clips=512.

The features stage (`features.extract`) embeds clips that lie in memory, so that nothing is read or
decoded; it fills whole batches, brings them to all devices and the embeddings back.
Beside it the same model goes frame by frame: one window and one image per call, on one device, each
call waited for. `--maps` also times maps of evidence, each of one sound in one picture, on one
device. Weights are random. Compiling is not counted.
"""

import argparse
from collections.abc import Generator, Iterable

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import timing
from cavmae_sync_jax.checkpoints.pretrained import Pretrained
from cavmae_sync_jax.data import loader
from cavmae_sync_jax.data.loader import PairSpec
from cavmae_sync_jax.distributed import sharding
from cavmae_sync_jax.inference import features, heatmaps
from cavmae_sync_jax.models import cavmae_sync
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError
from cavmae_sync_jax.utils.modalities import AUDIO, MODALITIES, VISUAL

STAGE, LOOP, MAPS = "features stage", "frame by frame, batch 1", "maps of evidence"
COLUMNS = ("", "clips/s", "frames/s", "× frame by frame")
KEPT = 8  # different clips in memory; further ones are these again


class InMemory(loader.Records):
    """Clips of noise, as a split's records: raw frames and windows, as the pipeline gives them."""

    def __init__(
        self, clips: int, module: cavmae_sync.CavMaeSync, frames: int, seed: int = 0
    ) -> None:
        self._length, self.longest_rows, self.in_bucket = clips, None, False
        rng = np.random.default_rng(seed)
        count = min(clips, KEPT), frames
        fbank = rng.standard_normal((*count, *module.raw_shape(AUDIO)), np.float32)
        self.raw = {
            AUDIO: (module.audio_mean + module.audio_std * fbank).astype(np.float16),
            VISUAL: rng.integers(0, 256, (*count, *module.raw_shape(VISUAL)), np.uint8),
        }

    def ahead(self, indices: Iterable[int]) -> Generator[int, None, None]:
        """Yields the indices: what is in memory need not be asked for."""
        yield from indices

    def pairs(self, index: int, pair_spec: PairSpec, frames: Iterable[int]) -> list[loader.Batch]:
        """Some of a clip's frames with their windows."""
        place = index % len(self.raw[VISUAL])
        return [{m: values[place, frame] for m, values in self.raw.items()} for frame in frames]


def frame_by_frame(model: Pretrained, records: InMemory, clips: int) -> features.Arrays:
    """The embeddings of the first clips, `[clips, frames, dim]` by modality, one frame a call."""
    embed = jax.jit(features.embeddings, static_argnums=0)
    pair_spec, found = PairSpec.of(model.config), {modality: [] for modality in MODALITIES}
    for clip in range(clips):
        for pair in records.pairs(clip, pair_spec, range(pair_spec.num_frames)):
            raw = {modality: pair[modality][None, None] for modality in MODALITIES}
            for modality, rows in jax.device_get(embed(model.module, model.params, raw)).items():
                found[modality].append(rows[0, 0].astype(np.float32))
    shape = clips, pair_spec.num_frames, -1
    return {modality: np.stack(rows).reshape(shape) for modality, rows in found.items()}


def maps_of_evidence(model: Pretrained, count: int) -> np.ndarray:
    """Maps of `count` pictures and sounds of noise, `[count, 1, rows, columns]`."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (count, *model.module.raw_shape(VISUAL)), np.uint8)
    sounds = rng.standard_normal((count, 1, model.module.width), np.float32)
    return np.asarray(heatmaps.evidence(model.module, model.params, images, sounds)["nothing"])


def run(config: ConfigDict, clips: int, looped: int, repeats: int, maps: int = 0) -> None:
    """Prints the machine and the table.

    Args:
      config: of a training.
      clips: how many the features stage embeds in a turn.
      looped: how many go frame by frame in a turn.
      repeats: turns of each.
      maps: how many maps of evidence in a turn; 0 leaves them out.

    Raises:
      UserError: if a number is below 1, or the model's settings do not go together.
    """
    if min(clips, looped, repeats) < 1 or maps < 0:
        raise UserError("--clips, --looped and --repeats must be at least 1, and --maps 0")
    config = config.copy_and_resolve_references()
    config.data.workers = 0  # there is nothing to decode
    module, mesh = cavmae_sync.from_config(config.model), sharding.make_mesh()
    params = jax.jit(module.init_params)(jax.random.key(config.seed))
    model = Pretrained(module, params, config, 0, "random weights")
    frames = config.data.num_frames
    records = InMemory(clips, module, frames)
    candidates = {
        STAGE: lambda: features.extract(features.embeddings, model, records, mesh),
        LOOP: lambda: frame_by_frame(model, records, looped),
    }
    if maps:
        candidates[MAPS] = lambda: maps_of_evidence(model, maps)
    seconds = timing.interleaved(candidates, repeats)
    speeds = {
        name: [count / s for s in seconds[name]] for name, count in ((STAGE, clips), (LOOP, looped))
    }
    ratios = [ours / loop for ours, loop in zip(speeds[STAGE], speeds[LOOP], strict=True)]
    print(f"{timing.machine('jax')}, {jax.devices()[0].device_kind}, {jax.devices()}")
    print(
        f"{module.compute_dtype.name}, {clips} clips of {frames} frames and windows (frame by "
        f"frame: {looped}), median (lowest–highest) of {repeats} repeats\n"
    )
    rows = []
    for name, speed in speeds.items():
        spreads = [timing.Spread.of([factor * s for s in speed]).text(2) for factor in (1, frames)]
        rows.append([name, *spreads, timing.Spread.of(ratios).text(1) if name == STAGE else ""])
    print(timing.table(COLUMNS, rows))
    if maps:
        speed = timing.Spread.of([maps / s for s in seconds[MAPS]]).text(2)
        print(f"\n{MAPS}, {heatmaps.SETS} sets of patches each: {speed} maps/s")


def main() -> None:
    """Runs the command line."""
    arguments = cli.parser(__doc__)
    arguments.add_argument(
        "--clips", type=int, default=64, help="clips per turn of the features stage"
    )
    arguments.add_argument("--looped", type=int, default=1, help="clips per turn of the loop")
    arguments.add_argument("--maps", type=int, default=0, help="maps of evidence per turn; 0: none")
    arguments.add_argument("--repeats", type=int, default=5, help="turns of each candidate")

    def start(args: argparse.Namespace, config: ConfigDict) -> None:
        run(config, args.clips, args.looped, args.repeats, args.maps)

    cli.main(arguments, start, config=True)


if __name__ == "__main__":
    main()
