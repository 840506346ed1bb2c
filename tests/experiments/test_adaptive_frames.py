"""The study of AdaFrame, from videos to the table; its clips."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
import adaptive_frames


def test_two_frames_of_each_video_show_its_shape():
    clips = adaptive_frames.render(0, 12)
    assert clips.pixels.shape == (12, 16, 32, 32, 3) and clips.pixels.dtype == np.uint8
    # What differs from most frames of a video is the shape.
    shown = (clips.pixels != np.median(clips.pixels, axis=1, keepdims=True)).any(axis=(2, 3, 4))
    expected = np.zeros((12, 16), bool)
    for row, first in enumerate(clips.first):
        expected[row, first : first + 2] = True
    np.testing.assert_array_equal(shown, expected)
    assert set(clips.labels) == {0, 1, 2} and len(set(clips.first)) > 4


@pytest.mark.long
def test_the_study_writes_its_table_and_a_picture(tmp_path, capsys):
    settings = {"train_clips": 64, "validation_clips": 16, "frame_steps": 2, "steps": 20, "looks": 2}
    results = adaptive_frames.main(adaptive_frames.Config(out=str(tmp_path / "out"), **settings))
    for name in ("random", "chosen"):
        assert len(results[name]["accuracy"]) == 2 and results[name]["found"][1] >= results[name]["found"][0]
    assert [each["lag"] for each in results["early_stop"]] == list(adaptive_frames.LAGS)
    assert all(1 <= each["frames"] <= 2 for each in results["early_stop"])
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == json.loads(json.dumps(results))
    assert "| chosen | 2 |" in (tmp_path / "out" / "adaptive_frames.md").read_text()
    assert "| chosen | 2 |" in capsys.readouterr().out
    assert (tmp_path / "out" / "frames.png").read_bytes()[:4] == b"\x89PNG"
