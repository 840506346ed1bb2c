"""Reconstruction images and curves: what the files contain."""

import numpy as np
from PIL import Image

from vidjax.visualize.curves import save_curves
from vidjax.visualize.reconstruction import save_reconstructions


def test_every_frame_of_every_clip_is_in_the_image_and_the_gif_moves(tmp_path):
    shades = np.linspace(0.1, 0.9, 24).reshape(3, 2, 4, 1, 1, 1)  # three rows, two clips, four frames
    videos = list(np.broadcast_to(shades, (3, 2, 4, 32, 32, 3)))
    png, gif = save_reconstructions(tmp_path / "new" / "step_1", videos, "a caption")
    colors = {color for _, color in Image.open(png).getcolors(1 << 20)}
    assert {(round(s * 255),) * 3 for s in shades.ravel().tolist()} <= colors
    with Image.open(gif) as animation:
        assert animation.n_frames == 4


def test_curves_leave_out_what_was_not_logged(tmp_path):
    entries = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": None}, {"step": 2, "evaluation/x": 1.0}]
    path = save_curves(tmp_path / "curves.png", entries, ("loss", "evaluation/x", "absent"))
    assert Image.open(path).size[0] > 1000
