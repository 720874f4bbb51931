"""The probe's head: a small transformer over the frames' features (paper section 4.1).

A learned CLS token, without positions, before the features of all frames; blocks, a LayerNorm, and
a linear layer on CLS.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cavmae_sync_jax.models.layers import Norm, Stack, dense


class ProbeHead(nn.Module):
    """Frames' features to logits of classes; its fields are the keys of a config's `head`.

    With a `depth` of 0 it is a linear probe: a LayerNorm of the frames' mean and a linear layer.
    """

    width: int
    depth: int
    heads: int
    mlp_ratio: float
    classes: int

    @nn.compact
    def __call__(
        self, features: Float[Array, "batch frames {self.width}"]
    ) -> Float[Array, "batch {self.classes}"]:
        """Takes features (both modalities concatenated as `[audio, visual]`); returns logits."""
        if not self.depth:
            pooled = features.mean(axis=1)
        else:
            token = self.param("cls_token", nn.initializers.normal(0.02), (1, 1, self.width))
            token = jnp.broadcast_to(token, (features.shape[0], 1, self.width))
            stack = Stack(
                self.depth,
                self.heads,
                self.mlp_ratio,
                jnp.float32,
                unroll=False,
                remat="none",
                name="stack",
            )
            pooled = stack(jnp.concatenate([token, features], axis=1))[:, 0]
        x = Norm(jnp.float32, name="norm")(pooled)
        return dense(self.classes, jnp.float32, "classifier")(x)

    def init_params(self, key: jax.Array) -> dict[str, Any]:
        """Draws all parameters, float32."""
        return self.init(key, jnp.zeros((1, 1, self.width)))["params"]
