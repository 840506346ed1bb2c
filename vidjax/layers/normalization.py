"""Batch norm and layer norm that keep less for the backward pass than Flax's; the variables are the same.

Batch norm's gradient is for reverse mode alone; layer norm's is for all modes.
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float


def valid_clips(valid: Bool[Array, "b"]) -> AbstractContextManager[None]:
    """Batch norms that are called inside take these clips of the batch alone into account; see `BatchNorm`.

    Which clips could be read does not concern a model, and no model has to hand it on:

        with valid_clips(batch["valid"]):  # in what is compiled, not around it
            logits, changed = model.apply(variables, video, train=True, mutable=["batch_stats"])

    Args:
      valid: false for clips that do not count.
    """

    def hand_on(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        if isinstance(context.module, BatchNorm) and context.method_name == "__call__":
            kwargs = {"valid": valid} | kwargs
        return call(*args, **kwargs)

    return nn.intercept_methods(hand_on)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _standardize(x: Array, scale: Array, bias: Array, valid: Array, epsilon: float) -> tuple[Array, Array, Array]:
    """`x` of mean `bias` and deviation `scale` in each channel; and the mean and biased variance that it had.

    Rows that are not valid are zeros in the result, and in its gradient.
    """
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
    """Linear in `dy` and `x`, so that one pass over both is enough; the statistics get no gradient of their own."""
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
    """Values of a channel in the valid rows; not 0 where there are none."""
    return jnp.maximum(valid.sum(), 1) * math.prod(x.shape[1:-1])


def _sum(x: Array, valid: Array) -> Array:
    """Of each channel over the valid rows: first within each row, so that choosing costs nothing."""
    return jnp.where(valid[:, None], x.sum(axis=tuple(range(1, x.ndim - 1))), 0).sum(axis=0)


def _of_valid(values: Array, x: Array, valid: Array) -> Array:
    """A value a channel in the valid rows of `x`, 0 in the others."""
    return jnp.where(valid[:, None], values, 0).reshape(len(x), *(1,) * (x.ndim - 2), -1)


class BatchNorm(nn.Module):
    """Batch norm over all axes but the last, with PyTorch's defaults; the same variables as Flax's.

    Flax's own keeps `x - mean` for the backward pass and goes over the data twice as often: on a CPU, a third of a
    training step of R(2+1)D. Statistics are float32. PyTorch's momentum of 0.1 is 0.9 here; its running variance is
    unbiased, this one is not. Under `jit` the batch is the global one; under `pmap` each device's own.

    Rows of the batch that are not valid change nothing: they are in no statistic, come out as zeros and get and give no
    gradient, so that the other rows are normed as if they were the whole batch. Without a valid row the running
    statistics stay as they are. Norming by the running statistics is the same for all rows.

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
    def __call__(
        self,
        x: Float[Array, "b *n c"],
        use_running_average: bool | None = None,
        valid: Bool[Array, "b"] | None = None,
    ) -> Float[Array, "b *n c"]:
        """Same shape as `x`; `valid` is false for rows that do not count (see `valid_clips`)."""
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
        valid = jnp.ones(len(x), bool) if valid is None else valid
        y, batch_mean, batch_variance = _standardize(x, scale, bias, valid, self.epsilon)
        if not self.is_initializing():
            for running, now in ((mean, batch_mean), (variance, batch_variance)):
                moved = self.momentum * running.value + (1 - self.momentum) * lax.stop_gradient(now)
                running.value = jnp.where(valid.any(), moved, running.value)
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
