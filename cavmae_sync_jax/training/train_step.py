"""The train step: one pure function of (state, batch), jitted and sharded, and its state."""

import itertools
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int
from ml_collections import ConfigDict

from cavmae_sync_jax.distributed import sharding
from cavmae_sync_jax.models import masking
from cavmae_sync_jax.models.cavmae_sync import CavMaeSync
from cavmae_sync_jax.training import augmentation, losses, optim
from cavmae_sync_jax.utils.modalities import AUDIO, MODALITIES, VISUAL

Metrics = dict[str, Float[Array, ""]]
# One stream of randomness for each purpose, all from (seed, step).
MASK_STREAM, AUGMENT_STREAM, RATIO_STREAM = range(3)


class Samples(NamedTuple):
    """A batch before it is cut into patches: raw input, indices of kept and of masked patches."""

    raw: dict[str, Array]
    keep: dict[str, Array]
    masked: dict[str, Array]


class TrainState(flax.struct.PyTreeNode):
    """All that a step changes; its leaves are arrays, or their shapes or shardings."""

    step: Any
    params: Any
    opt_state: Any

    def best(self) -> Any:
        """The parameters to use."""
        return self.params


class AveragedState(TrainState):
    """A state with `average`, the mean of the parameters of `averaged` moments."""

    average: Any
    averaged: Any

    def best(self) -> Any:
        """The average, once there is one."""
        return self.average if int(self.averaged) else self.params


def make_optimizer(
    config: ConfigDict,
    steps: int,
    steps_per_epoch: float,
    halvings: tuple[int, int] = optim.HALVINGS,
    factors: Any | None = None,
) -> tuple[optax.GradientTransformation, optax.Schedule]:
    """The recipe's optimiser and its learning rate of each step; see `optim` for the rest."""
    rate = optim.schedule(
        config.schedule,
        config.learning_rate,
        steps,
        steps_per_epoch,
        config.warmup_share,
        config.learning_rate_floor,
        halvings,
    )
    return optim.adam(rate, config.adam_b1, config.adam_b2, config.l2, factors), rate


def init_state(
    module: CavMaeSync, optimizer: optax.GradientTransformation, key: jax.Array
) -> TrainState:
    """Draws the parameters of a new run."""
    params = module.init_params(key)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def init_averaged(params: Any, optimizer: optax.GradientTransformation) -> AveragedState:
    """The state of a new run whose parameters are going to be averaged."""
    zero = jnp.zeros((), jnp.int32)
    return AveragedState(zero, params, optimizer.init(params), params, zero)


def updated(
    optimizer: optax.GradientTransformation,
    state: TrainState,
    grads: Any,
    moments: tuple[int, ...] = (),
) -> tuple[TrainState, Metrics]:
    """The next state, and the norms of the gradients and of the update.

    An `AveragedState` takes the new parameters into its average after the steps `moments`.
    """
    updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
    params, number = optax.apply_updates(state.params, updates), state.step + 1
    norms = {"grad_norm": optax.global_norm(grads), "update_norm": optax.global_norm(updates)}
    changed = {"step": number, "params": params, "opt_state": opt_state}
    if isinstance(state, AveragedState):
        take = (number == jnp.asarray(moments, jnp.int32)).any()
        average, averaged = optim.running_mean(state.average, state.averaged, params, take)
        changed |= {"average": average, "averaged": averaged}
    return state.replace(**changed), norms


def ends_of_epochs(first: int, steps: int, steps_per_epoch: float) -> tuple[int, ...]:
    """The steps at whose end the epochs from the `first` (counted from 1) are over."""
    # Rounded as the steps of the training are, so that its last epoch ends with them.
    ends = (round(epoch * steps_per_epoch) for epoch in itertools.count(first))
    return tuple(itertools.takewhile(lambda end: end <= steps, ends))


def batch_ratio(ratios: tuple[float, ...], seed: int, step: int) -> float:
    """The batch's mask ratio; each value compiles its own step, so `ratios` is a short list."""
    return ratios[int(np.random.default_rng((seed, RATIO_STREAM, step)).integers(len(ratios)))]


def loss_and_grads(
    module: CavMaeSync,
    config: ConfigDict,
    params: Any,
    batch: dict[str, Array],
    step: Int[Array, ""],
    ratio: float,
) -> tuple[Metrics, Any]:
    """The training loss of raw frames and windows, its parts, and the gradients.

    Masks are drawn from (seed, step) for the whole batch, so that `config.microbatches` changes
    nothing but memory and time.
    """
    samples = _samples(module, config, batch, step, ratio)
    if config.microbatches == 1:

        def objective(params: Any) -> tuple[Float[Array, ""], Metrics]:
            embeddings, parts = _forward(module, params, samples)
            return losses.total(config.loss, losses.contrast(config.loss, embeddings), parts)

        (_, scalars), grads = jax.value_and_grad(objective, has_aux=True)(params)
        return scalars, grads
    return _chunked(module, config, params, samples)


def _samples(
    module: CavMaeSync,
    config: ConfigDict,
    batch: dict[str, Array],
    step: Int[Array, ""],
    ratio: float,
) -> Samples:
    key = jax.random.fold_in(jax.random.key(config.seed), step)
    raw = {modality: batch[modality] for modality in MODALITIES}
    if config.data.augment_audio:
        audio_key = jax.random.fold_in(key, AUGMENT_STREAM)
        raw[AUDIO] = augmentation.augment_audio(
            audio_key, raw[AUDIO].astype(jnp.float32), module.audio_std
        )
    masks = {}
    for index, modality in enumerate(MODALITIES):
        mask_key = jax.random.fold_in(jax.random.fold_in(key, MASK_STREAM), index)
        structure = config.mask.audio_structure if modality == AUDIO else "unstructured"
        size = raw[modality].shape[0]
        masks[modality] = masking.draw(mask_key, size, module.grids[modality], ratio, structure)
    keep, masked = ({m: part[i] for m, part in masks.items()} for i in range(2))
    return Samples(raw, keep, masked)


def _forward(
    module: CavMaeSync, params: Any, samples: Samples
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The global embeddings and the reconstruction losses of raw samples."""
    raw, keep, masked = samples
    visible, hidden = (
        {m: module.patchify(m, raw[m], chosen[m]) for m in MODALITIES} for chosen in (keep, masked)
    )
    outputs = module.apply({"params": params}, visible, keep, masked)
    embeddings = {m: embedding.global_token for m, embedding in outputs.embeddings.items()}
    return embeddings, losses.reconstruction(outputs.predictions, hidden)


def _chunked(
    module: CavMaeSync, config: ConfigDict, params: Any, samples: Samples
) -> tuple[Metrics, Any]:
    """The whole batch's loss and gradients with the activations of one microbatch at a time.

    The contrast needs all embeddings, but not all activations (GradCache, Gao et al. 2021): embed
    every chunk, find the contrast's gradients for the embeddings, then embed again chunk by chunk
    and go on backwards from there. Reconstruction losses are means over equally many patches each.
    """
    count = config.microbatches
    chunks = jax.tree.map(lambda x: sharding.split_batch(x, count), samples)

    def embed(_: None, chunk: Samples) -> tuple[None, dict[str, Array]]:
        return None, _forward(module, params, chunk)[0]

    _, embedded = jax.lax.scan(embed, None, chunks)
    whole = {m: sharding.merge_batch(embedded[m].astype(jnp.float32)) for m in MODALITIES}

    def contrasted(whole: dict[str, Array]) -> tuple[Float[Array, ""], Any]:
        pair = losses.contrast(config.loss, whole)
        return config.loss.contrast_weight * pair[0], pair

    embedding_grads, pair = jax.grad(contrasted, has_aux=True)(whole)
    embedding_grads = {m: sharding.split_batch(embedding_grads[m], count) for m in MODALITIES}

    def accumulate(grads: Any, inputs: tuple[Samples, dict[str, Array]]) -> tuple[Any, Metrics]:
        chunk, embedding_grad = inputs

        def objective(params: Any) -> tuple[Float[Array, ""], Metrics]:
            embeddings, parts = _forward(module, params, chunk)
            value = config.loss.reconstruction_weight / count * sum(parts.values())
            for m in MODALITIES:
                value += jnp.sum(embeddings[m].astype(jnp.float32) * embedding_grad[m])
            return value, parts

        more, parts = jax.grad(objective, has_aux=True)(params)
        return jax.tree.map(jnp.add, grads, more), parts

    zeros = jax.tree.map(jnp.zeros_like, params)
    grads, parts = jax.lax.scan(accumulate, zeros, (chunks, embedding_grads))
    means = jax.tree.map(lambda x: x.mean(axis=0), parts)
    return losses.total(config.loss, pair, means)[1], grads


def abstract_batch(
    module: CavMaeSync, batch_size: int, mesh: jax.sharding.Mesh
) -> dict[str, jax.ShapeDtypeStruct]:
    """The shapes of a batch as the input pipeline brings it."""
    dtypes = {AUDIO: jnp.float16, VISUAL: jnp.uint8}
    layout = sharding.batch_sharding(mesh)
    return {
        m: jax.ShapeDtypeStruct((batch_size, *module.raw_shape(m)), dtypes[m], sharding=layout)
        for m in MODALITIES
    }


def lowered(
    module: CavMaeSync,
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    mesh: jax.sharding.Mesh,
    platforms: tuple[str, ...] | None = None,
) -> jax.stages.Lowered:
    """The train step of a training on `mesh`, whose devices need not exist, ready to compile.

    `platforms` are the devices' own, where JAX does not tell them from the described devices.
    """
    shapes = jax.eval_shape(lambda: init_state(module, optimizer, jax.random.key(0)))
    shardings = sharding.state_shardings(shapes, mesh)
    step = make_train_step(module, optimizer, config, shardings)
    batch = abstract_batch(module, config.batch_size, mesh)
    traced = step.trace(sharding.laid_out(shapes, shardings), batch, config.mask.ratios[0])
    return traced.lower(lowering_platforms=platforms)


def make_train_step(
    module: CavMaeSync,
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    shardings: TrainState,
) -> jax.stages.Wrapped:
    """Returns the jitted `step(state, batch, ratio)`, which returns a state and scalars.

    `ratio` is static, and the given state is donated.
    """

    def step(state: TrainState, batch: dict[str, Array], ratio: float):
        scalars, grads = loss_and_grads(module, config, state.params, batch, state.step, ratio)
        state, norms = updated(optimizer, state, grads)
        return state, scalars | norms

    mesh = shardings.step.mesh
    batch = {modality: sharding.batch_sharding(mesh) for modality in MODALITIES}
    return jax.jit(
        step,
        static_argnums=2,
        donate_argnums=0,
        in_shardings=(shardings, batch),
        out_shardings=(shardings, sharding.replicated(mesh)),
    )
