"""Sound-prompted segmentation (paper section 3.5.3; Table 3, Figure 5) of a trained model.

Where in an image is what a sound comes from? A map is the cosine of the sound's global token with
the image's patch tokens. Any dataset whose frames have a class and a mask can be scored, such as
those of data_prep.ade20k_sound and data_prep.scenes; frames in which nothing sounds are left out.

Example:
  python -m cavmae_sync_jax.evals.segmentation --checkpoint=runs/sync --data=DATASET

Prints a table and writes OUTPUT/segmentation.json, with the scores of every class, and
OUTPUT/segmentation.png, where some images are shown with their maps.
"""

import argparse
import io
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Array, Float, Float32
from PIL import Image

from cavmae_sync_jax.checkpoints.pretrained import Pretrained
from cavmae_sync_jax.data import loader
from cavmae_sync_jax.distributed import multihost, sharding
from cavmae_sync_jax.evals import common
from cavmae_sync_jax.evals.figures import segmentation as figure
from cavmae_sync_jax.evals.metrics import segmentation as segmentation_metrics
from cavmae_sync_jax.evals.metrics.segmentation import Items
from cavmae_sync_jax.inference import features
from cavmae_sync_jax.models.cavmae_sync import CavMaeSync
from cavmae_sync_jax.utils import cli, console
from cavmae_sync_jax.utils.errors import UserError
from cavmae_sync_jax.utils.modalities import AUDIO, VISUAL

Query = Literal["frame", "clip"]
Tokens = Literal["joint", "encoder"]
NAME = "segmentation"


class Stills(loader.Records):
    """Records of one image each, which is repeated, so that a sound gets as many windows as a clip.

    A model of 16 frames a clip so hears an image's sound in its 16 windows, spread as always.
    """

    def __init__(self, records: loader.Records, windows: int):
        super().__init__(records.directory, records.split)
        self._windows = windows

    def __getitem__(self, index: int) -> dict[str, Any]:
        record = super().__getitem__(index)
        return {**record, "frames": list(record["frames"]) * self._windows}


def frame_maps(module: CavMaeSync, params: Any, batch: dict[str, Array]) -> dict[str, Array]:
    """Every frame's cosine maps, for `features.extract`: `QUERY_TOKENS`, see `run`.

    Each is `[batch, frames, rows, columns]` on the grid of patches.
    """
    windows = _windows(module, params, batch[AUDIO])
    queries = {"frame": windows, "clip": windows.mean(axis=1, keepdims=True)}
    return _cosines(module, params, queries, batch[VISUAL])


def still_maps(module: CavMaeSync, params: Any, batch: dict[str, Array]) -> dict[str, Array]:
    """The maps of `Stills`, whose frames are all the same: `[batch, 1, rows, columns]` each."""
    windows = _windows(module, params, batch[AUDIO])
    queries = {"clip": windows.mean(axis=1, keepdims=True)}
    return _cosines(module, params, queries, batch[VISUAL][:, :1])


def _windows(
    module: CavMaeSync, params: Any, audio: Float[Array, "batch frames rows bins"]
) -> Float32[Array, "batch frames dim"]:
    """The unit global token of every window, after the joint block's pass of the sound."""

    def embed(raw: Array) -> Array:
        return module.apply({"params": params}, AUDIO, raw, method="embed").global_token

    return _unit(features.each_frame(embed, audio))


def _cosines(
    module: CavMaeSync, params: Any, queries: dict[str, Array], images: Array
) -> dict[str, Array]:
    """Cosines of `[batch, 1 or frames, dim]` with the patches of `[batch, frames, …]` images."""

    def patches_of(model: CavMaeSync, raw: Array) -> dict[str, Array]:
        tokens = model.encode(VISUAL, model.patchify(VISUAL, raw))
        return {"joint": model.join(VISUAL, tokens).patch_tokens, "encoder": tokens.patches}

    def embed(raw: Array) -> dict[str, Array]:
        return module.apply({"params": params}, raw, method=patches_of)

    maps = {}
    for tokens, patches in features.each_frame(embed, images).items():
        batch, frames, _, dim = patches.shape
        for query, sound in queries.items():
            sound = jnp.broadcast_to(_unit(sound), (batch, frames, dim))
            # At full precision, where accelerators would round the cosines to 3 digits.
            cosines = jnp.einsum("bfpd,bfd->bfp", _unit(patches), sound, precision="highest")
            grid = module.grids[VISUAL]
            maps[f"{query}_{tokens}"] = cosines.reshape(batch, frames, grid.rows, grid.columns)
    return maps


def _unit(vectors: Float[Array, "*shape dim"]) -> Float32[Array, "*shape dim"]:
    vectors = vectors.astype(jnp.float32)
    norms = jnp.linalg.norm(vectors, axis=-1, keepdims=True)
    return vectors / jnp.maximum(norms, jnp.finfo(jnp.float32).tiny)


def run(
    model: Pretrained,
    records: loader.Records,
    output: epath.PathLike | None = None,
    *,
    mesh: Mesh | None = None,
    query: Query | None = None,
    tokens: Tokens = "joint",
    with_baselines: bool = True,
    cache: epath.PathLike | None = None,
) -> dict[str, Any]:
    """Scores where a model sees what it hears.

    Clips are taken with as many frames as they have, at most as many as the model was trained with;
    a single image's sound is heard in as many windows as a clip's, see `Stills`.

    Args:
      model: whose maps are scored.
      records: clips with `frame_class` and `frame_mask`.
      output: a folder for `segmentation.json` and `segmentation.png`; None writes and prints
        nothing.
      mesh: the devices; None means all.
      query: the sound's vector: `frame`, the global token of the frame's own window, or `clip`,
        the mean of the unit global tokens of all windows. None takes `frame` for clips, in which
        sounds come and go, and `clip` for single images, whose sound has no moment of its own.
      tokens: the image's vectors: patch tokens after their `joint` pass and its norm (the paper's),
        or straight from the `encoder`.
      with_baselines: also scores a constant map, a blob in the middle, and an untrained model of
        the same shape.
      cache: see `features.extract`.

    Returns:
      What `segmentation.json` holds.

    Raises:
      UserError: if the data have no truth, or only silence, or one image and the query `frame`, or
        the model has no global token.
    """
    mesh = mesh or sharding.make_mesh()
    if not model.module.global_token:
        raise UserError(
            f"{model.directory} has no global token (config.model.global_token=False), "
            "which a sound's prompt is"
        )
    truth = loader.Records(records.directory, records.split, ("frame_class", "frame_mask"))
    (stored,) = truth.features["frame_class"].shape
    query = query or ("clip" if stored == 1 else "frame")
    if stored == 1:
        if query == "frame":
            raise UserError(
                f"--query=frame: {records.directory} has one image a sound, which has no window "
                "of its own; use --query=clip"
            )
        records, function, frames = Stills(records, model.config.data.num_frames), still_maps, 1
    else:
        frames = min(stored, model.config.data.num_frames)
        model, function = _with_frames(model, frames), frame_maps
    items = find_items(truth, frames)

    def maps_of(model: Pretrained) -> segmentation_metrics.Maps:
        maps = features.extract(function, model, records, mesh, cache)[f"{query}_{tokens}"]
        return maps[items.records, items.frames]

    maps = maps_of(model)
    table = segmentation_metrics.by_class(maps, items.masks, items.classes)
    names = truth.features["labels"].feature.names
    result: dict[str, Any] = {
        "items": len(maps),
        "query": query,
        "tokens": tokens,
        "scores": segmentation_metrics.means(table.values()),
        "classes": {names[class_id]: score for class_id, score in table.items()},
    }
    if with_baselines:
        untrained = maps_of(common.untrained(model))
        blobs = np.broadcast_to(
            segmentation_metrics.blob(), (len(maps), *segmentation_metrics.blob().shape)
        )
        result["baselines"] = {
            "constant map (every pixel)": segmentation_metrics.constant(table.values()),
            "blob in the middle": _score(blobs, items),
            "untrained model": _score(untrained, items),
        }
    result |= common.describe(model, records)
    if output is not None:
        common.write(output, NAME, result, format_table(result))
        if jax.process_index() == 0:
            figure.draw(
                records,
                loader.PairSpec.of(model.config),
                items,
                maps,
                names,
                epath.Path(output) / f"{NAME}.png",
            )
    return result


def _with_frames(model: Pretrained, frames: int) -> Pretrained:
    """The same model, for clips of so many frames."""
    config = model.config.copy_and_resolve_references()
    with config.unlocked():
        config.data.num_frames = frames
    return model._replace(config=config)


def find_items(truth: loader.Records, frames: int) -> Items:
    """The frames in which something sounds and is seen, of `frames` evenly chosen of each clip.

    Raises:
      UserError: if there is none.
    """
    found = []
    with console.progress("truth", len(truth), "clip") as bar:
        for index in range(len(truth)):
            record = truth[index]
            classes, masks = record["frame_class"], record["frame_mask"]
            for frame in range(frames):
                place = frame * len(classes) // frames
                if classes[place] >= 0:
                    picture = Image.open(io.BytesIO(masks[place]), formats=("PNG",))
                    mask = np.asarray(picture.convert("1"))
                    if mask.any():
                        found.append((index, frame, int(classes[place]), mask))
            bar.update()
    if not found:
        raise UserError(
            f"{truth.directory}, split {truth.split} has no frame with a class and a true pixel"
        )
    return Items(*map(np.array, zip(*found, strict=True)))


def _score(maps: segmentation_metrics.Maps, items: Items) -> dict[str, float]:
    return segmentation_metrics.means(
        segmentation_metrics.by_class(maps, items.masks, items.classes).values()
    )


def format_table(result: dict[str, Any]) -> str:
    """The scores of `run` as a text table, in percent."""
    title = f"segmentation, {result['items']} images of {len(result['classes'])} classes, %"
    lines = [f"{title:52}   mAP  mIoU"]
    name = f"model, query {result['query']}, {result['tokens']} tokens"
    for row, score in {name: result["scores"], **result.get("baselines", {})}.items():
        lines.append(f"{row:52} {100 * score['mAP']:5.1f} {100 * score['mIoU']:5.1f}")
    return "\n".join(lines)


def main() -> None:
    """Runs the command line."""
    arguments = common.parser(__doc__, NAME)
    arguments.add_argument(
        "--query",
        choices=get_args(Query),
        help="sound's vector: of the frame's own window, or the mean of all the clip's windows; "
        "None is frame for clips and clip for single images",
    )
    arguments.add_argument(
        "--tokens",
        choices=get_args(Tokens),
        default="joint",
        help="image's vectors: patches after the joint block, or straight from the encoder",
    )

    def start(args: argparse.Namespace) -> None:
        model, records = common.opened(args)
        run(model, records, args.output, query=args.query, tokens=args.tokens, cache=args.cache)

    cli.main(arguments, start, within=multihost.connected)


if __name__ == "__main__":
    main()
