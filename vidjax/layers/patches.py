"""Conversion between videos and patches, which defines the order of tokens.

Tokens are in row-major order `(t h w)` of the grid `(t, h, w)`. The values of a patch are ordered
`(frame row column channel)`, so that the kernel of a patch embedding is a flattened convolution kernel of that size.
"""

import einops
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Shaped

from vidjax.errors import UserError


def grid(video_shape: tuple[int, int, int], patch_size: tuple[int, int, int]) -> tuple[int, int, int]:
    """Number of patches along each axis of a video; both arguments are `(frames, height, width)`.

    Raises:
      UserError: an axis of the video is not divisible by the patch size.
    """
    for name, side, patch in zip(
        ("frames", "pixels of height", "pixels of width"), video_shape, patch_size, strict=True
    ):
        if side % patch or side < patch:
            low, high = side // patch * patch, (side // patch + 1) * patch
            nearest = f"{low} or {high}" if low else f"{high}"
            raise UserError(
                f"{side} {name} cannot be cut into patches of {patch}: use a multiple of {patch}, such as {nearest}"
            )
    return tuple(side // patch for side, patch in zip(video_shape, patch_size, strict=True))


def check_video(video: Shaped[Array, "..."], channels: int, least: tuple[int, int, int] = (1, 1, 1)) -> None:
    """Checks that the input is a batch of float videos with these channels and of at least the size `least`.

    Args:
      least: minimum frames, height and width.

    Raises:
      UserError: a wrong shape, dtype or size.
    """
    if video.ndim != 5 or video.shape[-1] != channels:
        raise UserError(
            f"the video has shape {video.shape}: the model takes (batch, frames, height, width, {channels})"
        )
    if not jnp.issubdtype(video.dtype, jnp.floating):
        raise UserError(
            f"the video has dtype {video.dtype}: the model takes floats, such as model.card.preprocess(video)"
        )
    for name, side, wanted in zip(
        ("frames", "pixels of height", "pixels of width"), video.shape[1:4], least, strict=True
    ):
        if side < wanted:
            raise UserError(f"{side} {name} are too few: the model needs at least {wanted}")


def on_grid(tokens: Shaped[Array, "*b n d"], grid: tuple[int, int, int]) -> Shaped[Array, "*b t h w d"]:
    """Reshapes the tokens of all patches to their grid `(t, h, w)`."""
    t, h, w = grid
    return einops.rearrange(tokens, "... (t h w) d -> ... t h w d", t=t, h=h, w=w)


def patchify(
    video: Shaped[Array, "*b t h w c"], patch_size: tuple[int, int, int], dtype: DTypeLike | None = None
) -> Shaped[Array, "*b n p"]:
    """Divides a video into patches `(t h w)` of flattened pixels `(frame row column channel)`.

    The pixels of a row of a patch stay together as one axis: TPUs pad the innermost axis to 128, and with three
    channels last a patch embedding needed twice the scratch memory.

    Args:
      dtype: of the patches, to which the pixels are converted first: bfloat16 halves what is copied. None for that of
        the video.
    """
    video = video if dtype is None else video.astype(dtype)
    _, _, w = grid(video.shape[-4:-1], patch_size)
    pt, ph, _ = patch_size
    rows = einops.rearrange(video, "... t h w c -> ... t h (w c)")
    return einops.rearrange(rows, "... (t pt) (h ph) (w x) -> ... (t h w) (pt ph x)", pt=pt, ph=ph, w=w)


def unpatchify(
    patches: Shaped[Array, "*b n p"], grid: tuple[int, int, int], patch_size: tuple[int, int, int]
) -> Shaped[Array, "*b t h w c"]:
    """Inverse of `patchify`, given the grid of patches."""
    (t, h, w), (pt, ph, pw) = grid, patch_size
    rows = einops.rearrange(patches, "... (t h w) (pt ph x) -> ... (t pt) (h ph) (w x)", t=t, h=h, w=w, pt=pt, ph=ph)
    return einops.rearrange(rows, "... t h (w c) -> ... t h w c", w=w * pw)
