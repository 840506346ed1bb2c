"""Photos and clips of the same classes."""

from collections import Counter
from itertools import combinations

import numpy as np
import pytest

from vidjax.data import moving_shapes, shape_photos
from vidjax.data.sources import open_source


def test_photos_and_clips_have_the_same_classes_and_no_scene_in_common():
    photos, clips = (open_source(f"synthetic:shape_{kind}") for kind in ("photos", "clips"))
    assert photos.class_names == clips.class_names == ("circle", "square", "triangle")
    assert len(photos) > 10 * len(clips)
    splits = [split for kind in shape_photos.KINDS.values() for split in kind.splits.values()]
    splits.append(moving_shapes.SPLITS["train"])
    assert not any(set(one) & set(other) for one, other in combinations(splits, 2))
    counts = Counter(photos.label(index) for index in range(len(photos)))
    assert len(counts) == 3 and min(counts.values()) > 0.9 * max(counts.values())
    with pytest.raises(ValueError, match=r"data.split test is unknown: synthetic:shape_clips has train, validation"):
        open_source("synthetic:shape_clips", "test")


def test_a_photo_is_a_single_frame_and_its_label_is_the_form():
    for kind, frames in (("photos", 1), ("clips", 64)):
        source = open_source(f"synthetic:shape_{kind}", "validation")
        with source.open(3, ("video",)) as example:
            video, info = example.streams["video"].read([0], 48)
            assert info.num_frames == frames and example.label == source.label(3)
        scene = moving_shapes.scene_of(shape_photos.KINDS[kind].splits["validation"][3])
        assert source.class_names[source.label(3)] == scene.shape
        assert (video == np.array(moving_shapes.COLORS[scene.color])).all(axis=-1).any()
