"""Softmax attention, by the kernel that suits the device.

On NVIDIA GPUs, cuDNN's fused kernel writes no array of tokens² to memory. Elsewhere, and for types
and sizes that cuDNN lacks, `lean_attention` writes them but keeps none for its gradient.
"""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cavmae_sync_jax.distributed import sharding

Queries = Float[Array, "batch queries heads dim"]
Keys = Float[Array, "batch tokens heads dim"]
Merged = Float[Array, "batch queries width"]
ByHead = Float[Array, "*heads _ _ _"]
Residuals = tuple[Array, ...]
# From so many bytes of weights on, a CPU is faster with one head at a time: those fit its cache.
CPU_CACHE = 10_000_000


def dot_product_attention(query: Queries, key: Keys, value: Keys) -> Merged:
    """Softmax attention of every query to every token, logits divided by the root of `dim`.

    The mesh's devices decide which kernel computes it, or without a mesh JAX's default backend.

    Returns:
      `[batch, queries, heads * dim]`, the heads side by side.
    """
    if _has_cudnn_kernel(query):
        return fused_attention(query, key, value)
    return lean_attention(query, key, value)


def _has_cudnn_kernel(query: Queries) -> bool:
    dim = query.shape[-1]
    if query.dtype not in (jnp.bfloat16, jnp.float16) or dim % 8 or dim > 128:
        return False
    return sharding.platform() in ("cuda", "gpu") and sharding.cuda_capability() >= 8


def fused_attention(
    query: Queries, key: Keys, value: Keys, implementation: Literal["cudnn", "xla"] = "cudnn"
) -> Merged:
    """`dot_product_attention` by `jax.nn`'s kernel of that name.

    cuDNN refuses odd numbers of queries or tokens in training. They are padded by one, and the
    kernel gets the lengths.
    """
    queries, tokens = query.shape[1], key.shape[1]
    query_lengths = key_lengths = None
    if queries % 2 or tokens % 2:
        # A function of the queries, although it's always 0: under `jax.vmap` the kernel wants
        # lengths with the queries' own batch axes.
        zeros = 0 * query[:, 0, 0, 0].astype(jnp.int32)
        query_lengths, key_lengths = zeros + queries, zeros + tokens
    query, key, value = (
        jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (query, key, value)
    )
    mixed = jax.nn.dot_product_attention(
        query,
        key,
        value,
        query_seq_lengths=query_lengths,
        key_value_seq_lengths=key_lengths,
        implementation=implementation,
    )[:, :queries]
    return mixed.reshape(*mixed.shape[:2], -1)


@jax.custom_vjp
def lean_attention(query: Queries, key: Keys, value: Keys) -> Merged:
    """`dot_product_attention` whose gradient keeps little and computes the rest again.

    The projection behind it keeps the returned array for its gradient, so that it is in memory
    once.
    """
    return _attention_forward(query, key, value)[0]


def _attention_forward(query: Queries, key: Keys, value: Keys) -> tuple[Merged, Residuals]:
    parts = tuple(_heads_first(x) for x in (query, key, value))
    output, log_total = _by_heads(_heads_forward, *parts)
    output = output.transpose(1, 2, 0, 3)
    output = output.reshape(*output.shape[:2], -1)
    return output, (*parts, output, log_total)


def _heads_forward(query: ByHead, key: ByHead, value: ByHead) -> tuple[ByHead, ByHead]:
    logits = _logits(query, key)
    highest = logits.max(-1, keepdims=True)
    weights = jnp.exp(logits - highest)
    total = weights.sum(-1, keepdims=True)
    output = _product("...qk,...kd->...qd", weights.astype(value.dtype), value) / total
    return output.astype(value.dtype), highest + jnp.log(total)


def _attention_backward(residuals: Residuals, cotangent: Merged) -> tuple[Queries, Keys, Keys]:
    *parts, output, log_total = residuals
    heads, batch, queries, dim = parts[0].shape
    shape = batch, queries, heads, dim
    # Softmax's gradient needs the sum over keys of weight × weight's cotangent, which equals
    # output · cotangent.
    along = (cotangent.astype(jnp.float32) * output.astype(jnp.float32)).reshape(shape).sum(-1)
    along = along.transpose(2, 0, 1)[..., None]
    cotangent = _heads_first(cotangent.reshape(shape))
    gradients = _by_heads(_heads_backward, *parts, cotangent, along, log_total)
    query_grads, key_grads, value_grads = (x.transpose(1, 2, 0, 3) for x in gradients)
    return query_grads, key_grads, value_grads


def _heads_backward(
    query: ByHead,
    key: ByHead,
    value: ByHead,
    cotangent: ByHead,
    along: ByHead,
    log_total: ByHead,
) -> tuple[ByHead, ByHead, ByHead]:
    weights = jnp.exp(_logits(query, key) - log_total)
    weight_cotangent = _product("...qd,...kd->...qk", cotangent, value)
    slope = weights * (weight_cotangent - along) * query.shape[-1] ** -0.5
    slope = slope.astype(query.dtype)
    return (
        jnp.einsum("...qk,...kd->...qd", slope, key),
        jnp.einsum("...qk,...qd->...kd", slope, query),
        jnp.einsum("...qk,...qd->...kd", weights.astype(cotangent.dtype), cotangent),
    )


lean_attention.defvjp(_attention_forward, _attention_backward)


def _logits(query: ByHead, key: ByHead) -> ByHead:
    return _product("...qd,...kd->...qk", query, key) * query.shape[-1] ** -0.5


def _product(axes: str, left: Array, right: Array) -> Array:
    return jnp.einsum(axes, left, right, preferred_element_type=jnp.float32)


def _heads_first(x: Queries) -> Float[Array, "heads batch tokens dim"]:
    x = x.transpose(2, 0, 1, 3)
    # On a CPU each product would transpose for itself what is fused into it.
    return jax.lax.optimization_barrier(x) if sharding.platform() == "cpu" else x


def _by_heads(function: Callable[..., tuple[ByHead, ...]], *parts: ByHead) -> tuple[ByHead, ...]:
    """Computes all heads at once, or on a CPU one by one where their weights outgrow its cache."""
    heads, batch, queries, _ = parts[0].shape
    size = 4 * heads * batch * queries * parts[1].shape[2]
    # An exported model's batch has no number yet.
    if sharding.platform() != "cpu" or not isinstance(size, int) or size < CPU_CACHE:
        return function(*parts)
    return jax.lax.map(lambda head: function(*head), parts)
