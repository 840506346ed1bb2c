"""Augmentation of training clips: cutting, and in tf.data random changes of pixels that are a function of a seed."""

from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import tensorflow as tf
from jaxtyping import Int, UInt8

from vidjax.data import rand_augment
from vidjax.data.config import AugmentConfig
from vidjax.data.crop import ANTIALIASED_FROM, scaled_box
from vidjax.data.images import EncodedFrames, decode_box


def cut(
    frames: UInt8[np.ndarray, "t h w c"] | EncodedFrames,
    crop: Int[np.ndarray, "7"],
    size: int,
    mirrored: Sequence[int] = (),
) -> UInt8[np.ndarray, "t s s c"]:
    """Crops frames, resizes them to a square of `size` pixels, and mirrors them if the crop is mirrored.

    Args:
      frames: decoded frames, or images of which only the crop is decoded. If their size differs from the one in the
        crop, the box is scaled to it.
      crop: see `crop`.
      size: height and width of the output in pixels.
      mirrored: channels to invert (255 - v) when mirroring, such as horizontal optical flow.
    """
    box = np.array(scaled_box(crop, *frames.shape[1:3]), np.int32)
    how = bool(crop[6]), np.array([channel in mirrored for channel in range(frames.shape[3])]), size
    if isinstance(frames, EncodedFrames) and (jpegs := frames.jpegs):
        with suppress(tf.errors.InvalidArgumentError):  # below is said which image is damaged
            return frames.in_order(_as_array(_cut_jpegs(jpegs, box, frames.shape[2], *how)))
    top, left, height, width = box.tolist()
    return _as_array(_cut_frames(frames[:, top : top + height, left : left + width], *how))


def _as_array(tensor: tf.Tensor) -> np.ndarray:
    """The tensor's own memory, which tf.data takes without a copy, unlike that of `tensor.numpy()`."""
    return np.asarray(memoryview(tensor))


_HOW = [tf.TensorSpec((), tf.bool), tf.TensorSpec((None,), tf.bool), tf.TensorSpec((), tf.int32)]
_BOX = [tf.TensorSpec((4,), tf.int32), tf.TensorSpec((), tf.int32)]


# A frame at a time, which stays in the cache, and without Python between them.
@tf.function(autograph=False, input_signature=[tf.TensorSpec((None,), tf.string), *_BOX, *_HOW])
def _cut_jpegs(images: tf.Tensor, box: tf.Tensor, width: tf.Tensor, *how: tf.Tensor) -> tf.Tensor:
    return tf.map_fn(lambda image: _finish(decode_box(image, box, width), *how), images, fn_output_signature=tf.uint8)


@tf.function(autograph=False, input_signature=[tf.TensorSpec((None, None, None, None), tf.uint8), *_HOW])
def _cut_frames(video: tf.Tensor, *how: tf.Tensor) -> tf.Tensor:
    return tf.map_fn(lambda frame: _finish(frame, *how), video)


def _finish(frame: tf.Tensor, flip: tf.Tensor, inverted: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Resizes a cropped frame to a square, bilinearly, and mirrors it with some channels inverted."""
    height, width = tf.shape(frame)[0], tf.shape(frame)[1]

    def resize() -> tf.Tensor:
        # Floats give the same numbers as uint8 in two thirds of the time: only of these is it vectorised.
        pixels = tf.cast(frame, tf.float32)[None]
        resized = tf.cond(
            tf.maximum(height, width) > tf.cast(tf.round(ANTIALIASED_FROM * tf.cast(size, tf.float32)), tf.int32),
            lambda: tf.image.resize(pixels, (size, size), antialias=True),
            lambda: tf.image.resize(pixels, (size, size)),
        )
        return _round(resized[0])

    def mirror(square: tf.Tensor) -> tf.Tensor:
        flipped = tf.reverse(square, [1])
        return tf.cond(tf.reduce_any(inverted), lambda: tf.where(inverted, 255 - flipped, flipped), lambda: flipped)

    square = tf.cond(tf.logical_and(tf.equal(height, size), tf.equal(width, size)), lambda: frame, resize)
    return tf.cond(flip, lambda: mirror(square), lambda: square)


def change_pixels(video: tf.Tensor, seed: tf.Tensor, config: AugmentConfig) -> tf.Tensor:
    """Applies RandAugment, colour jitter, greyscale and random erasing to a cropped clip, in this order.

    RandAugment may rotate, shear and translate the clip; the crop does not record that.

    Args:
      video: uint8 (t, size, size, 3), RGB.
      seed: (2,) integers, the same as for `crop.random_crop`.
      config: the augmentations to apply and their strengths.
    """
    # The first two are for the crop and the flip, see `crop.random_crop`.
    _, _, ops_seed, jitter_seed, grey_seed, erase_seed = tf.unstack(tf.random.split(seed, 6), num=6)
    shape = video.shape
    if config.rand_augment_ops:
        video = rand_augment.rand_augment(video, config.rand_augment_ops, config.rand_augment_magnitude, ops_seed)
    if config.color_jitter:
        video = color_jitter(video, config.color_jitter, jitter_seed)
    if config.grey:
        chosen = tf.random.stateless_uniform((), grey_seed) < config.grey
        video = tf.cond(chosen, lambda v=video: _to_uint8(rand_augment.grey(tf.cast(v, tf.float32))), lambda v=video: v)
    if config.random_erasing:
        use_seed, box_seed = tf.unstack(tf.random.split(erase_seed, 2), num=2)
        chosen = tf.random.stateless_uniform((), use_seed) < config.random_erasing
        video = tf.cond(chosen, lambda v=video: erase(v, box_seed), lambda v=video: v)
    return tf.ensure_shape(video, shape)


def _round(video: tf.Tensor) -> tf.Tensor:
    """Rounds to uint8; the values must be between 0 and 255, as weighted means of pixels are."""
    return tf.cast(tf.round(video), tf.uint8)


def _to_uint8(video: tf.Tensor) -> tf.Tensor:
    """Clips to 0 to 255 and rounds."""
    return _round(tf.clip_by_value(video, 0.0, 255.0))


def color_jitter(video: tf.Tensor, strength: float, seed: tf.Tensor) -> tf.Tensor:
    """Scales brightness, contrast and saturation, in this order, by factors drawn from 1 +- strength."""
    video = tf.cast(video, tf.float32)
    changes = (rand_augment.brightness, rand_augment.contrast, rand_augment.saturation)
    for change, change_seed in zip(changes, tf.unstack(tf.random.split(seed, 3), num=3), strict=True):
        factor = tf.random.stateless_uniform((), change_seed, max(0.0, 1 - strength), 1 + strength)
        video = change(video, factor)
    return tf.cast(video, tf.uint8)


def erase(video: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Random erasing (Zhong et al. 2020): replaces one box of 2 to 33 % of the area by noise in all frames.

    The noise is the same in every frame, with the mean 0.45 and std 0.225 that many video models normalise with.
    """
    area_seed, aspect_seed, y_seed, x_seed, noise_seed = tf.unstack(tf.random.split(seed, 5), num=5)
    frames, height, width = tf.shape(video)[0], tf.shape(video)[1], tf.shape(video)[2]
    h, w = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    area = tf.random.stateless_uniform((), area_seed, 0.02, 1 / 3) * h * w
    aspect = tf.exp(tf.random.stateless_uniform((), aspect_seed, float(np.log(0.3)), float(np.log(1 / 0.3))))
    box_height = tf.minimum(tf.sqrt(area * aspect), h - 1)
    box_width = tf.minimum(tf.sqrt(area / aspect), w - 1)
    top = tf.random.stateless_uniform((), y_seed) * (h - box_height)
    left = tf.random.stateless_uniform((), x_seed) * (w - box_width)
    y, x = tf.range(h) + 0.5, tf.range(w) + 0.5
    inside = ((y >= top) & (y < top + box_height))[:, None] & ((x >= left) & (x < left + box_width))
    noise = tf.random.stateless_normal(tf.stack([height, width, 3]), noise_seed, 0.45 * 255, 0.225 * 255)
    noise = tf.tile(_to_uint8(noise)[None], (frames, 1, 1, 1))
    return tf.where(inside[None, :, :, None], noise, video)
