"""The train step of fine-tuning, and what the probe shares with it: soft labels and their loss."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float
from ml_collections import ConfigDict

from cavmae_sync_jax.data.records import TRUTH
from cavmae_sync_jax.distributed import sharding
from cavmae_sync_jax.models.classifier import Classifier
from cavmae_sync_jax.training import augmentation, config_checks, train_step
from cavmae_sync_jax.utils.errors import UserError
from cavmae_sync_jax.utils.modalities import AUDIO, BOTH, MODALITIES

INPUTS = (*MODALITIES, TRUTH)
# One stream of randomness for each purpose, all from (seed, step).
MIX_STREAM, SPAN_STREAM, NOISE_STREAM = range(3)


def check(config: ConfigDict) -> None:
    """Refuses settings of a fine-tuning that make no sense.

    Raises:
      UserError: naming the key and what it takes.
    """
    for key in ("label_smoothing", "mixup"):
        config_checks.require_share(config, key)
    for key in ("mask_rows", "mask_bins"):
        config_checks.require_at_least(config, key, 0)
    for key in ("halving_from", "halving_every"):
        config_checks.require_at_least(config, key, 1)
    config_checks.require_above_0(config, "head_rate_factor")
    check_average_from(config)


def check_average_from(config: ConfigDict) -> None:
    """Refuses an `average_from` after the last epoch, and less than one epoch."""
    if config.epochs < 1:
        raise UserError(
            f"config.epochs={config.epochs:g} must be at least 1: the weights after whole epochs "
            "are averaged"
        )
    if not 1 <= config.average_from <= config.epochs:
        raise UserError(
            f"config.average_from={config.average_from} must be from 1 to config.epochs="
            f"{config.epochs:g}: the weights after these epochs are averaged, and the average is "
            "scored"
        )


def targets(
    truth: Float[Array, "batch classes"], smoothing: float
) -> Float[Array, "batch classes"]:
    """Smoothed labels: 1 - s where true, and s / classes everywhere."""
    return truth * (1 - smoothing) + smoothing / truth.shape[1]


def loss(
    kind: str, logits: Float[Array, "batch classes"], wanted: Float[Array, "batch classes"]
) -> Float[Array, ""]:
    """The mean binary cross-entropy (`bce`) or cross-entropy (`ce`) of soft labels."""
    if kind == "ce":
        return optax.softmax_cross_entropy(logits, wanted).mean()
    return optax.sigmoid_binary_cross_entropy(logits, wanted).mean()


def probabilities(
    kind: str, logits: Float[Array, "*rows classes"]
) -> Float[Array, "*rows classes"]:
    """What CAV-MAE averages over frames: sigmoids after `bce`, a softmax after `ce`."""
    return jax.nn.softmax(logits) if kind == "ce" else jax.nn.sigmoid(logits)


def make_optimizer(
    module: Classifier, config: ConfigDict, steps: int, steps_per_epoch: float
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The recipe's optimiser and the learning rate of each step of the pre-trained weights."""
    halvings = config.halving_from, config.halving_every
    factors = module.rate_factors(config.classifier.stream, config.head_rate_factor)
    return train_step.make_optimizer(config, steps, steps_per_epoch, halvings, factors)


def init_state(
    module: Classifier, optimizer: optax.GradientTransformation, key: Array
) -> train_step.AveragedState:
    """Draws the parameters of a new run."""
    return train_step.init_averaged(module.init_params(key), optimizer)


def make_step(
    module: Classifier,
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    shardings: train_step.AveragedState,
    moments: tuple[int, ...],
) -> jax.stages.Wrapped:
    """Returns the jitted `step(state, batch)`, which returns a state and scalars.

    The given state is donated. The weights after the steps `moments` are averaged.
    """

    def step(
        state: train_step.AveragedState, batch: dict[str, Array]
    ) -> tuple[train_step.AveragedState, dict[str, Array]]:
        scalars, grads = loss_and_grads(module, config, state.params, batch, state.step)
        state, norms = train_step.updated(optimizer, state, grads, moments)
        return state, scalars | norms

    mesh = shardings.step.mesh
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(shardings, {name: sharding.batch_sharding(mesh) for name in INPUTS}),
        out_shardings=(shardings, sharding.replicated(mesh)),
    )


def loss_and_grads(
    module: Classifier, config: ConfigDict, params: Any, batch: dict[str, Array], step: Array
) -> tuple[dict[str, Array], Any]:
    """The loss of a fine-tuning's batch, as a scalar by name, and its gradients.

    What is drawn is drawn from (seed, step) for the whole batch, so that `config.microbatches`
    changes nothing but memory and time.
    """
    stream, kind = config.classifier.stream, config.classifier.loss
    raw, wanted = _augmented(module, config, batch, step)

    def objective(params: Any, raw: dict[str, Array], wanted: Array) -> Float[Array, ""]:
        logits = module.apply({"params": params}, raw, (stream,), method="of_raw")
        return loss(kind, logits[stream], wanted)

    differentiate: Callable[..., Any] = jax.value_and_grad(objective)
    if config.microbatches == 1:
        value, grads = differentiate(params, raw, wanted)
        return {"loss": value}, grads
    count = config.microbatches
    chunks = jax.tree.map(lambda x: sharding.split_batch(x, count), (raw, wanted))

    def accumulate(sums: Any, chunk: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, sums, differentiate(params, *chunk)), None

    zeros = jnp.zeros(()), jax.tree.map(jnp.zeros_like, params)
    sums, _ = jax.lax.scan(accumulate, zeros, chunks)
    value, grads = jax.tree.map(lambda x: x / count, sums)
    return {"loss": value}, grads


def _augmented(
    module: Classifier, config: ConfigDict, batch: dict[str, Array], step: Array
) -> tuple[dict[str, Array], Float[Array, "batch classes"]]:
    """The batch as the recipe changes it, and its soft labels: CAV-MAE's order of the changes."""
    key = jax.random.fold_in(jax.random.key(config.seed), step)
    stream = config.classifier.stream
    seen = MODALITIES if stream == BOTH else (stream,)
    truth = batch[TRUTH].astype(jnp.float32)
    raw = {modality: batch[modality] for modality in seen}
    if config.mixup:
        mix_key = jax.random.fold_in(key, MIX_STREAM)
        raw, truth = augmentation.mix(mix_key, config.mixup, raw, truth)
    if AUDIO in raw:
        audio = raw[AUDIO].astype(jnp.float32)
        if config.mask_rows or config.mask_bins:
            span_key = jax.random.fold_in(key, SPAN_STREAM)
            audio = augmentation.mask_audio(span_key, audio, config.mask_rows, config.mask_bins)
        if config.data.augment_audio:
            noise_key = jax.random.fold_in(key, NOISE_STREAM)
            audio = augmentation.augment_audio(noise_key, audio, module.audio_std)
        raw[AUDIO] = audio
    return raw, targets(truth, config.label_smoothing)
