"""What masked autoencoders of pixels see, predict and show: VideoMAE's patches, and Hiera's mask units."""

import dataclasses
from collections.abc import Callable
from functools import partial
from math import prod

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from vidjax.errors import UserError
from vidjax.layers import patches
from vidjax.models.hiera import unit_size
from vidjax.objectives import masking, reconstruction

GREY = 0.5
"""Of hidden patches in pictures."""


@dataclasses.dataclass(frozen=True)
class MaskedPatches:
    """Patches are masked, and the decoder predicts them or a part of them (VideoMAE and VideoMAE V2).

    Attributes:
      shape: frames, height and width of a clip.
      mask, ratio, decoder_mask: see `objectives.masking.draw`.
      normalize, epsilon: see `objectives.reconstruction.pixel_targets`.

    Raises:
      UserError: the clip cannot be cut into patches, or the mask leaves nothing to see or to predict.
    """

    model: nn.Module
    shape: tuple[int, int, int]
    mask: str
    ratio: float
    decoder_mask: str
    normalize: bool
    epsilon: float

    def _draw(self, key: Key[Array, ""], clips: int, decoder_mask: str) -> tuple[Array, Array, Array]:
        grid = patches.grid(self.shape, self.model.patch_size)
        return masking.draw(key, clips, grid, self.mask, self.ratio, decoder_mask)

    def _target(self, pixels: Array, predicted: Array) -> Array:
        target = reconstruction.pixel_targets(pixels, self.model.patch_size, self.normalize, self.epsilon)
        return jnp.take_along_axis(target, predicted[..., None], axis=1)

    def inputs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of the model's arguments after one clip: the indices of patches that it sees and predicts."""
        draw = partial(self._draw, clips=1, decoder_mask=self.decoder_mask)
        return jax.eval_shape(draw, jax.random.key(0))[:2]

    def describe(self) -> str:
        """How many tokens a clip has, and what becomes of them."""
        kept, predicted = (each.shape[1] for each in self.inputs())
        tokens = prod(patches.grid(self.shape, self.model.patch_size))
        counts = f"{tokens} per clip: {kept} visible, {tokens - kept} masked, "
        return counts + f"{predicted} predicted ({self.mask} mask {self.ratio:.0%})"

    def losses(self, apply: Callable, pixels: Float[Array, "b t h w c"], key: Key[Array, ""]) -> Float[Array, "b"]:
        """The loss of each clip behind a mask drawn with `key`.

        Args:
          apply: the model on a normalised video and the arguments of `inputs`.
          pixels: in [0, 1].
        """
        kept, predicted, counted = self._draw(key, len(pixels), self.decoder_mask)
        target = self._target(pixels, predicted)
        output = apply(self.model.card.normalize(pixels), kept, predicted)
        return reconstruction.reconstruction_loss(output, target, counted)

    def show(
        self, apply: Callable, pixels: Float[Array, "b t h w c"], key: Key[Array, ""]
    ) -> tuple[Float[Array, "b _ h w c"], Float[Array, "b _ h w c"], Float[Array, "b _ h w c"], Float[Array, "b"]]:
        """Clips, the same with grey patches and with predicted ones in their place, and the loss over all of these."""
        kept, masked, _ = self._draw(key, len(pixels), "none")
        output = apply(self.model.card.normalize(pixels), kept, masked)
        loss = reconstruction.reconstruction_loss(output, self._target(pixels, masked))
        paint = partial(reconstruction.paint, pixels, indices=masked, patch_size=self.model.patch_size)
        hidden = paint(predicted=jnp.full_like(output, GREY), normalized=False)
        return pixels, hidden, paint(predicted=output, normalized=self.normalize, epsilon=self.epsilon), loss


@dataclasses.dataclass(frozen=True)
class MaskedUnits:
    """Mask units are masked at random, and the first frame of each of their patches is predicted (Hiera).

    Attributes:
      shape: frames, height and width of a clip.
      ratio: fraction of masked units.

    Raises:
      UserError: the clip cannot be cut into units, the ratio leaves nothing to see or to predict, or a model of images
        gets a clip.
    """

    model: nn.Module
    shape: tuple[int, int, int]
    ratio: float

    def __post_init__(self) -> None:
        if self.model.images and self.shape[0] > 1:
            raise UserError(f"a clip has {self.shape[0]} frames, but this is a model of images: add --data.frames 1")

    @property
    def units(self) -> masking.Grid:
        """The grid of units."""
        return patches.grid(self.shape, unit_size(self.model))

    def _draw(self, key: Key[Array, ""], clips: int) -> tuple[Array, Array]:
        """The units that are seen, and 1 for each patch in the others."""
        t, h, w = self.units
        cells = unit_size(self.model)[1] // self.model.patch_side
        kept = jax.vmap(lambda key: masking.units(key, (t, h, w), self.ratio))(jax.random.split(key, clips))
        return kept, masking.hidden_patches(kept, (t, h, w), (t, cells * h, cells * w))

    def inputs(self) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of the model's arguments after one clip: the indices of the units that it sees."""
        return jax.eval_shape(partial(self._draw, clips=1), jax.random.key(0))[:1]

    def describe(self) -> str:
        """How many mask units a clip has, and what becomes of them."""
        units, kept = prod(self.units), self.inputs()[0].shape[1]
        return f"{units} mask units per clip: {kept} visible, {units - kept} masked and predicted"

    def losses(self, apply: Callable, pixels: Float[Array, "b t h w c"], key: Key[Array, ""]) -> Float[Array, "b"]:
        """The loss of each clip behind a mask drawn with `key`; see `MaskedPatches.losses`."""
        kept, hidden = self._draw(key, len(pixels))
        video = self.model.card.normalize(pixels)
        target = reconstruction.first_frame_targets(video, self.model.patch_side, unit_size(self.model)[0])
        return reconstruction.reconstruction_loss(apply(video, kept), target, hidden)

    def show(
        self, apply: Callable, pixels: Float[Array, "b t h w c"], key: Key[Array, ""]
    ) -> tuple[Float[Array, "b _ h w c"], Float[Array, "b _ h w c"], Float[Array, "b _ h w c"], Float[Array, "b"]]:
        """First frames, the same with grey patches and with predicted ones in their place, and the loss over these."""
        kept, hidden = self._draw(key, len(pixels))
        card, side, stride = self.model.card, self.model.patch_side, unit_size(self.model)[0]
        video = card.normalize(pixels)
        output = apply(video, kept)
        target = reconstruction.first_frame_targets(video, side, stride)
        loss = reconstruction.reconstruction_loss(output, target, hidden)
        frames = video[:, ::stride]
        painted = reconstruction.paint_first_frames(frames, output, hidden, side)
        painted = painted * jnp.asarray(card.std) + jnp.asarray(card.mean)
        frames, grid = pixels[:, ::stride], (self.units[0], *(each // side for each in self.shape[1:]))
        where = patches.unpatchify(jnp.repeat(hidden[..., None], side**2, axis=-1), grid, (1, side, side))
        return frames, jnp.where(where > 0, GREY, frames), painted, loss
