"""Batch norm and layer norm with the variables of Flax's, saving less for the backward pass; local response norm.

The gradient of batch norm supports reverse mode only, that of layer norm all modes.
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
    """Context manager in which batch norms ignore the invalid clips of the batch; see `BatchNorm`.

    Models therefore need no argument for the validity of clips:

        with valid_clips(batch["valid"]):  # inside the compiled function, not around it
            logits, changed = model.apply(variables, video, train=True, mutable=["batch_stats"])

    Args:
      valid: false for invalid clips.
    """

    def add_valid(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        if isinstance(context.module, BatchNorm) and context.method_name == "__call__":
            kwargs = {"valid": valid} | kwargs
        return call(*args, **kwargs)

    return nn.intercept_methods(add_valid)


class BatchNorm(nn.Module):
    """Batch norm over all axes but the last, with PyTorch's defaults and the variables of Flax's.

    Flax's saves `x - mean` for the backward pass and reads the data twice as often, which costs a third of a training
    step of R(2+1)D on a CPU. Statistics are float32. PyTorch's momentum of 0.1 is 0.9 here, and its running variance is
    unbiased while this one is biased. Statistics are over the global batch under `jit`, per device under `pmap`.

    Invalid rows of the batch are ignored: they do not enter the statistics, their outputs and gradients are zero, and
    the other rows are normalised as if they were the whole batch. If no row is valid, the running statistics do not
    change. Normalisation by the running statistics is the same for all rows.

    Attributes:
      use_running_average: normalise by the running statistics, as in evaluation; may also be given to the call.
      momentum: weight of the old running statistics in an update.
      use_scale: whether there is a learned scale.
      scale_init: of the scale; zeros at the end of a residual branch, which then starts as the identity.
    """

    use_running_average: bool | None = None
    momentum: float = 0.9
    epsilon: float = 1e-5
    use_scale: bool = True
    scale_init: nn.initializers.Initializer = nn.initializers.ones_init()
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b *n c"],
        use_running_average: bool | None = None,
        valid: Bool[Array, "b"] | None = None,
    ) -> Float[Array, "b *n c"]:
        """The output has the shape of `x`; `valid` is false for invalid rows (see `valid_clips`)."""
        evaluating = nn.merge_param("use_running_average", self.use_running_average, use_running_average)
        shape = (x.shape[-1],)
        mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        variance = self.variable("batch_stats", "var", jnp.ones, shape)
        scale = self.param("scale", self.scale_init, shape) if self.use_scale else jnp.ones(shape)
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
    """Layer norm over the last axis, with the variables of Flax's.

    For the backward pass, Flax's saves three float32 arrays of the input's size besides its result; this one saves only
    the input, in its own dtype.
    """

    epsilon: float = 1e-6
    dtype: DTypeLike | None = None
    bias_init: nn.initializers.Initializer = nn.initializers.zeros_init()

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """The output has the shape of `x`; statistics are computed in float32 or higher precision."""
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],))
        bias = self.param("bias", self.bias_init, (x.shape[-1],))
        dtype = nn.dtypes.canonicalize_dtype(x, scale, bias, dtype=self.dtype)
        return standardize_rows(x, scale, bias, self.epsilon, dtype)


def local_response_norm(
    x: Float[Array, "*b c"], size: int = 5, alpha: float = 1e-4, beta: float = 0.75, k: float = 1.0
) -> Float[Array, "*b c"]:
    """Divides by `(k + alpha * mean of squares) ** beta` over the neighbouring channels, as in Caffe and PyTorch.

    Krizhevsky et al. 2012 and TensorFlow take the sum of squares: multiply their `alpha` by `size`.

    Args:
      size: channels around each one, an odd number; beyond the first and the last there are zeros.
    """
    squares = jnp.square(x.astype(jnp.promote_types(x.dtype, jnp.float32)))
    outer = (1,) * (x.ndim - 1)
    sides = (*[(0, 0)] * len(outer), (size // 2, size // 2))
    sums = lax.reduce_window(squares, 0.0, lax.add, (*outer, size), (*outer, 1), sides)
    return (x * (k + alpha / size * sums) ** -beta).astype(x.dtype)
