"""How far trajectories drift from the points they follow."""

import drift
import numpy as np
import pytest

from vidjax.errors import UserError


def test_a_trajectory_reads_the_motion_that_a_pixel_loses():
    """A square of 4 moves to the right by 2 pixels per frame: its left half is left after one frame."""
    flow = np.zeros((3, 12, 16, 2), np.float32)
    for number in range(3):
        flow[number, 4:8, 2 + 2 * number : 6 + 2 * number, 0] = 2
    rows, columns = np.array([5, 5]), np.array([3, 5])
    points = drift.measure(flow, rows, columns, np.array([2.0, 0.0]))
    np.testing.assert_allclose(points, [[0, 0, 1], [0, 0.5, 1]], atol=1e-6)
    flow[1:, :, 5:] = 0  # the first point's track enters what is lost
    points = drift.measure(flow, rows[:1], columns[:1], np.array([2.0, 0.0]))
    np.testing.assert_allclose(points, [[2, 0, 0]], atol=1e-6)  # moved by 2 of 4 pixels


def test_both_flows_are_measured_by_speed(capsys):
    pytest.importorskip("cv2")
    rows = drift.main(drift.Config(videos=9))
    assert len(rows) == 3 and "| speed, pixels per frame |" in capsys.readouterr().out
    assert rows[0]["fastest"] <= rows[1]["slowest"] and rows[1]["fastest"] <= rows[2]["slowest"]
    for row in rows:
        assert row["drift_exact"] < 1 and row["pixel_exact"] < row["track_exact"] <= 1


def test_a_single_field_is_refused():
    with pytest.raises(UserError, match="fields is 1: give 2 or more"):
        drift.Config(fields=1)
