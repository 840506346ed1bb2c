"""Temporal localisation end to end: an encoder of short clips slides over a video, and a localiser sees its features.

Both learn from the annotated segments (as in Liu et al. 2022, arXiv:2204.02932, which trains on whole videos of few
frames). Windows are encoded one after the other, and again in the backward pass, so that the memory of a training step
hardly depends on their number.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int, UInt8

from vidjax.errors import UserError
from vidjax.layers.card import Card
from vidjax.layers.normalization import valid_clips


class VideoLocalizer(nn.Module):
    """The encoder and the localiser.

    Attributes:
      encoder: a model of this library without classes; its parameters are under `encoder/`.
      localizer: an `ActionFormer` on features of the encoder's width; its parameters are under `localizer/`.
      frames: of a window.
      stride: frames from one window to the next.
      size: height and width of the frames.
    """

    encoder: nn.Module
    localizer: nn.Module
    frames: int
    stride: int
    size: int

    @property
    def card(self) -> Card:
        """The classes of the localiser; pixels are normalised by the encoder's card."""
        return self.localizer.card

    @property
    def num_classes(self) -> int:
        """See `ActionFormer`."""
        return self.localizer.num_classes

    @property
    def max_length(self) -> int:
        """Windows to which videos are padded in training and evaluation."""
        return self.localizer.max_length

    @property
    def strides(self) -> tuple[int, ...]:
        """Of each level, in windows."""
        return self.localizer.strides

    def input_shape(self, steps: int) -> tuple[int, ...]:
        """Shape of the frames of so many windows."""
        channels = len(self.encoder.card.mean)
        return ((steps - 1) * self.stride + self.frames, self.size, self.size, channels)

    def example_inputs(self) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """One video's frames, and the number of its windows."""
        video = jax.ShapeDtypeStruct((1, *self.input_shape(self.max_length)), jnp.uint8)
        return video, jax.ShapeDtypeStruct((1,), jnp.int32)

    @nn.compact
    def features(
        self, video: UInt8[Array, "b t h w c"], lengths: Int[Array, "b"], train: bool = False
    ) -> Float[Array, "b n d"]:
        """The mean over the grid of each window's tokens, float32; zero beyond the end of a video.

        Batch norms of the encoder see the windows at one place of all videos together, without those beyond the ends.

        Raises:
          UserError: the encoder has no tokens on a grid.
        """
        if not hasattr(self.encoder, "encode"):
            raise UserError(f"{type(self.encoder).__name__} encodes no clips: choose another encoder")
        count = (video.shape[1] - self.frames) // self.stride + 1

        def window(encoder: nn.Module, _: None, number: Int[Array, ""]) -> tuple[None, Float[Array, "b d"]]:
            clip = lax.dynamic_slice_in_dim(video, number * self.stride, self.frames, axis=1)
            with valid_clips(number < lengths):
                grid = encoder.encode(encoder.card.preprocess(clip), train).astype(jnp.float32)
            return None, grid.reshape(len(grid), -1, grid.shape[-1]).mean(axis=1)

        moving = self.is_mutable_collection("batch_stats")
        scan = nn.scan(
            nn.remat(window, prevent_cse=False),
            variable_broadcast=nn.DenyList("batch_stats") if moving else True,
            variable_carry="batch_stats" if moving else False,
            split_rngs={"params": False, nn.DenyList("params"): True},
        )
        numbers, first = jnp.arange(count), []
        if self.is_initializing():  # the scan carries variables, which exist after the first window
            first, numbers = [window(self.encoder, None, numbers[0])[1][None]], numbers[1:]
        rows = jnp.concatenate([*first, scan(self.encoder, None, numbers)[1]])
        return jnp.swapaxes(rows, 0, 1) * (jnp.arange(count) < lengths[:, None])[..., None]

    def __call__(
        self, video: UInt8[Array, "b t h w c"], lengths: Int[Array, "b"], train: bool = False
    ) -> tuple[list[Float[Array, "b _ classes"]], list[Float[Array, "b _ 2"]]]:
        """Logits, and distances to start and end in strides, at each point of each level; see `ActionFormer`.

        Args:
          video: pixels before normalisation; anything beyond the length of each video.
          lengths: windows of each video.
        """
        return self.localizer(self.features(video, lengths, train), lengths, train)
