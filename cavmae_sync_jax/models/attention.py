"""Softmax attention whose gradient keeps little and computes the rest again."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Heads = Float[Array, "batch tokens heads dim"]


Residuals = tuple[Array, ...]


def _logits(query: Heads, key: Heads) -> Float[Array, "batch heads tokens tokens"]:
    return jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)


@jax.custom_vjp
def attend(query: Heads, key: Heads, value: Heads) -> Heads:
    """Softmax attention of every token to every token, logits divided by the root of `dim`."""
    return _attend_forward(query, key, value)[0]


def _attend_forward(query: Heads, key: Heads, value: Heads) -> tuple[Heads, Residuals]:
    scale = query.shape[-1] ** -0.5
    logits = _logits(query, key)
    highest = logits.max(-1, keepdims=True)
    weights = jnp.exp((logits - highest) * scale)
    total = weights.sum(-1, keepdims=True)
    mixed = jnp.einsum(
        "bhqk,bkhd->bqhd", weights.astype(value.dtype), value, preferred_element_type=jnp.float32
    )
    mixed = (mixed / total.transpose(0, 2, 1, 3)).astype(value.dtype)
    return mixed, (query, key, value, mixed, highest * scale + jnp.log(total))


def _attend_backward(residuals: Residuals, pull: Heads) -> tuple[Heads, Heads, Heads]:
    query, key, value, mixed, log_total = residuals
    scale = query.shape[-1] ** -0.5
    weights = jnp.exp(_logits(query, key) * scale - log_total)
    # Softmax's gradient needs the sum over keys of weight × its pull, which is mixed · pull.
    along = (pull.astype(jnp.float32) * mixed.astype(jnp.float32)).sum(-1)
    along = along.transpose(0, 2, 1)[..., None]
    pulled = jnp.einsum("bqhd,bkhd->bhqk", pull, value, preferred_element_type=jnp.float32)
    slope = (weights * (pulled - along) * scale).astype(query.dtype)
    return (
        jnp.einsum("bhqk,bkhd->bqhd", slope, key),
        jnp.einsum("bhqk,bqhd->bkhd", slope, query),
        jnp.einsum("bhqk,bqhd->bkhd", weights.astype(pull.dtype), pull),
    )


attend.defvjp(_attend_forward, _attend_backward)
