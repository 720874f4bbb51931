"""Linear layers, GELU and LayerNorm whose gradients keep little and compute the rest again.

JAX's own gradients keep every intermediate array. These keep only the input and one or two numbers
per row, because the rest is cheap to repeat. Results equal those of the plain functions, up to
rounding. Sums, norms and GELU are computed in float32, whatever the arrays' type.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Rows = Float[Array, "*rows dim"]
Residuals = tuple[Array, ...]


@jax.custom_vjp
def linear(
    x: Rows, kernel: Float[Array, "dim features"], bias: Float[Array, " features"]
) -> Float[Array, "*rows features"]:
    """x·kernel + bias in the type of `x`; the parameters' gradients are summed in float32.

    JAX would round the sum over a device's rows to the type of `x` before it adds those of other
    devices. At 256 devices in bfloat16, that loses digits.
    """
    product = jax.lax.dot_general(x, kernel.astype(x.dtype), (((x.ndim - 1,), (0,)), ((), ())))
    return product + _row(bias, product).astype(x.dtype)


def _linear_forward(
    x: Rows, kernel: Float[Array, "dim features"], bias: Float[Array, " features"]
) -> tuple[Float[Array, "*rows features"], Residuals]:
    return linear(x, kernel, bias), (x, kernel)


def _linear_backward(
    residuals: Residuals, cotangent: Float[Array, "*rows features"]
) -> tuple[Rows, Float[Array, "dim features"], Float[Array, " features"]]:
    x, kernel = residuals
    rows = tuple(range(x.ndim - 1))
    last = (((x.ndim - 1,), (1,)), ((), ()))
    return (
        jax.lax.dot_general(cotangent, kernel.astype(x.dtype), last),
        jax.lax.dot_general(
            x, cotangent, ((rows, rows), ((), ())), preferred_element_type=jnp.float32
        ),
        cotangent.astype(jnp.float32).sum(rows),
    )


linear.defvjp(_linear_forward, _linear_backward)


@jax.custom_vjp
def gelu(x: Rows) -> Rows:
    """x·Φ(x), exact, in float32 inside."""
    return jax.nn.gelu(x.astype(jnp.float32), approximate=False).astype(x.dtype)


def _gelu_forward(x: Rows) -> tuple[Rows, Rows]:
    return gelu(x), x


def _gelu_backward(x: Rows, cotangent: Rows) -> tuple[Rows]:
    wide = x.astype(jnp.float32)
    below = 0.5 * (1 + jax.lax.erf(wide * 0.5**0.5))
    density = jnp.exp(-0.5 * wide * wide) * (2 * jnp.pi) ** -0.5
    return (((below + wide * density) * cotangent).astype(x.dtype),)


gelu.defvjp(_gelu_forward, _gelu_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def layer_norm(
    x: Rows, scale: Float[Array, " dim"], bias: Float[Array, " dim"], epsilon: float, dtype: Any
) -> Rows:
    """Normalises the last axis to mean 0 and variance 1, then scales and shifts it.

    The result has the type `dtype`, which may be narrower than that of `x`.
    """
    return _layer_norm_forward(x, scale, bias, epsilon, dtype)[0]


def _layer_norm_forward(
    x: Rows, scale: Float[Array, " dim"], bias: Float[Array, " dim"], epsilon: float, dtype: Any
) -> tuple[Rows, Residuals]:
    wide = x.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    # The fast variance E[x²] - E[x]² loses digits that the golden values have.
    inverse = jax.lax.rsqrt(jnp.square(wide - mean).mean(-1, keepdims=True) + epsilon)
    scaled = (wide - mean) * (inverse * _row(scale, x)) + _row(bias, x)
    return scaled.astype(dtype), (x, mean, inverse, scale)


def _layer_norm_backward(
    epsilon: float, dtype: Any, residuals: Residuals, cotangent: Rows
) -> tuple[Rows, Float[Array, " dim"], Float[Array, " dim"]]:
    del epsilon, dtype
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
