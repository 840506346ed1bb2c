"""Pixel targets and loss of masked autoencoders."""

import einops
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vidjax.layers.patches import grid, patchify, unpatchify


def pixel_targets(
    video: Float[Array, "b t h w c"],
    patch_size: tuple[int, int, int],
    normalize: bool = True,
    epsilon: float = 1e-6,
) -> Float[Array, "b n p"]:
    """The pixels of each patch, `(frame row column channel)`, in float32: what a masked autoencoder predicts.

    Args:
      video: un-normalised pixels in [0, 1].
      patch_size: frames, height and width of a patch.
      normalize: normalise each channel of every patch to mean 0 and std 1, with the unbiased variance, as
        MCG-NJU/VideoMAE (engine_for_pretraining.py) does.
      epsilon: added to the std; 1e-6 there. With more, patches of low contrast count for less.

    Example:
      >>> targets = pixel_targets(video, (2, 16, 16))            # (b, 1568, 1536) of 16 frames of 224 pixels
      >>> targets = jnp.take_along_axis(targets, masked[..., None], axis=1)
    """
    patches = patchify(video.astype(jnp.float32), patch_size)
    if not normalize:
        return patches
    channels = einops.rearrange(patches, "b n (s c) -> b n s c", c=video.shape[-1])
    mean = channels.mean(axis=2, keepdims=True)
    std = channels.std(axis=2, keepdims=True, ddof=1)
    return ((channels - mean) / (std + epsilon)).reshape(patches.shape)


def first_frame_targets(video: Float[Array, "b t h w c"], side: int, stride: int = 2) -> Float[Array, "b n p"]:
    """What Hiera's masked autoencoder predicts: square patches of every `stride`-th frame, `(row column channel)`.

    All values of a patch are normalised together, with the unbiased variance, to which 1e-6 is added.

    Args:
      video: normalised as for the model, as in facebookresearch/hiera (hiera_mae.py).
      side: of a patch in pixels.
      stride: frames of a token; 1 for images.

    Example:
      >>> targets = first_frame_targets(video, side=16)  # (b, 1568, 768) of 16 frames of 224 pixels
    """
    patches = patchify(video[:, ::stride].astype(jnp.float32), (1, side, side))
    mean, variance = patches.mean(axis=-1, keepdims=True), patches.var(axis=-1, keepdims=True, ddof=1)
    return (patches - mean) / jnp.sqrt(variance + 1e-6)


def reconstruction_loss(
    predicted: Float[Array, "b r p"], target: Float[Array, "b r p"], counted: Int[Array, "b r"] | None = None
) -> Float[Array, "b"]:
    """Mean squared error of each clip over its tokens and their values, in float32.

    Args:
      predicted, target: patches, as returned by `pixel_targets`.
      counted: 1 for the tokens that count (VideoMAE V2 excludes those that the encoder saw); all if None. The original
        divides by the count of a device's batch: the same if all clips have equally many, as with tubes and a multiple
        of 4 times.

    Example:
      >>> loss = reconstruction_loss(model.apply(variables, video, kept, masked), targets).mean()
    """
    error = jnp.square(predicted.astype(jnp.float32) - target.astype(jnp.float32)).mean(axis=-1)
    if counted is None:
        return error.mean(axis=1)
    return (error * counted).sum(axis=1) / jnp.maximum(counted.sum(axis=1), 1)


def paint(
    video: Float[Array, "b t h w c"],
    predicted: Float[Array, "b r p"],
    indices: Int[Array, "b r"],
    patch_size: tuple[int, int, int],
    normalized: bool = True,
    epsilon: float = 1e-6,
) -> Float[Array, "b t h w c"]:
    """Replaces the patches of the video at `indices` by the predicted ones, for visualisation.

    A model trained on normalised targets does not predict brightness and contrast: each predicted patch gets the mean
    and std of the true patch, so the image looks better than the prediction alone. `epsilon` as for `pixel_targets`.
    """
    patches = patchify(video.astype(jnp.float32), patch_size)
    index = indices[..., None]
    predicted = predicted.astype(jnp.float32)
    if normalized:
        channels = einops.rearrange(patches, "b n (s c) -> b n s c", c=video.shape[-1])
        mean = jnp.take_along_axis(channels.mean(axis=2), index, axis=1)[:, :, None]
        std = jnp.take_along_axis(channels.std(axis=2, ddof=1), index, axis=1)[:, :, None]
        scaled = einops.rearrange(predicted, "b r (s c) -> b r s c", c=video.shape[-1]) * (std + epsilon) + mean
        predicted = scaled.reshape(predicted.shape)
    rows = jnp.arange(video.shape[0])[:, None]
    painted = patches.at[rows, indices].set(predicted)
    return unpatchify(painted, grid(video.shape[1:4], patch_size), patch_size)


def paint_first_frames(
    frames: Float[Array, "b t h w c"], predicted: Float[Array, "b n p"], hidden: Int[Array, "b n"], side: int
) -> Float[Array, "b t h w c"]:
    """Replaces hidden patches of frames by predicted ones with their true mean and std, as `paint`, for visualisation.

    Args:
      frames: normalised, one for each token in time; see `first_frame_targets`.
      predicted: all patches.
      hidden: 1 for the patches to replace.
    """
    size = (1, side, side)
    patches = patchify(frames.astype(jnp.float32), size)
    mean, variance = patches.mean(axis=-1, keepdims=True), patches.var(axis=-1, keepdims=True, ddof=1)
    restored = predicted.astype(jnp.float32) * jnp.sqrt(variance + 1e-6) + mean
    return unpatchify(jnp.where(hidden[..., None] > 0, restored, patches), grid(frames.shape[1:4], size), size)
