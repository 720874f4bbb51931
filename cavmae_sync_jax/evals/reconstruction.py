"""What a trained model reconstructs of masked patches (paper equations 2–4): errors and pictures.

The decoder predicts each patch minus its mean, divided by its standard deviation. It predicts
neither of the two. The errors are in these units: a prediction of zero, which is the mean, has an
error of about 1. For the pictures, each masked patch gets its true mean and deviation back. Beside
them is a picture of the means alone.

Example:
  python -m cavmae_sync_jax.evals.reconstruction --checkpoint=runs/sync --data=DATASET

Prints a table and writes OUTPUT/reconstruction.json and OUTPUT/reconstruction.png.
"""

import argparse
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from cavmae_sync_jax.checkpoints.pretrained import Pretrained
from cavmae_sync_jax.data import loader
from cavmae_sync_jax.distributed import multihost, sharding
from cavmae_sync_jax.evals import common
from cavmae_sync_jax.evals.figures import reconstruction as figure
from cavmae_sync_jax.inference import features
from cavmae_sync_jax.models import masking, patches
from cavmae_sync_jax.models.cavmae_sync import IMAGE_MEAN, IMAGE_STD, CavMaeSync
from cavmae_sync_jax.models.classifier import Classifier
from cavmae_sync_jax.training import losses
from cavmae_sync_jax.utils import cli
from cavmae_sync_jax.utils.errors import UserError
from cavmae_sync_jax.utils.modalities import AUDIO, MODALITIES, VISUAL

MASK_SEED = 0
PAPER_RATIO = 0.75  # for checkpoints whose config does not say how they were trained
PREDICTED, ZERO = "predicted", "zero"
Patches = dict[str, Float[Array, "batch _ _"]]


@dataclasses.dataclass(frozen=True)
class Masks:
    """Which patches are kept of a clip's frames; every clip and every model has the same ones."""

    ratio: float
    audio_structure: str

    @classmethod
    def of(cls, config: ConfigDict, ratio: float | None = None) -> "Masks":
        """The masks that a model was trained with, or masks of another ratio."""
        trained = config.get("mask", {"ratios": (PAPER_RATIO,), "audio_structure": "unstructured"})
        return cls(trained["ratios"][0] if ratio is None else ratio, trained["audio_structure"])

    def check(self, module: CavMaeSync) -> None:
        """Raises a UserError if no patch would be kept, or none masked."""
        for modality, grid in module.grids.items():
            if not (
                0 < self.ratio < 1
                and 0 < masking.kept_patches(grid.patches, self.ratio) < grid.patches
            ):
                raise UserError(
                    f"--mask_ratio={self.ratio} must keep and mask at least one of the "
                    f"{grid.patches} {modality} patches"
                )

    def draw(self, module: CavMaeSync, frames: int) -> dict[str, Int[Array, "frames _"]]:
        """The kept patches' indices of each modality."""
        structures = {AUDIO: self.audio_structure, VISUAL: "unstructured"}
        return {
            m: masking.draw(
                jax.random.fold_in(jax.random.key(MASK_SEED), index),
                frames,
                module.grids[m],
                self.ratio,
                structures[m],
            ).kept
            for index, m in enumerate(MODALITIES)
        }


@dataclasses.dataclass(frozen=True)
class MaskedErrors:
    """A function for `features.extract`: the mean masked error of each clip over all its frames.

    It returns `MODALITY_predicted` and, for a prediction of zero, `MODALITY_zero` `[batch]`.
    """

    masks: Masks

    @property
    def __name__(self) -> str:
        return f"masked_errors_{self.masks.ratio}_{self.masks.audio_structure}"

    def __call__(
        self, module: CavMaeSync, params: Any, batch: dict[str, Array]
    ) -> dict[str, Array]:
        """See the class."""
        clips, frames = batch[AUDIO].shape[:2]
        keep = self.masks.draw(module, frames)
        errors = {}
        flat = {m: batch[m].reshape(clips * frames, *batch[m].shape[2:]) for m in MODALITIES}
        tiled = {m: jnp.tile(keep[m], (clips, 1)) for m in MODALITIES}
        predictions, true = _predict(module, params, flat, tiled)
        for modality, predicted in predictions.items():
            masked = masking.is_masked(keep[modality], module.grids[modality].patches)
            loss = jax.vmap(losses.reconstruction_loss, in_axes=(0, 0, None))
            shape = (clips, frames, *predicted.shape[1:])
            target = true[modality].reshape(shape)
            errors[f"{modality}_{PREDICTED}"] = loss(predicted.reshape(shape), target, masked)
            errors[f"{modality}_{ZERO}"] = loss(jnp.zeros(shape), target, masked)
        return errors


def _predict(
    module: CavMaeSync,
    params: Any,
    raw: dict[str, Array],
    keep: dict[str, Int[Array, "batch _"]],
) -> tuple[Patches, Patches]:
    """The predicted (normalised) and the true patches of both modalities."""
    true = {m: module.patchify(m, raw[m]) for m in MODALITIES}
    visible = {m: patches.gather(true[m], keep[m]) for m in MODALITIES}
    return module.apply({"params": params}, visible, keep).predictions, true


def run(
    model: Pretrained,
    records: loader.Records,
    output: epath.PathLike | None = None,
    *,
    mesh: Mesh | None = None,
    mask_ratio: float | None = None,
    with_baselines: bool = True,
    cache: epath.PathLike | None = None,
) -> dict[str, Any]:
    """Measures a model's reconstruction of masked patches in all frames of a split.

    An error is `losses.reconstruction_loss`. Frame i of every clip has the same masked patches,
    drawn from a fixed seed. The errors therefore depend neither on the number of devices nor on the
    batches.

    Args:
      model: whose decoder predicts.
      records: the clips.
      output: a folder for `reconstruction.json` and `reconstruction.png`; None writes and prints
        nothing.
      mesh: the devices; None means all.
      mask_ratio: share of masked patches; None takes the first that the model was trained with
        (0.75 if its checkpoint does not say, as one that was converted).
      with_baselines: also measures an untrained model of the same shape, and a prediction of zero.
      cache: see `features.extract`.

    Returns:
      What `reconstruction.json` holds.

    Raises:
      UserError: if the ratio keeps or masks no patch, or the model is a fine-tuned one.
    """
    if isinstance(model.module, Classifier):
        raise UserError(
            f"{model.directory} is a fine-tuned model and has no decoder: "
            "reconstruct by the model that it began with"
        )
    masks = Masks.of(model.config, mask_ratio)
    masks.check(model.module)
    mesh = mesh or sharding.make_mesh()
    function = MaskedErrors(masks)

    def errors(of: Pretrained) -> dict[str, dict[str, float]]:
        means = {
            name: float(rows.mean(dtype=np.float64))
            for name, rows in features.extract(function, of, records, mesh, cache).items()
        }
        return {kind: {m: means[f"{m}_{kind}"] for m in MODALITIES} for kind in (PREDICTED, ZERO)}

    trained = errors(model)
    result = {
        "clips": len(records),
        "frames": model.config.data.num_frames,
        "mask": {**dataclasses.asdict(masks), "seed": MASK_SEED},
        "errors": trained[PREDICTED],
    }
    if with_baselines:
        result["baselines"] = {
            "untrained model": errors(common.untrained(model))[PREDICTED],
            "prediction of zero (the patch's mean)": trained[ZERO],
        }
    result |= common.describe(model, records)
    if output is not None:
        common.write(output, "reconstruction", result, format_table(result))
        if jax.process_index() == 0:
            draw_figure(model, records, masks, epath.Path(output) / "reconstruction.png")
    return result


def format_table(result: dict[str, Any]) -> str:
    """The errors of `run` as a text table."""
    masked = f"{100 * result['mask']['ratio']:g} % masked"
    title = f"reconstruction error, {result['clips']} clips, {masked}"
    lines = [f"{title:48}" + "".join(f"  {m:>8}" for m in MODALITIES)]
    for name, row in {"model": result["errors"], **result.get("baselines", {})}.items():
        lines.append(f"{name:48}" + "".join(f"  {row[m]:8.3f}" for m in MODALITIES))
    return "\n".join(lines)


def restore(
    predictions: Float[Array, "batch patches pixels"],
    true: Float[Array, "batch patches pixels"],
    masked: Bool[Array, "batch patches"],
) -> Float[Array, "batch patches pixels"]:
    """Masked patches as predicted, with their true mean and spread put back; kept ones as given.

    The inverse of `losses.normalise_patches`. Mean and spread are an oracle's: no model has them.
    """
    mean = true.mean(axis=-1, keepdims=True)
    spread = jnp.sqrt(true.var(axis=-1, keepdims=True, ddof=1) + 1e-6)
    return jnp.where(masked[:, :, None], predictions.astype(jnp.float32) * spread + mean, true)


def picture(
    module: CavMaeSync, modality: str, normalised: Float[Array, "batch patches pixels"]
) -> Float[np.ndarray, "batch *shape"]:
    """A picture to look at from patches as `CavMaeSync.patchify` makes them.

    Returns:
      RGB 0–1 `[batch, height, width, 3]`, not clipped, or log-mels `[batch, bins, rows]`.
    """
    size = module.audio_patch if modality == AUDIO else module.image_patch
    pictures = np.asarray(patches.unpatchify(normalised, module.grids[modality], size))
    if modality == AUDIO:
        return pictures[..., 0] * np.float32(module.audio_std) + np.float32(module.audio_mean)
    return pictures * np.array(IMAGE_STD, np.float32) + np.array(IMAGE_MEAN, np.float32)


def draw_figure(
    model: Pretrained,
    records: loader.Records,
    masks: Masks,
    path: epath.Path,
    clips: int = 4,
) -> None:
    """Draws a frame of each of some evenly chosen clips: masked, predicted and as it is."""
    module, pair_spec = model.module, loader.PairSpec.of(model.config)
    chosen = np.linspace(0, len(records) - 1, min(clips, len(records))).astype(int)
    # Frames from early to late, because equal frames would have equal masks.
    frames = (2 * np.arange(len(chosen)) + 1) * pair_spec.num_frames // (2 * len(chosen))
    pairs = [
        records.pairs(int(clip), pair_spec, [int(frame)])[0]
        for clip, frame in zip(chosen, frames, strict=True)
    ]
    raw = {m: jnp.asarray(np.stack([pair[m] for pair in pairs])) for m in MODALITIES}
    keep = {m: kept[frames] for m, kept in masks.draw(module, pair_spec.num_frames).items()}
    predictions, true = jax.jit(functools.partial(_predict, module))(model.params, raw, keep)
    columns: dict[str, list[np.ndarray]] = {}
    for modality in (VISUAL, AUDIO):
        known, predicted = true[modality], predictions[modality]
        masked = masking.is_masked(keep[modality], module.grids[modality].patches)
        for title, shown in {
            "masked input": jnp.where(masked[:, :, None], jnp.nan, known),
            "no model: the masked\npatches' true means": restore(0 * known, known, masked),
            "model, given true\nmeans and spreads": restore(predicted, known, masked),
            "original": known,
        }.items():
            columns[f"{modality}\n{title}"] = list(picture(module, modality, shown))
    ids = records.ids([int(clip) for clip in chosen])
    names = [f"{name}, frame {frame}" for name, frame in zip(ids, frames, strict=True)]
    figure.draw(columns, names, path)


def main() -> None:
    """Runs the command line."""
    arguments = common.parser(__doc__, "reconstruction")
    arguments.add_argument(
        "--mask_ratio",
        type=float,
        help="share of masked patches; without it, the one that the model was trained with",
    )

    def start(args: argparse.Namespace) -> None:
        model, records = common.opened(args)
        run(model, records, args.output, mask_ratio=args.mask_ratio, cache=args.cache)

    cli.main(arguments, start, within=multihost.connected)


if __name__ == "__main__":
    main()
