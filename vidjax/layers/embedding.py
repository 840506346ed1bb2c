"""Patch embeddings and position embeddings."""

from functools import cache
from typing import Literal, get_args

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vidjax.errors import UserError


class PatchEmbedding(nn.Module):
    """A linear map from the pixels of a patch (or tubelet) to a token.

    The input is patches (`layers.patches.patchify`) rather than a video, so that a masked autoencoder embeds only the
    visible ones. The kernel has the shape of the equivalent strided convolution, `(t, h, w, channels, width)`, so that
    published convolution kernels can be loaded, inflated and resized directly.

    Attributes:
      width: features of a token.
      patch_size: frames, height and width of a patch, in pixels.
      bias_init: None for no bias (CLIP).
    """

    width: int
    patch_size: tuple[int, int, int]
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
    bias_init: nn.initializers.Initializer | None = nn.initializers.zeros_init()
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, patches: Float[Array, "*b n p"]) -> Float[Array, "*b n d"]:
        """Returns one token per patch, in the same order."""
        channels, rest = divmod(patches.shape[-1], int(np.prod(self.patch_size)))
        if rest:
            raise UserError(
                f"patches of {patches.shape[-1]} values do not match the patch size {self.patch_size}: "
                "use the same patch size in patchify"
            )

        def kernel_init(key, shape, dtype=jnp.float32):  # with the linear map's fan-in and fan-out, as in the originals
            return self.kernel_init(key, (patches.shape[-1], self.width), dtype).reshape(shape)

        kernel = self.param("kernel", kernel_init, (*self.patch_size, channels, self.width))
        bias = None if self.bias_init is None else self.param("bias", self.bias_init, (self.width,))
        patches, kernel, bias = nn.dtypes.promote_dtype(patches, kernel, bias, dtype=self.dtype)
        tokens = patches @ kernel.reshape(-1, self.width)
        return tokens if bias is None else tokens + bias


def sinusoid_table(length: int, width: int) -> Float[np.ndarray, "length width"]:
    """Fixed sine-cosine position embedding of a 1-D index (Attention Is All You Need, section 3.5).

    Even columns are sines and odd ones cosines, as in VideoMAE, which numbers all `(t h w)` tokens by one index. It is
    not a parameter and is computed for any number of tokens.
    """
    column = np.arange(width)
    angle = np.arange(length)[:, None] / np.power(10000.0, 2 * (column // 2) / width)
    return np.where(column % 2 == 0, np.sin(angle), np.cos(angle)).astype(np.float32)


Resizing = Literal["nearest", "linear", "cubic", "half_pixel_linear", "half_pixel_cubic", "antialiased_linear"]


def resize_table(table: Float[Array, "*grid d"], grid: tuple[int, ...], method: Resizing) -> Float[Array, "*new d"]:
    """Interpolates a position table to another grid; a table of this size is returned unchanged.

    Each family uses the interpolation of its original:
      nearest: entry `floor(i * old / new)`, as in PyTorch (TimeSformer).
      linear: with aligned corners, as `scipy.ndimage.zoom` of order 1 (ViViT).
      cubic: Keys' cubic, antialiased (timm's image ViTs).
      half_pixel_linear, half_pixel_cubic: PyTorch's `interpolate`, without aligned corners or antialiasing; the cubic
        has the coefficient -0.75 (MViT).
      antialiased_linear: as half_pixel_linear, with antialiasing (VideoPrism, SigLIP 2).

    Args:
      table: position embeddings `(*grid, d)`.
      grid: the new sizes, one per axis except the last.

    Raises:
      UserError: an unknown method.
    """
    for axis, size in enumerate(grid):
        if table.shape[axis] != size:
            weights = jnp.asarray(_resizing(table.shape[axis], size, method), table.dtype)
            table = jnp.moveaxis(jnp.tensordot(weights, table, ((1,), (axis,))), 0, axis)
    return table


@cache
def _resizing(old: int, new: int, method: Resizing) -> np.ndarray:
    """Interpolation matrix `(new, old)` of one axis."""
    identity = np.eye(old)
    if method == "nearest":
        return identity[np.arange(new) * old // new]
    if method == "linear":
        at = np.linspace(0, old - 1, new)
        return np.stack([np.interp(at, np.arange(old), row) for row in identity], axis=1)
    if method in ("cubic", "antialiased_linear"):
        kernel = method.removeprefix("antialiased_")
        with jax.ensure_compile_time_eval():
            return np.asarray(jax.image.resize(jnp.asarray(identity, jnp.float32), (new, old), kernel))
    if method in ("half_pixel_linear", "half_pixel_cubic"):
        at = (np.arange(new) + 0.5) * old / new - 0.5
        below = np.floor(at).astype(int)
        matrix = np.zeros((new, old))
        for offset in (-1, 0, 1, 2):
            distance = np.abs(at - below - offset)
            weight = np.maximum(1 - distance, 0) if method == "half_pixel_linear" else _cubic(distance)
            np.add.at(matrix, (np.arange(new), np.clip(below + offset, 0, old - 1)), weight)
        return matrix
    raise UserError(f"unknown resizing method '{method}': use {', '.join(get_args(Resizing))}")


def _cubic(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel with the coefficient -0.75."""
    near = (1.25 * distance - 2.25) * distance**2 + 1
    far = -0.75 * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


class PositionTable(nn.Module):
    """Learned position embeddings over a grid of tokens, resized for inputs with another grid.

    Attributes:
      grid: shape of the learned table.
      width: features of a token.
      method: interpolation, see `resize_table`.
    """

    grid: tuple[int, ...]
    width: int
    method: Resizing
    init: nn.initializers.Initializer = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self, grid: tuple[int, ...]) -> Float[Array, "*grid d"]:
        """Position embeddings `(*grid, d)`."""
        return resize_table(self.param("table", self.init, (*self.grid, self.width)), grid, self.method)
