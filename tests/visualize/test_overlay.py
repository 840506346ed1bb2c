"""Overlays: the pixels that are written."""

import numpy as np
from PIL import Image

from vidjax.visualize.overlay import overlay, save_overlays


def test_the_highest_places_are_bright_and_the_lowest_are_the_grey_frame():
    video = np.random.default_rng(0).uniform(size=(4, 32, 32, 3)).astype(np.float32)
    heat = np.zeros((2, 4, 4), np.float32)
    heat[0, 1, 2] = 3.0
    heat[1] = -5.0  # counts as zero
    painted = overlay(video, heat)
    assert painted.shape == video.shape and painted.min() >= 0 and painted.max() <= 1
    hot, cold = painted[0, 12, 20], painted[3]
    assert hot[0] > 0.7 and hot[0] - hot[2] > 0.1  # yellow
    np.testing.assert_allclose(cold, np.repeat(0.8 * video[3].mean(-1, keepdims=True), 3, axis=-1), atol=1e-6)


def test_a_single_peak_does_not_leave_the_rest_dark_and_a_flat_map_colours_nothing():
    video = np.full((1, 40, 40, 3), 0.5, np.float32)
    heat = np.linspace(0, 1, 1600, dtype=np.float32).reshape(1, 40, 40)
    heat[0, 0, 0] = 1000.0
    assert overlay(video, heat)[0, -1, -1, 0] > 0.7
    np.testing.assert_allclose(overlay(video, np.ones((1, 2, 2), np.float32)), 0.4, atol=0.01)


def test_frames_and_every_map_have_a_row_and_the_gif_moves(tmp_path):
    video = np.broadcast_to(np.linspace(0.1, 0.9, 3, dtype=np.float32)[:, None, None, None], (3, 96, 96, 3))
    maps = [np.random.default_rng(i).uniform(size=(3, 4, 4)).astype(np.float32) for i in range(2)]
    png, gif = save_overlays(tmp_path / "new" / "rollout", video, maps, ["one", "two"], "a caption")
    image = np.asarray(Image.open(png))
    assert image.shape[0] > 3 * 96 and image.shape[1] > 3 * 96
    colored = (np.ptp(image.astype(int), axis=-1) > 20).any(axis=1)  # pixel rows with colour
    assert not colored[:120].any() and colored[125:215].all() and colored[222:310].all()
    with Image.open(gif) as animation:
        assert animation.n_frames == 3
