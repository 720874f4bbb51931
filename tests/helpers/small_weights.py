"""Weights in the authors' format, of a size that converts in no time."""

import pytest

from cavmae_sync_jax import convert
from cavmae_sync_jax.torch_compat import torch_io
from cavmae_sync_jax.utils.errors import UserError

# Sizes that convert in no time; two heads because no width of ViT tells them.
SMALL = {
    "image_size": 32,
    "audio_rows": 96,
    "width": 16,
    "depth": 2,
    "heads": 2,
    "decoder_width": 8,
    "decoder_depth": 1,
    "decoder_heads": 2,
    "registers": 2,
}


HEADS = ["--config.model.heads=2", "--config.model.decoder_heads=2"]


def make(path, state):
    torch_io.write(str(path), dict(state))
    return str(path)


def refused(source, destination, overrides=HEADS):
    """The message of a refusal, after which nothing is left at the destination or beside it."""
    with pytest.raises(UserError) as error:
        convert.import_weights(str(source), str(destination), overrides)
    assert not list(destination.parent.glob(f"*{destination.name}*"))
    return str(error.value)
