"""Classifies the actions of persons in boxes: any network with a map of features, and a region head.

With SlowFast or Slow, dilated, it is the detector of SlowFast (Feichtenhofer et al. 2019, arXiv:1812.03982, section 5)
on AVA: the head sees both pathways' last maps. Other networks show it the grid that `encode` returns, or that of an
earlier stage.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vidjax.errors import UserError
from vidjax.layers.card import Card
from vidjax.layers.regions import RegionHead


class Detector(nn.Module):
    """The network and the head.

    Attributes:
      backbone: a model of this library without classes; its parameters are under `backbone/`.
      stage: the map that the head sees, counted from the last one.
      bins, aligned, dropout: see `layers.regions.RegionHead`.
    """

    backbone: nn.Module
    num_classes: int
    stage: int = 1
    bins: int = 7
    aligned: bool = True
    dropout: float = 0.5
    card: Card = Card()
    dtype: DTypeLike | None = None

    def example_inputs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """A clip of the size that the backbone is meant for, and one box."""
        net = self.backbone
        shape = (1, net.num_frames, net.image_size, net.image_size, net.channels)
        return jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct((1, 1, 4), jnp.float32)

    def maps(self, video: Float[Array, "b t h w c"], train: bool = False) -> tuple[Float[Array, "b _ _ _ _"], ...]:
        """The maps that the head sees: one, or one of each pathway.

        Raises:
          UserError: the network has no such stage, or its map has no places.
        """
        net, name = self.backbone, type(self.backbone).__name__
        if hasattr(net, "pathways"):
            stages = net.pathways(video, train)
        elif hasattr(net, "stages"):
            stages = tuple((each,) for each in net.stages(video, train))
        elif hasattr(net, "encode"):
            stages = ((net.encode(video, train),),)
        else:
            raise UserError(f"{name} has neither stages nor tokens on a grid, in which boxes could lie: choose another")
        if self.stage > len(stages):
            raise UserError(f"{name} has {len(stages)} stages, so stage cannot be {self.stage}: lower it")
        maps = stages[-self.stage]
        if min(maps[0].shape[2:4]) < 2:
            raise UserError(
                f"the map of {name} has the shape {'x'.join(map(str, maps[0].shape[1:4]))}, too few places for boxes: "
                "take an earlier stage (--stage 2), larger clips, or another model"
            )
        return maps

    @nn.compact
    def __call__(
        self, video: Float[Array, "b t h w c"], boxes: Float[Array, "b n 4"], train: bool = False
    ) -> Float[Array, "b n classes"]:
        """Logits of each box.

        Args:
          boxes: left, top, right and bottom, as fractions of the clip's width and height.
        """
        maps = self.maps(video, train)
        height, width = video.shape[2:4]
        head = RegionHead(
            self.num_classes, self.bins, maps[0].shape[2] / height, self.aligned, self.dropout, self.dtype, name="head"
        )
        return head(maps, boxes * jnp.array([width, height, width, height]), train)
