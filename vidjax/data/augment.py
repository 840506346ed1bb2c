"""Random changes of a clip, the same for all of its frames, as pure functions of a seed (tf.data runs them)."""

from collections.abc import Sequence

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
    crop = random_crop(tf.shape(video)[1], tf.shape(video)[2], config, size, seed, center_ratio)
    return change_pixels(cut(video, crop, size), config, seed)


def random_crop(
    height: tf.Tensor, width: tf.Tensor, config: AugmentConfig, size: int, seed: tf.Tensor, center_ratio: float = 7 / 8
) -> tf.Tensor:
    """Where a clip is cut from its frames, and whether it is mirrored: one geometry for all frames and streams.

    Returns:
      int32 (7,): top, left, height and width of the square in the frame, height and width of the frame, and 1 for a
      mirrored clip.
    """
    crop_seed, flip_seed = _seeds(seed)[:2]
    if config.crop == "center":
        box = center_box(height, width, center_ratio)
    else:
        box = (multi_scale_box if config.crop == "multi_scale" else random_resized_box)(height, width, size, crop_seed)
    flipped = tf.cast(tf.random.stateless_uniform((), flip_seed) < 0.5, tf.int32) if config.flip else 0
    return tf.stack([*box, height, width, flipped])


def cut(video: tf.Tensor, crop: tf.Tensor, size: int, mirrored: Sequence[int] = ()) -> tf.Tensor:
    """Cuts a clip from frames, brings it to a square of `size` pixels, and mirrors it if the crop says so.

    Args:
      video: uint8 (t, h, w, c). Where its frames are of another size than those that the crop was drawn for, the same
        fractions of them are cut.
      crop: int32 (7,), see `random_crop`.
      size: pixels.
      mirrored: channels that change sign in a mirror image (255 - v), as the horizontal one of optical flow.
    """
    cut_out = crop_and_resize(video, _scaled(crop, tf.shape(video)[1], tf.shape(video)[2]), size)

    def mirror() -> tf.Tensor:
        turned = tf.reverse(cut_out, [2])
        if not mirrored:
            return turned
        changes = tf.constant([channel in mirrored for channel in range(video.shape[3])])
        return tf.where(changes, 255 - turned, turned)

    return tf.cond(crop[6] > 0, mirror, lambda: cut_out)


def _scaled(crop: tf.Tensor, height: tf.Tensor, width: tf.Tensor) -> tuple:
    """The crop's box in frames of this size."""
    box = tuple(tf.unstack(crop[:4], num=4))
    same = tf.logical_and(tf.equal(crop[4], height), tf.equal(crop[5], width))

    def scale() -> tuple:
        y, x = (
            tf.cast(height, tf.float64) / tf.cast(crop[4], tf.float64),
            tf.cast(width, tf.float64) / tf.cast(crop[5], tf.float64),
        )
        top, left, tall, wide = (
            tf.cast(tf.round(tf.cast(side, tf.float64) * ratio), tf.int32)
            for side, ratio in zip(box, (y, x, y, x), strict=True)
        )
        tall, wide = tf.maximum(tall, 1), tf.maximum(wide, 1)
        return tf.minimum(top, height - tall), tf.minimum(left, width - wide), tall, wide

    return tf.cond(same, lambda: box, scale)


def change_pixels(video: tf.Tensor, config: AugmentConfig, seed: tf.Tensor) -> tf.Tensor:
    """Random changes of a clip's colours, and erasing: RandAugment, colour jitter, grey, erasing, in this order.

    RandAugment may turn, shear and move the clip by a few degrees or pixels, which the crop does not tell.

    Args:
      video: uint8 (t, size, size, 3), RGB.
      config: what is on, and how strong.
      seed: (2,) integers, those of the crop.
    """
    _, _, ops_seed, jitter_seed, grey_seed, erase_seed = _seeds(seed)
    shape = video.shape
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
    return tf.ensure_shape(video, shape)


def _seeds(seed: tf.Tensor) -> list[tf.Tensor]:
    """Of the crop, the flip, RandAugment, colour jitter, grey and erasing."""
    return tf.unstack(tf.random.split(seed, 6), num=6)


def center_box(height: tf.Tensor, width: tf.Tensor, ratio: float = 7 / 8) -> tuple:
    """The central square of `ratio` of the shorter side: top, left, height, width."""
    side = tf.cast(tf.round(tf.cast(tf.minimum(height, width), tf.float32) * ratio), tf.int32)
    return (height - side) // 2, (width - side) // 2, side, side


def center_crop(video: tf.Tensor, size: int, ratio: float = 7 / 8) -> tf.Tensor:
    """The central square of `ratio` of the shorter side, as `size` pixels."""
    return crop_and_resize(video, center_box(tf.shape(video)[1], tf.shape(video)[2], ratio), size)


def view_crops(height: tf.Tensor, width: tf.Tensor, count: int, ratio: float = 7 / 8) -> list[tf.Tensor]:
    """Crops for a test, at equal distances along the longer side, from one end to the other; one is the central one.

    Args:
      height: of the frames.
      width: of the frames.
      count: of the crops.
      ratio: fraction of the shorter side that a square keeps.

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
    """Each clip cut by each crop.

    Args:
      video: uint8 (v * frames, h, w, c), clips one after the other.
      crops: see `random_crop`.
      frames: of a clip.
      size: pixels of the squares.

    Returns:
      uint8 (v * crops, frames, size, size, c), the crops of a clip next to each other.
    """
    return join_views([cut(video, crop, size) for crop in crops], frames)


def join_views(cuts: Sequence[tf.Tensor], frames: int) -> tf.Tensor:
    """Clips (v * frames, size, size, c) by several crops, as (v * crops, frames, size, size, c)."""
    shape = (-1, frames, *cuts[0].shape[1:])
    if len(cuts) == 1:
        return tf.reshape(cuts[0], shape)
    views = [tf.reshape(each, shape) for each in cuts]
    return tf.reshape(tf.stack(views, axis=1), shape)


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
    return tf.ensure_shape(resized, (video.shape[0], size, size, video.shape[3]))


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
