"""Metric files, also of resumed runs, throughput and progress."""

import json
import time

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vidjax.training.metrics import Meter, MetricWriter, Progress, clock, read_metrics

VALUES = {"loss": 1.5, "learning_rate": 1e-4, "clips_per_second": 10.0, "data_wait_fraction": 0.25}


def test_each_step_is_a_line(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write(10, VALUES)
    writer.write(20, VALUES | {"loss": float("nan")})
    writer.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [{"step": 10} | VALUES, {"step": 20} | VALUES | {"loss": None}]


def test_tensorboard_shows_each_value_once_also_of_steps_that_are_written_again(tmp_path, monkeypatch):
    writer = MetricWriter(tmp_path)
    for step in (10, 20, 30):
        writer.write(step, VALUES | {"data_wait_fraction": float("inf")})
    writer.close()
    # TensorBoard (2.21) reads a run's files by name: the second, and then a process's number of the file, of which 10
    # comes before 9. A run is resumed later than within that second.
    later = time.time() + 1
    monkeypatch.setattr("tensorboard.summary.writer.event_file_writer.time.time", lambda: later)
    writer = MetricWriter(tmp_path, first_step=20)
    writer.write(30, {"loss": 0.5})
    writer.close()
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [(each.step, each.value) for each in shown.Scalars("loss")] == [(10, 1.5), (20, 1.5), (30, 0.5)]
    assert [each.step for each in shown.Scalars("clips_per_second")] == [10, 20]
    assert set(shown.Tags()["scalars"]) == set(VALUES) - {"data_wait_fraction"}


def test_resuming_removes_lines_that_will_be_written_again(tmp_path):
    writer = MetricWriter(tmp_path)
    for step in (10, 20, 30):
        writer.write(step, VALUES)
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "lo')  # killed while writing
    MetricWriter(tmp_path, first_step=20).close()
    assert [entry["step"] for entry in read_metrics(tmp_path)] == [10, 20]


def test_changes_of_the_config_are_one_line_per_checkpoint(tmp_path):
    writer = MetricWriter(tmp_path)
    writer.write(10, VALUES)
    writer.close()
    for rate in (2.0, 3.0):
        MetricWriter(tmp_path, 10, {"optim.rate": (1.0, rate)}).close()
    MetricWriter(tmp_path, 20).close()
    assert read_metrics(tmp_path) == [{"step": 10} | VALUES, {"step": 10, "config": {"optim.rate": [1.0, 3.0]}}]


def test_meter_counts_waiting_and_excludes_pauses(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("vidjax.training.metrics.time.monotonic", lambda: now[0])
    meter = Meter()
    now[0] = 4.0
    meter.add(clips=8, waited=1.0)
    with meter.paused():
        now[0] += 100
    assert meter.read() == {"clips_per_second": 2.0, "data_wait_fraction": 0.25}
    now[0] += 1
    meter.add(clips=2, waited=0.0)
    meter.read()
    assert meter.overall() == {"clips_per_second": 2.0, "data_wait_fraction": 0.2}


def test_progress_is_plain_lines_without_a_terminal(capsys):
    progress = Progress(0, 100)
    progress.step()
    progress.log(10, VALUES)
    progress.close()
    line = capsys.readouterr().out
    assert line.startswith("step 10/100: loss 1.5000, learning rate 1.00e-04, 10.0 clips/s, data wait 25%")
    assert "\r" not in line


@pytest.mark.parametrize(("seconds", "shown"), [(5, "0:05"), (61, "1:01"), (3725, "1:02:05")])
def test_clock(seconds, shown):
    assert clock(seconds) == shown
