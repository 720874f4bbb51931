"""A model that is fine-tuned end to end: the pre-trained one without its decoder, and a head.

CAV-MAE (Gong et al. 2023, section 4.2) puts a LayerNorm and a linear layer on the mean of the patch
tokens. CAV-MAE Sync's global tokens may feed the head instead.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Num
from ml_collections import ConfigDict

from cavmae_sync_jax.models import cavmae_sync
from cavmae_sync_jax.models.cavmae_sync import CavMaeSync, Tokens
from cavmae_sync_jax.models.layers import Norm, dense
from cavmae_sync_jax.utils.errors import UserError
from cavmae_sync_jax.utils.modalities import AUDIO, BOTH, MODALITIES, VISUAL

# What feeds the head.
TOKENS = ("patches", "global")
LOSSES = ("bce", "ce")  # several labels per clip, or one
# What a model sees, by the name of the mode: both modalities, or one. `MODALITY_alone` is for a
# model that was trained with both.
ALONE = {f"{modality}_alone": modality for modality in MODALITIES}
SEEN = {BOTH: MODALITIES, AUDIO: (AUDIO,), VISUAL: (VISUAL,)} | {k: (m,) for k, m in ALONE.items()}
STREAMS = (BOTH, *MODALITIES)  # the modes that a model may be trained in


class Head(nn.Module):
    """A LayerNorm and a linear layer, in float32."""

    classes: int

    @nn.compact
    def __call__(self, pooled: Float[Array, "batch dim"]) -> Float[Array, "batch {self.classes}"]:
        """Pooled tokens to logits."""
        x = Norm(jnp.float32, name="norm")(pooled.astype(jnp.float32))
        return dense(self.classes, jnp.float32, "classifier")(x)


class Classifier(CavMaeSync):
    """`CavMaeSync` without a decoder's parameters and with a head; it embeds as that one does."""

    classes: int
    tokens: str

    def setup(self) -> None:
        """Makes the submodules."""
        super().setup()
        self.head = Head(self.classes)

    def classify(
        self, patches: Mapping[str, Float[Array, "batch _ _"]], modes: Sequence[str]
    ) -> dict[str, Float[Array, "batch {self.classes}"]]:
        """The logits of a batch in several modes, with one pass of each encoder.

        Args:
          patches: what `patchify` gives, of each modality that a mode sees.
          modes: keys of `SEEN`. `both` takes the joint block's pass "both", `audio` and `visual`
            that of the modality. `audio_alone` and `visual_alone` stand in for `both` where the
            other modality is missing: their pooled tokens are the mean of the pass "both", of one
            modality, and of its own pass. Global tokens come from the modality's own pass in every
            mode; `both` takes the mean of the two.
        """
        needed = [m for m in MODALITIES if any(m in SEEN[mode] for mode in modes)]
        encoded = {m: self.encode(m, patches[m]) for m in needed}
        return {mode: self.head(self._pooled(encoded, mode)) for mode in modes}

    def _pooled(self, encoded: Mapping[str, Tokens], mode: str) -> Float[Array, "batch dim"]:
        """What the head sees, float32."""
        seen = {modality: encoded[modality] for modality in SEEN[mode]}
        joint = mode == BOTH or mode in ALONE
        if self.tokens == "global" or not joint:
            own = [self.join(modality, tokens) for modality, tokens in seen.items()]
            parts = [
                each.global_token.astype(jnp.float32)
                if self.tokens == "global"
                else _mean(each.patch_tokens)
                for each in own
            ]
            return sum(parts[1:], parts[0]) / len(parts)
        fused = _mean(self.fuse(seen))
        if mode == BOTH:
            return fused
        modality = ALONE[mode]
        return (fused + _mean(self.join(modality, seen[modality]).patch_tokens)) / 2

    def of_raw(
        self, raw: Mapping[str, Num[Array, "batch *_"]], modes: Sequence[str]
    ) -> dict[str, Float[Array, "batch {self.classes}"]]:
        """`classify` for raw input, see `CavMaeSync.patchify`."""
        seen = [m for m in MODALITIES if any(m in SEEN[mode] for mode in modes)]
        return self.classify({m: self.patchify(m, raw[m]) for m in seen}, modes)

    def _touch_all(self, raw: dict[str, Array]) -> Array:
        # Flax makes the parameters that a pass uses.
        encoded = {m: self.encode(m, self.patchify(m, raw[m])) for m in MODALITIES}
        for modality, tokens in encoded.items():
            self.join(modality, tokens)
        return self.head(self.fuse(encoded).mean(axis=1))

    def init_params(self, key: jax.Array) -> dict[str, Any]:
        """Draws all parameters, float32, of every mode."""
        return self.init(key, self._blank(), method="_touch_all")["params"]

    def trained(self, stream: str) -> Any:
        """A tree like the parameters: whether a training in the mode `stream` changes them."""

        def draw(key: jax.Array) -> Any:
            return self.init(key, self._blank(), (stream,), method="of_raw")["params"]

        key = jax.random.key(0)
        used = {jax.tree_util.keystr(path) for path, _ in _leaves(jax.eval_shape(draw, key))}
        whole = jax.eval_shape(self.init_params, key)
        return jax.tree_util.tree_map_with_path(
            lambda path, _: jax.tree_util.keystr(path) in used, whole
        )

    def rate_factors(self, stream: str, head: float) -> Any:
        """A tree like the parameters: what multiplies the learning rate of each.

        That is 0 for what the mode `stream` leaves alone, `head` for the head, else 1.
        """
        trained = self.trained(stream)
        factors = jax.tree.map(float, trained)
        return factors | {"head": jax.tree.map(lambda _: head, trained["head"])}

    def _blank(self) -> dict[str, Array]:
        return {m: jnp.zeros((1, *self.raw_shape(m))) for m in MODALITIES}


def _leaves(tree: Any) -> list[tuple[Any, Any]]:
    return jax.tree_util.tree_leaves_with_path(tree)


def _mean(tokens: Float[Array, "batch tokens dim"]) -> Float[Array, "batch dim"]:
    return tokens.astype(jnp.float32).mean(axis=1)


def from_config(config: ConfigDict) -> Classifier:
    """The model of a config with the sections `model` and `classifier`.

    Raises:
      UserError: as `cavmae_sync.from_config`, or for a key of `classifier`.
    """
    section = config.classifier
    for key, allowed in (("tokens", TOKENS), ("stream", STREAMS), ("loss", LOSSES)):
        if section[key] not in allowed:
            raise UserError(
                f"config.classifier.{key}={section[key]!r} must be one of {', '.join(allowed)}"
            )
    if section.tokens == "global" and not config.model.global_token:
        raise UserError(
            "config.classifier.tokens='global' needs a global token: set "
            "--config.model.global_token=True or --config.classifier.tokens=patches"
        )
    cavmae_sync.from_config(config.model)
    return Classifier(**config.model, classes=len(section.names), tokens=section.tokens)
