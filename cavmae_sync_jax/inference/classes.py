"""A fine-tuned model's probability of each class for a file, as the mean over its pairs."""

import functools
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from cavmae_sync_jax.checkpoints.pretrained import Pretrained
from cavmae_sync_jax.models.classifier import SEEN, Classifier
from cavmae_sync_jax.training import finetune_step
from cavmae_sync_jax.utils.errors import UserError
from cavmae_sync_jax.utils.modalities import AUDIO, BOTH, MODALITIES, VISUAL

BATCH = 16  # pairs that are classified at once


def require_fine_tuned(model: Pretrained) -> None:
    """Raises a UserError if a model knows no classes."""
    if not isinstance(model.module, Classifier):
        raise UserError(
            f"{model.directory} is not a fine-tuned model and knows no classes: fine-tune it by "
            "cavmae_sync_jax.finetune, or probe it by cavmae_sync_jax.evals.probe"
        )


def mode_for(model: Pretrained, there: tuple[str, ...]) -> str:
    """The mode of a model for a file that has these modalities.

    Raises:
      UserError: if it is not a fine-tuned model, or was trained with another modality only.
    """
    require_fine_tuned(model)
    stream = model.config.classifier.stream
    if stream == BOTH:
        return BOTH if len(there) == len(MODALITIES) else f"{there[0]}_alone"
    if stream not in there:
        missing = {AUDIO: "sound", VISUAL: "picture"}[stream]
        raise UserError(
            f"{model.directory} was trained with {stream} only: give a file that has a {missing}"
        )
    return stream


def mean_probabilities(
    model: Pretrained, mode: str, pairs: Iterable[Mapping[str, Any]]
) -> Float[np.ndarray, " classes"]:
    """The mean of the probabilities over pairs, which come as raw arrays by modality."""
    total, count = np.zeros(len(model.config.classifier.names)), 0
    loss = model.config.classifier.loss
    for some in pairs:
        for begin in range(0, len(some[SEEN[mode][0]]), BATCH):
            raw = {m: np.asarray(some[m][begin : begin + BATCH]) for m in SEEN[mode]}
            rows = len(next(iter(raw.values())))
            # Filled up to one size, so that one is compiled.
            filled = {m: np.resize(x, (BATCH, *x.shape[1:])) for m, x in raw.items()}
            found = _probabilities(model.module, mode, loss, model.params, filled)
            total += np.asarray(found, np.float64)[:rows].sum(axis=0)
            count += rows
    return total / count


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _probabilities(
    module: Classifier, mode: str, loss: str, params: Any, raw: dict[str, Array]
) -> Array:
    logits: Any = module.apply({"params": params}, raw, (mode,), method="of_raw")
    return finetune_step.probabilities(loss, logits[mode]).astype(jnp.float32)
