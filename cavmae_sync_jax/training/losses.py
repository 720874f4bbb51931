"""Masked reconstruction, contrast and their sum (paper section 3.2, equations 1–4).

Everything is computed in float32. Batch arrays may be sharded: under `jax.jit` the contrast
compares the whole global batch, and each device scores its own rows against all columns.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float
from ml_collections import ConfigDict

from cavmae_sync_jax.distributed.sharding import constrain_batch

Scalars = dict[str, Float[Array, ""]]
# For each direction: whether the softmax runs over the audios of a visual, over the visuals of
# an audio, or both (their mean). The released code has the first one only.
DIRECTIONS = {"visual_to_audio": (0,), "audio_to_visual": (1,), "both": (0, 1)}


def normalise_patches(
    patches: Float[Array, "batch patches pixels"],
) -> Float[Array, "batch patches pixels"]:
    """Each patch minus its mean, over the root of its unbiased variance + 1e-6 (norm_pix_loss)."""
    mean = patches.mean(axis=-1, keepdims=True)
    variance = patches.var(axis=-1, keepdims=True, ddof=1)
    return (patches - mean) / jnp.sqrt(variance + 1e-6)


def reconstruction_loss(
    predictions: Float[Array, "batch patches pixels"],
    patches: Float[Array, "batch patches pixels"],
    masked: Bool[Array, "batch patches"] | None = None,
) -> Float[Array, ""]:
    """Mean over masked patches of the squared error against normalised pixels (equations 2–4).

    Without `masked`, all patches given are masked ones.
    """
    error = predictions.astype(jnp.float32) - normalise_patches(patches)
    if masked is None:
        return jnp.square(error).mean()
    per_patch = (error**2).mean(axis=-1)
    return jnp.where(masked, per_patch, 0).sum() / masked.sum()


def info_nce(
    audio: Float[Array, "batch dim"],
    visual: Float[Array, "batch dim"],
    temperature: float,
    direction: str = "visual_to_audio",
    groups: int = 1,
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """InfoNCE between aligned embeddings (equation 1), and the share of correct arg-maxima.

    Args:
      audio: embeddings of any length; row i belongs to row i of `visual`.
      visual: as `audio`.
      temperature: divides the cosines.
      direction: a key of `DIRECTIONS`.
      groups: the batch is cut into this many consecutive groups; only a sample's own group gives
        its negatives (data parallelism with negatives per device has one group a device).

    Returns:
      The mean cross-entropy and the accuracy.
    """
    batch, dim = audio.shape
    shape = (groups, batch // groups, dim)
    audio, visual = (_unit(x.astype(jnp.float32)).reshape(shape) for x in (audio, visual))
    logits = jnp.einsum("gad,gvd->gav", audio, visual, precision="highest") / temperature
    # Rows stay where their samples are, so that a device holds its share of the logits only.
    logits = constrain_batch(logits.reshape(batch, shape[1])).reshape(groups, *shape[1:2] * 2)
    axes = [1 + axis for axis in DIRECTIONS[direction]]
    targets = jnp.arange(shape[1])[None]
    losses, correct = [], []
    for axis in axes:
        log_p = jax.nn.log_softmax(logits, axis=axis)
        losses.append(-jnp.diagonal(log_p, axis1=1, axis2=2).mean())
        correct.append((logits.argmax(axis=axis) == targets).mean())
    return jnp.asarray(sum(losses)) / len(axes), jnp.asarray(sum(correct)) / len(axes)


def _unit(x: Float[Array, "batch dim"]) -> Float[Array, "batch dim"]:
    # The root of 0 has no gradient, so the bound comes first.
    squares = jnp.square(x).sum(axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.maximum(squares, 1e-24))


def contrast(
    settings: ConfigDict | Mapping[str, Any], embeddings: Mapping[str, Float[Array, "batch dim"]]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """`info_nce` by the config's `loss` section."""
    return info_nce(
        embeddings["audio"],
        embeddings["visual"],
        settings["temperature"],
        settings["contrast_direction"],
        settings["contrast_groups"],
    )


def reconstruction(
    predictions: Mapping[str, Float[Array, "batch _ _"]],
    masked_patches: Mapping[str, Float[Array, "batch _ _"]],
) -> Scalars:
    """`reconstruction_loss` of every modality's masked patches."""
    return {
        f"reconstruction_{modality}": reconstruction_loss(
            predictions[modality], masked_patches[modality]
        )
        for modality in predictions
    }


def total(
    settings: ConfigDict | Mapping[str, Any],
    contrasted: tuple[Float[Array, ""], Float[Array, ""]],
    reconstructed: Scalars,
) -> tuple[Float[Array, ""], Scalars]:
    """The training loss λ_c·L_c + λ_r·(L_a + L_v) and its parts, by the config's `loss` section."""
    nce, accuracy = contrasted
    loss = settings["contrast_weight"] * nce
    loss += settings["reconstruction_weight"] * sum(reconstructed.values())
    return loss, {"loss": loss, "contrast": nce, "nce_accuracy": accuracy, **reconstructed}
