"""The arithmetic of batch norm and layer norm, saving less for the backward pass than Flax does.

The gradient of batch norm supports reverse mode only, that of layer norm all modes.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array


@partial(jax.jit, static_argnums=4)  # so that layers of equal shapes are traced once
def standardize(x: Array, scale: Array, bias: Array, valid: Array, epsilon: float) -> tuple[Array, Array, Array]:
    """Normalises `x` per channel, scales and shifts it; also returns the mean and the biased variance of `x`.

    If all rows are valid, equals `jax.nn.standardize(x, axis=(0, ..., -2), epsilon=epsilon) * scale + bias`.
    Invalid rows are ignored; they are zero in the result and in the gradient.

    Args:
      x: `b *n c`.
      scale, bias: `c`.
      valid: `b`, false for invalid rows.
      epsilon: added to the variance.
    """
    return _standardize(x, scale, bias, valid, epsilon)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _standardize(x: Array, scale: Array, bias: Array, valid: Array, epsilon: float) -> tuple[Array, Array, Array]:
    wide, count = jnp.promote_types(x.dtype, jnp.float32), _count(x, valid)
    mean = _sum(x.astype(wide), valid) / count
    variance = jnp.maximum(_sum(jnp.square(x.astype(wide)), valid) / count - jnp.square(mean), 0)
    factor = scale * lax.rsqrt(variance + epsilon)
    y = x * _of_valid(factor, x, valid) + _of_valid(bias - mean * factor, x, valid)
    return y.astype(x.dtype), mean, variance


def _standardize_forward(x: Array, scale: Array, bias: Array, valid: Array, epsilon: float) -> tuple:
    y, mean, variance = _standardize(x, scale, bias, valid, epsilon)
    return (y, mean, variance), (x, scale, valid, mean, lax.rsqrt(variance + epsilon))


def _standardize_gradients(epsilon: float, saved: tuple, gradients: tuple) -> tuple[Array, Array, Array, None]:
    """Linear in `dy` and `x`, so that one pass over both suffices; the returned statistics have no gradient."""
    (x, scale, valid, mean, inverse), dy = saved, gradients[0]
    count = _count(x, valid)
    dbias = _sum(dy.astype(mean.dtype), valid)
    dscale = _sum(dy.astype(mean.dtype) * (x - mean), valid) * inverse
    by_dy = scale * inverse
    by_x = -by_dy * inverse * dscale / count
    constant = by_dy * dbias / count + mean * by_x
    dx = dy * _of_valid(by_dy, x, valid) + x * _of_valid(by_x, x, valid) - _of_valid(constant, x, valid)
    return dx.astype(x.dtype), dscale, dbias, None


_standardize.defvjp(_standardize_forward, _standardize_gradients)


def _count(x: Array, valid: Array) -> Array:
    """Number of values per channel in the valid rows; never 0."""
    return jnp.maximum(valid.sum(), 1) * math.prod(x.shape[1:-1])


def _sum(x: Array, valid: Array) -> Array:
    """Per channel, over the valid rows; rows are summed first, so that masking costs nothing."""
    return jnp.where(valid[:, None], x.sum(axis=tuple(range(1, x.ndim - 1))), 0).sum(axis=0)


def _of_valid(values: Array, x: Array, valid: Array) -> Array:
    """One value per channel in the valid rows of `x`, 0 in the others."""
    return jnp.where(valid[:, None], values, 0).reshape(len(x), *(1,) * (x.ndim - 2), -1)


@partial(jax.jit, static_argnums=(3, 4))  # so that layers of equal shapes are traced once
def standardize_rows(x: Array, scale: Array, bias: Array, epsilon: float, dtype: DTypeLike) -> Array:
    """Normalises each row of `x`, then scales and shifts it; computed in float32 or higher precision.

    Equals `(jax.nn.standardize(x, axis=-1, epsilon=epsilon) * scale + bias).astype(dtype)`.

    Args:
      x: `*b d`.
      scale, bias: `d`.
      epsilon: added to the variance.
      dtype: of the result.
    """
    return _standardize_rows(x, scale, bias, epsilon, dtype)


@partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _standardize_rows(x: Array, scale: Array, bias: Array, epsilon: float, dtype: DTypeLike) -> Array:
    mean, inverse = _moments(x, epsilon)
    return ((x - mean) * inverse * scale + bias).astype(dtype)


@_standardize_rows.defjvp
def _standardize_rows_derivative(
    epsilon: float, dtype: DTypeLike, primals: tuple[Array, ...], tangents: tuple[Array, ...]
) -> tuple[Array, Array]:
    @partial(jax.checkpoint, prevent_cse=False)  # so that `x` is the only array of its size that is saved
    def derivative(x: Array, mean: Array, inverse: Array, scale: Array, tangents: tuple[Array, ...]) -> Array:
        dx, dscale, dbias = tangents
        standard = (x - mean) * inverse
        # Scaled before the sums: with the scale after them, a training step on a CPU took twice as long.
        dx = dx * inverse
        dx = dx - jnp.mean(dx, -1, keepdims=True) - standard * jnp.mean(dx * standard, -1, keepdims=True)
        return (dx * scale + standard * dscale + dbias).astype(dtype)

    x, scale, _ = primals
    mean, inverse = _moments(x, epsilon)
    return _standardize_rows(*primals, epsilon, dtype), derivative(x, mean, inverse, scale, tangents)


def _moments(x: Array, epsilon: float) -> tuple[Array, Array]:
    """Mean and inverse standard deviation of each row, in float32 or higher precision."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = jnp.mean(wide, -1, keepdims=True)
    variance = jnp.maximum(jnp.mean(jnp.square(wide), -1, keepdims=True) - jnp.square(mean), 0)
    return mean, lax.rsqrt(variance + epsilon)
