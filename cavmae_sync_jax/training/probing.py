"""Trains a probe's head on the features of a frozen encoder (paper section 4.1, Table 9).

Clips come either as features that are computed once, or raw. Raw clips pass the encoder in every
epoch. Only then can windows be shifted and frames mixed before the encoder, as in the recipe.
"""

import contextlib
import types
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int
from ml_collections import ConfigDict

from cavmae_sync_jax.checkpoints.pretrained import Pretrained
from cavmae_sync_jax.data import labels, loader
from cavmae_sync_jax.data.records import TRUTH
from cavmae_sync_jax.distributed import sharding
from cavmae_sync_jax.models.classifier import LOSSES
from cavmae_sync_jax.models.probe_head import ProbeHead
from cavmae_sync_jax.training import (
    augmentation,
    config_checks,
    finetune_step,
    loop,
    optim,
    train_step,
)
from cavmae_sync_jax.utils.errors import UserError
from cavmae_sync_jax.utils.modalities import AUDIO, BOTH, MODALITIES, VISUAL

STREAMS = {BOTH: (AUDIO, VISUAL), "audio": (AUDIO,), "visual": (VISUAL,)}
CHANGEABLE_ON_RESUME = {"log_every"}
# The tokens of (module, params, batch), such as `inference.features.encoder_tokens`.
Encode = Callable[[Any, Any, dict[str, Array]], dict[str, Array]]


class Features:
    """Features of clips that are side by side in several arrays, maybe in files.

    They are joined only where rows are read, because all of them may not fit into the memory.
    """

    def __init__(self, parts: Sequence[Float[np.ndarray, "clips frames _"]]):
        """Takes arrays whose last axes are joined."""
        self.parts, self.width = list(parts), sum(part.shape[-1] for part in parts)

    def __len__(self) -> int:
        return len(self.parts[0])

    def __getitem__(self, rows: Any) -> Float[np.ndarray, "clips frames dim"]:
        return np.concatenate([part[rows] for part in self.parts], axis=-1)


class Labelled(NamedTuple):
    """Clips with their labels: features, or the split that they are read from.

    `learned_from` says by hashes what a head learns from: `origin` identifies encoder, clips and
    frames, and `contents` what is in the dataset. A head is not trained on with those of another.
    A head also stores what else is in it.
    """

    truth: Bool[np.ndarray, "clips classes"]
    source: Features | loader.Records
    learned_from: Mapping[str, Any] = types.MappingProxyType({})


def name_of(stream: str) -> str:
    """The name of a probe's files, which states its stream if that is not `both`."""
    return "probe" if stream == BOTH else f"probe_{stream}"


def check(config: ConfigDict, devices: int) -> None:
    """Refuses settings that do not go together.

    Raises:
      UserError: naming the key and what it takes.
    """
    config_checks.check_kind(config, ("stream", "cached", "heads"), "configs/probe.py")
    config_checks.require_one_of(config, "stream", tuple(STREAMS))
    config_checks.require_one_of(config, "loss", LOSSES)
    for least, keys in ((0, "seed depth l2"), (1, "batch_size epochs heads log_every")):
        for key in keys.split():
            config_checks.require_at_least(config, key, least)
    for key in ("learning_rate", "mlp_ratio"):
        config_checks.require_above_0(config, key)
    finetune_step.check_average_from(config)
    config_checks.check_adam(config)
    config_checks.require_multiple(config, devices, f"{devices} devices")
    if config.cached and config.time_shift:
        raise UserError(
            "config.cached=True computes the features once, so that windows can't be shifted again "
            "in each epoch: set --config.time_shift=False"
        )
    for key in ("mixup", "label_smoothing", "warmup_share", "learning_rate_floor"):
        config_checks.require_share(config, key)


def require_cached(config: ConfigDict) -> None:
    """Refuses a recipe that does not compute the features once.

    Raises:
      UserError: naming the row that does.
    """
    if not config.cached:
        raise UserError(
            "the token analysis probes the same features several times, so they must be computed "
            "once: use the row `cached` of the config, such as --config=configs/probe.py:demo"
        )


def steps_per_epoch(config: ConfigDict, clips: int) -> int:
    """The whole batches of so many training clips.

    Raises:
      UserError: if there is none.
    """
    if config.batch_size > clips:
        raise UserError(
            f"config.batch_size={config.batch_size} is more than the {clips} clips "
            f"of the split {config.train_split!r}"
        )
    return clips // config.batch_size


def order(
    truth: Bool[np.ndarray, "clips classes"], config: ConfigDict
) -> Int[np.ndarray, " places"]:
    """The clips of all epochs, one after the other; a pure function of the seed.

    Each epoch is a permutation. If `balanced`, it is as many draws with replacement. A clip then
    weighs the sum over its labels of 1000 / (clips of the label + 0.01).
    """
    weights = labels.balancing_weights(truth) if config.balanced else None
    epochs = []
    for epoch in range(config.epochs):
        rng = np.random.default_rng((config.seed, epoch))
        epochs.append(rng.choice(len(truth), len(truth), replace=config.balanced, p=weights))
    return np.concatenate(epochs)


def token_names(global_token: bool, stream: str) -> tuple[str, ...]:
    """Names the arrays of `features.encoder_tokens` that the head sees, side by side.

    They are the encoders' global tokens. Without a global token the patches' mean takes its place,
    as in the model.
    """
    kind = "global" if global_token else "patches"
    return tuple(f"{modality}_{kind}" for modality in STREAMS[stream])


def only(seen: Features, modality: str) -> Features:
    """The features of both streams for clips with one modality only.

    In place of the missing one, each frame has its mean over all clips and frames.
    """
    return Features(
        [
            part if m == modality else np.broadcast_to(part.mean(axis=(0, 1)), part.shape)
            for m, part in zip(STREAMS[BOTH], seen.parts, strict=True)
        ]
    )


def make_head(width: int, classes: int, config: ConfigDict) -> ProbeHead:
    """The head that the config asks for.

    Raises:
      UserError: if its heads do not divide its width.
    """
    if width % config.heads:
        raise UserError(f"config.heads={config.heads} must divide the features' width of {width}")
    return ProbeHead(width, config.depth, config.heads, config.mlp_ratio, classes)


class Probing(loop.Task):
    """The training of a head on a frozen encoder's features."""

    name, split, dataset = "probe", "train", ""

    def __init__(
        self,
        head: ProbeHead,
        clips: Labelled,
        model: Pretrained,
        config: ConfigDict,
        mesh: Mesh,
        encode: Encode | None,
    ):
        """See `train`."""
        self._encode = encode
        self.head, self._clips, self._model, self._recipe = head, clips, model, config
        self.config, self.mesh = _described(head, config, clips.learned_from), mesh
        self.batch_size = config.batch_size
        per_epoch = steps_per_epoch(config, len(clips.truth))
        self.steps, self.steps_per_epoch = config.epochs * per_epoch, float(per_epoch)
        self.log_every, self.keep_checkpoints = config.log_every, 2
        self.checkpoint_every, self.eval_every = per_epoch, self.steps
        self._cached = isinstance(clips.source, Features)
        if isinstance(clips.source, loader.Records):
            self.dataset = clips.source.identity
        self.rate = optim.schedule(
            "cosine",
            config.learning_rate if head.depth else config.linear_learning_rate,
            self.steps,
            self.steps_per_epoch,
            config.warmup_share,
            config.learning_rate_floor,
        )
        self._optimizer = optim.adam(self.rate, config.adam_b1, config.adam_b2, config.l2)

    def init(self) -> train_step.AveragedState:
        """Draws the head of a new run."""
        params = self.head.init_params(jax.random.key(self._recipe.seed))
        return train_step.init_averaged(params, self._optimizer)

    def changed(self, stored: ConfigDict) -> list[str]:
        """How the head and the recipe differ from the stored ones."""
        before, now = stored.to_dict(), self.config.to_dict()
        if not before.keys() >= {"head", "probe"}:
            return ["it holds no probe's head"]
        # Heads of version 0.1.0 do not say what they learned from.
        if any(before.get(key, now.get(key)) != now.get(key) for key in ("origin", "contents")):
            return ["it learned from another encoder, other clips or other frames"]
        return [
            f"{section}.{key} was {before[section].get(key)!r} and is now {value!r}"
            for section in ("head", "probe")
            for key, value in now[section].items()
            if key not in CHANGEABLE_ON_RESUME and before[section].get(key) != value
        ]

    def step_function(
        self, shardings: train_step.AveragedState
    ) -> Callable[[Any, Any, int], tuple[Any, Any]]:
        """The jitted step, which takes the frozen encoder beside its batch."""
        layouts = sharding.replicated(self.mesh), sharding.batch_sharding(self.mesh)
        step = jax.jit(
            self._step,
            donate_argnums=0,
            in_shardings=(shardings, *layouts),
            out_shardings=(shardings, layouts[0]),
        )
        encoder = {} if self._cached else jax.device_get(self._model.params)
        encoder = jax.device_put(encoder, layouts[0])
        return lambda state, batch, number: step(state, encoder, batch)

    def _step(
        self, state: train_step.AveragedState, encoder: Any, batch: dict[str, Array]
    ) -> tuple[train_step.AveragedState, dict[str, Float[Array, ""]]]:
        config = self._recipe
        key = jax.random.fold_in(jax.random.key(config.seed), state.step)
        seen, truth = self._prepared(key, encoder, batch)
        wanted = finetune_step.targets(truth, config.label_smoothing)

        def objective(params: Any) -> Float[Array, ""]:
            logits = self.head.apply({"params": params}, seen.astype(jnp.float32))
            return finetune_step.loss(config.loss, logits, wanted)

        loss, grads = jax.value_and_grad(objective)(state.params)
        moments = train_step.ends_of_epochs(config.average_from, self.steps, self.steps_per_epoch)
        state, norms = train_step.updated(self._optimizer, state, grads, moments)
        return state, {"loss": loss} | norms

    def _prepared(
        self, key: jax.Array, encoder: Any, batch: dict[str, Array]
    ) -> tuple[Array, Array]:
        """The features and the soft labels of a batch."""
        config, module = self._recipe, self._model.module
        mix_key, shift_key = jax.random.split(key)
        raw = {name: x for name, x in batch.items() if name != TRUTH}
        truth = batch[TRUTH].astype(jnp.float32)
        raw, truth = augmentation.mix(mix_key, config.mixup, raw, truth)
        if "features" in raw:
            return raw["features"], truth
        if config.time_shift:
            windows = raw[AUDIO].reshape(-1, *raw[AUDIO].shape[2:])
            shifted = augmentation.augment_audio(shift_key, windows, module.audio_std)
            raw[AUDIO] = shifted.reshape(raw[AUDIO].shape)
        tokens = self._encode(module, encoder, raw)
        names = token_names(module.global_token, config.stream)
        seen = jnp.concatenate([tokens[name] for name in names], axis=-1)
        return jax.lax.stop_gradient(seen), truth

    def batches(self, examples: int) -> Generator[dict[str, Array], None, None]:
        """This process's share of every batch from a position on, on the devices."""
        layout, size, clips = sharding.batch_sharding(self.mesh), self.batch_size, self._clips
        places = order(clips.truth, self._recipe)

        def put(batch: dict[str, np.ndarray]) -> dict[str, Array]:
            with jax.transfer_guard("allow"):
                return {
                    k: jax.make_array_from_process_local_data(layout, v) for k, v in batch.items()
                }

        if isinstance(clips.source, Features):
            share = size // jax.process_count()
            for first in range(examples, self.steps * size, size):
                begin = first + jax.process_index() * share
                chosen = places[begin : begin + share]
                yield put({"features": clips.source[chosen], TRUTH: clips.truth[chosen]})
            return
        data, pair_spec = self._model.config.data, loader.PairSpec.of(self._model.config)
        stream = loader.clip_batches(
            clips.source, pair_spec, size, data.workers, data.prefetch, places, examples // size
        )
        with contextlib.closing(stream):
            for host in stream:
                raw = {modality: host[modality] for modality in MODALITIES}
                yield put({**raw, TRUTH: clips.truth[host["clip"]]})


def train(
    head: ProbeHead,
    clips: Labelled,
    model: Pretrained,
    config: ConfigDict,
    mesh: Mesh,
    workdir: epath.PathLike | None,
    encode: Encode | None = None,
) -> Any:
    """Trains a head, resuming if `workdir` holds its checkpoints; returns its parameters.

    Args:
      head: what to train.
      clips: the training clips.
      model: the frozen encoder, for clips that come raw.
      config: the recipe, see configs/probe.py.
      mesh: the devices.
      workdir: for logs and checkpoints, one per epoch; None keeps none.
      encode: what the frozen encoder gives of clips that come raw.

    Raises:
      UserError: if `workdir` holds another recipe's checkpoints, or the loss is not finite.
      Terminated: after SIGTERM or Ctrl-C.
    """
    return loop.train(Probing(head, clips, model, config, mesh, encode), workdir)[0].best()


def _described(head: ProbeHead, config: ConfigDict, learned_from: Mapping[str, Any]) -> ConfigDict:
    fields = ("width", "depth", "heads", "mlp_ratio", "classes")
    shape = {key: getattr(head, key) for key in fields}
    return ConfigDict({"head": shape, "probe": config, **learned_from})


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
