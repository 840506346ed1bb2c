"""Batch norm and layer norm that keep less for the backward pass than Flax's; the variables are the same.

Batch norm's gradient is for reverse mode alone; layer norm's is for all modes.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from vidjax.kernels.normalization import standardize, standardize_rows


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
        y, batch_mean, batch_variance = standardize(x, scale, bias, valid, self.epsilon)
        if not self.is_initializing():
            for running, now in ((mean, batch_mean), (variance, batch_variance)):
                moved = self.momentum * running.value + (1 - self.momentum) * lax.stop_gradient(now)
                running.value = jnp.where(valid.any(), moved, running.value)
        return y


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
        return standardize_rows(x, scale, bias, self.epsilon, dtype)
