"""What decides whether the demo's maps of a sound find its object: trains variants, scores all.

    python -m benchmarks.segmentation_study --data=runs/demo/data --workdir=runs/study

Every row of `VARIANTS` is trained to WORKDIR/ROW. Its maps of the split `--split` are scored with
several queries and tokens. The split is val, because nobody reports scores of it. If the program is
started again, runs that are done are only scored. Another clip's sound is the control: what it
scores does not come from the own sound.
"""

import argparse
from typing import Any

import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array
from ml_collections import ConfigDict

from cavmae_sync_jax import train
from cavmae_sync_jax.checkpoints.pretrained import Pretrained, load
from cavmae_sync_jax.data import loader
from cavmae_sync_jax.distributed import sharding
from cavmae_sync_jax.evals import common, sound_maps
from cavmae_sync_jax.evals.metrics import segmentation as segmentation_metrics
from cavmae_sync_jax.inference import features
from cavmae_sync_jax.models.cavmae_sync import CavMaeSync
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.modalities import AUDIO, VISUAL
from configs import demo

# The demo as it was when the question came up; it has four heads since.
BASE = {"model.decoder_heads": 1}
VARIANTS: dict[str, dict[str, Any]] = {
    "one decoder head": {},
    "four decoder heads, as the demo": {"model.decoder_heads": 4},
    "no global token": {"model.global_token": False},
    "no global token, no registers": {"model.global_token": False, "model.registers": 0},
    "three quarters masked": {"mask.ratios": (0.75,)},
    "no reconstruction": {"loss.reconstruction_weight": 0.0},
    "twice as long": {"epochs": 94.0},
}
KINDS = ("joint", "encoder")  # of the image's tokens, see evals.segmentation
QUERIES = ("global", "patches")  # the sound's global token, or the mean of its joint patches
OTHER = "another clip's sound"
CENTRED = "minus the image's mean"


def all_maps(module: CavMaeSync, params: Any, batch: dict[str, Array]) -> dict[str, Array]:
    """`QUERY_KIND` maps, those of the neighbouring clip's sound, and centred ones."""

    def sound(raw: Array) -> tuple[Array, Array]:
        embedding = module.apply({"params": params}, AUDIO, raw, method="embed")
        return embedding.global_token, embedding.patch_tokens.mean(axis=1)

    def image(raw: Array) -> tuple[Array, Array]:
        def tokens_of(model: CavMaeSync) -> tuple[Array, Array]:
            tokens = model.encode(VISUAL, model.patchify(VISUAL, raw))
            return model.join(VISUAL, tokens).patch_tokens, tokens.patches

        return module.apply({"params": params}, method=tokens_of)

    grid, maps = module.grids[VISUAL], {}
    heard = dict(zip(QUERIES, features.each_frame(sound, batch[AUDIO]), strict=True))
    seen = dict(zip(KINDS, features.each_frame(image, batch[VISUAL]), strict=True))
    for query, vectors in heard.items():
        for kind, patches in seen.items():
            for label, sounds, tokens in (
                ("", vectors, patches),
                (OTHER, jnp.roll(vectors, 1, axis=0), patches),
                (CENTRED, vectors, patches - patches.mean(axis=2, keepdims=True)),
            ):
                cosines = jnp.einsum("bfpd,bfd->bfp", _unit(tokens), _unit(sounds))
                shape = (*cosines.shape[:2], grid.rows, grid.columns)
                maps[f"{query}_{kind}_{label}"] = cosines.reshape(shape)
    return maps


def _unit(vectors: Array) -> Array:
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


def score(model: Pretrained, data: str, split: str) -> dict[str, dict[str, float]]:
    """mAP and mIoU of every kind of map."""
    records = loader.Records(data, split)
    truth = loader.Records(data, split, ("frame_class", "frame_mask"))
    items = sound_maps.find_items(truth, model.config.data.num_frames)
    maps = features.extract(all_maps, model, records, sharding.make_mesh())

    def of(rows: np.ndarray) -> dict[str, float]:
        return segmentation_metrics.means(
            segmentation_metrics.by_class(rows, items.masks, items.classes).values()
        )

    found = {name: of(rows[items.records, items.frames]) for name, rows in maps.items()}
    blob = segmentation_metrics.blob()
    return {**found, "blob": of(np.broadcast_to(blob, (len(items.records), *blob.shape)))}


def _config(row: str, data: str, seed: int) -> ConfigDict:
    config = demo.get_config()
    with config.unlocked():
        config.update_from_flattened_dict({"seed": seed, "data.dir": data, "data.eval_split": ""})
        config.update_from_flattened_dict(BASE | VARIANTS[row])
    return config


def run(data: str, workdir: str, split: str, seed: int, rows: list[str]) -> None:
    """Trains what is not trained yet and prints the table."""
    labels = [f"{q}, {k} tokens" for q in QUERIES for k in KINDS]
    print(f"| mAP / mIoU, % | {' | '.join(labels)} |")
    print("|---" * (1 + len(labels)) + "|")
    cell = "{:.1f} / {:.1f}".format
    for row in rows:
        place = epath.Path(workdir) / row.replace(" ", "_").replace(",", "")
        train.train_and_evaluate(_config(row, data, seed), place)
        model = load(place)
        for title, candidate in ((row, model), (f"{row}, untrained", common.untrained(model))):
            found = score(candidate, data, split)
            for label in ("", OTHER, CENTRED) if candidate is model else ("",):
                cells = [found[f"{q}_{k}_{label}"] for q in QUERIES for k in KINDS]
                texts = [cell(100 * c["mAP"], 100 * c["mIoU"]) for c in cells]
                print(f"| {', '.join(filter(None, (title, label)))} | {' | '.join(texts)} |")
    blob = cell(100 * found["blob"]["mAP"], 100 * found["blob"]["mIoU"])
    print(f"| blob in the middle | {' | '.join([blob] * len(labels))} |", flush=True)


def main() -> None:
    """Runs the command line."""
    arguments = cli.parser(__doc__)
    arguments.add_argument("--data", required=True, help="the demo's dataset")
    arguments.add_argument("--workdir", required=True, help="folder for the trainings")
    arguments.add_argument("--split", default="val", help="split to score")
    arguments.add_argument("--seed", type=int, default=0, help="of the trainings")
    arguments.add_argument(
        "--rows", nargs="+", choices=VARIANTS, default=list(VARIANTS), help="what to train"
    )

    def start(args: argparse.Namespace) -> None:
        run(args.data, args.workdir, args.split, args.seed, args.rows)

    cli.main(arguments, start)


if __name__ == "__main__":
    main()
