"""What a model's weights expect and where they come from. It travels with the model, as one of its fields."""

from dataclasses import dataclass

import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, UInt8

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Card:
    """How the input of a model is prepared, what its classes are called, and what it is known to reach.

    Attributes:
      mean, std: of pixels in [0, 1], RGB: the model wants `(pixels - mean) / std`. One value a channel.
      stride: frames of the video for one frame of the clip.
      crop_ratio: share of the picture's shorter side that the central crop of a test keeps.
      class_names: in the order of the logits; empty where they are not known.
      source: where the architecture and its published weights come from.
      accuracy: published top-1, with data set and protocol.
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    stride: int = 1
    crop_ratio: float = 1.0
    class_names: tuple[str, ...] = ()
    source: str = ""
    accuracy: str = ""

    def preprocess(self, video: UInt8[Array, "*b c"]) -> Float32[Array, "*b c"]:
        """Pixels of 8 bits as the model wants them."""
        return self.normalize(self.pixels(video))

    def pixels(self, video: UInt8[Array, "*b c"]) -> Float32[Array, "*b c"]:
        """Pixels of 8 bits in [0, 1], for what is computed on pixels before `normalize`: the one place of scaling."""
        return video.astype(jnp.float32) / 255

    def normalize(self, video: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        """Pixels in [0, 1] as the model wants them."""
        return (video - jnp.asarray(self.mean, video.dtype)) / jnp.asarray(self.std, video.dtype)
