"""Attention, GELU and LayerNorm whose gradients keep little and compute the rest again.

Differentiated by JAX they keep every intermediate array: of attention the logits and weights, which
grow with the square of the tokens. What is kept here is their input, their output and a number a
row; the rest is cheap to repeat. Results are those of the plain functions, up to rounding. All of
it is in float32 inside, whatever the arrays' type.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Heads = Float[Array, "batch tokens heads dim"]
Rows = Float[Array, "*rows dim"]
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


@jax.custom_vjp
def gelu(x: Rows) -> Rows:
    """x·Φ(x), exact."""
    return jax.nn.gelu(x, approximate=False)


def _gelu_forward(x: Rows) -> tuple[Rows, Rows]:
    return gelu(x), x


def _gelu_backward(x: Rows, pull: Rows) -> tuple[Rows]:
    wide = x.astype(jnp.float32)
    below = 0.5 * (1 + jax.lax.erf(wide * 0.5**0.5))
    density = jnp.exp(-0.5 * wide * wide) * (2 * jnp.pi) ** -0.5
    return (((below + wide * density) * pull).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def layer_norm(
    x: Rows, scale: Float[Array, " dim"], bias: Float[Array, " dim"], epsilon: float
) -> Rows:
    """Normalises the last axis to mean 0 and variance 1, then scales and shifts it."""
    return _layer_norm_forward(x, scale, bias, epsilon)[0]


def _layer_norm_forward(
    x: Rows, scale: Float[Array, " dim"], bias: Float[Array, " dim"], epsilon: float
) -> tuple[Rows, Residuals]:
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    # The fast variance E[x²] - E[x]² loses digits that the golden values have.
    inverse = jax.lax.rsqrt(jnp.square(wide - mean).mean(-1, keepdims=True) + epsilon)
    scaled = (wide - mean) * (inverse * _row(scale, x)) + _row(bias, x)
    return scaled.astype(x.dtype), (x, mean, inverse, scale)


def _layer_norm_backward(
    epsilon: float, residuals: Residuals, pull: Rows
) -> tuple[Rows, Float[Array, " dim"], Float[Array, " dim"]]:
    x, mean, inverse, scale = residuals
    pull = pull.astype(jnp.float32)
    normal = (x.astype(jnp.float32) - mean) * inverse
    scaled = pull * _row(scale, x)
    along = (scaled * normal).mean(-1, keepdims=True)
    slope = inverse * (scaled - scaled.mean(-1, keepdims=True) - normal * along)
    rows = tuple(range(x.ndim - 1))
    return slope.astype(x.dtype), (pull * normal).sum(rows), pull.sum(rows)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def _row(vector: Float[Array, " dim"], like: Rows) -> Float[Array, "... dim"]:
    return vector.reshape((1,) * (like.ndim - 1) + (-1,))
