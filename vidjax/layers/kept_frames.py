"""A 3-D network on clips of which frames are left out, whose convolutions over time may be 2-D (`models.ada3d`).

The network is not written for it: `choosing` changes what its convolutions and batch norms do.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vidjax.kernels.convolution import conv3d
from vidjax.layers.convolution import Conv3D
from vidjax.layers.normalization import BatchNorm


def valid_frames(counts: Int[Array, "b"], length: int, clip: int) -> Bool[Array, "b t"]:
    """The frames of a map of `length` that come from the first `counts` frames of a clip; time is halved if shorter."""
    return jnp.arange(length) < (counts if length == clip else counts // 2)[:, None]


def mean_of_kept(x: Float[Array, "b t h w d"], counts: Int[Array, "b"], clip: int) -> Float[Array, "b 1 h w d"]:
    """The mean over the frames that are kept."""
    valid = valid_frames(counts, x.shape[1], clip)[..., None, None, None]
    return jnp.mean(x, axis=1, keepdims=True, where=valid)


def choosing(
    convolutions: Float[Array, "b k"], counts: Int[Array, "b"], clip: int, train: bool
) -> AbstractContextManager[None]:
    """Context manager in which convolutions over time are 3-D or 2-D and see zeros after the frames that are kept.

    In training batch norms count only these frames. For a single clip in evaluation, only one convolution runs.

    Args:
      convolutions: 1 for those that are 3-D, in the order of their calls.
      counts: frames of the clips that are kept, the first ones.
      clip: frames of the clips.
    """
    choices = iter(convolutions.T)

    def convolve(x: Array, conv: Conv3D, frames: slice) -> Array:
        x, kernel = nn.dtypes.promote_dtype(x, conv.variables["params"]["kernel"][frames], dtype=conv.dtype)
        return conv3d(x, kernel, conv.strides, tuple((size // 2, size // 2) for size in kernel.shape[:3]))

    def intercept(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        if context.method_name != "__call__" or not isinstance(module, Conv3D | BatchNorm):
            return call(*args, **kwargs)
        x, *rest = args
        valid = valid_frames(counts, x.shape[1], clip)
        if isinstance(module, BatchNorm):
            if not train:
                return call(*args, **kwargs)
            clips = kwargs.pop("valid", jnp.ones(len(x), bool))  # of `valid_clips`; frames count as clips here
            valid = (valid & clips[:, None]).reshape(-1)
            return call(x.reshape(-1, 1, *x.shape[2:]), *rest, valid=valid, **kwargs).reshape(x.shape)
        if module.kernel_size[0] == 1:
            return call(*args, **kwargs)
        x, use, middle = x * valid[..., None, None, None].astype(x.dtype), next(choices), module.kernel_size[0] // 2
        full, flat = (partial(convolve, conv=module, frames=part) for part in (slice(None), slice(middle, middle + 1)))
        if module.is_initializing():
            return call(x)
        if len(x) == 1 and not train:
            return jax.lax.cond(use[0] > 0, full, flat, x)
        return jnp.where(use[:, None, None, None, None] > 0, full(x), flat(x))

    return nn.intercept_methods(intercept)
