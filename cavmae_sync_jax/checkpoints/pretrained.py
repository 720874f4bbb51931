"""Trained models for use: `load()`, and the weights that another training begins with."""

import functools
from typing import Any, NamedTuple

import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Array, Num
from ml_collections import ConfigDict
from numpy.typing import ArrayLike

from cavmae_sync_jax.checkpoints import manager
from cavmae_sync_jax.checkpoints.shape_diff import mismatch
from cavmae_sync_jax.distributed import sharding
from cavmae_sync_jax.models import cavmae_sync, classifier, patches
from cavmae_sync_jax.models.cavmae_sync import CavMaeSync
from cavmae_sync_jax.models.classifier import Classifier
from cavmae_sync_jax.utils import console, modalities
from cavmae_sync_jax.utils.errors import UserError
from cavmae_sync_jax.utils.modalities import MODALITIES

LARGEST = 64  # samples that `encode_*` gives to the device at once
# Settings of the model that no shape shows: those that must agree, those that may differ.
HEADS = ("heads", "decoder_heads")
SETTINGS_SHAPES_DO_NOT_TELL = ("audio_mean", "audio_std", "registers_in_joint")


class Pretrained(NamedTuple):
    """A trained model with its parameters on the device, for evaluation and use."""

    module: CavMaeSync
    params: Any
    config: ConfigDict
    step: int
    directory: str

    def encode_audio(self, fbank: ArrayLike) -> cavmae_sync.Embedding:
        """Raw log-mel windows `[batch, rows, bins]` to `(global_token, patch_tokens)`.

        Both unnormalised and float32, `[batch, dim]` and `[batch, patches, dim]`; any batch size.

        Raises:
          UserError: for anything but numbers of this model's shape.
        """
        return self._encode(modalities.AUDIO, fbank)

    def encode_image(self, image: ArrayLike) -> cavmae_sync.Embedding:
        """RGB 0–255 `[batch, height, width, 3]`, uint8 or float; else as `encode_audio`."""
        return self._encode(modalities.VISUAL, image)

    def _encode(self, modality: str, given: ArrayLike) -> cavmae_sync.Embedding:
        raw = given if isinstance(given, jax.Array) else np.asarray(given)
        if not (jnp.issubdtype(raw.dtype, jnp.floating) or raw.dtype.kind in "iub"):
            raise UserError(f"{modality} must be real numbers, not {raw.dtype}")
        expected = self.module.raw_shape(modality)
        if tuple(raw.shape[1:]) != expected:
            raise UserError(
                f"this model takes {modality} of shape {list(expected)} "
                f"after the batch axis, not {list(raw.shape[1:])}"
            )
        if not len(raw):
            raise UserError(f"there is no {modality} in a batch of shape {list(raw.shape)}")
        # Whole chunks, and a rest filled up to a power of two: seven compiled sizes serve all.
        starts = range(0, len(raw), LARGEST)
        chunks = [self._embed_chunk(modality, raw[start : start + LARGEST]) for start in starts]
        return jax.tree.map(lambda *parts: jnp.concatenate(parts), *chunks)

    def _embed_chunk(
        self, modality: str, raw: Num[np.ndarray | Array, "batch *shape"]
    ) -> cavmae_sync.Embedding:
        count = len(raw)
        filling = (1 << (count - 1).bit_length()) - count
        raw = np.concatenate([raw, np.zeros((filling, *raw.shape[1:]), raw.dtype)])
        embedding = _embed(self.module, modality, self.params, raw)
        return jax.tree.map(lambda rows: rows[:count], embedding)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _embed(module: CavMaeSync, modality: str, params: Any, raw: jax.Array) -> cavmae_sync.Embedding:
    embedding = module.apply({"params": params}, modality, raw, method="embed")
    return jax.tree.map(lambda tokens: tokens.astype(jnp.float32), embedding)


def load(directory: epath.PathLike, step: int | None = None) -> Pretrained:
    """Loads a model from a workdir (or its `checkpoints` folder), its config included.

    Args:
      directory: the `--workdir` of a training or the destination of a conversion.
      step: which checkpoint; None takes the newest.

    Raises:
      UserError: if there is no such checkpoint, or it does not hold the model of its config.
    """
    with manager.opened(directory, step) as stored:
        module = _module(stored.config, directory)
        one_device = sharding.make_mesh(devices=jax.local_devices()[:1])
        name = stored.best()
        state = stored.restore({name: _abstract(module, one_device)})
    return Pretrained(module, state[name], stored.config, stored.step, str(directory))


def initial_params(directory: epath.PathLike, target: CavMaeSync, mesh: Mesh, seed: int = 0) -> Any:
    """The parameters of another run's newest checkpoint, fitted to `target`, laid out on `mesh`.

    Settings that change no shape may differ from the checkpoint's; the log names them. A classifier
    takes all but a decoder and a head. Its head is drawn. Its positions begin as the fixed ones.

    Args:
      directory: a training's workdir or a conversion's destination.
      target: the model that is going to be trained.
      mesh: the devices.
      seed: draws a classifier's head.

    Raises:
      UserError: if anything but the sizes of image and audio (see `fit_positions`) differs: all
        names and shapes that do not fit, or the number of heads.
    """
    with manager.opened(directory) as stored:
        source = _module(stored.config, directory)
        for key in (*HEADS, *SETTINGS_SHAPES_DO_NOT_TELL):
            if isinstance(target, Classifier) and key == "decoder_heads":
                continue
            theirs, ours = getattr(source, key), getattr(target, key)
            if theirs != ours and key in HEADS:
                raise UserError(
                    f"config.model.{key}={ours}, but {directory} was trained with {theirs}, and "
                    "its weights mean nothing to other heads"
                )
            if theirs != ours:
                console.log(f"config.model.{key} is {ours}; {directory} was trained with {theirs}")
        sized = target.clone(image_size=source.image_size, audio_rows=source.audio_rows)
        mend = (
            "train the model that they are of, or convert them for this one, such as "
            "--config.model.registers=4"
        )
        if isinstance(target, Classifier):
            name = stored.best()
            params = stored.restore({name: _abstract(source, mesh)})[name]
            params = _without_decoder(params, sized, f"{directory} does not hold this model", mend)
        else:
            try:
                params = stored.restore({"params": _abstract(sized, mesh)})["params"]
            except UserError as error:
                raise UserError(f"{error}\n  {mend}") from error
    console.log(f"beginning with the weights of {directory}, step {stored.step}")
    fitted = fit_positions(params, source, target)
    if isinstance(target, Classifier):
        fitted = _with_new(fitted, jax.jit(target.init_params)(jax.random.key(seed)))
    return jax.device_put(fitted, sharding.state_shardings(fitted, mesh))


def _without_decoder(params: Any, target: Classifier, wrong: str, mend: str) -> Any:
    """Those of the weights that a classifier has, but for a head.

    Raises:
      UserError: if they are not all that it needs, besides a head and learned positions.
    """
    given = flax.traverse_util.flatten_dict(dict(params), sep="/")
    taken = {n: x for n, x in given.items() if n.partition("/")[0] not in ("decoder", "head")}
    shapes = jax.eval_shape(target.init_params, jax.random.key(0))
    needed = {
        name: leaf.shape
        for name, leaf in flax.traverse_util.flatten_dict(dict(shapes), sep="/").items()
        if not name.startswith("head/") and (name in taken or not name.endswith("/positions"))
    }
    if differences := mismatch(needed, {name: leaf.shape for name, leaf in taken.items()}):
        raise UserError(f"{wrong}:{differences}\n  {mend}")
    return flax.traverse_util.unflatten_dict(taken, sep="/")


def _with_new(given: Any, drawn: Any) -> Any:
    """The given weights, and those drawn that they lack."""
    whole, taken = (flax.traverse_util.flatten_dict(dict(tree), sep="/") for tree in (drawn, given))
    return flax.traverse_util.unflatten_dict(whole | taken, sep="/")


def fit_positions(params: Any, source: CavMaeSync, target: CavMaeSync) -> Any:
    """Fits the positions of `source`'s parameters to the sizes of image and audio of `target`.

    Fixed positions are no parameters: `target` has its own. Learned ones are interpolated. What was
    done is logged.
    """
    flat = flax.traverse_util.flatten_dict(dict(params), sep="/")
    for modality in MODALITIES:
        old, new = source.grids[modality], target.grids[modality]
        if old == new:
            continue
        done = "interpolated" if f"encoders_{modality}/positions" in flat else "rebuilt"
        console.log(
            f"{modality} positions: {done} for {new.rows} x {new.columns} patches "
            f"(were {old.rows} x {old.columns})"
        )
        for name in (f"encoders_{modality}/positions", f"decoder/positions_{modality}"):
            if name in flat:
                flat[name] = patches.resize_positions(jnp.asarray(flat[name]), old, new)
    return flax.traverse_util.unflatten_dict(flat, sep="/")


def _module(config: ConfigDict, directory: epath.PathLike) -> CavMaeSync:
    if "model" not in config:
        raise UserError(f"{directory} holds a probe's head, not a model")
    if "classifier" in config:
        return classifier.from_config(config)
    return cavmae_sync.from_config(config.model)


def _abstract(module: CavMaeSync, mesh: Mesh) -> Any:
    """The parameters' shapes, with the places on the mesh where they are to lie."""
    shapes = jax.eval_shape(module.init_params, jax.random.key(0))
    return jax.tree.map(
        lambda leaf, place: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place),
        shapes,
        sharding.state_shardings(shapes, mesh),
    )
