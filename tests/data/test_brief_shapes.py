"""Videos in which most frames say nothing."""

from collections import Counter

import numpy as np
import pytest

from vidjax.data import brief_shapes, moving_shapes
from vidjax.data.sources import open_source


def test_only_the_frames_that_show_the_shape_differ_from_the_background_in_any_order():
    for index in range(4):
        video = brief_shapes.render(index, np.arange(brief_shapes.NUM_FRAMES), 16)
        background = np.median(video, axis=0)
        differs = np.flatnonzero((video != background).any(axis=(1, 2, 3)))
        assert differs.tolist() == list(brief_shapes.shown(index)) and len(differs) == brief_shapes.SHOWN
        order = [differs[1], 0, differs[0]]
        np.testing.assert_array_equal(brief_shapes.render(index, np.array(order), 16), video[order])


def test_the_label_is_the_colour_and_neither_time_nor_background_nor_motion_tell_it():
    firsts = {brief_shapes.shown(index).start for index in range(300)}
    assert firsts == set(range(brief_shapes.NUM_FRAMES - brief_shapes.SHOWN + 1))
    source = open_source("synthetic:brief_shapes", "validation")
    assert source.class_names == ("red", "yellow", "green", "blue") and len(source) == 768
    scenes = [brief_shapes.scene_of(index) for index in brief_shapes.SPLITS["validation"]]
    assert [source.class_names[source.label(index)] for index in range(768)] == [scene.color for scene in scenes]
    assert set(Counter((scene.color, scene.label) for scene in scenes).values()) == {24}  # a colour and a direction
    assert len({(scene.color, scene.background) for scene in scenes}) == 16
    assert set(brief_shapes.CLASSES + brief_shapes.BACKGROUNDS) == set(moving_shapes.COLORS)
    with pytest.raises(ValueError, match=r"data.split test is unknown: synthetic:brief_shapes has train, validation"):
        open_source("synthetic:brief_shapes", "test")
