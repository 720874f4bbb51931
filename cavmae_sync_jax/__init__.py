"""CAV-MAE Sync (CVPR 2025) in JAX: pre-training, evaluation and use of trained models."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cavmae_sync_jax.checkpoints.pretrained import Pretrained


def load(directory: str, step: int | None = None) -> "Pretrained":
    """Loads a trained model: `load("DIR").encode_audio(fbank)`, `.encode_image(image)`.

    Both return `(global_token [batch, dim], patch_tokens [batch, patches, dim])`, unnormalised, for
    raw log-mel `[batch, rows, bins]` and RGB 0–255 `[batch, height, width, 3]`.

    Args:
      directory: the `--workdir` of a training or the destination of a conversion.
      step: which checkpoint; None takes the newest.

    Raises:
      cavmae_sync_jax.utils.cli.UserError: if there is no such checkpoint.
    """
    from cavmae_sync_jax.checkpoints import (
        pretrained,  # JAX is heavy, and data preparation needs none
    )

    return pretrained.load(directory, step)
