"""One streamed extraction stage for every evaluation: a split of clips through a model, once.

What is computed of each clip is a function of (module, params, batch). `batch` holds `audio`
`[batch, frames, rows, bins]` and `visual` `[batch, frames, height, width, 3]`, raw and without
masks. The function returns arrays by name; their first axis is the batch. Only what it returns is
computed. A `functools.partial` of such a function serves, too.
"""

import functools
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from jaxtyping import Array

from cavmae_sync_jax.checkpoints.pretrained import Pretrained
from cavmae_sync_jax.data import loader
from cavmae_sync_jax.distributed import multihost, sharding
from cavmae_sync_jax.models.cavmae_sync import CavMaeSync
from cavmae_sync_jax.utils import console
from cavmae_sync_jax.utils.errors import UserError
from cavmae_sync_jax.utils.modalities import MODALITIES

CLIPS_PER_DEVICE = 8
_ON_A_CPU = 2  # with more, activations outgrow the caches, and each clip takes longer
Arrays = dict[str, np.ndarray]
Function = Callable[[CavMaeSync, Any, dict[str, Array]], dict[str, Array]]


def embeddings(module: CavMaeSync, params: Any, batch: dict[str, Array]) -> dict[str, Array]:
    """The global embeddings of every frame, `audio` and `visual` `[batch, frames, dim]`."""

    def embed(modality: str, raw: Array) -> Array:
        return module.apply({"params": params}, modality, raw, method="embed").global_token

    return {m: each_frame(functools.partial(embed, m), batch[m]) for m in MODALITIES}


def encoder_tokens(module: CavMaeSync, params: Any, batch: dict[str, Array]) -> dict[str, Array]:
    """What the encoders give, before the joint block: `MODALITY_KIND` `[batch, frames, dim]`.

    Kinds: `global`, and the means `registers` and `patches`, as far as the model has them.
    """

    def encode(modality: str, raw: Array) -> dict[str, Array]:
        def tokens_of(model: CavMaeSync) -> Any:
            return model.encode(modality, model.patchify(modality, raw))

        tokens = module.apply({"params": params}, method=tokens_of)
        kinds = {f"{modality}_patches": tokens.patches.mean(axis=1)}
        if tokens.global_token is not None:
            kinds[f"{modality}_global"] = tokens.global_token
        if tokens.registers.shape[1]:
            kinds[f"{modality}_registers"] = tokens.registers.mean(axis=1)
        return kinds

    both = [each_frame(functools.partial(encode, m), batch[m]) for m in MODALITIES]
    return both[0] | both[1]


def each_frame(function: Callable[[Array], Any], raw: Array) -> Any:
    """Applies a function of `[samples, …]` to `[batch, frames, …]`, all frames at once."""
    split = raw.shape[:2]
    result = function(raw.reshape(-1, *raw.shape[2:]))
    return jax.tree.map(lambda rows: rows.reshape(*split, *rows.shape[1:]), result)


def extract(
    function: Function,
    model: Pretrained,
    records: loader.Records,
    mesh: Mesh,
    cache: epath.PathLike | None = None,
    *,
    beside: Mapping[str, np.ndarray] | None = None,
    shared: Mapping[str, np.ndarray] | None = None,
    clips_per_device: int | None = None,
) -> Arrays:
    """Streams a split through a model on all devices of the mesh.

    The last batch is filled up and its filling dropped, so that every clip counts once on any
    number of devices. Every process gets the whole result.

    Args:
      function: what to compute, see above; floats come back as float32.
      model: the parameters may lie anywhere on the mesh.
      records: the split.
      mesh: the devices.
      cache: a folder where the result is kept and looked up, by the function's name and bound
        arguments, the parameters' contents, the dataset's identity, the pair_spec and the arrays
        of the next two.
      beside: further arrays by name for the function's batch, with one row per clip of the split.
      shared: further arrays by name, which every batch holds whole.
      clips_per_device: clips at once; None is 8, and 2 on a CPU.

    Returns:
      Arrays by name, in the split's order.

    Raises:
      UserError: if a value is not finite, as those of a diverged model.
    """
    pair_spec = loader.PairSpec.of(model.config)
    place, given = None, (dict(beside or {}), dict(shared or {}))
    if cache is not None:
        place = epath.Path(cache) / f"{_key(function, model, records, pair_spec, given)}.npz"
        if multihost.all_agree(place.exists()):
            with place.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                return dict(stored)
    whole = _stream(function, model, records, pair_spec, mesh, given, clips_per_device)
    for name, rows in whole.items():
        bad = np.flatnonzero(~np.isfinite(rows.reshape(len(rows), -1)).all(axis=1))
        if bad.size:
            raise UserError(
                f"the {name} values of {bad.size} clips are not finite "
                f"(the first: {records.ids([int(bad[0])])[0]}): the model has diverged"
            )
    if place is not None and jax.process_index() == 0:
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_suffix(".partial")
        with partial.open("wb") as file:
            np.savez(file, **whole)
        partial.replace(place)
    return whole


def _stream(
    function: Function,
    model: Pretrained,
    records: loader.Records,
    pair_spec: loader.PairSpec,
    mesh: Mesh,
    given: tuple[Arrays, Arrays],
    clips_per_device: int | None,
) -> Arrays:
    data, whole = model.config.data, {}
    # From the host where one device has them, because it can't give to those of other processes.
    params = model.params
    if not all(len(leaf.sharding.device_set) == mesh.size for leaf in jax.tree.leaves(params)):
        params = jax.device_get(params)
    params = jax.device_put(params, sharding.replicated(mesh))
    most = _ON_A_CPU if jax.default_backend() == "cpu" else CLIPS_PER_DEVICE
    batch_size = (clips_per_device or min(most, CLIPS_PER_DEVICE)) * mesh.size
    beside, layout = given[0], sharding.batch_sharding(mesh)
    shared = jax.device_put(given[1], sharding.replicated(mesh))
    batches = loader.clip_batches(records, pair_spec, batch_size, data.workers, data.prefetch)
    with jax.set_mesh(mesh), console.progress(_name(function), len(records), "clip") as bar:
        for arrays, host in loader.to_device(batches, mesh):
            # Rows of a global array follow the mesh, not the processes: each brings its index.
            raw = {modality: arrays[modality] for modality in MODALITIES} | shared
            raw |= {
                name: jax.make_array_from_process_local_data(layout, values[host["clip"]])
                for name, values in beside.items()
            }
            rows = _compute(function, model.module, params, raw)
            rows |= {name: arrays[name] for name in ("clip", "valid")}
            rows = multihost_utils.process_allgather(rows, tiled=True)
            clips, valid = rows.pop("clip"), rows.pop("valid")
            for name, values in rows.items():
                if name not in whole:
                    whole[name] = np.empty((len(records), *values.shape[1:]), values.dtype)
                whole[name][clips[valid]] = values[valid]
            bar.update(int(valid.sum()))
    return whole


@functools.partial(jax.jit, static_argnums=(0, 1))
def _compute(function: Function, module: CavMaeSync, params: Any, batch: Any) -> dict[str, Array]:
    def plain(rows: Array) -> Array:
        return rows.astype(jnp.float32) if jnp.issubdtype(rows.dtype, jnp.floating) else rows

    return jax.tree.map(plain, function(module, params, batch))


def _name(function: Function) -> str:
    return getattr(function, "func", function).__name__


def _key(
    function: Function,
    model: Pretrained,
    records: loader.Records,
    pair_spec: loader.PairSpec,
    given: tuple[Arrays, Arrays],
) -> str:
    digest = hashlib.sha256()
    about: tuple[Any, ...] = (records.identity, pair_spec, model.config.model.to_json())
    about = (_name(function), *about)
    if isinstance(function, functools.partial):
        about += (sorted(function.keywords.items()),)
    digest.update(repr(about).encode())
    for leaf in jax.tree.leaves((model.params, given)):
        digest.update(np.ascontiguousarray(jax.device_get(leaf)))
    return f"{_name(function)}-{digest.hexdigest()[:16]}"
