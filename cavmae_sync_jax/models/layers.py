"""The one transformer block, and a stack of them compiled once (ViT, as in MAE).

Norms and softmax are computed in float32, whatever the compute type. Parameters are float32.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cavmae_sync_jax.distributed import sharding
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
        x, scale, bias = jnp.asarray(x), jnp.asarray(scale), jnp.asarray(bias)
        return memory_efficient_ops.layer_norm(x, scale, bias, EPSILON, self.dtype)


class Projections(nn.Module):
    """Queries, keys and values from one kernel `[dim, 3 * dim]`, the three side by side."""

    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens dim"], first_query: int = 0
    ) -> tuple[Array, Array, Array]:
        """The queries of the tokens from `first_query` on; keys and values of all tokens."""
        dim = x.shape[-1]
        kernel = self.param("kernel", nn.initializers.xavier_uniform(), (dim, 3 * dim))
        bias = self.param("bias", nn.initializers.zeros, (3 * dim,))
        x, kernel, bias = jnp.asarray(x, self.dtype), jnp.asarray(kernel), jnp.asarray(bias)
        # A GPU's attention would want copies of one product's three parts. There the kernel, which
        # is smaller, is taken apart instead. A CPU's attention transposes them anyway.
        if first_query == 0 and sharding.platform() not in ("cuda", "gpu"):
            query, key, value = jnp.split(memory_efficient_ops.linear(x, kernel, bias), 3, -1)
            return query, key, value
        kernels, biases = jnp.split(kernel, 3, axis=1), jnp.split(bias, 3)
        query, key, value = (
            memory_efficient_ops.linear(rows, *weights)
            for rows, *weights in zip((x[:, first_query:], x, x), kernels, biases, strict=True)
        )
        return query, key, value


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection for query, key and value."""

    heads: int
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens dim"], first_query: int = 0
    ) -> Float[Array, "batch queries dim"]:
        """Attends from the tokens of each sample, from `first_query` on, to all of its tokens."""
        dim = x.shape[-1]
        qkv = Projections(self.dtype, name="qkv")(x, first_query)
        split = (part.reshape(*part.shape[:2], self.heads, dim // self.heads) for part in qkv)
        mixed = models_attention.dot_product_attention(*split)
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
    Tokens keep their type from block to block. It may be wider than `dtype`, the arithmetic's.
    """

    heads: int
    mlp_ratio: float
    norm_sets: tuple[str, ...]
    dtype: Any

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch tokens dim"], norm_set: str, first: int = 0
    ) -> tuple[Float[Array, "batch outputs dim"], None]:
        """Applies the block with the norms of `norm_set`.

        Args:
          x: the tokens.
          norm_set: one of `norm_sets`.
          first: the first token whose output is wanted. The others are attended to only.

        Returns:
          The outputs, and scan's second value (none).
        """
        if norm_set not in self.norm_sets:
            raise ValueError(f"this block has the norms {self.norm_sets}, not {norm_set!r}")
        suffix = f"_{norm_set}" if norm_set else ""
        x = constrain_batch(x)
        attention = Attention(self.heads, self.dtype, name="attention")
        x = x[:, first:] + attention(Norm(self.dtype, name=f"attention_norm{suffix}")(x), first)
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
        self, x: Float[Array, "batch tokens dim"], norm_set: str = "", first: int = 0
    ) -> Float[Array, "batch outputs dim"]:
        """Applies all blocks, each with its norms of `norm_set`.

        Only the tokens from `first` on are returned. The last block computes no others.
        """
        settings = (self.heads, self.mlp_ratio, self.norm_sets, self.dtype)
        if self.is_initializing():
            blocks = nn.scan(
                Block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=nn.broadcast,
                length=self.depth,
            )
            return blocks(*settings, name="blocks")(x, norm_set)[0][:, first:]
        stacked: Any = self.variables["params"]["blocks"]
        block = Block(*settings, parent=None)

        def layer(first: int, x: Array, params: Any) -> tuple[Array, None]:
            outputs: Any = block.apply({"params": params}, x, norm_set, first)
            return outputs

        def rematerialised(first: int) -> Callable[[Array, Any], tuple[Array, None]]:
            chosen = functools.partial(layer, first)
            if self.remat == "none":
                return chosen
            policy = REMAT_POLICIES[self.remat]
            return jax.checkpoint(chosen, prevent_cse=self.unroll, policy=policy)

        # A loop over one layer would copy its weights and gradients.
        alone = self.depth if self.unroll else int(self.depth == 1 or first > 0)
        looped, *single = _groups(stacked, self.depth - alone, alone)
        if alone < self.depth:
            x, _ = jax.lax.scan(rematerialised(0), x, looped)
        for index, params in enumerate(single, 1):
            x, _ = rematerialised(first if index == alone else 0)(x, params)
        return x


def _groups(stacked: Any, looped: int, alone: int) -> list[Any]:
    """The first `looped` layers still stacked, then each of the others by itself."""
    leaves: list[Array] = jax.tree.leaves(stacked)
    structure: Any = jax.tree.structure(stacked)
    # The gradient of one split is one concatenation; that of slices would be a sum of padded ones.
    parts = [jax.lax.split(leaf, (looped, *[1] * alone)) for leaf in leaves]
    groups = [structure.unflatten(group) for group in zip(*parts, strict=True)]
    return [groups[0], *(jax.tree.map(lambda p: p[0], group) for group in groups[1:])]
