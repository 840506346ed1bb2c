"""The card of a model: preprocessing, published test, class names and source, stored as a field of the model."""

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float16, Float32, UInt8

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
FLOW_BOUND = 20.0
"""Pixels per frame that 0 and 255 of stored optical flow stand for (`data.flow`)."""
Pixels = UInt8[Array | np.ndarray, "*b c"] | Float16[Array | np.ndarray, "*b c"]


@dataclass(frozen=True)
class Card:
    """Preprocessing, published test, class names and source of a model.

    Attributes:
      mean, std: per channel, of RGB pixels in [0, 1]; the model takes `(pixels - mean) / std`.
      stride: frames of the video from one frame of the clip to the next.
      crop_ratio: side of the test crops as a fraction of the frame's short side.
      class_names: in the order of the logits; empty if unknown.
      source: origin of the architecture and its published weights.
      accuracy: published top-1 accuracy, with data set and protocol.
      rate: frames per second in which the stride is counted; None counts frames of the file.
      test_size, test_frames: of the test clips, if they are not the model's `image_size` and `num_frames`.
      sampling: how the frames of a test clip are chosen: `dense`, `segments` or `uniform`.
      consecutive: frames of a clip that follow each other in the video, in each of the segments.
      protocol: whose rules decide where test clips and crops lie: a value of `data.config.Protocol`.
      views: clips in time x crops in space of the published test, such as `10x3`; empty if unknown.
      heads: data sets with a softmax each (multi-task learning), whose classes are named `HEAD: CLASS`; empty for one
        softmax over all classes.
      stills: those heads whose data sets are images, seen by kernels summed over time (`layers.stills`).
      average: what that test averages over the views: probabilities, or logits before the softmax.
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    stride: int = 1
    crop_ratio: float = 1.0
    class_names: tuple[str, ...] = ()
    source: str = ""
    accuracy: str = ""
    rate: float | None = None
    test_size: int | None = None
    test_frames: int | None = None
    sampling: Literal["dense", "segments", "uniform"] = "dense"
    consecutive: int = 1
    protocol: str = "vidjax"
    views: str = ""
    average: Literal["softmax", "logits"] = "softmax"
    heads: tuple[str, ...] = ()
    stills: tuple[str, ...] = ()

    @property
    def head_sizes(self) -> tuple[int, ...]:
        """How many of the classes are those of each head; empty without heads."""
        return tuple(sum(name.startswith(f"{head}: ") for name in self.class_names) for head in self.heads)

    def preprocess(self, video: Pixels) -> Float32[Array, "*b c"]:
        """Scales and normalises uint8 pixels, or float16 flow, for the model."""
        return self.normalize(self.scale(video))

    def scale(self, video: Pixels) -> Float32[Array, "*b c"]:
        """Scales uint8 pixels to [0, 1], for augmentation before `normalize`. Pixels are scaled only here.

        Optical flow in float16 is in pixels per frame: -20 to 20 become 0 to 1, as those stored in uint8; more is kept.
        """
        if video.dtype == jnp.float16:
            return jnp.asarray(video, jnp.float32) / (2 * FLOW_BOUND) + 0.5
        if video.dtype != jnp.uint8:
            raise TypeError(f"pixels are {video.dtype}: give uint8, or scale to [0, 1] and use normalize")
        return jnp.asarray(video, jnp.float32) / 255

    def normalize(self, video: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
        """Normalises pixels in [0, 1] by the model's mean and std.

        Raises:
          ValueError: the video has another number of channels than the model.
        """
        if video.shape[-1] != len(self.mean):
            raise ValueError(f"the video has {video.shape[-1]} channels, the model takes {len(self.mean)}")
        return (video - jnp.asarray(self.mean, video.dtype)) / jnp.asarray(self.std, video.dtype)
