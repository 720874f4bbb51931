"""One streamed extraction stage for every evaluation: a split of clips through a model, once.

The caller passes a function of (module, params, batch). `batch` holds `audio`
`[batch, frames, rows, bins]` and `visual` `[batch, frames, height, width, 3]`, raw and without
masks. The function returns arrays by name; their first axis is the batch. Only what it returns is
computed. It may be a `functools.partial`.
"""

import contextlib
import functools
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
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
_PACKAGE = Path(__file__).parents[1]
_ALL = "names.json"  # of a cached result: what the function returns
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
    only: Sequence[str] | None = None,
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
      cache: a folder where the result is kept and looked up. The key is made of the function's
        name and bound arguments, the parameters' contents, the dataset's identity, the pair_spec,
        the arrays of the next two, the code, and the type that it computes in. Arrays in it are not
        in memory, but read as they are used, unless the folder lies in a bucket.
      beside: further arrays by name for the function's batch, with one row per clip of the split.
      shared: further arrays by name, which every batch holds whole.
      only: names of the arrays that are wanted; None means all that the function returns.
      clips_per_device: clips at once; None is 8, and 2 on a CPU.

    Returns:
      Arrays by name, in the split's order.

    Raises:
      UserError: if a value is not finite, as those of a diverged model.
    """
    pair_spec = loader.PairSpec.of(model.config)
    given, place = (dict(beside or {}), dict(shared or {})), None
    if cache is not None:
        place = epath.Path(cache) / _key(function, model, records, given)
        stored = _stored(place, only)
        if multihost.all_agree(stored is not None):
            return stored
    with _Rows(place, len(records)) as whole:
        _stream(function, model, records, pair_spec, mesh, given, only, clips_per_device, whole)
        for name, bad in whole.bad.items():
            raise UserError(
                f"the {name} values of {len(bad)} clips are not finite "
                f"(the first: {records.ids([min(bad)])[0]}): the model has diverged"
            )
        return whole.finish(every=only is None)


class _Rows:
    """The arrays of a result while they are computed: in memory, or in files of the cache.

    Every process has files of its own. Those of the first one become the cache's, one by one and
    whole; the others' lose their names and go when nobody uses them any more.
    """

    def __init__(self, place: epath.Path | None, length: int):
        """Takes the result's folder in the cache, if there is one, and its number of rows."""
        self._place, self._length = place, length
        self._in_files = place is not None and "://" not in os.fspath(place)
        self._partial: dict[str, epath.Path] = {}
        self._arrays: Arrays = {}
        self.bad: dict[str, set[int]] = {}  # rows that are not finite, by the array's name

    def __enter__(self) -> "_Rows":
        return self

    def __exit__(self, kind, error, traceback) -> None:
        for path in self._partial.values():
            path.unlink(missing_ok=True)

    def put(self, clips: np.ndarray, rows: Mapping[str, np.ndarray]) -> None:
        """Takes the rows of some clips."""
        for name, values in rows.items():
            if name not in self._arrays:
                shape = (self._length, *values.shape[1:])
                self._arrays[name] = self._new(name, shape, values.dtype)
            self._arrays[name][clips] = values
            finite = np.isfinite(values.reshape(len(values), -1)).all(axis=1)
            if not finite.all():
                self.bad.setdefault(name, set()).update(clips[~finite].tolist())

    def finish(self, *, every: bool) -> Arrays:
        """Gives the arrays to the cache and returns them; `every` says that there are no others."""
        if self._place is None:
            return self._arrays
        if jax.process_index() == 0:
            self._place.mkdir(parents=True, exist_ok=True)
            for name, values in self._arrays.items():
                if not self._in_files:
                    with self._file(name).open("wb") as file:
                        np.save(file, values)
                self._file(name).replace(self._place / f"{name}.npy")
            if every:
                self._file(_ALL).write_text(json.dumps(list(self._arrays)))
                self._file(_ALL).replace(self._place / _ALL)
        for values in self._arrays.values():
            values.flags.writeable = False
        return self._arrays

    def _new(self, name: str, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        if not self._in_files:
            return np.empty(shape, dtype)
        self._place.mkdir(parents=True, exist_ok=True)
        return np.lib.format.open_memmap(self._file(name), "w+", dtype, shape)

    def _file(self, name: str) -> epath.Path:
        """A file's name until it is whole, which no other process has."""
        if name not in self._partial:
            self._partial[name] = self._place / f"{name}.{uuid.uuid4().hex}.partial"
        return self._partial[name]


def _stored(place: epath.Path, only: Sequence[str] | None) -> Arrays | None:
    """Returns arrays of the cache, None unless all that are wanted are there."""
    with contextlib.suppress(FileNotFoundError):
        names = json.loads((place / _ALL).read_text()) if only is None else only
        return {name: _opened(place / f"{name}.npy") for name in names}
    return None


def _opened(path: epath.Path) -> np.ndarray:
    if "://" not in os.fspath(path):
        return np.load(path, mmap_mode="r", allow_pickle=False)
    with path.open("rb") as file:
        return np.load(file, allow_pickle=False)


def _stream(
    function: Function,
    model: Pretrained,
    records: loader.Records,
    pair_spec: loader.PairSpec,
    mesh: Mesh,
    given: tuple[Arrays, Arrays],
    only: Sequence[str] | None,
    clips_per_device: int | None,
    whole: _Rows,
) -> None:
    """Computes the rows of all clips, batch by batch."""
    data, names = model.config.data, None if only is None else tuple(only)
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
            rows = _compute(function, model.module, names, params, raw)
            rows |= {name: arrays[name] for name in ("clip", "valid")}
            rows = multihost_utils.process_allgather(rows, tiled=True)
            clips, valid = rows.pop("clip"), rows.pop("valid")
            whole.put(clips[valid], {name: values[valid] for name, values in rows.items()})
            bar.update(int(valid.sum()))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _compute(
    function: Function,
    module: CavMaeSync,
    only: tuple[str, ...] | None,
    params: Any,
    batch: Any,
) -> dict[str, Array]:
    def plain(rows: Array) -> Array:
        return rows.astype(jnp.float32) if jnp.issubdtype(rows.dtype, jnp.floating) else rows

    found = function(module, params, batch)
    return jax.tree.map(plain, found if only is None else {name: found[name] for name in only})


@functools.cache
def _code() -> str:
    """A hash of this package: edited code must not find what another has computed."""
    digest = hashlib.sha256()
    for path in sorted(_PACKAGE.rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _name(function: Function) -> str:
    return getattr(function, "func", function).__name__


def encoder(model: Pretrained) -> str:
    """A hash of a model's weights."""
    return _digest((), model.params)


def origin(model: Pretrained, records: loader.Records) -> str:
    """A hash of what features come from: weights, the model's settings, clips and frames."""
    pair_spec = loader.PairSpec.of(model.config)
    return _digest((records.identity, pair_spec, model.config.model.to_json()), model.params)


def _key(
    function: Function, model: Pretrained, records: loader.Records, given: tuple[Arrays, Arrays]
) -> str:
    data = (origin(model, records), records.contents)
    about = (_name(function), *data, str(model.module.compute_dtype), _code())
    if isinstance(function, functools.partial):
        about += (sorted(function.keywords.items()),)
    return f"{_name(function)}-{_digest(about, given)[:16]}"


def _digest(about: tuple[Any, ...], arrays: Any) -> str:
    digest = hashlib.sha256(repr(about).encode())
    for leaf in jax.tree.leaves(arrays):
        digest.update(np.ascontiguousarray(jax.device_get(leaf)))
    return digest.hexdigest()
