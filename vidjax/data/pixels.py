"""Random changes of the pixels of a training clip after its crop, as functions of a seed (NumPy and Pillow)."""

import math

import numpy as np
from jaxtyping import UInt8

from vidjax.data import color, rand_augment, stateless
from vidjax.data.config import AugmentConfig
from vidjax.data.stateless import Seed

Video = UInt8[np.ndarray, "t h w 3"]


def change_pixels(video: Video, seed: Seed, config: AugmentConfig) -> Video:
    """Applies RandAugment, colour jitter, greyscale and random erasing to a cropped clip, in this order.

    RandAugment may rotate, shear and translate the clip; the crop does not record that.

    Args:
      video: RGB.
      seed: the same as for `crop.random_crop`.
      config: the augmentations to apply and their strengths.
    """
    # The first two are for the crop and the flip, see `crop.random_crop`.
    _, _, ops_seed, jitter_seed, grey_seed, erase_seed = stateless.split(seed, 6)
    if config.rand_augment_ops:
        video = rand_augment.rand_augment(video, config.rand_augment_ops, config.rand_augment_magnitude, ops_seed)
    if config.color_jitter:
        video = color.jitter(video, config.color_jitter, jitter_seed)
    if config.grey and stateless.uniform(grey_seed, 1)[0] < config.grey:
        video = color.grey(video)
    if config.random_erasing:
        use_seed, box_seed = stateless.split(erase_seed, 2)
        if stateless.uniform(use_seed, 1)[0] < config.random_erasing:
            video = erase(video, box_seed)
    return video


def erase(video: Video, seed: Seed) -> Video:
    """Random erasing (Zhong et al. 2020): replaces one box of 2 to 33 % of the area by noise in all frames.

    The noise is the same in every frame, with the mean 0.45 and std 0.225 that many video models normalise with.
    """
    area_seed, aspect_seed, y_seed, x_seed, noise_seed = stateless.split(seed, 5)
    height, width = video.shape[1:3]
    area = stateless.uniform(area_seed, 1, 0.02, 1 / 3)[0] * np.float32(height * width)
    aspect = np.exp(stateless.uniform(aspect_seed, 1, math.log(0.3), math.log(1 / 0.3))[0])
    box_height = np.minimum(np.sqrt(area * aspect), np.float32(height - 1))
    box_width = np.minimum(np.sqrt(area / aspect), np.float32(width - 1))
    rows = _covered(height, box_height, stateless.uniform(y_seed, 1)[0])
    columns = _covered(width, box_width, stateless.uniform(x_seed, 1)[0])
    noise = stateless.normal(noise_seed, height * width * 3, 0.45 * 255, 0.225 * 255).reshape(height, width, 3)
    changed = video.copy()
    changed[:, rows, columns] = np.rint(noise[rows, columns].clip(0, 255)).astype(np.uint8)
    return changed


def _covered(pixels: int, length: np.float32, place: np.float32) -> slice:
    """The pixels whose centres lie in an interval of this length; a place from 0 to 1 is between both ends."""
    first = place * (np.float32(pixels) - length)
    centres = np.arange(pixels, dtype=np.float32) + np.float32(0.5)
    inside = np.flatnonzero((centres >= first) & (centres < first + length))
    return slice(inside[0], inside[-1] + 1) if len(inside) else slice(0, 0)
