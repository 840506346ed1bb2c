"""Colours of optical flow, against recorded ones of another implementation of Middlebury's wheel."""

import numpy as np
import recipe

from vidjax.visualize.flow import color_flow, color_wheel


def test_colours_equal_those_of_the_original():
    stored = np.load(recipe.HERE / "flow_colors.npz")
    np.testing.assert_array_equal(color_wheel(), stored["output2"])
    np.testing.assert_array_equal(color_flow(stored["flow"]), stored["output0"])
    np.testing.assert_array_equal(color_flow(stored["flow"], longest=4.0), stored["output1"])


def test_where_nothing_moves_it_is_white():
    assert (color_flow(np.zeros((2, 3, 4, 2), np.float32)) == 255).all()
