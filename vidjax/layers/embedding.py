"""Patch embeddings and position tables."""

from functools import cache
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vidjax.errors import UserError


class PatchEmbedding(nn.Module):
    """One linear map from the pixels of a patch (or tubelet) to a token.

    It takes patches (`layers.patches.patchify`), not the video, so that a masked autoencoder embeds only the patches it
    keeps. The kernel is stored as that of the equivalent strided convolution, `(t, h, w, channels, width)`: published
    convolution kernels load, inflate and resize without a detour.

    Attributes:
      width: length of a token.
      patch_size: frames, height and width of a patch in pixels.
      bias_init: None for no bias (CLIP).
    """

    width: int
    patch_size: tuple[int, int, int]
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
    bias_init: nn.initializers.Initializer | None = nn.initializers.zeros_init()
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, patches: Float[Array, "*b n p"]) -> Float[Array, "*b n d"]:
        """Tokens of the patches, in the patches' order."""
        channels, rest = divmod(patches.shape[-1], int(np.prod(self.patch_size)))
        if rest:
            raise UserError(
                f"patches of {patches.shape[-1]} values are not {self.patch_size} pixels of any channels: "
                "give patches of this size"
            )

        def kernel_init(key, shape, dtype=jnp.float32):  # fan-in and fan-out of the flat map, as the originals have
            return self.kernel_init(key, (patches.shape[-1], self.width), dtype).reshape(shape)

        kernel = self.param("kernel", kernel_init, (*self.patch_size, channels, self.width))
        bias = None if self.bias_init is None else self.param("bias", self.bias_init, (self.width,))
        patches, kernel, bias = nn.dtypes.promote_dtype(patches, kernel, bias, dtype=self.dtype)
        tokens = patches @ kernel.reshape(-1, self.width)
        return tokens if bias is None else tokens + bias


def sinusoid_table(length: int, width: int) -> Float[np.ndarray, "length width"]:
    """Fixed sine and cosine position table over one running index (Attention Is All You Need, section 3.5).

    Sines stand in even columns and cosines in odd ones, as in VideoMAE, which runs one index over all `(t h w)` tokens.
    Not a parameter: it is made again for any number of tokens.
    """
    column = np.arange(width)
    angle = np.arange(length)[:, None] / np.power(10000.0, 2 * (column // 2) / width)
    return np.where(column % 2 == 0, np.sin(angle), np.cos(angle)).astype(np.float32)


Resizing = Literal["nearest", "linear", "cubic"]


def resize_table(table: Float[Array, "*grid d"], grid: tuple[int, ...], method: Resizing) -> Float[Array, "*new d"]:
    """A position table over a grid of another size; over the same size it is the table itself.

    Each family resizes as its original does:
      nearest: entry `floor(i * old / new)`, PyTorch's rule (TimeSformer).
      linear: corners stay corners, `scipy.ndimage.zoom` of order 1 (ViViT).
      cubic: Keys' cubic, antialiased (timm's image ViTs).

    Args:
      table: positions `(*grid, d)`.
      grid: the sizes wanted, one for each axis but the last.
    """
    for axis, size in enumerate(grid):
        if table.shape[axis] != size:
            weights = jnp.asarray(_resizing(table.shape[axis], size, method), table.dtype)
            table = jnp.moveaxis(jnp.tensordot(weights, table, ((1,), (axis,))), 0, axis)
    return table


@cache
def _resizing(old: int, new: int, method: Resizing) -> np.ndarray:
    """Matrix `(new, old)` that resizes one axis."""
    identity = np.eye(old)
    if method == "nearest":
        return identity[np.arange(new) * old // new]
    if method == "linear":
        at = np.linspace(0, old - 1, new)
        return np.stack([np.interp(at, np.arange(old), row) for row in identity], axis=1)
    if method == "cubic":
        with jax.ensure_compile_time_eval():
            return np.asarray(jax.image.resize(jnp.asarray(identity, jnp.float32), (new, old), "cubic"))
    raise UserError(f"a table cannot be resized by '{method}': choose nearest, linear or cubic")


class PositionTable(nn.Module):
    """Learned positions over a grid of tokens; an input of another grid gets the table resized.

    Attributes:
      grid: sizes of the table that is learned.
      width: length of a token.
      method: see `resize_table`.
    """

    grid: tuple[int, ...]
    width: int
    method: Resizing
    init: nn.initializers.Initializer = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self, grid: tuple[int, ...]) -> Float[Array, "*grid d"]:
        """Positions `(*grid, d)`."""
        return resize_table(self.param("table", self.init, (*self.grid, self.width)), grid, self.method)
