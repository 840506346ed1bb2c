"""Batch norm and layer norm that keep less for the backward pass than Flax's; the variables are the same.

Batch norm's gradient is for reverse mode alone; layer norm's is for all modes.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Float


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _standardize(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[Array, Array, Array]:
    """`x` of mean `bias` and deviation `scale` in each channel; and the mean and biased variance that it had."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    axes = tuple(range(x.ndim - 1))
    mean = jnp.mean(x, axes, dtype=wide)
    variance = jnp.maximum(jnp.mean(jnp.square(x.astype(wide)), axes) - jnp.square(mean), 0)
    factor = scale * lax.rsqrt(variance + epsilon)
    return (x * factor + (bias - mean * factor)).astype(x.dtype), mean, variance


def _standardize_forward(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple:
    y, mean, variance = _standardize(x, scale, bias, epsilon)
    return (y, mean, variance), (x, scale, mean, lax.rsqrt(variance + epsilon))


def _standardize_gradients(epsilon: float, saved: tuple, gradients: tuple) -> tuple[Array, Array, Array]:
    """Linear in `dy` and `x`, so that one pass over both is enough; the statistics get no gradient of their own."""
    (x, scale, mean, inverse), dy = saved, gradients[0]
    axes, count = tuple(range(x.ndim - 1)), x.size // x.shape[-1]
    dbias = jnp.sum(dy, axes, dtype=mean.dtype)
    dscale = jnp.sum(dy.astype(mean.dtype) * (x - mean), axes) * inverse
    by_dy = scale * inverse
    by_x = -by_dy * inverse * dscale / count
    dx = dy * by_dy + x * by_x - (by_dy * dbias / count + mean * by_x)
    return dx.astype(x.dtype), dscale, dbias


_standardize.defvjp(_standardize_forward, _standardize_gradients)


class BatchNorm(nn.Module):
    """Batch norm over all axes but the last, with PyTorch's defaults; the same variables as Flax's.

    Flax's own keeps `x - mean` for the backward pass and goes over the data twice as often: on a CPU, a third of a
    training step of R(2+1)D. Statistics are float32. PyTorch's momentum of 0.1 is 0.9 here; its running variance is
    unbiased, this one is not. Under `jit` the batch is the global one; under `pmap` each device's own.

    Attributes:
      use_running_average: norm by the running statistics, as in evaluation; may be given to the call instead.
      momentum: how much of the running statistics stays at a step.
      use_scale: without, the deviation is one.
    """

    use_running_average: bool | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    use_scale: bool = True
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*b c"], use_running_average: bool | None = None) -> Float[Array, "*b c"]:
        """Same shape as `x`."""
        evaluating = nn.merge_param("use_running_average", self.use_running_average, use_running_average)
        shape = (x.shape[-1],)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        variance = self.variable("batch_stats", "var", jnp.ones, shape)
        scale = self.param("scale", nn.initializers.ones_init(), shape) if self.use_scale else jnp.ones(shape)
        bias = self.param("bias", nn.initializers.zeros_init(), shape)
        x = x if self.dtype is None else x.astype(self.dtype)
        if evaluating:
            factor = scale * lax.rsqrt(variance.value + self.epsilon)
            return (x * factor + (bias - mean.value * factor)).astype(x.dtype)
        y, batch_mean, batch_variance = _standardize(x, scale, bias, self.epsilon)
        if not self.is_initializing():
            for running, now in ((mean, batch_mean), (variance, batch_variance)):
                running.value = self.momentum * running.value + (1 - self.momentum) * lax.stop_gradient(now)
        return y


@partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _standardize_rows(x: Array, scale: Array, bias: Array, epsilon: float, dtype: DTypeLike) -> Array:
    mean, inverse = _moments(x, epsilon)
    return ((x - mean) * inverse * scale + bias).astype(dtype)


@_standardize_rows.defjvp
def _standardize_rows_derivative(
    epsilon: float, dtype: DTypeLike, primals: tuple[Array, ...], tangents: tuple[Array, ...]
) -> tuple[Array, Array]:
    @partial(jax.checkpoint, prevent_cse=False)  # so that `x` is kept, and nothing as large that is made of it
    def derivative(x: Array, mean: Array, inverse: Array, scale: Array, tangents: tuple[Array, ...]) -> Array:
        dx, dscale, dbias = tangents
        standard = (x - mean) * inverse
        # Scaled before the sums: with the scale behind them a training step on a CPU took twice as long.
        dx = dx * inverse
        dx = dx - jnp.mean(dx, -1, keepdims=True) - standard * jnp.mean(dx * standard, -1, keepdims=True)
        return (dx * scale + standard * dscale + dbias).astype(dtype)

    x, scale, _ = primals
    mean, inverse = _moments(x, epsilon)
    return _standardize_rows(*primals, epsilon, dtype), derivative(x, mean, inverse, scale, tangents)


def _moments(x: Array, epsilon: float) -> tuple[Array, Array]:
    """Of each row: the mean, and one over the deviation, in float32 or finer."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    mean = jnp.mean(wide, -1, keepdims=True)
    variance = jnp.maximum(jnp.mean(jnp.square(wide), -1, keepdims=True) - jnp.square(mean), 0)
    return mean, lax.rsqrt(variance + epsilon)


class LayerNorm(nn.Module):
    """Layer norm over the last axis; the same variables as Flax's.

    For the backward pass Flax's own keeps three float32 arrays of the input's size beside its result; this one keeps
    the input, in the type that it has.
    """

    epsilon: float = 1e-6
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """Same shape as `x`; statistics are computed in float32 or finer."""
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],))
        bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],))
        dtype = nn.dtypes.canonicalize_dtype(x, scale, bias, dtype=self.dtype)
        return _standardize_rows(x, scale, bias, self.epsilon, dtype)
