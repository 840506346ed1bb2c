"""A 3-D convolutional network that sees images: its kernels summed over time (OmniSource, Duan et al. 2020,
arXiv:2003.13042).

A kernel of `k` frames becomes one of a single frame, the sum over its taps, which is its response to a clip that stands
still, away from the first and last frames: near these, a clip's convolution also sees the zeros of the padding, and an
image has no such borders. There are no parameters besides the clips' own, so that gradients of both reach them.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.tree_util import DictKey, KeyPath
from jaxtyping import Array, PyTree

from vidjax.errors import UserError


def sum_over_time(params: PyTree[Array]) -> PyTree[Array]:
    """The parameters with which a network sees single frames as images.

    Shapes remain: the sum is the tap in the centre and the other taps are zero, so that on one frame, which is padded
    by half a kernel on both sides, a convolution is that of the sum. It is differentiable.

    Args:
      params: of a network whose kernels `kernel` of five axes, `t h w c d`, are convolutions of an odd number of
        frames.
    """
    return jax.tree_util.tree_map_with_path(_summed, params)


def _summed(path: KeyPath, kernel: Array) -> Array:
    if not _is_temporal(path, kernel):
        return kernel
    return jnp.zeros_like(kernel).at[len(kernel) // 2].set(kernel.sum(axis=0))


def _is_temporal(path: KeyPath, leaf: Any) -> bool:
    return path[-1] == DictKey("kernel") and leaf.ndim == 5 and len(leaf) > 1


def require_stills(name: str, model: nn.Module, size: int) -> None:
    """Checks that a network sees images by the sum of its kernels over time.

    Args:
      name: of the model, for the error message.
      size: height and width of the images in pixels.

    Raises:
      UserError: it has no 3-D convolutions, one of them has an even number of frames, or it takes no single frame.
    """
    advice = "choose a network of 3-D convolutions that keeps time, such as slow_50_8x8 or r3d_18"
    image = jax.ShapeDtypeStruct((1, 1, size, size, len(model.card.mean)), jnp.float32)
    try:
        shapes = jax.eval_shape(model.init, jax.random.key(0), image)["params"]
    except (ValueError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"model {name} takes no clip of one frame, as stills are ({reason}): {advice}") from error
    kernels = [leaf.shape[0] for path, leaf in jax.tree_util.tree_leaves_with_path(shapes) if _is_temporal(path, leaf)]
    if not kernels or any(frames % 2 == 0 for frames in kernels):
        wrong = "has no 3-D convolutions" if not kernels else "has convolutions of an even number of frames"
        raise UserError(f"model {name} {wrong}, whose sums over time would see stills: {advice}")
