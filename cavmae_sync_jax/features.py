"""One streamed extraction stage for every evaluation: a split of clips to embeddings."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Float, Num

from cavmae_sync_jax import dataset, metrics, sharding
from cavmae_sync_jax.cli import UserError
from cavmae_sync_jax.model import MODALITIES, CavMaeSync

CLIPS_PER_DEVICE = 8


class ClipEmbeddings(NamedTuple):
    """The global embeddings of every frame of every clip, in the split's order, float32."""

    audio: Float[np.ndarray, "clips frames dim"]
    visual: Float[np.ndarray, "clips frames dim"]


def embed_clips(
    module: CavMaeSync,
    params: Any,
    records: dataset.Records,
    framing: dataset.Framing,
    mesh: Mesh,
    workers: int,
    prefetch: int,
) -> ClipEmbeddings:
    """Embeds all frames and windows of a split, nothing masked, on all devices of the mesh.

    The last batch is filled up and its filling dropped, so that every clip counts once on any
    number of devices. Every process gets the whole result. `workers` and `prefetch` are those of
    `dataset.clip_batches`.

    Raises:
      UserError: if an embedding is not finite, as those of a diverged model.
    """
    batch_size = CLIPS_PER_DEVICE * mesh.size
    params = jax.device_put(params, sharding.replicated(mesh))
    size = (len(records), framing.num_frames, module.width)
    whole = {modality: np.empty(size, np.float32) for modality in MODALITIES}
    batches = dataset.clip_batches(records, framing, batch_size, workers, prefetch)
    with jax.set_mesh(mesh), metrics.progress("embed", len(records), "clip") as bar:
        for arrays, _ in dataset.to_device(batches, mesh):
            # Rows of a global array follow the mesh, not the processes: each brings its index.
            rows = {m: _embed(module, m, params, arrays[m]) for m in MODALITIES}
            rows |= {name: arrays[name] for name in ("clip", "valid")}
            rows = multihost_utils.process_allgather(rows, tiled=True)
            valid = rows["valid"]
            for modality in MODALITIES:
                whole[modality][rows["clip"][valid]] = rows[modality][valid]
            bar.update(int(valid.sum()))
    for modality, embedded in whole.items():
        bad = np.flatnonzero(~np.isfinite(embedded).all(axis=(1, 2)))
        if bad.size:
            raise UserError(
                f"the {modality} embeddings of {bad.size} clips are not finite "
                f"(the first: {records.ids([int(bad[0])])[0]}): the model has diverged"
            )
    return ClipEmbeddings(**whole)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _embed(
    module: CavMaeSync, modality: str, params: Any, raw: Num[Array, "batch frames *shape"]
) -> Float[Array, "batch frames dim"]:
    flat = raw.reshape(-1, *raw.shape[2:])
    embedding = module.apply({"params": params}, modality, flat, method="embed").global_token
    return embedding.astype(np.float32).reshape(*raw.shape[:2], -1)
