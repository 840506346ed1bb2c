"""The benchmark of optical flow draws what moves as it says, and refuses wrong settings."""

import itertools

import numpy as np
import pytest

from benchmark import flow
from benchmark.commands import main
from benchmark.flow import OpticalFlow


def test_frames_move_by_the_same_motion():
    frames = flow.draw(OpticalFlow(("raft_small",), size=128))
    assert frames.shape == (3, 128, 128, 3) and frames.std() > 10
    for before, after in itertools.pairwise(frames):
        np.testing.assert_array_equal(after, np.roll(before, flow.MOTION, (0, 1)))


def test_opencv_finds_that_motion_on_both_sides(capsys):
    pytest.importorskip("cv2")
    from vidjax.data.flow import flows, opencv_flow

    config = OpticalFlow(("farneback",), size=128, rounds=1, steps=1)
    found = np.stack(list(flows(opencv_flow("farneback"), iter(flow.draw(config)))))[:, 32:-32, 32:-32]
    np.testing.assert_allclose(np.median(found, axis=(0, 1, 2)), flow.MOTION[::-1], atol=0.1)
    (row,) = main(config)
    assert row["seconds"] > 0 and row["other_seconds"] > 0 and "farneback" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 100}, "size is 100: RAFT takes multiples of 8 from 128 on"),
        ({"pairs": 0}, "pairs is 0: it must be above 0"),
        ({"methods": ("horn",)}, "methods is 'horn': choose one of tvl1"),
    ],
)
def test_wrong_settings_are_one_line(settings, message):
    with pytest.raises(ValueError, match=message):
        OpticalFlow(**{"methods": ("raft_small",)} | settings)
