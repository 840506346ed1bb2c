"""Crops: their places and sizes, and the pixels cut out, by NumPy as by TensorFlow."""

from collections import Counter

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from vidjax.data import augment, stateless
from vidjax.data.config import AugmentConfig
from vidjax.data.crop import (
    center_crop,
    cut,
    cut_views,
    multi_scale_box,
    random_crop,
    random_resized_box,
    resize,
    view_crops,
)
from vidjax.errors import UserError


def smooth_video(height, width, channels=3):
    """Two frames of smooth noise with some edges."""
    small = np.random.default_rng(0).integers(0, 256, (2 * channels, 6, 9), np.uint8)
    planes = [Image.fromarray(plane).resize((width, height), Image.Resampling.BICUBIC) for plane in small]
    return np.stack(planes).reshape(2, channels, height, width).transpose(0, 2, 3, 1)


def draws(draw, count):
    return [draw((3, n)) for n in range(count)]


def test_multi_scale_crops_have_the_published_sizes_and_positions():
    """Scales 1, .875, .75, .66 of 256, at most one step apart; 13 positions on a grid of quarters."""
    sides = [256, 224, 192, 168]
    pairs = {(h, w) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= 1}
    boxes = draws(lambda seed: multi_scale_box(256, 340, 224, seed), 1500)
    assert {(h, w) for _, _, h, w in boxes} == pairs
    positions = {(y, x) for y in (0, 2, 4) for x in (0, 2, 4)} | {(y, x) for y in (1, 3) for x in (1, 3)}
    at_224 = Counter((top // 8, left // 29) for top, left, h, w in boxes if (h, w) == (224, 224))
    assert set(at_224) == positions


def test_random_resized_boxes_have_the_right_area_and_aspect():
    boxes = draws(lambda seed: random_resized_box(240, 320, 224, seed), 400)
    for top, left, h, w in boxes:
        assert 0 <= top <= 240 - h and 0 <= left <= 320 - w
        assert 0.075 <= h * w / (240 * 320) <= 1 and 0.74 <= w / h <= 1.35
    areas = [h * w / (240 * 320) for _, _, h, w in boxes]
    assert min(areas) < 0.12 and max(areas) > 0.8 and 0.4 < np.median(areas) < 0.55
    assert random_resized_box(4, 400, 224, (0, 0))[2:] == (4, 4)  # nothing else fits


@pytest.mark.parametrize("crop", ["multi_scale", "random_resized", "center"])
def test_a_crop_is_a_function_of_its_seed_and_half_are_mirrored(crop):
    config = AugmentConfig(crop=crop, flip=True)
    crops = draws(lambda seed: random_crop(120, 160, config, 64, seed), 200)
    again = draws(lambda seed: random_crop(120, 160, config, 64, seed), 200)
    np.testing.assert_array_equal(crops, again)
    assert 70 < sum(crop[6] for crop in crops) < 130
    assert len({crop[:4].tobytes() for crop in crops}) > (1 if crop != "center" else 0)
    assert all(tuple(crop[4:6]) == (120, 160) for crop in crops)


def test_random_numbers_are_tensorflows():
    """So that runs of versions that drew crops by TensorFlow resume with the same ones."""
    for seed in ([0, 0], [3, 17], [-5, 2**40 + 7], [123456789, 2**62]):
        tensor = tf.constant(seed, tf.int64)
        np.testing.assert_array_equal(stateless.split(seed, 6), tf.random.split(tensor, 6))
        for low, high in ((0.0, 1.0), (0.08, 1.0), (-0.3, 0.3)):
            expected = tf.random.stateless_uniform((10,), tensor, low, high)
            np.testing.assert_array_equal(stateless.uniform(seed, 10, low, high), expected)
        for bound in (10, 13):
            assert stateless.below(seed, bound) == tf.random.stateless_uniform((), tensor, 0, bound, tf.int32)
        for count in (1, 1001):
            expected = tf.random.stateless_normal((count,), tensor, 7.0, 0.5)
            np.testing.assert_allclose(stateless.normal(seed, count, 7.0, 0.5), expected, rtol=0, atol=2e-6)


def test_crops_are_those_of_the_version_before():
    """Recorded with 19428ce, which drew them in TensorFlow: frames of 120 x 160, size 64, seeds (3, 0) to (3, 2)."""
    recorded = {
        "multi_scale": [[0, 34, 79, 90], [6, 0, 105, 120], [0, 26, 105, 105]],
        "random_resized": [[5, 10, 113, 150], [21, 30, 98, 101], [3, 37, 104, 123]],
        "center": [[7, 27, 105, 105]] * 3,
    }
    for crop, expected in recorded.items():
        drawn = draws(lambda seed, crop=crop: random_crop(120, 160, AugmentConfig(crop, flip=True), 64, seed), 3)
        assert [each[:4].tolist() for each in drawn] == expected and all(each[6] for each in drawn)


def test_center_crop_is_central_and_may_be_the_whole_frame():
    video = np.zeros((1, 64, 96, 3), np.uint8)
    video[:, 4:60, 20:76] = 255  # the central square of 7/8
    assert (center_crop(video, 32) == 255).all()
    square = smooth_video(48, 48)
    assert (center_crop(square, 48, 1.0) == square).all()


def test_strong_downscaling_is_antialiased():
    stripes = np.zeros((1, 256, 256, 3), np.uint8)
    stripes[:, :, ::2] = 255
    assert np.ptp(center_crop(stripes, 32, 1.0).astype(int)[:, 2:-2, 2:-2]) < 20


def test_mirrored_crops_are_mirrored():
    video = smooth_video(48, 48, channels=2)
    crop = np.array([0, 0, 48, 48, 48, 48, 1], np.int32)
    mirrored = video[:, :, ::-1]
    np.testing.assert_array_equal(cut(video, crop, 48), mirrored)
    inverted = np.stack([255 - mirrored[..., 0], mirrored[..., 1]], axis=-1)
    np.testing.assert_array_equal(cut(video, crop, 48, mirrored=(0,)), inverted)


@pytest.mark.parametrize("size", [32, 47, 60, 100])
@pytest.mark.parametrize("box", [(0, 0, 60, 60), (3, 7, 50, 71), (10, 20, 31, 30)])
@pytest.mark.parametrize("mirrored", [0, 1])
def test_both_cuts_give_the_same_pixels(size, box, mirrored):
    """Also for a stream of other size: the box is scaled to it."""
    crop = np.array([*box, 60, 90, mirrored], np.int32)
    for video in (smooth_video(60, 90), smooth_video(37, 55)):
        ours = cut(video, crop, size, mirrored=(0,)).astype(int)
        expected = augment.cut(video, crop, size, mirrored=(0,)).astype(int)
        assert np.abs(ours - expected).max() <= 1 and (ours != expected).mean() < 0.001  # sums in another order


@pytest.mark.parametrize("sides", [(61, 70), (40, 37), (48, 70)])
def test_resized_pixels_are_the_exact_values_rounded(sides):
    """Against float64: 0.5 from the exact value, and what float32 adds to it."""
    video, size = smooth_video(*sides), 48
    weights = []
    for side in sides:
        at = ((np.arange(size) + 0.5) * side / size - 0.5).clip(0, side - 1)
        weights.append(np.maximum(1 - np.abs(at[:, None] - np.arange(side)), 0))
    exact = np.einsum("yh,thwc,xw->tyxc", weights[0], video, weights[1])
    crop = np.array([0, 0, *sides, *sides, 0], np.int32)
    for resized in (cut(video, crop, size), augment.cut(video, crop, size)):
        assert np.abs(resized - exact).max() < 0.5 + 1e-4


def test_resizing_equals_pillows_within_one_level():
    video = smooth_video(61, 93)
    for size in (30, 20):  # antialiased, as Pillow always is
        expected = [Image.fromarray(frame).resize((size, size), Image.Resampling.BILINEAR) for frame in video]
        assert np.abs(resize(video, size).astype(int) - np.array(expected).astype(int)).max() <= 1


def test_views_are_spread_along_the_longer_side():
    assert view_crops(100, 200, 3, 1.0)[:, :4].tolist() == [[0, 0, 100, 100], [0, 50, 100, 100], [0, 100, 100, 100]]
    assert view_crops(200, 100, 2, 0.5)[:, :4].tolist() == [[0, 25, 50, 50], [150, 25, 50, 50]]
    assert view_crops(100, 200, 1, 0.5)[:, :4].tolist() == [[25, 75, 50, 50]]


def test_crops_lie_where_those_of_published_code_do():
    """Frames of 256 x 341: SlowFast rounds the middle up, mmaction2's third crop ends a pixel before the frame does."""

    def lefts(protocol, count=3, size=(256, 341), ratio=1.0):
        return view_crops(*size, count, ratio, protocol)[:, :2].tolist()

    assert lefts("slowfast") == lefts("pytorchvideo") == [[0, 0], [0, 43], [0, 85]]
    assert lefts("mmaction2") == lefts("video_swin") == [[0, 0], [0, 42], [0, 84]]
    assert lefts("vidjax") == lefts("videomae") == [[0, 0], [0, 42], [0, 85]]
    assert lefts("slowfast", size=(341, 256)) == [[0, 0], [43, 0], [85, 0]]
    assert lefts("slowfast_offset", 1, (257, 341), 224 / 257) == [[17, 59]]  # ceil(33 / 2), ceil(117 / 2)
    assert lefts("mmaction2", 1, (257, 341), 224 / 257) == [[16, 58]]


def test_viclip_squeezes_the_whole_frame():
    video = smooth_video(30, 60)
    squeezed = center_crop(video, 32, 0.5, "viclip")
    expected = [Image.fromarray(frame).resize((32, 32), Image.Resampling.BILINEAR) for frame in video]
    assert np.abs(squeezed.astype(int) - np.array(expected).astype(int)).max() <= 1
    with pytest.raises(UserError, match="protocol viclip squeezes the whole frame, which has one view in space"):
        view_crops(30, 60, 3, 0.5, "viclip")


def test_ten_crops_are_corners_and_centre_each_also_mirrored():
    crops = view_crops(256, 341, 10, 224 / 256, "mmaction2")
    corners = [[0, 0], [0, 116], [32, 0], [32, 116], [16, 58]]  # 117 // 4 = 29
    assert crops[::2, :2].tolist() == crops[1::2, :2].tolist() == corners
    assert crops[:, 6].tolist() == [0, 1] * 5 and set(crops[:, 2]) == set(crops[:, 3]) == {224}
    flow = smooth_video(256, 341, channels=2)
    views = cut_views(flow, crops, 2, 224, mirrored=(0,))
    plain, flipped = views[2], views[3][:, :, ::-1]
    np.testing.assert_array_equal(plain, flow[:, :224, 116:340])
    np.testing.assert_array_equal(flipped[..., 1], plain[..., 1])
    np.testing.assert_array_equal(flipped[..., 0], 255 - plain[..., 0])
