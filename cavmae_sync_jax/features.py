"""One streamed extraction stage for every evaluation: a split of clips to embeddings."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array, Float, Num

from cavmae_sync_jax import dataset, metrics, sharding
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
    workers: int = 0,
    prefetch: int = 2,
) -> ClipEmbeddings:
    """Embeds all frames and windows of a split, nothing masked, on all devices of the mesh.

    The last batch is filled up and its filling dropped, so that every clip counts once on any
    number of devices. Every process gets the whole result.
    """
    batch_size = CLIPS_PER_DEVICE * mesh.size
    params = jax.device_put(params, sharding.replicated(mesh))
    parts: dict[str, list[np.ndarray]] = {modality: [] for modality in MODALITIES}
    batches = dataset.clip_batches(records, framing, batch_size, workers, prefetch)
    with jax.set_mesh(mesh), metrics.progress("embed", len(records), "clip") as bar:
        for arrays, _ in dataset.to_device(batches, mesh):
            for modality in MODALITIES:
                embedded = _embed(module, modality, params, arrays[modality])
                whole = multihost_utils.process_allgather(embedded, tiled=True)
                parts[modality].append(np.asarray(whole))
            bar.update(min(batch_size, len(records) - bar.n))
    joined = {name: np.concatenate(rows)[: len(records)] for name, rows in parts.items()}
    return ClipEmbeddings(**joined)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _embed(
    module: CavMaeSync, modality: str, params: Any, raw: Num[Array, "batch frames *shape"]
) -> Float[Array, "batch frames dim"]:
    flat = raw.reshape(-1, *raw.shape[2:])
    embedding = module.apply({"params": params}, modality, flat, method="embed").global_token
    return embedding.astype(np.float32).reshape(*raw.shape[:2], -1)
