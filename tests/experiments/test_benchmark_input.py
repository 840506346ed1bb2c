"""The input benchmark measures every method on the same clips."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import videos

from benchmark import commands, formats
from benchmark import input as reading
from benchmark.input import METHODS, Input, plain_decode, prepare
from vidjax.data.config import DataConfig
from vidjax.errors import UserError

DATA = DataConfig(frames=4, size=32, stride=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three videos that can be read and one that cannot."""
    folder = tmp_path_factory.mktemp("videos")
    for n in range(3):
        videos.write_video(folder / f"{n}.mp4", videos.numbered(30, first=100 * n))
    (folder / "damaged.mp4").write_bytes(b"no video")
    return folder


@pytest.mark.long
def test_every_method_is_measured_and_compared(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(reading, "find_peers", lambda plan: ())
    rows = commands.main(
        Input(str(folder), data=DATA, cores=(1,), clips=8, rounds=1, json=str(tmp_path / "numbers.json"))
    )
    assert [row["method"] for row in rows] == [f"{method}, 1 core" for method in METHODS]
    for row in rows:
        assert row["least"] <= row["clips_per_second"] == row["per_core"] <= row["most"]
        assert row["scaling"] == 1 and row["cpu_ms"] > 0
    assert rows[1]["method"].startswith("decode alone") and rows[1]["of_decode"] == rows[1]["cpu_of_decode"] == 1
    assert json.loads((tmp_path / "numbers.json").read_text())["rows"] == rows
    assert "TFRecord, augmented, 1 core" in capsys.readouterr().out


def test_a_peer_that_cannot_read_the_videos_is_not_measured(folder, tmp_path, monkeypatch, capsys):
    def broken(path, indices, short_side):
        raise RuntimeError("no codec")

    plan = prepare(Input(str(folder), data=DATA, clips=8), tmp_path)
    monkeypatch.setattr(reading, "PEERS", {"broken": broken, "whole": plain_decode})
    assert reading.find_peers(plan) == ("whole",)
    assert "broken is not measured: no codec" in capsys.readouterr().out


def test_decoding_is_timed_on_the_clips_of_the_pipeline(folder, tmp_path, monkeypatch):
    plan = prepare(Input(str(folder), data=DATA, clips=16), tmp_path)
    from vidjax.data import decode, pipeline, sources

    read, seen = decode.OpenClip.read, []

    def noting(clip, indices, short_side):
        seen.append((clip.path, tuple(indices)))
        return read(clip, indices, short_side)

    monkeypatch.setattr(decode.OpenClip, "read", noting)
    settings = DataConfig(**{**vars(DATA), "workers": 1})
    batches = pipeline.train_batches(sources.open_source(plan.listed), settings, batch_size=reading.ROWS, seed=0)
    for _ in range(3):
        next(batches)
    batches.close()
    assert len(plan.jobs) == 16 and list(plan.jobs) == seen[8:24]
    assert {Path(path).name for path, _ in plan.jobs} == {"0.mp4", "1.mp4", "2.mp4"}


def test_no_more_videos_than_clips_are_read_and_written(folder, tmp_path, monkeypatch):
    from vidjax.data import sources

    open_clip, seen = sources.open_clip, set()
    monkeypatch.setattr(sources, "open_clip", lambda path, *rest: seen.add(path) or open_clip(path, *rest))
    plan = prepare(Input(str(folder), data=DATA, clips=2), tmp_path)
    assert len(seen) == 2 and {path for path, _ in plan.jobs} <= {str(Path(path).resolve()) for path in seen}


def test_plain_decoding_finds_the_same_frames(folder):
    frames = plain_decode(str(folder / "1.mp4"), (7, 20, 26), 999)
    assert videos.numbers(frames) == [107, 120, 126]
    assert np.shape(plain_decode(str(folder / "1.mp4"), (7,), 24)) == (1, 24, 40, 3)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="does not list video files"):
        commands.main(Input("synthetic:moving_shapes"))
    with pytest.raises(ValueError, match=r"cores is \(9999,\): choose from 1 to \d+"):
        Input("videos", cores=(9999,))
    with pytest.raises(UserError, match=r"cannot write --json to / \(Is a directory\): give another file"):
        Input("videos", json="/")
    with pytest.raises(ValueError, match="rounds is 0: it must be 1 or more"):
        Input("videos", rounds=0)


@pytest.mark.long
def test_what_goes_wrong_in_a_measuring_process_is_said(folder, monkeypatch):
    config = Input(str(folder), data=DATA, cores=(1,), clips=4, rounds=1)
    monkeypatch.setattr(reading, "prepare", lambda *args: dataclasses.replace(prepare(*args), listed="nowhere.csv"))
    with pytest.raises(ValueError, match=r"nowhere\.csv"):
        commands.main(config)
    monkeypatch.setattr(reading, "_serve", sys.exit)  # which takes no such arguments: the process ends
    with pytest.raises(ValueError, match="a measuring process was killed: give fewer --clips or --cores"):
        commands.main(config)


def test_a_folder_of_damaged_videos_cannot_be_measured(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"no video")
    with pytest.raises(ValueError, match=r"none of 1 videos of \S+ can be read: run experiments/check_data\.py"):
        prepare(Input(str(tmp_path), data=DATA), tmp_path)


def test_formats_are_compared_by_speed_bytes_and_error(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(commands, "measure_formats", formats._measure)  # in this process
    config = formats.Formats(str(folder), data=DATA, clips=2, rounds=1, json=str(tmp_path / "numbers.json"))
    rows = {row["format"]: row for row in commands.main(config)}
    assert json.loads((tmp_path / "numbers.json").read_text())["rows"] == list(rows.values())
    assert "uncompressed 4:2:0" in capsys.readouterr().out
    assert list(rows) == list(formats.FORMATS)
    assert all(row["least"] <= row["clips_per_second"] <= row["most"] for row in rows.values())
    assert (
        rows["uncompressed RGB"]["error"] == 0 and rows["uncompressed RGB"]["frame_bytes"] == 36 * 62 * 3
    )  # even sides
    assert rows["uncompressed 4:2:0"]["frame_bytes"] == 36 * 62 * 3 / 2
    order = ["JPEG 95", "JPEG 90", "JPEG 85", "JPEG 75"]
    assert sorted(order, key=lambda name: rows[name]["error"]) == order
    assert sorted(order, key=lambda name: -rows[name]["frame_bytes"]) == order
    assert all(rows[name]["error"] < 8 for name in rows)
