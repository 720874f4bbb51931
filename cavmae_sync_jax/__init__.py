"""CAV-MAE Sync (CVPR 2025) in JAX: pre-training, evaluation and use of trained models."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cavmae_sync_jax.inference.model import Model


def load(directory: str, step: int | None = None) -> "Model":
    """Loads a trained model, for files and for arrays.

    `embed_video`, `embed_sound` and `embed_image` take files of any length and return unit vectors.
    `similarity` compares them, and `heatmap` shows where in a picture a sound comes from.

    `encode_audio` takes raw log-mel `[batch, rows, bins]`, and `encode_image` RGB 0–255
    `[batch, height, width, 3]`. Both return `(global_token [batch, dim], patch_tokens [batch,
    patches, dim])`, unnormalised.

    Args:
      directory: the `--workdir` of a training, the destination of a conversion, or an address on
        the Hugging Face Hub, such as `hf://USER/REPO`.
      step: which checkpoint; None takes the newest.

    Raises:
      cavmae_sync_jax.utils.cli.UserError: if there is no such checkpoint.
    """
    from cavmae_sync_jax.inference import model  # JAX is heavy, and data preparation needs none

    return model.load(directory, step)
