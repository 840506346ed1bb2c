"""Streams joined along their channels, as `video+flow`, against the same streams read side by side."""

import dataclasses
from itertools import islice

import numpy as np
import pytest

from vidjax.data.batches import evaluation_batches
from vidjax.data.config import AugmentConfig, LabelledDataConfig
from vidjax.data.pipeline import train_batches
from vidjax.data.sources import open_source
from vidjax.data.windows import open_videos
from vidjax.errors import UserError

SHAPES = "synthetic:moving_shapes"
DATA = LabelledDataConfig(
    frames=3, size=24, short_side=32, stride=2, workers=1,
    augment=AugmentConfig(crop="random_resized", flip=True, color_jitter=0.5),
)  # fmt: skip
JOINED = dataclasses.replace(DATA, stream="video+flow")


def both(batch):
    return np.concatenate([batch["video"], batch["flow"]], axis=-1)


@pytest.mark.parametrize("repeats", [1, 2])
def test_training_crops_and_mirrors_joined_streams_alike(repeats):
    source, settings = open_source(SHAPES), {"batch_size": 8, "seed": 0}
    one, other = (dataclasses.replace(data, repeats=repeats) for data in (DATA, JOINED))
    apart = list(islice(train_batches(source, one, **settings, fields=("flow", "video+flow")), 2))
    joined = list(islice(train_batches(source, other, **settings), 2))
    assert np.concatenate([batch["crop"][:, 6] for batch in joined]).any()  # some are mirrored
    for a, b in zip(apart, joined, strict=True):
        assert b["video"].shape == (8, 3, 24, 24, 5) and b["video"].dtype == np.uint8
        np.testing.assert_array_equal(b["video"], both(a))  # colours change, flow does not
        np.testing.assert_array_equal(a["video+flow"], both(a))  # as for a teacher of both
        np.testing.assert_array_equal(b["crop"], a["crop"])


def test_evaluation_and_windows_read_joined_streams():
    source, settings = open_source(SHAPES, "validation"), {"batch_size": 2, "indices": [5, 6], "view_counts": (2, 1)}
    (apart,) = evaluation_batches(source, DATA, **settings, fields=("flow",))
    (joined,) = evaluation_batches(source, JOINED, **settings)
    np.testing.assert_array_equal(joined["video"], both(apart))
    videos = open_videos(SHAPES, "validation")
    (clip,) = videos.clip(5, JOINED, (2, 1))
    np.testing.assert_array_equal(clip.frames, joined["video"][0])
    each = [[window.frames for window in videos.windows(5, dataclasses.replace(DATA, stream=stream), 3)]
            for stream in ("video", "flow", "video+flow")]  # fmt: skip
    np.testing.assert_array_equal(each[2], np.concatenate(each[:2], axis=-1))
    assert len(each[2]) > 1


@pytest.mark.parametrize(
    ("stream", "message"),
    [
        ("video+sound", "has no field 'sound': choose among video, label, flow, tracks"),
        ("video+tracks", "video.tracks cannot be joined: give different streams of frames, such as video.flow"),
        ("video+video", "video.video cannot be joined"),
        ("flow+video", "flow.video has frames behind other streams: name them first, as in video.flow"),
    ],
)
def test_streams_that_cannot_be_joined_are_one_line(stream, message):
    config = dataclasses.replace(DATA, stream=stream)
    with pytest.raises(UserError, match=message):
        train_batches(open_source(SHAPES), config, batch_size=2, seed=0)
    with pytest.raises(UserError, match=message):
        list(open_videos(SHAPES, "validation").windows(0, config, 3))
