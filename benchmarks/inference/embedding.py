"""Times `embed` on files: the whole way, decoding alone, and the model beside the same in PyTorch.

    pip install -e ".[convert]"                  # PyTorch; on a GPU a build of it that has CUDA
    python -m benchmarks.inference.embedding --config=configs/demo.py
    python -m benchmarks.inference.embedding --config=configs/pretrain.py --files=4 --repeats=3
    python -m benchmarks.inference.embedding --config=configs/demo.py --config.model.dtype=bfloat16

The files are synthetic videos of 10 s, 320 × 240 pixels, each of which gives the pairs of one clip.
The whole way is that of `cavmae_sync_jax.embed`, without the index. The model's rows embed what was
decoded before. Weights are random, and the same on both sides: their unit vectors must agree before
anything is timed. Where the whole way takes as long as the model alone, decoding costs nothing.
"""

import argparse
import functools
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from benchmarks import timing
from benchmarks.data import preparation
from cavmae_sync_jax.inference import model as models
from cavmae_sync_jax.inference import reading, similarity, timeline
from cavmae_sync_jax.inference import workers as decoding
from cavmae_sync_jax.models import cavmae_sync
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError
from cavmae_sync_jax.utils.modalities import AUDIO, VISUAL

WHOLE, DECODING, OURS = "embed", "decoding alone", "the model alone"
PEERS = ("eager", "compiled")
COLUMNS = ("", "files/s", "× real time", "× PyTorch compiled")
# The largest difference of a unit vector's component.
TOLERANCE = {"float32": 1e-4, "bfloat16": 5e-2}
Pairs = list[timeline.Pairs]


def random_model(config: ConfigDict) -> models.Model:
    """A model of the config with random weights."""
    module = cavmae_sync.from_config(config.model)
    params = jax.jit(module.init_params)(jax.random.key(config.seed))
    return models.Model(module, params, config, 0, "random weights")


def decode(model: models.Model, files: Sequence[str], workers: int) -> Pairs:
    """All pairs of the files, read as `embed` reads them."""
    found: Pairs = []
    with decoding.started(workers) as started, decoding.within(started):
        for file in files:
            found += timeline.pairs_of_file(reading.file_info(file), model.pair_spec)
    return found


def embed(model: models.Model, files: Sequence[str], workers: int) -> np.ndarray:
    """The vectors `[pairs, 2 * dim]` of files, by the whole way.

    Raises:
      UserError: if one of them can't be read.
    """
    vectors = []
    for _, _, parts in model.embed_files(files, workers):
        if isinstance(parts, UserError):
            raise parts
        vectors += [_beside(part) for part in parts]
    return np.concatenate(vectors)


def _beside(part: models.Embedded) -> np.ndarray:
    return np.concatenate([part.audio, part.visual], axis=1)


def embed_decoded(model: models.Model, pairs: Pairs) -> np.ndarray:
    """The vectors of pairs that lie in memory."""
    return np.concatenate([_beside(part) for part in model.embed_pairs(pairs)])


class Peer:
    """The same model in PyTorch, with the same weights."""

    def __init__(self, model: models.Model) -> None:
        """Takes our model.

        Raises:
          UserError: if PyTorch is missing, or can't compute on this device.
        """
        try:
            import torch

            from benchmarks.training import torch_baseline
        except ModuleNotFoundError as error:
            raise UserError(
                f"{error.name} is missing: pip install '.[convert]', or give --peers without names"
            ) from error
        self._torch = torch
        self._device = torch_baseline.prepare(jax.default_backend())
        dtype = getattr(torch, model.module.compute_dtype.name)
        twin = torch_baseline.TorchCavMaeSync(model.config, dtype)
        torch_baseline.load_params(twin, jax.device_get(model.params))
        twin = twin.to(self._device).eval()
        self._embed = {"eager": twin.embed, "compiled": torch.compile(twin.embed, dynamic=False)}

    def embed_decoded(self, how: str, pairs: Pairs) -> np.ndarray:
        """The vectors of pairs that lie in memory, "eager" or "compiled"."""
        found = []
        with self._torch.inference_mode():
            for part in pairs:
                both = [
                    self._embed[how](m, self._torch.from_numpy(raw).to(self._device))
                    for m, raw in ((AUDIO, part.audio), (VISUAL, part.visual))
                ]
                unit = [similarity.unit(vectors.cpu().numpy()) for vectors in both]
                found.append(np.concatenate(unit, axis=1))
        return np.concatenate(found)


def run(config: ConfigDict, count: int, repeats: int, workers: int, peers: Sequence[str]) -> None:
    """Prints the machine and the table.

    Args:
      config: of a training.
      count: how many files.
      repeats: turns of each candidate.
      workers: processes that decode.
      peers: of `PEERS`.

    Raises:
      UserError: if a number is below 1, or a peer's vectors are others.
    """
    if min(count, repeats, workers) < 1:
        raise UserError("--files, --repeats and --workers must be at least 1")
    model = random_model(config)
    dtype = model.module.compute_dtype.name
    with tempfile.TemporaryDirectory() as folder:
        files = [str(Path(folder) / f"{number}.mp4") for number in range(count)]
        for number, file in enumerate(files):
            preparation.write_video(Path(file), preparation.SIZES[0], np.random.default_rng(number))
        pairs = decode(model, files, workers)
        calls: dict[str, Callable[[], Any]] = {
            WHOLE: lambda: embed(model, files, workers),
            DECODING: lambda: decode(model, files, workers),
            OURS: lambda: embed_decoded(model, pairs),
        }
        if peers:
            peer = Peer(model)
            for how in peers:
                calls[f"PyTorch {how}"] = functools.partial(peer.embed_decoded, how, pairs)
        expected = calls[OURS]()
        for name in calls.keys() - {DECODING, OURS}:
            difference = np.abs(calls[name]() - expected).max()
            if not difference <= TOLERANCE[dtype]:
                raise UserError(
                    f"{name}: the vectors differ by {difference:.2g}, in {dtype}: they must agree "
                    f"to {TOLERANCE[dtype]:g} before it makes sense to time them"
                )
        seconds = timing.interleaved(calls, repeats)
    print(f"{timing.machine('jax', 'av')}, {jax.devices()[0].device_kind}")
    print(
        f"{dtype}, {count} files of {preparation.SECONDS} s, {workers} worker processes, "
        f"median (lowest–highest) of {repeats} repeats\n"
    )
    print(timing.table(COLUMNS, [_row(name, seconds, count) for name in seconds]))


def _row(name: str, seconds: dict[str, list[float]], count: int) -> list[str]:
    speeds = [count / s for s in seconds[name]]
    best, ratio = seconds.get(f"PyTorch {PEERS[-1]}"), ""
    if best and name in (WHOLE, OURS):
        ratios = [theirs / ours for ours, theirs in zip(seconds[name], best, strict=True)]
        ratio = timing.Spread.of(ratios).text(2)
    real = timing.Spread.of([preparation.SECONDS * speed for speed in speeds])
    return [name, timing.Spread.of(speeds).text(2), real.text(0), ratio]


def main() -> None:
    """Runs the command line."""
    arguments = cli.parser(__doc__)
    arguments.add_argument("--files", type=int, default=32, help="files to embed per turn")
    arguments.add_argument("--repeats", type=int, default=5, help="turns of each candidate")
    arguments.add_argument("--workers", type=int, default=1, help="processes that decode")
    arguments.add_argument(
        "--peers",
        nargs="*",
        choices=PEERS,
        default=PEERS,
        help="PyTorch versions to compare with; without names, none",
    )

    def start(args: argparse.Namespace, config: ConfigDict) -> None:
        run(config, args.files, args.repeats, args.workers, args.peers)

    cli.main(arguments, start, config=True)


if __name__ == "__main__":
    main()
