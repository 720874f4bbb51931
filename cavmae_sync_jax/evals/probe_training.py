"""Trains a probe's head on the features of a frozen encoder (paper section 4.1, Table 9).

Clips come either as features that are computed once, or raw. Raw clips pass the encoder in every
epoch. Only then can windows be shifted and frames mixed before the encoder, as in the recipe.
"""

import contextlib
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from cavmae_sync_jax.checkpoints import manager
from cavmae_sync_jax.checkpoints.pretrained import Pretrained
from cavmae_sync_jax.data import dataset_dir, loader
from cavmae_sync_jax.distributed import sharding
from cavmae_sync_jax.inference import features
from cavmae_sync_jax.media import audio
from cavmae_sync_jax.models.probe_head import ProbeHead
from cavmae_sync_jax.training import optim
from cavmae_sync_jax.training.train_step import augment_audio
from cavmae_sync_jax.utils import console
from cavmae_sync_jax.utils.errors import UserError
from cavmae_sync_jax.utils.modalities import AUDIO, MODALITIES, VISUAL

STREAMS = {"both": (AUDIO, VISUAL), "audio": (AUDIO,), "visual": (VISUAL,)}
LOSSES = ("bce", "ce")
MIXUP_CONCENTRATION = 10.0  # of the Beta distribution that λ comes from
CHANGEABLE_ON_RESUME = {"log_every"}


class Features:
    """Features of clips that are side by side in several arrays, maybe in files.

    They are joined only where rows are read, because all of them may not fit into the memory.
    """

    def __init__(self, parts: Sequence[Float[np.ndarray, "clips frames _"]]):
        """Takes arrays whose last axes are joined."""
        self._parts, self.width = parts, sum(part.shape[-1] for part in parts)

    def __len__(self) -> int:
        return len(self._parts[0])

    def __getitem__(self, rows: Any) -> Float[np.ndarray, "clips frames dim"]:
        return np.concatenate([part[rows] for part in self._parts], axis=-1)


class Labelled(NamedTuple):
    """Clips with their labels: features, or the split that they are read from."""

    truth: Bool[np.ndarray, "clips classes"]
    source: Features | loader.Records


class HeadState(flax.struct.PyTreeNode):
    """All that a step changes; `average` is the mean of `averaged` epochs' parameters."""

    step: Any
    params: Any
    opt_state: Any
    average: Any
    averaged: Any

    def best(self) -> Any:
        """The parameters to use: the average, once there is one."""
        return self.average if int(self.averaged) else self.params


def check(config: ConfigDict, devices: int) -> None:
    """Refuses settings that do not go together.

    Raises:
      UserError: naming the key and what it takes.
    """
    for key, allowed in (("stream", tuple(STREAMS)), ("loss", LOSSES)):
        if config[key] not in allowed:
            raise UserError(f"config.{key}={config[key]!r} must be one of {', '.join(allowed)}")
    for key in ("batch_size", "epochs", "heads", "log_every"):
        if config[key] < 1:
            raise UserError(f"config.{key}={config[key]} must be at least 1")
    if not 1 <= config.average_from <= config.epochs:
        raise UserError(
            f"config.average_from={config.average_from} must be from 1 to config.epochs="
            f"{config.epochs}: the weights of these epochs are averaged, and the average is scored"
        )
    if config.batch_size % devices:
        raise UserError(f"config.batch_size={config.batch_size} must be a multiple of {devices}")
    if config.cached and config.time_shift:
        raise UserError(
            "config.cached=True computes the features once, so that windows can't be shifted anew "
            "in each epoch: set --config.time_shift=False"
        )
    for key in ("mixup", "label_smoothing", "warmup_share", "learning_rate_floor"):
        if not 0 <= config[key] <= 1:
            raise UserError(f"config.{key}={config[key]} must be from 0 to 1")


def order(
    truth: Bool[np.ndarray, "clips classes"], config: ConfigDict
) -> Int[np.ndarray, " places"]:
    """The clips of all epochs, one after the other; a pure function of the seed.

    Each epoch is a permutation. If `balanced`, it is as many draws with replacement. A clip then
    weighs the sum over its labels of 1000 / (clips of the label + 0.01).
    """
    weights = None
    if config.balanced:
        weights = truth @ dataset_dir.class_weights(truth.sum(axis=0))
        weights = weights / weights.sum()
    epochs = []
    for epoch in range(config.epochs):
        rng = np.random.default_rng((config.seed, epoch))
        epochs.append(rng.choice(len(truth), len(truth), replace=config.balanced, p=weights))
    return np.concatenate(epochs)


def targets(
    truth: Float[Array, "batch classes"], smoothing: float
) -> Float[Array, "batch classes"]:
    """Smoothed labels: 1 - s where true, and s / classes everywhere."""
    return truth * (1 - smoothing) + smoothing / truth.shape[1]


def mix(
    key: jax.Array, share: float, raw: dict[str, Array], truth: Float[Array, "batch classes"]
) -> tuple[dict[str, Array], Float[Array, "batch classes"]]:
    """Mixup: a share of the clips becomes λ of itself and 1 - λ of another of the batch.

    The reference mixes waveforms. Here log-mels give the log of their mixed energies, which is what
    a mixed waveform has where the two sounds do not hang together. Pictures, features and labels
    are mixed as they are.

    Args:
      key: of the batch.
      share: how many, on average.
      raw: arrays whose first axis is the batch. `audio` is raw log-mel, of which rows of zeros are
        padding.
      truth: labels.
    """
    chosen_key, other_key, weight_key = jax.random.split(key, 3)
    batch = truth.shape[0]
    other = jax.random.permutation(other_key, batch)
    weight = jax.random.beta(weight_key, MIXUP_CONCENTRATION, MIXUP_CONCENTRATION, (batch,))
    weight = jnp.where(jax.random.uniform(chosen_key, (batch,)) < share, weight, 1)

    def blend(x: Array) -> Array:
        w = weight.reshape(-1, *[1] * (x.ndim - 1))
        return w * x + (1 - w) * x[other]

    def blend_sound(x: Array) -> Array:
        w = weight.reshape(-1, *[1] * (x.ndim - 1))
        there = (x != 0).any(axis=-1, keepdims=True)
        energy = jnp.where(there, jnp.exp(x), 0)
        mixed = jnp.log(jnp.maximum(w**2 * energy + (1 - w) ** 2 * energy[other], audio.FLOOR))
        return jnp.where(there & (w < 1), mixed, x)

    blends = {name: blend_sound if name == AUDIO else blend for name in raw}
    return {name: blends[name](x.astype(jnp.float32)) for name, x in raw.items()}, blend(truth)


def token_names(global_token: bool, stream: str) -> tuple[str, ...]:
    """Names the arrays of `features.encoder_tokens` that the head sees, side by side.

    They are the encoders' global tokens. Without a global token the patches' mean takes its place,
    as in the model.
    """
    kind = "global" if global_token else "patches"
    return tuple(f"{modality}_{kind}" for modality in STREAMS[stream])


def make_head(width: int, classes: int, config: ConfigDict) -> ProbeHead:
    """The head that the config asks for.

    Raises:
      UserError: if its heads do not divide its width.
    """
    if width % config.heads:
        raise UserError(f"config.heads={config.heads} must divide the features' width of {width}")
    return ProbeHead(width, config.depth, config.heads, config.mlp_ratio, classes)


def train(
    head: ProbeHead,
    clips: Labelled,
    model: Pretrained,
    config: ConfigDict,
    mesh: Mesh,
    workdir: epath.PathLike | None,
) -> Any:
    """Trains a head, resuming if `workdir` holds its checkpoints; returns its parameters.

    Args:
      head: what to train.
      clips: the training clips.
      model: the frozen encoder, for clips that come raw.
      config: the recipe, see configs/probe.py.
      mesh: the devices.
      workdir: for checkpoints, one an epoch; None keeps none.

    Raises:
      UserError: if `workdir` holds another recipe's checkpoints, or the loss is not finite.
    """
    steps_per_epoch = len(clips.truth) // config.batch_size
    if not steps_per_epoch:
        raise UserError(
            f"config.batch_size={config.batch_size} is more than the {len(clips.truth)} clips of "
            f"the split {config.train_split!r}"
        )
    steps = config.epochs * steps_per_epoch
    peak = config.learning_rate if head.depth else config.linear_learning_rate
    rate = optim.schedule(
        "cosine",
        peak,
        steps,
        float(steps_per_epoch),
        config.warmup_share,
        config.learning_rate_floor,
    )
    optimizer = optim.adam(rate, config.adam_b1, config.adam_b2, config.l2)

    def fresh(key: jax.Array) -> HeadState:
        params = head.init_params(key)
        zero = jnp.zeros((), jnp.int32)
        return HeadState(zero, params, optimizer.init(params), params, zero)

    key = jax.random.key(config.seed)
    shapes = jax.eval_shape(fresh, key)
    shardings = sharding.state_shardings(shapes, mesh)
    step = _make_step(head, model, optimizer, config, steps_per_epoch, shardings)
    places = order(clips.truth, config)
    with contextlib.ExitStack() as stack:
        checkpoints = None
        state = jax.jit(fresh, out_shardings=shardings)(key)
        if workdir is not None:
            checkpoints = manager.Checkpoints(workdir, keep=2)
            stack.callback(checkpoints.close)
            if (newest := checkpoints.latest) is not None:
                state = _resume(checkpoints.stored(newest), head, config, shapes, shardings)
        first = int(state.step)
        batches = _batches(clips, places, model, config, mesh, first)
        stack.callback(batches.close)
        stack.enter_context(jax.set_mesh(mesh))
        bar = stack.enter_context(console.progress("probe", steps, "step", initial=first))
        encoder = {}
        if isinstance(clips.source, loader.Records):
            encoder = jax.device_put(jax.device_get(model.params), sharding.replicated(mesh))
        for number, batch in zip(range(first + 1, steps + 1), batches, strict=False):
            state, loss = step(state, encoder, batch)
            bar.update()
            if number % config.log_every == 0 or number == steps:
                if not np.isfinite(float(loss)):
                    raise UserError(
                        f"the probe's loss at step {number} is {float(loss)}: "
                        "lower config.learning_rate"
                    )
                bar.set_postfix(loss=f"{float(loss):.4f}")
            if checkpoints and (number % steps_per_epoch == 0 or number == steps):
                checkpoints.save(number, state, _described(head, config), {})
    return state.best()


def _make_step(
    head: ProbeHead,
    model: Pretrained,
    optimizer: optax.GradientTransformation,
    config: ConfigDict,
    steps_per_epoch: int,
    shardings: HeadState,
) -> Any:
    module = model.module

    def prepared(key: jax.Array, encoder: Any, batch: dict[str, Array]) -> tuple[Array, Array]:
        """The features and the soft labels of a batch."""
        mix_key, shift_key = jax.random.split(key)
        raw = {name: x for name, x in batch.items() if name != "truth"}
        raw, truth = mix(mix_key, config.mixup, raw, batch["truth"].astype(jnp.float32))
        if "features" in raw:
            return raw["features"], truth
        if config.time_shift:
            windows = raw[AUDIO].reshape(-1, *raw[AUDIO].shape[2:])
            shifted = augment_audio(shift_key, windows, module.audio_std)
            raw[AUDIO] = shifted.reshape(raw[AUDIO].shape)
        tokens = features.encoder_tokens(module, encoder, raw)
        names = token_names(module.global_token, config.stream)
        seen = jnp.concatenate([tokens[name] for name in names], axis=-1)
        return jax.lax.stop_gradient(seen), truth

    def step(
        state: HeadState, encoder: Any, batch: dict[str, Array]
    ) -> tuple[HeadState, Float[Array, ""]]:
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        seen, truth = prepared(key, encoder, batch)
        wanted = targets(truth, config.label_smoothing)

        def objective(params: Any) -> Float[Array, ""]:
            logits = head.apply({"params": params}, seen.astype(jnp.float32))
            if config.loss == "ce":
                return optax.softmax_cross_entropy(logits, wanted).mean()
            return optax.sigmoid_binary_cross_entropy(logits, wanted).mean()

        loss, grads = jax.value_and_grad(objective)(state.params)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params, number = optax.apply_updates(state.params, updates), state.step + 1
        epoch = number // steps_per_epoch
        take = (number % steps_per_epoch == 0) & (epoch >= config.average_from)
        average, averaged = optim.running_mean(state.average, state.averaged, params, take)
        return HeadState(number, params, opt_state, average, averaged), loss

    mesh = shardings.step.mesh
    return jax.jit(
        step,
        donate_argnums=0,
        in_shardings=(shardings, sharding.replicated(mesh), sharding.batch_sharding(mesh)),
        out_shardings=(shardings, sharding.replicated(mesh)),
    )


def _batches(
    clips: Labelled,
    places: Int[np.ndarray, " places"],
    model: Pretrained,
    config: ConfigDict,
    mesh: Mesh,
    start: int,
) -> Generator[dict[str, Array], None, None]:
    """This process's share of every batch from the `start`-th on, on the devices."""
    layout, size = sharding.batch_sharding(mesh), config.batch_size

    def put(batch: dict[str, np.ndarray]) -> dict[str, Array]:
        return {k: jax.make_array_from_process_local_data(layout, v) for k, v in batch.items()}

    if isinstance(clips.source, Features):
        share = size // jax.process_count()
        for first in range(start * size, len(places) - size + 1, size):
            begin = first + jax.process_index() * share
            chosen = places[begin : begin + share]
            yield put({"features": clips.source[chosen], "truth": clips.truth[chosen]})
        return
    data = model.config.data
    pair_spec = loader.PairSpec.of(model.config)
    stream = loader.clip_batches(
        clips.source, pair_spec, size, data.workers, data.prefetch, places, start
    )
    with contextlib.closing(stream):
        for host in stream:
            raw = {modality: host[modality] for modality in MODALITIES}
            yield put({**raw, "truth": clips.truth[host["clip"]]})


def _described(head: ProbeHead, config: ConfigDict) -> ConfigDict:
    fields = ("width", "depth", "heads", "mlp_ratio", "classes")
    return ConfigDict({"head": {key: getattr(head, key) for key in fields}, "probe": config})


def _resume(
    newest: manager.Stored,
    head: ProbeHead,
    config: ConfigDict,
    shapes: HeadState,
    shardings: HeadState,
) -> HeadState:
    stored, now = newest.config.to_dict(), _described(head, config).to_dict()
    changed = [
        f"{section}.{key} was {stored[section].get(key)!r} and is now {value!r}"
        for section in ("head", "probe")
        for key, value in now[section].items()
        if key not in CHANGEABLE_ON_RESUME and stored[section].get(key) != value
    ]
    if changed:
        raise UserError(
            f"{newest.folder.parent} holds another probe: {'; '.join(changed)}: "
            "use the old settings or another --output"
        )
    return newest.restore(sharding.laid_out(shapes, shardings))


def predict(
    head: ProbeHead, params: Any, seen: Features, batch: int = 256
) -> Float[np.ndarray, "clips classes"]:
    """The head's logits of all clips."""
    apply = jax.jit(lambda x: head.apply({"params": params}, x))
    rows: Sequence[np.ndarray] = []
    for start in range(0, len(seen), batch):
        part = seen[start : start + batch]
        filling = np.zeros((batch - len(part), *part.shape[1:]), part.dtype)
        rows = [*rows, np.asarray(apply(jnp.asarray(np.concatenate([part, filling]))))[: len(part)]]
    return np.concatenate(rows)
