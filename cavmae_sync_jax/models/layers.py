"""The one transformer block, and a stack of them compiled once (ViT, as in MAE).

Norms and softmax are computed in float32 whatever the compute type; parameters are float32.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cavmae_sync_jax.distributed.sharding import constrain_batch
from cavmae_sync_jax.models import attention as models_attention
from cavmae_sync_jax.models import memory_efficient_ops

EPSILON = 1e-5
REMAT_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


class Dense(nn.Module):
    """A linear layer with MAE's initialisation: Xavier-uniform weights, zero biases."""

    features: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "*rows dim"]) -> Float[Array, "*rows {self.features}"]:
        """Transforms every row, with Flax's names for the parameters."""
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.xavier_uniform(), shape)
        bias = self.param("bias", nn.initializers.zeros, shape[1:])
        x, kernel, bias = jnp.asarray(x, self.dtype), jnp.asarray(kernel), jnp.asarray(bias)
        return memory_efficient_ops.linear(x, kernel, bias)


def dense(features: int, dtype: Any, name: str | None = None) -> Dense:
    """A named `Dense`."""
    return Dense(features, dtype, name=name)


class Norm(nn.Module):
    """A LayerNorm over the last axis: computed in float32, returned in the compute type."""

    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "*rows dim"]) -> Float[Array, "*rows dim"]:
        """Normalises every row, with Flax's names for the parameters."""
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
        # Whoever applies a module by hand may bring NumPy's arrays.
        x, scale, bias = jnp.asarray(x, self.dtype), jnp.asarray(scale), jnp.asarray(bias)
        return memory_efficient_ops.layer_norm(x, scale, bias, EPSILON)


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection for query, key and value."""

    heads: int
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens dim"]) -> Float[Array, "batch tokens dim"]:
        """Attends from every token to every token of its sample."""
        batch, tokens, dim = x.shape
        qkv = jnp.split(dense(3 * dim, self.dtype, "qkv")(x), 3, axis=-1)
        heads = (part.reshape(batch, tokens, self.heads, dim // self.heads) for part in qkv)
        mixed = models_attention.dot_product_attention(*heads)
        return dense(dim, self.dtype, "projection")(mixed)


class Mlp(nn.Module):
    """Two linear layers with an exact GELU between them."""

    ratio: float
    dtype: Any

    @nn.compact
    def __call__(self, x: Float[Array, "batch tokens dim"]) -> Float[Array, "batch tokens dim"]:
        """Transforms every token by itself."""
        hidden = dense(int(x.shape[-1] * self.ratio), self.dtype, "hidden")(x)
        return dense(x.shape[-1], self.dtype, "output")(memory_efficient_ops.gelu(hidden))


class Block(nn.Module):
    """A pre-norm transformer block: one set of weights, one pair of norms for each `norm_sets`.

    Only the joint block has several sets (paper section 3.2: shared weights, individual norms).
    """

    heads: int
    mlp_ratio: float
    norm_sets: tuple[str, ...]
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens dim"], norm_set: str
    ) -> tuple[Float[Array, "batch tokens dim"], None]:
        """Applies the block with the norms of `norm_set`; the second value is scan's (none)."""
        if norm_set not in self.norm_sets:
            raise ValueError(f"this block has the norms {self.norm_sets}, not {norm_set!r}")
        suffix = f"_{norm_set}" if norm_set else ""
        x = constrain_batch(x)
        attention = Attention(self.heads, self.dtype, name="attention")
        x = x + attention(Norm(self.dtype, name=f"attention_norm{suffix}")(x))
        mlp = Mlp(self.mlp_ratio, self.dtype, name="mlp")
        x = x + mlp(Norm(self.dtype, name=f"mlp_norm{suffix}")(x))
        return constrain_batch(x), None


class Stack(nn.Module):
    """`depth` blocks whose parameters are stacked on a leading axis and run by one scan.

    `unroll` compiles the layers one after the other. The parameters are the same, there is more
    code, and less memory is kept than by the plain scan. `remat` is "none", "full" or "dots", which
    keeps the matrix products.
    """

    depth: int
    heads: int
    mlp_ratio: float
    dtype: Any
    unroll: bool
    remat: str
    norm_sets: tuple[str, ...] = ("",)

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens dim"], norm_set: str = ""
    ) -> Float[Array, "batch tokens dim"]:
        """Applies all blocks, each with its norms of `norm_set`."""
        block = Block
        if self.remat != "none":
            block = nn.remat(
                Block,
                prevent_cse=self.unroll,
                static_argnums=(2,),
                policy=REMAT_POLICIES[self.remat],
            )
        blocks = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=self.depth,
            unroll=self.depth if self.unroll else 1,
        )
        settings = (self.heads, self.mlp_ratio, self.norm_sets, self.dtype)
        return blocks(*settings, name="blocks")(x, norm_set)[0]
