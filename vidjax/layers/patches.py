"""Between pixels and tokens: the one place where the order of tokens is decided.

Tokens run time first, then rows, then columns: token `(t h w)` of a grid `(t, h, w)`. Inside a patch the values run
`(frame row column channel)`, so a patch embedding's kernel is a convolution's kernel of the same size, flattened.
"""

import einops
import jax.numpy as jnp
from jaxtyping import Array, Shaped

from vidjax.errors import UserError


def grid(video_shape: tuple[int, int, int], patch_size: tuple[int, int, int]) -> tuple[int, int, int]:
    """How many patches fit: `(frames, height, width)` over `(frames, height, width)` of one patch.

    Raises:
      UserError: a side of the video is not a whole number of patches.
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
    """Refuses what is no batch of float videos of these channels, or smaller than `least` (frames, height, width).

    Raises:
      UserError: with the shape found and the shape wanted.
    """
    if video.ndim != 5 or video.shape[-1] != channels:
        raise UserError(
            f"a video of shape {video.shape} was given: the model takes (batch, frames, height, width, {channels})"
        )
    if not jnp.issubdtype(video.dtype, jnp.floating):
        raise UserError(
            f"a video of {video.dtype} was given: the model takes floats, such as model.card.preprocess(video)"
        )
    for name, side, wanted in zip(
        ("frames", "pixels of height", "pixels of width"), video.shape[1:4], least, strict=True
    ):
        if side < wanted:
            raise UserError(f"{side} {name} are too few: the model's strides and pooling need at least {wanted}")


def on_grid(tokens: Shaped[Array, "*b n d"], grid: tuple[int, int, int]) -> Shaped[Array, "*b t h w d"]:
    """Tokens of all patches, in their order, on the grid `(t, h, w)` of the patches."""
    t, h, w = grid
    return einops.rearrange(tokens, "... (t h w) d -> ... t h w d", t=t, h=h, w=w)


def patchify(video: Shaped[Array, "*b t h w c"], patch_size: tuple[int, int, int]) -> Shaped[Array, "*b n p"]:
    """Cuts a video into patches: each token holds its pixels as `(frame row column channel)`."""
    grid(video.shape[-4:-1], patch_size)
    pt, ph, pw = patch_size
    return einops.rearrange(video, "... (t pt) (h ph) (w pw) c -> ... (t h w) (pt ph pw c)", pt=pt, ph=ph, pw=pw)


def unpatchify(
    patches: Shaped[Array, "*b n p"], grid: tuple[int, int, int], patch_size: tuple[int, int, int]
) -> Shaped[Array, "*b t h w c"]:
    """The inverse of `patchify`, given the grid of patches."""
    (t, h, w), (pt, ph, pw) = grid, patch_size
    return einops.rearrange(
        patches,
        "... (t h w) (pt ph pw c) -> ... (t pt) (h ph) (w pw) c",
        t=t, h=h, w=w, pt=pt, ph=ph, pw=pw,
    )  # fmt: skip
