import sys

import numpy as np
import pytest

from vidjax.data import trajectories
from vidjax.data.trajectories import TrackConfig, camera_motion, describe, follow, valid_tracks
from vidjax.errors import UserError

SMALL = {"length": 6, "patch": 16, "scales": 3}


@pytest.fixture(scope="module")
def cv2():
    return pytest.importorskip("cv2")


@pytest.fixture(scope="module")
def texture(cv2):
    """A smooth random picture, with contrast everywhere."""
    draw = np.random.default_rng(0).standard_normal((200, 240)).astype(np.float32)
    smooth = cv2.GaussianBlur(draw, (0, 0), 2.5)
    return np.clip(128 + 45 * smooth / smooth.std(), 0, 255).astype(np.uint8)


def color(frames):
    return np.repeat(np.stack(frames)[..., None], 3, axis=-1)


def panned(texture, square, steps=9, size=(96, 128)):
    """Frames whose camera moves by (2, 1) pixels a frame; with a square of another texture that moves by (-1, 2)."""
    height, width = size
    frames = []
    for i in range(steps):
        frame = texture[i : height + i, 2 * i : width + 2 * i].copy()
        if square:
            frame[20 + 2 * i : 56 + 2 * i, 70 - i : 106 - i] = texture[120:156, 180:216]
        frames.append(frame)
    return color(frames)


def test_points_of_a_moving_texture_are_followed_to_a_tenth_of_a_pixel(texture):
    frames = panned(texture, square=False)
    tracks = follow(iter(frames), TrackConfig(**SMALL), camera=False)
    steps = np.diff(tracks.points, axis=1)
    inner = ((tracks.points > 12) & (tracks.points < [116, 84])).all(axis=(1, 2))
    assert inner.sum() > 300 and set(tracks.first) == {0, 1, 2}
    error = np.linalg.norm(steps[inner] - [-2, -1], axis=-1)
    assert np.median(error) < 0.02 and np.quantile(error, 0.95) < 0.1
    assert np.linalg.norm(tracks.points[inner, -1] - tracks.points[inner, 0] - [-12, -6], axis=-1).mean() < 0.1
    shape = tracks.descriptors[inner][:, TrackConfig(**SMALL).parts()["shape"]].reshape(-1, 6, 2)
    np.testing.assert_allclose(np.linalg.norm(shape, axis=-1).sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(np.median(shape, axis=0), np.tile([-2, -1] / (6 * np.sqrt(5)), (6, 1)), atol=1e-3)


def test_the_cameras_motion_is_taken_off_and_only_the_square_has_tracks(texture):
    assert not len(follow(iter(panned(texture, square=False)), TrackConfig(**SMALL)).first)
    frames, config = panned(texture, square=True, size=(190, 220)), TrackConfig(**SMALL | {"scales": 1})
    both, tracks = (follow(iter(frames), config, camera) for camera in (False, True))
    starts = [each.points[:, 0] - np.stack([70 - each.first, 20 + 2 * each.first], axis=1) for each in (both, tracks)]
    # The flow around the square is smoothed; with this margin it is an eighth of the frame.
    near = [((start > -18) & (start < 54)).all(axis=1) for start in starts]
    assert near[0].mean() < 0.2 and near[1].all() and len(near[1]) > 30
    start = starts[1]
    inner = ((start > 6) & (start < 30)).all(axis=1)
    np.testing.assert_allclose(np.median(np.diff(tracks.points, axis=1)[inner], axis=(0, 1)), [-1, 2], atol=0.05)
    # Without the camera, whose pictures move by (-2, -1), it moves by (1, 3).
    shape = tracks.descriptors[inner][:, TrackConfig(**SMALL).parts()["shape"]].reshape(-1, 2)
    np.testing.assert_allclose(np.median(shape, axis=0) * 6 * np.sqrt(10), [1, 3], atol=0.15)


def test_the_homography_is_that_of_the_pan_and_the_identity_without_matches(texture, cv2):
    first, second = texture[:96, :128], texture[1:97, 2:130]
    flow = np.broadcast_to(np.float32([-2, -1]), (96, 128, 2))
    place = camera_motion(first, second, flow) @ [60, 40, 1]
    np.testing.assert_allclose(place[:2] / place[2], [58, 39], atol=0.1)
    blank = np.zeros_like(first)
    for pair in ((blank, blank), (first, blank), (blank, first)):  # a frame of one colour has no points to match
        np.testing.assert_allclose(camera_motion(*pair, np.zeros_like(flow)), np.eye(3), atol=1e-6)


def slow_descriptor(grey, flow, point, patch):
    """One point, pixel by pixel, from the papers."""
    height, width = grey.shape
    x0 = min(max(point[0] - patch // 2, 0), width - patch)
    y0 = min(max(point[1] - patch // 2, 0), height - patch)

    def central(image, y, x):  # reflected at the border, which is not repeated
        image = np.pad(image.astype(float), 1, "reflect")
        return image[y + 1, x + 2] - image[y + 1, x], image[y + 2, x + 1] - image[y, x + 1]

    parts, side = [], patch // 2
    for kind, bins in (("hog", 8), ("hof", 9), ("mbhx", 8), ("mbhy", 8)):
        histogram = np.zeros((2, 2, bins))
        for y in range(y0, y0 + patch):
            for x in range(x0, x0 + patch):
                image = {"hog": grey, "mbhx": flow[..., 0], "mbhy": flow[..., 1]}.get(kind)
                u, v = flow[y, x] if kind == "hof" else central(image, y, x)
                cell, length, directions = histogram[(x - x0) // side, (y - y0) // side], np.hypot(u, v), 8
                if kind == "hof" and length <= 0.4:
                    cell[8] += 1
                    continue
                place = np.degrees(np.arctan2(v, u)) % 360 / (360 / directions)
                low = int(place)
                cell[low % directions] += length * (1 - (place - low))
                cell[(low + 1) % directions] += length * (place - low)
        histogram += 0.05
        parts.append(np.sqrt(histogram / histogram.sum()))
    return np.concatenate(parts, axis=-1)


def test_descriptors_equal_a_loop_over_pixels_also_at_the_borders(texture, cv2):
    random = np.random.default_rng(1)
    grey = texture[:24, :30]
    flow = cv2.GaussianBlur(random.standard_normal((24, 30, 2)).astype(np.float32), (0, 0), 1.5) * 2
    assert 0.1 < (np.linalg.norm(flow, axis=-1) <= 0.4).mean() < 0.9
    points = np.array([[14, 11], [0, 0], [29, 23], [27, 3]])
    found = describe(grey, flow, points, 8)
    for point, values in zip(points, found, strict=True):
        np.testing.assert_allclose(values, slow_descriptor(grey, flow, point, 8), atol=2e-5)


def test_a_track_has_426_values_and_those_of_a_still_patch_are_known(cv2):
    assert {name: part.stop - part.start for name, part in TrackConfig().parts().items()} == {
        "shape": 30, "hog": 96, "hof": 108, "mbhx": 96, "mbhy": 96,
    }  # fmt: skip
    blank, none = np.full((40, 40), 7, np.uint8), np.zeros((40, 40, 2), np.float32)
    (values,) = describe(blank, none, np.array([[20, 20]]), 32)
    hof = values[..., 8:17]
    total = 4 * 256 + 36 * 0.05
    np.testing.assert_allclose(hof[..., 8], np.sqrt(256.05 / total), rtol=1e-5)
    np.testing.assert_allclose(hof[..., :8], np.sqrt(0.05 / total), rtol=1e-5)
    np.testing.assert_allclose(np.delete(values, np.s_[8:17], axis=-1), np.sqrt(1 / 32), rtol=1e-5)


def test_tracks_are_dropped_by_each_rule():
    steps = np.zeros((6, 15, 2), np.float32)
    steps[:, :, 0] = [[0.3], [1], [1], [12], [1], [1]]  # still; good; good; drifts; jumps; good
    steps[4, 7, 0] = 60
    points = np.concatenate([np.zeros((6, 1, 2)), np.cumsum(steps, axis=1)], axis=1)
    moved = np.full_like(steps, 0.6)
    moved[2] = 0
    moved[5, 3, 1] = 1.1
    assert valid_tracks(points, moved, camera=False).tolist() == [False, True, True, False, False, True]
    assert valid_tracks(points, moved, camera=True).tolist() == [False, False, False, False, False, True]


def test_short_or_empty_videos_have_no_tracks_and_wrong_settings_are_one_line(texture):
    few = follow(iter(panned(texture, square=True, steps=6)), TrackConfig(**SMALL), camera=False)
    assert few.points.shape == (0, 7, 2) and few.descriptors.shape == (0, 408)
    one = follow(iter(panned(texture, square=True, steps=1)), TrackConfig(**SMALL))
    assert one.points.shape == (0, 7, 2)
    with pytest.raises(UserError, match=r"frames of 8x9 are smaller than a patch of 32: give --track\.patch"):
        follow(iter(np.zeros((3, 9, 8, 3), np.uint8)), TrackConfig())
    for settings, message in (
        ({"length": 7}, "length is 7: it must be a multiple of 3"),
        ({"patch": 9}, "patch is 9: it must be a multiple of 2"),
        ({"step": 0}, "step is 0: it must be 1 or more"),
    ):
        with pytest.raises(UserError, match=message):
            TrackConfig(**settings)


def test_without_opencv_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match=r"trajectories need OpenCV: pip install 'vidjax\[flow\]'"):
        trajectories.require_opencv()
