"""Softmax attention whose gradient keeps little and computes the rest again."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Heads = Float[Array, "batch tokens heads dim"]
Merged = Float[Array, "batch tokens width"]
Residuals = tuple[Array, ...]


def _logits(query: Heads, key: Heads) -> Float[Array, "batch heads tokens tokens"]:
    return jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)


@jax.custom_vjp
def dot_product_attention(query: Heads, key: Heads, value: Heads) -> Merged:
    """Softmax attention of every token to every token, logits divided by the root of `dim`.

    Returns:
      `[batch, tokens, heads * dim]`, the heads side by side. The projection behind it keeps this
      very array for its gradient, so that it is in memory once.
    """
    return _attention_forward(query, key, value)[0]


def _attention_forward(query: Heads, key: Heads, value: Heads) -> tuple[Merged, Residuals]:
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


def _attention_backward(residuals: Residuals, cotangent: Merged) -> tuple[Heads, Heads, Heads]:
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


dot_product_attention.defvjp(_attention_forward, _attention_backward)
