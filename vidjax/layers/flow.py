"""Stacks of optical flow as the channels of one image (Simonyan and Zisserman 2014, arXiv:1406.2199, section 3.1)."""

import einops
import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float


def subtract_mean(flow: Float[Array, "b t h w c"]) -> Float[Array, "b t h w c"]:
    """Takes the mean of each field off, which is much of the motion of the camera."""
    return flow - flow.mean(axis=(2, 3), keepdims=True)


def stack_frames(video: Float[Array, "b t h w c"], count: int) -> Float[Array, "b n h w d"]:
    """Stacks each `count` frames along the channels: all of the first frame, then those of the next."""
    return einops.rearrange(video, "b (n k) h w c -> b n h w (k c)", k=count)


def stack_trajectories(
    flow: Float[Array, "b t h w 2"], count: int, pixels: float | Float[Array, ""]
) -> Float[Array, "b n h w d"]:
    """Stacks each `count` fields as their values along trajectories that begin at every pixel of the first field.

    The first field is taken at the pixel, each further one where the fields so far have moved it, interpolated
    bilinearly; a trajectory that leaves the frame goes on along its border.

    Args:
      flow: x and y, in any unit.
      pixels: the length of the unit, in pixels of these fields.
    """

    def follow(fields: Float[Array, "k h w 2"]) -> Float[Array, "k h w 2"]:
        height, width = fields.shape[1:3]
        y, x = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")

        def step(place: Float[Array, "2 h w"], field: Float[Array, "h w 2"]) -> tuple[Array, Array]:
            moved = [map_coordinates(field[..., c], list(place), order=1, mode="nearest") for c in range(2)]
            place = place + pixels * jnp.stack(moved[::-1])
            return place, jnp.stack(moved, axis=-1)

        return jax.lax.scan(step, jnp.stack([y, x]).astype(fields.dtype), fields)[1]

    groups = einops.rearrange(flow, "b (n k) h w c -> (b n) k h w c", k=count)
    followed = jax.vmap(follow)(groups)
    return einops.rearrange(followed, "(b n) k h w c -> b n h w (k c)", b=len(flow))
