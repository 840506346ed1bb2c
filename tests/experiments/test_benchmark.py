"""The input benchmark measures every way on the same videos."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import videos

from vidjax.data.config import DataConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
import benchmark


def test_every_way_is_measured_and_compared(tmp_path, capsys):
    for n in range(3):
        videos.write_video(tmp_path / f"{n}.mp4", videos.numbered(30, first=n))
    (tmp_path / "damaged.mp4").write_bytes(b"no video")
    data = DataConfig(frames=4, size=32, stride=2, workers=2)
    numbers = benchmark.main(
        benchmark.Input(str(tmp_path), data=data, clips=6, rounds=2, json=str(tmp_path / "numbers.json"))
    )
    assert list(numbers) == ["plain PyAV", "pipeline, no augmentation", "pipeline", "TFRecord pipeline"]
    assert all(row["least"] <= row["clips_per_second"] <= row["most"] for row in numbers.values())
    assert numbers["plain PyAV"]["ratio"] == 1
    assert json.loads((tmp_path / "numbers.json").read_text()) == numbers
    assert "TFRecord pipeline" in capsys.readouterr().out


def test_plain_decoding_finds_the_same_frames(tmp_path):
    path = videos.write_video(tmp_path / "a.mp4", videos.numbered(40))
    frames = benchmark.plain_decode(str(path), lambda count, rate: np.array([7, 20, 33]), 999)
    assert videos.numbers(frames) == [7, 20, 33]


def test_a_source_without_files_is_refused():
    with pytest.raises(ValueError, match="no source of video files"):
        benchmark.main(benchmark.Input("synthetic:moving_shapes"))
