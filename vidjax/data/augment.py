"""Random changes of a clip, the same for all of its frames, as pure functions of a seed (tf.data runs them)."""

import numpy as np
import tensorflow as tf

from vidjax.data import rand_augment
from vidjax.data.config import AugmentConfig

SCALES = (1.0, 0.875, 0.75, 0.66)  # of multi-scale cropping (TSN, VideoMAE)


def augment(
    video: tf.Tensor, config: AugmentConfig, size: int, seed: tf.Tensor, center_ratio: float = 7 / 8
) -> tf.Tensor:
    """A random clip of `size` pixels: crop, flip, RandAugment, colour jitter, grey, erasing, in this order.

    Args:
      video: uint8 (t, h, w, 3), any height and width.
      config: what is on, and how strong.
      size: pixels of the square that comes out.
      seed: (2,) integers; the same seed gives the same clip.
      center_ratio: of `center_crop`, where that is the crop.

    Returns:
      uint8 (t, size, size, 3).
    """
    crop_seed, flip_seed, ops_seed, jitter_seed, grey_seed, erase_seed = tf.unstack(tf.random.split(seed, 6), num=6)
    if config.crop == "center":
        video = center_crop(video, size, center_ratio)
    else:
        box = multi_scale_box if config.crop == "multi_scale" else random_resized_box
        video = crop_and_resize(video, box(tf.shape(video)[1], tf.shape(video)[2], size, crop_seed), size)
    if config.flip:
        video = tf.cond(tf.random.stateless_uniform((), flip_seed) < 0.5, lambda: tf.reverse(video, [2]), lambda: video)
    if config.rand_augment_ops:
        video = rand_augment.rand_augment(video, config.rand_augment_ops, config.rand_augment_magnitude, ops_seed)
    if config.color_jitter:
        video = color_jitter(video, config.color_jitter, jitter_seed)
    if config.grey:
        chosen = tf.random.stateless_uniform((), grey_seed) < config.grey
        video = tf.cond(chosen, lambda v=video: _whole(rand_augment.grey(tf.cast(v, tf.float32))), lambda v=video: v)
    if config.random_erasing:
        use_seed, box_seed = tf.unstack(tf.random.split(erase_seed, 2), num=2)
        chosen = tf.random.stateless_uniform((), use_seed) < config.random_erasing
        video = tf.cond(chosen, lambda v=video: erase(v, box_seed), lambda v=video: v)
    return tf.ensure_shape(video, (None, size, size, 3))


def center_crop(video: tf.Tensor, size: int, ratio: float = 7 / 8) -> tf.Tensor:
    """The central square of `ratio` of the shorter side, as `size` pixels."""
    height, width = tf.shape(video)[1], tf.shape(video)[2]
    side = tf.cast(tf.round(tf.cast(tf.minimum(height, width), tf.float32) * ratio), tf.int32)
    return crop_and_resize(video, ((height - side) // 2, (width - side) // 2, side, side), size)


def view_crops(video: tf.Tensor, frames: int, size: int, crops: int, ratio: float = 7 / 8) -> tf.Tensor:
    """Views for a test: each clip cut at equal distances along its longer side, from one end to the other.

    Args:
      video: uint8 (v * frames, h, w, 3), clips one after the other.
      frames: of a clip.
      crops: squares of each clip; one is the central one.
      ratio: share of the shorter side that a square keeps.

    Returns:
      uint8 (v * crops, frames, size, size, 3), the crops of a clip next to each other.
    """
    height, width = tf.shape(video)[1], tf.shape(video)[2]
    side = tf.cast(tf.round(tf.cast(tf.minimum(height, width), tf.float32) * ratio), tf.int32)
    views = []
    for i in range(crops):
        across, along = (height - side) // 2, (width - side) // 2
        if crops > 1:
            across = tf.where(height > width, (height - side) * i // (crops - 1), across)
            along = tf.where(height > width, along, (width - side) * i // (crops - 1))
        cut = crop_and_resize(video, (across, along, side, side), size)
        views.append(tf.reshape(cut, (-1, frames, size, size, 3)))
    return tf.reshape(tf.stack(views, axis=1), (-1, frames, size, size, 3))


def crop_and_resize(video: tf.Tensor, box: tuple, size: int) -> tf.Tensor:
    """Cuts the box (top, left, height, width) and brings it to a square of `size` pixels, bilinear."""
    top, left, height, width = box
    cut = video[:, top : top + height, left : left + width]
    unchanged = tf.logical_and(tf.equal(height, size), tf.equal(width, size))
    # Smoothing before shrinking costs several times the resizing, and shows only where much is shrunk.
    much = tf.maximum(height, width) > round(1.5 * size)
    resized = tf.cond(
        unchanged,
        lambda: cut,
        lambda: _round(
            tf.cond(
                much,
                lambda: tf.image.resize(cut, (size, size), antialias=True),
                lambda: tf.image.resize(cut, (size, size)),
            )
        ),
    )
    return tf.ensure_shape(resized, (video.shape[0], size, size, 3))


def _round(video: tf.Tensor) -> tf.Tensor:
    """To whole numbers, of what lies between 0 and 255, as weighted means of pixels do."""
    return tf.cast(tf.round(video), tf.uint8)


def _whole(video: tf.Tensor) -> tf.Tensor:
    return _round(tf.clip_by_value(video, 0.0, 255.0))


def multi_scale_box(height: tf.Tensor, width: tf.Tensor, size: int, seed: tf.Tensor) -> tuple:
    """Multi-scale corner crop (TSN, Wang et al. 2016; GroupMultiScaleCrop in the code of TSN and VideoMAE).

    Height and width are `SCALES` of the shorter side, at most one step of the list apart; the place is one of 13.
    """
    scale_seed, place_seed = tf.unstack(tf.random.split(seed, 2), num=2)
    shorter = tf.cast(tf.minimum(height, width), tf.float32)
    sides = tf.cast(shorter * tf.constant(SCALES), tf.int32)
    sides = tf.where(tf.abs(sides - size) < 3, size, sides)
    steps = range(len(SCALES))
    pairs = tf.constant([(h, w) for h in steps for w in steps if abs(h - w) <= 1])
    pair = pairs[tf.random.stateless_uniform((), scale_seed, 0, pairs.shape[0], tf.int32)]
    crop_height, crop_width = tf.minimum(sides[pair[0]], height), tf.minimum(sides[pair[1]], width)
    places = tf.constant([(y, x) for y in range(5) for x in range(5) if (y % 2, x % 2) in ((0, 0), (1, 1))])
    place = places[tf.random.stateless_uniform((), place_seed, 0, places.shape[0], tf.int32)]
    return (height - crop_height) // 4 * place[0], (width - crop_width) // 4 * place[1], crop_height, crop_width


def random_resized_box(height: tf.Tensor, width: tf.Tensor, size: int, seed: tf.Tensor) -> tuple:
    """Random resized crop (Szegedy et al. 2015): area 0.08 to 1 of the frame, aspect 3/4 to 4/3 (log-uniform).

    The first of ten draws that fits is taken, else the largest central square, as torchvision does (which would take a
    rectangle there).
    """
    area_seed, aspect_seed, y_seed, x_seed = tf.unstack(tf.random.split(seed, 4), num=4)
    h, w = tf.cast(height, tf.float32), tf.cast(width, tf.float32)
    area = tf.random.stateless_uniform((10,), area_seed, 0.08, 1.0) * h * w
    aspect = tf.exp(tf.random.stateless_uniform((10,), aspect_seed, float(np.log(3 / 4)), float(np.log(4 / 3))))
    widths = tf.cast(tf.round(tf.sqrt(area * aspect)), tf.int32)
    heights = tf.cast(tf.round(tf.sqrt(area / aspect)), tf.int32)
    fits = (widths <= width) & (heights <= height) & (widths > 0) & (heights > 0)
    first, found = tf.argmax(fits), tf.reduce_any(fits)
    side = tf.minimum(height, width)
    crop_height = tf.where(found, heights[first], side)
    crop_width = tf.where(found, widths[first], side)
    y, x = (tf.where(found, tf.random.stateless_uniform((), s), 0.5) for s in (y_seed, x_seed))
    top = tf.cast(y * tf.cast(height - crop_height + 1, tf.float32), tf.int32)
    left = tf.cast(x * tf.cast(width - crop_width + 1, tf.float32), tf.int32)
    return top, left, crop_height, crop_width


def color_jitter(video: tf.Tensor, strength: float, seed: tf.Tensor) -> tf.Tensor:
    """Brightness, contrast and saturation by factors within 1 +- strength, in this order."""
    video = tf.cast(video, tf.float32)
    changes = (rand_augment.brightness, rand_augment.contrast, rand_augment.saturation)
    for change, change_seed in zip(changes, tf.unstack(tf.random.split(seed, 3), num=3), strict=True):
        factor = tf.random.stateless_uniform((), change_seed, max(0.0, 1 - strength), 1 + strength)
        video = change(video, factor)
    return tf.cast(video, tf.uint8)


def erase(video: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
    """Random erasing (Zhong et al. 2020): one box of all frames becomes noise, of 2 to 33 % of the area.

    The noise has the mean and deviation (0.45, 0.225) that video models are normalised by; it stands still.
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
    noise = tf.tile(_whole(noise)[None], (frames, 1, 1, 1))
    return tf.where(inside[None, :, :, None], noise, video)
