"""Random augmentation of clips in tf.data: the same for all frames of a clip, and a pure function of a seed."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

from vidjax.data import rand_augment
from vidjax.data.config import AugmentConfig

SCALES = (1.0, 0.875, 0.75, 0.66)  # for multi-scale cropping (TSN, VideoMAE)


def augment(
    video: tf.Tensor, config: AugmentConfig, size: int, seed: tf.Tensor, center_ratio: float = 7 / 8
) -> tf.Tensor:
    """Applies crop, flip, RandAugment, colour jitter, greyscale and random erasing, in this order.

    Args:
      video: uint8 (t, h, w, 3), any height and width.
      config: the augmentations to apply and their strengths.
      size: height and width of the output in pixels.
      seed: (2,) integers; the result is a function of it.
      center_ratio: fraction of the shorter side that is kept if `config.crop` is "center".

    Returns:
      uint8 (t, size, size, 3).
    """
    crop = random_crop(tf.shape(video)[1], tf.shape(video)[2], config, size, seed, center_ratio)
    return change_pixels(cut(video, crop, size), config, seed)


def random_crop(
    height: tf.Tensor, width: tf.Tensor, config: AugmentConfig, size: int, seed: tf.Tensor, center_ratio: float = 7 / 8
) -> tf.Tensor:
    """Draws the crop box and the flip of a clip, which apply to all of its frames and streams.

    Returns:
      int32 (7,): top, left, height and width of the crop in the frame, height and width of the frame, and 1 if the
      clip is mirrored.
    """
    crop_seed, flip_seed = _seeds(seed)[:2]
    if config.crop == "center":
        box = center_box(height, width, center_ratio)
    else:
        box = (multi_scale_box if config.crop == "multi_scale" else random_resized_box)(height, width, size, crop_seed)
    flipped = tf.cast(tf.random.stateless_uniform((), flip_seed) < 0.5, tf.int32) if config.flip else 0
    return tf.stack([*box, height, width, flipped])


def cut(video: tf.Tensor, crop: tf.Tensor, size: int, mirrored: Sequence[int] = ()) -> tf.Tensor:
    """Crops frames, resizes them to a square of `size` pixels, and mirrors them if the crop is mirrored.

    Args:
      video: uint8 (t, h, w, c). If the frame size differs from the one in the crop, the crop box is scaled to it.
      crop: int32 (7,), see `random_crop`.
      size: height and width of the output in pixels.
      mirrored: channels to invert (255 - v) when mirroring, such as horizontal optical flow.
    """
    cropped = crop_and_resize(video, _scaled(crop, tf.shape(video)[1], tf.shape(video)[2]), size)

    def mirror() -> tf.Tensor:
        flipped = tf.reverse(cropped, [2])
        if not mirrored:
            return flipped
        inverted = tf.constant([channel in mirrored for channel in range(video.shape[3])])
        return tf.where(inverted, 255 - flipped, flipped)

    return tf.cond(crop[6] > 0, mirror, lambda: cropped)


def _scaled(crop: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tuple:
    """The crop box, scaled to frames of this size."""
    box = tuple(tf.unstack(crop[:4], num=4))
    same = tf.logical_and(tf.equal(crop[4], height), tf.equal(crop[5], width))

    def scale() -> tuple:
        y, x = (
            tf.cast(height, tf.float64) / tf.cast(crop[4], tf.float64),
            tf.cast(width, tf.float64) / tf.cast(crop[5], tf.float64),
        )
        top, left, crop_height, crop_width = (
            tf.cast(tf.round(tf.cast(side, tf.float64) * ratio), tf.int32)
            for side, ratio in zip(box, (y, x, y, x), strict=True)
        )
        crop_height, crop_width = tf.maximum(crop_height, 1), tf.maximum(crop_width, 1)
        return tf.minimum(top, height - crop_height), tf.minimum(left, width - crop_width), crop_height, crop_width

    return tf.cond(same, lambda: box, scale)


def change_pixels(video: tf.Tensor, config: AugmentConfig, seed: tf.Tensor) -> tf.Tensor:
    """Applies RandAugment, colour jitter, greyscale and random erasing to a cropped clip, in this order.

    RandAugment may rotate, shear and translate the clip; the crop does not record that.

    Args:
      video: uint8 (t, size, size, 3), RGB.
      config: the augmentations to apply and their strengths.
      seed: (2,) integers, the same as for `random_crop`.
    """
    _, _, ops_seed, jitter_seed, grey_seed, erase_seed = _seeds(seed)
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


def _seeds(seed: tf.Tensor) -> list[tf.Tensor]:
    """Seeds of crop, flip, RandAugment, colour jitter, greyscale and erasing."""
    return tf.unstack(tf.random.split(seed, 6), num=6)


def center_box(height: tf.Tensor, width: tf.Tensor, ratio: float = 7 / 8) -> tuple:
    """Top, left, height and width of the central square whose side is `ratio` times the shorter side."""
    side = tf.cast(tf.round(tf.cast(tf.minimum(height, width), tf.float32) * ratio), tf.int32)
    return (height - side) // 2, (width - side) // 2, side, side


def center_crop(video: tf.Tensor, size: int, ratio: float = 7 / 8) -> tf.Tensor:
    """Crops the central square whose side is `ratio` times the shorter side, and resizes it to `size` pixels."""
    return crop_and_resize(video, center_box(tf.shape(video)[1], tf.shape(video)[2], ratio), size)


def view_crops(height: tf.Tensor, width: tf.Tensor, count: int, ratio: float = 7 / 8) -> list[tf.Tensor]:
    """Test-time crops, evenly spaced along the longer side from one end to the other; a single one is central.

    Args:
      height: height of the frames.
      width: width of the frames.
      count: number of crops.
      ratio: side of a crop as a fraction of the shorter side.

    Returns:
      `count` crops of int32 (7,), see `random_crop`.
    """
    across, along, side, _ = center_box(height, width, ratio)
    crops = []
    for i in range(count):
        top, left = across, along
        if count > 1:
            top = tf.where(height > width, (height - side) * i // (count - 1), across)
            left = tf.where(height > width, along, (width - side) * i // (count - 1))
        crops.append(tf.stack([top, left, side, side, height, width, 0]))
    return crops


def cut_views(video: tf.Tensor, crops: Sequence[tf.Tensor], frames: int, size: int) -> tf.Tensor:
    """Applies each crop to each clip.

    Args:
      video: uint8 (v * frames, h, w, c), the clips in sequence.
      crops: see `random_crop`.
      frames: frames per clip.
      size: height and width of the output in pixels.

    Returns:
      uint8 (v * crops, frames, size, size, c), with the crops of a clip adjacent.
    """
    return join_views([cut(video, crop, size) for crop in crops], frames)


def join_views(cuts: Sequence[tf.Tensor], frames: int) -> tf.Tensor:
    """Joins one (v * frames, size, size, c) array per crop into (v * crops, frames, size, size, c)."""
    shape = (-1, frames, *cuts[0].shape[1:])
    if len(cuts) == 1:
        return tf.reshape(cuts[0], shape)
    views = [tf.reshape(each, shape) for each in cuts]
    return tf.reshape(tf.stack(views, axis=1), shape)


def crop_and_resize(video: tf.Tensor, box: tuple, size: int) -> tf.Tensor:
    """Crops the box (top, left, height, width) and resizes it to a square of `size` pixels, bilinearly."""
    top, left, height, width = box
    cropped = video[:, top : top + height, left : left + width]
    unchanged = tf.logical_and(tf.equal(height, size), tf.equal(width, size))
    # Antialiasing takes several times as long as resizing and is visible only at strong downscaling.
    antialias = tf.maximum(height, width) > round(1.5 * size)
    resized = tf.cond(
        unchanged,
        lambda: cropped,
        lambda: _round(
            tf.cond(
                antialias,
                lambda: tf.image.resize(cropped, (size, size), antialias=True),
                lambda: tf.image.resize(cropped, (size, size)),
            )
        ),
    )
    return tf.ensure_shape(resized, (video.shape[0], size, size, video.shape[3]))


def _round(video: tf.Tensor) -> tf.Tensor:
    """Rounds to uint8; the values must be between 0 and 255, as weighted means of pixels are."""
    return tf.cast(tf.round(video), tf.uint8)


def _to_uint8(video: tf.Tensor) -> tf.Tensor:
    """Clips to 0 to 255 and rounds."""
    return _round(tf.clip_by_value(video, 0.0, 255.0))


def multi_scale_box(height: tf.Tensor, width: tf.Tensor, size: int, seed: tf.Tensor) -> tuple:
    """Multi-scale corner crop (TSN, Wang et al. 2016; GroupMultiScaleCrop in the code of TSN and VideoMAE).

    Height and width are the shorter side times entries of `SCALES` at most one step apart; the position is one of 13.
    """
    scale_seed, position_seed = tf.unstack(tf.random.split(seed, 2), num=2)
    shorter = tf.cast(tf.minimum(height, width), tf.float32)
    sides = tf.cast(shorter * tf.constant(SCALES), tf.int32)
    sides = tf.where(tf.abs(sides - size) < 3, size, sides)
    steps = range(len(SCALES))
    pairs = tf.constant([(h, w) for h in steps for w in steps if abs(h - w) <= 1])
    pair = pairs[tf.random.stateless_uniform((), scale_seed, 0, pairs.shape[0], tf.int32)]
    crop_height, crop_width = tf.minimum(sides[pair[0]], height), tf.minimum(sides[pair[1]], width)
    positions = tf.constant([(y, x) for y in range(5) for x in range(5) if (y % 2, x % 2) in ((0, 0), (1, 1))])
    y, x = tf.unstack(positions[tf.random.stateless_uniform((), position_seed, 0, positions.shape[0], tf.int32)], num=2)
    return (height - crop_height) // 4 * y, (width - crop_width) // 4 * x, crop_height, crop_width


def random_resized_box(height: tf.Tensor, width: tf.Tensor, size: int, seed: tf.Tensor) -> tuple:
    """Random resized crop (Szegedy et al. 2015): area 0.08 to 1 of the frame, aspect 3/4 to 4/3 (log-uniform).

    Uses the first of ten draws that fits into the frame, as torchvision does, and otherwise the largest central square
    (where torchvision uses a rectangle).
    """
    area_seed, aspect_seed, y_seed, x_seed = tf.unstack(tf.random.split(seed, 4), num=4)
    h, w = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    area = tf.random.stateless_uniform((10,), area_seed, 0.08, 1.0) * h * w
    aspect = tf.exp(tf.random.stateless_uniform((10,), aspect_seed, float(np.log(3 / 4)), float(np.log(4 / 3))))
    widths = tf.cast(tf.round(tf.sqrt(area * aspect)), tf.int32)
    heights = tf.cast(tf.round(tf.sqrt(area / aspect)), tf.int32)
    fits = (widths <= width) & (heights <= height) & (widths > 0) & (heights > 0)
    first, any_fits = tf.argmax(fits), tf.reduce_any(fits)
    side = tf.minimum(height, width)
    crop_height = tf.where(any_fits, heights[first], side)
    crop_width = tf.where(any_fits, widths[first], side)
    y, x = (tf.where(any_fits, tf.random.stateless_uniform((), s), 0.5) for s in (y_seed, x_seed))
    top = tf.cast(y * tf.cast(height - crop_height + 1, tf.float32), tf.int32)
    left = tf.cast(x * tf.cast(width - crop_width + 1, tf.float32), tf.int32)
    return top, left, crop_height, crop_width


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
