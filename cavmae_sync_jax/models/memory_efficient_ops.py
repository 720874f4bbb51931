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

Rows = Float[Array, "*rows dim"]
Residuals = tuple[Array, ...]


@jax.custom_vjp
def gelu(x: Rows) -> Rows:
    """x·Φ(x), exact."""
    return jax.nn.gelu(x, approximate=False)


def _gelu_forward(x: Rows) -> tuple[Rows, Rows]:
    return gelu(x), x


def _gelu_backward(x: Rows, cotangent: Rows) -> tuple[Rows]:
    wide = x.astype(jnp.float32)
    below = 0.5 * (1 + jax.lax.erf(wide * 0.5**0.5))
    density = jnp.exp(-0.5 * wide * wide) * (2 * jnp.pi) ** -0.5
    return (((below + wide * density) * cotangent).astype(x.dtype),)


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
    epsilon: float, residuals: Residuals, cotangent: Rows
) -> tuple[Rows, Float[Array, " dim"], Float[Array, " dim"]]:
    x, mean, inverse, scale = residuals
    cotangent = cotangent.astype(jnp.float32)
    normal = (x.astype(jnp.float32) - mean) * inverse
    scaled = cotangent * _row(scale, x)
    along = (scaled * normal).mean(-1, keepdims=True)
    slope = inverse * (scaled - scaled.mean(-1, keepdims=True) - normal * along)
    rows = tuple(range(x.ndim - 1))
    return slope.astype(x.dtype), (cotangent * normal).sum(rows), cotangent.sum(rows)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


def _row(vector: Float[Array, " dim"], like: Rows) -> Float[Array, "... dim"]:
    return vector.reshape((1,) * (like.ndim - 1) + (-1,))
