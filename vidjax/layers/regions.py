"""Features of boxes in a map: RoIAlign (He et al. 2017), and the head that classifies actions in them (SlowFast)."""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float


def roi_align(
    features: Float[Array, "b h w c"],
    boxes: Float[Array, "b n 4"],
    bins: tuple[int, int],
    scale: float,
    *,
    samples: int = 0,
    aligned: bool = True,
    most: int | None = None,
) -> Float[Array, "b n y x c"]:
    """The mean of the features in each bin of each box, interpolated bilinearly between the centres of cells.

    Equals `torchvision.ops.roi_align`. As the interpolation of an axis does not depend on the other one, it is two
    products with a matrix for each box, whose shapes do not depend on the boxes.

    Args:
      boxes: of each map; left, top, right and bottom, in pixels.
      bins: rows and columns that each box is divided into.
      scale: cells of the map per pixel.
      samples: points per bin along each axis; 0 for one per cell, rounded up, which differs from box to box.
      aligned: whether pixel and cell centres coincide. The weights that SlowFast published for AVA need False, which is
        half a cell off, and makes each box at least a cell large.
      most: the largest number of points per bin with `samples=0`; by default that of a box as large as the map.
    """
    height, width = features.shape[1:3]
    left, top, right, bottom = jnp.moveaxis(boxes.astype(jnp.float32) * scale - (0.5 if aligned else 0), -1, 0)
    rows = _interpolation(top, bottom, bins[0], height, samples, aligned, most)
    columns = _interpolation(left, right, bins[1], width, samples, aligned, most)
    return jnp.einsum("bnyh,bhwc,bnxw->bnyxc", rows, features.astype(jnp.float32), columns).astype(features.dtype)


def _interpolation(
    first: Array, last: Array, bins: int, cells: int, samples: int, aligned: bool, most: int | None
) -> Float[Array, "b n bins cells"]:
    """The weight of each cell in each bin of each box, along one axis."""
    length = last - first if aligned else jnp.maximum(last - first, 1)
    size = length[..., None] / bins
    count = jnp.full_like(size, samples) if samples else jnp.ceil(size)
    points = jnp.arange(samples or most or math.ceil(cells / bins))
    within = (points + 0.5) / jnp.maximum(count, 1)
    at = first[..., None, None] + (jnp.arange(bins)[:, None] + within[..., None, :]) * size[..., None]
    used = (points < count)[..., None, :] & (at >= -1) & (at <= cells)  # beyond, the map is zero
    distance = jnp.abs(jnp.clip(at, 0, cells - 1)[..., None] - jnp.arange(cells))
    weights = jnp.where(used[..., None], jnp.maximum(1 - distance, 0), 0)
    return weights.sum(axis=-2) / jnp.maximum(count, 1)[..., None]


class RegionHead(nn.Module):
    """Classifies the actions of the person in each box, from the mean over time of one or more pathways.

    Attributes:
      bins: rows and columns of RoIAlign, whose maximum counts.
      scale: cells of the maps per pixel; with AVA's models, whose last stage keeps the size of the one before, 1 / 16.
      aligned: see `roi_align`.
    """

    num_classes: int
    bins: int = 7
    scale: float = 1 / 16
    aligned: bool = True
    dropout: float = 0.5
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self,
        pathways: Sequence[Float[Array, "b _ h w _"]],
        boxes: Float[Array, "b n 4"],
        train: bool = False,
    ) -> Float[Array, "b n classes"]:
        """Logits, of which each has a sigmoid of its own.

        Args:
          pathways: the last maps of the network, such as those of SlowFast.
          boxes: of each clip, in pixels of the network's input.
        """
        bins = (self.bins, self.bins)
        regions = [
            roi_align(maps.mean(axis=1), boxes, bins, self.scale, aligned=self.aligned).max(axis=(2, 3))
            for maps in pathways
        ]
        x = nn.Dropout(self.dropout, name="dropout")(jnp.concatenate(regions, axis=-1), deterministic=not train)
        return nn.Dense(self.num_classes, dtype=self.dtype, name="classes")(x)
