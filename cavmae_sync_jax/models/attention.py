"""Softmax attention, by the kernel that suits the device.

On NVIDIA GPUs, cuDNN's fused kernel writes no array of tokens² to memory. Elsewhere, and for types
and sizes that cuDNN lacks, `lean_attention` writes them but keeps none for its gradient.
"""

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cavmae_sync_jax.distributed import sharding

Queries = Float[Array, "batch queries heads dim"]
Keys = Float[Array, "batch tokens heads dim"]
Merged = Float[Array, "batch queries width"]
Residuals = tuple[Array, ...]


def _logits(query: Queries, key: Keys) -> Float[Array, "batch heads queries tokens"]:
    return jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)


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
    kernel is told the lengths.
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
    scale = query.shape[-1] ** -0.5
    logits = _logits(query, key)
    highest = logits.max(-1, keepdims=True)
    weights = jnp.exp((logits - highest) * scale)
    total = weights.sum(-1, keepdims=True)
    output = jnp.einsum(
        "bhqk,bkhd->bqhd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32
    )
    output = (output / total.transpose(0, 2, 1, 3)).astype(value.dtype)
    output = output.reshape(*output.shape[:2], -1)
    return output, (query, key, value, output, highest * scale + jnp.log(total))


def _attention_backward(residuals: Residuals, cotangent: Merged) -> tuple[Queries, Keys, Keys]:
    query, key, value, output, log_total = residuals
    scale = query.shape[-1] ** -0.5
    cotangent, output = cotangent.reshape(query.shape), output.reshape(query.shape)
    weights = jnp.exp(_logits(query, key) * scale - log_total)
    # Softmax's gradient needs the sum over keys of weight × weight's cotangent, which equals
    # output · cotangent.
    along = (cotangent.astype(jnp.float32) * output.astype(jnp.float32)).sum(-1)
    along = along.transpose(0, 2, 1)[..., None]
    weight_cotangent = jnp.einsum(
        "bqhd,bkhd->bhqk", cotangent, value, preferred_element_type=jnp.float32
    )
    slope = (weights * (weight_cotangent - along) * scale).astype(query.dtype)
    return (
        jnp.einsum("bhqk,bkhd->bqhd", slope, key),
        jnp.einsum("bhqk,bqhd->bkhd", slope, query),
        jnp.einsum("bhqk,bqhd->bkhd", weights.astype(cotangent.dtype), cotangent),
    )


lean_attention.defvjp(_attention_forward, _attention_backward)
