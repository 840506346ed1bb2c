"""Augmentation: the same for all frames, a pure function of its seed, and each operation against a reference."""

import numpy as np
import pytest
from PIL import Image, ImageChops, ImageEnhance, ImageOps

from vidjax.data import color, rand_augment
from vidjax.data.config import AugmentConfig
from vidjax.data.pixels import change_pixels, erase

SETTINGS = [{"color_jitter": 0.4}, {"grey": 0.5}, {"rand_augment_ops": 3}, {"random_erasing": 0.5}]


def smooth_image(height=60, width=90, seed=0):
    """A smooth image with some edges, uint8."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 9, 3), np.uint8))
    return np.array(small.resize((width, height), Image.Resampling.BICUBIC))


def seeds(count):
    return [(3, n) for n in range(count)]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_all_frames_are_augmented_alike_as_a_function_of_the_seed(settings):
    still = np.repeat(smooth_image(48, 48)[None], 3, axis=0)
    before = still.copy()
    config = AugmentConfig(**settings)
    assert config.changes_pixels and not AugmentConfig(flip=True).changes_pixels
    clips = [change_pixels(still, seed, config) for seed in seeds(12)]
    assert all(clip.dtype == np.uint8 and clip.shape == (3, 48, 48, 3) for clip in clips)
    assert all((clip == clip[:1]).all() for clip in clips)
    assert all((clip == change_pixels(still, seed, config)).all() for clip, seed in zip(clips, seeds(12), strict=True))
    assert len({clip.tobytes() for clip in clips}) > 1
    assert (still == before).all()


def test_erasing_replaces_one_box_of_limited_area():
    still = np.full((2, 64, 64, 3), 250, np.uint8)
    fractions = []
    for seed in seeds(40):
        changed = (erase(still, seed)[0] != 250).any(axis=-1)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        assert changed[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].mean() > 0.95
        fractions.append(changed.mean())
    assert min(fractions) > 0.01 and max(fractions) < 0.36 and max(fractions) > 0.15


FILL = (124, 116, 104)


def affine(image, matrix):
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=FILL)


def solarize_add(image, x):
    values = np.array(image).astype(int)
    return Image.fromarray(np.where(values < 128, np.minimum(values + int(110 * x), 255), values).astype(np.uint8))


# With level x from 0 to 1 and sign +1, as the "inc" operations of rand_augment in timm.
REFERENCES = {
    "autocontrast": lambda im, x: ImageOps.autocontrast(im),
    "equalize": lambda im, x: ImageOps.equalize(im),
    "invert": lambda im, x: ImageChops.invert(im),
    "rotate": lambda im, x: im.rotate(30 * x, Image.Resampling.BILINEAR, fillcolor=FILL),
    "posterize": lambda im, x: ImageOps.posterize(im, max(4 - int(4 * x), 1)),
    "solarize": lambda im, x: ImageOps.solarize(im, 256 - int(256 * x)),
    "solarize_add": solarize_add,
    "color": lambda im, x: ImageEnhance.Color(im).enhance(1 + 0.9 * x),
    "contrast": lambda im, x: ImageEnhance.Contrast(im).enhance(1 + 0.9 * x),
    "brightness": lambda im, x: ImageEnhance.Brightness(im).enhance(1 + 0.9 * x),
    "sharpness": lambda im, x: ImageEnhance.Sharpness(im).enhance(1 + 0.9 * x),
    "shear_x": lambda im, x: affine(im, (1, 0.3 * x, 0, 0, 1, 0)),
    "shear_y": lambda im, x: affine(im, (1, 0, 0, 0.3 * x, 1, 0)),
    "translate_x": lambda im, x: affine(im, (1, 0, 0.45 * x * im.width, 0, 1, 0)),
    "translate_y": lambda im, x: affine(im, (1, 0, 0, 0, 1, 0.45 * x * im.height)),
}


def test_every_operation_has_a_reference():
    assert list(REFERENCES) == list(rand_augment.OPERATIONS)


ONE_BY_ONE = ("rotate", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y")
"""Operations on single frames; those on colours treat a clip as one image."""


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("level", [0.3, 0.7])
def test_operations_equal_pillows(name, level):
    noise = np.random.default_rng(0).integers(-9, 10, (2, 64, 48, 3))
    smooth = np.stack([smooth_image(64, 48, seed) for seed in (2, 3)])
    video = (smooth * 0.75 + 30 + noise).astype(np.uint8)  # room for autocontrast and equalize
    images = video if name in ONE_BY_ONE else video.reshape(1, -1, 48, 3)
    expected = np.stack([REFERENCES[name](Image.fromarray(image), level) for image in images]).reshape(video.shape)
    np.testing.assert_array_equal(rand_augment.OPERATIONS[name](video, level, 1), expected)
    assert np.abs(expected - video.astype(int)).max() > 3


def test_every_value_is_blended_and_every_colour_weighted_as_in_pillow():
    channel = np.arange(0, 256, 5, dtype=np.uint8)
    colors = np.stack(np.meshgrid(channel, channel, channel), axis=-1).reshape(1, -1, len(channel), 3)
    image = Image.fromarray(colors[0])
    np.testing.assert_array_equal(color.grey(colors)[0], image.convert("L").convert("RGB"))
    for name, factor in (("saturation", 0.37), ("saturation", 1.61), ("contrast", 1.23), ("brightness", 0.83)):
        enhancer = {"saturation": ImageEnhance.Color, "contrast": ImageEnhance.Contrast}.get(name)
        expected = (enhancer or ImageEnhance.Brightness)(image).enhance(factor)
        np.testing.assert_array_equal(getattr(color, name)(colors, factor)[0], expected, err_msg=name)
