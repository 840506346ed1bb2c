"""The training benchmark runs: each side in processes of its own, and PyTorch's only where there is one."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def benchmark(*flags: str) -> subprocess.CompletedProcess:
    """The script as it is run; its processes are not given the eight devices of the tests."""
    command = [sys.executable, str(ROOT / "experiments" / "benchmark_train.py"), *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_both_sides_are_measured_and_compared(tmp_path):
    sizes = ["--frames=2", "--size=32", "--batch_size=2", "--threads=1", "--rounds=1", "--steps=2"]
    told = benchmark("--models", "uniformer_tiny", *sizes, "--json", str(tmp_path / "numbers.json"))
    assert told.returncode == 0, told.stderr
    header, titles, ours, *others = told.stdout.splitlines()
    assert header == "2 clips of 2 x 32 x 32, 1 cores" and titles.split()[:3] == ["model", "forward", "step"]
    assert ours.split()[:2] == ["uniformer_tiny", "vidjax"]
    rows = json.loads((tmp_path / "numbers.json").read_text())["uniformer_tiny"]
    has_peer = importlib.util.find_spec("torch") is not None
    assert list(rows) == ["vidjax", "PyTorch"][: 1 + has_peer]
    for row in rows.values():
        assert row["forward"] > 0 and 0 < row["step_range"][0] <= row["step"] <= row["step_range"][1]
        assert row["memory"] >= 0
    assert rows["vidjax"]["compile_step"] > 0
    assert len(others) == 2 * has_peer
    if has_peer:
        _, name, forward, step = others[1].split()
        assert name == "ratio"
        for printed, key in ((forward, "forward"), (step, "step")):
            assert float(printed) == pytest.approx(rows["vidjax"][key] / rows["PyTorch"][key], abs=0.01)


def test_a_wrong_name_ends_it_before_anything_is_measured():
    told = benchmark("--models", "uniformer_tinny")
    assert told.returncode == 2 and "there is no model 'uniformer_tinny'" in told.stderr
    assert len(told.stderr.strip().splitlines()) == 1
