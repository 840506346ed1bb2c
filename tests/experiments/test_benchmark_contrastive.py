"""The benchmark of the contrastive losses runs, and shows what chunks save and that they change nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def benchmark(*flags: str) -> subprocess.CompletedProcess:
    """The script as it is run, on one device."""
    command = [sys.executable, str(ROOT / "experiments" / "benchmark_contrastive.py"), *flags]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def test_chunks_save_memory_and_change_no_gradient(tmp_path):
    sizes = ["--batch_size=256", "--width=8", "--steps=2", "--rounds=1"]
    told = benchmark(*sizes, "--chunks", "64", "16", "--json", str(tmp_path / "numbers.json"))
    assert told.returncode == 0, told.stderr
    header, titles, *rows = told.stdout.splitlines()
    assert header.startswith("256 pairs of 8 values on 1 x ") and titles.split()[:3] == ["objective", "form", "memory"]
    assert len(rows) == 9 and rows[4].startswith("sigmoid") and "chunks of 64" in rows[4]
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert list(numbers) == ["info_nce", "sigmoid", "multi_positive_kl"]
    for forms in numbers.values():
        assert list(forms) == ["whole", "chunks of 64", "chunks of 16"]
        whole, some, few = forms.values()
        assert few["memory"] < some["memory"] < whole["memory"] / 2 and whole["memory"] > 256 * 256 * 4 / 1e6
        assert whole["differs"] == 0 < some["differs"] < 1e-5
        for row in forms.values():
            assert 0 < row["step_range"][0] <= row["step"] <= row["step_range"][1]


def test_wrong_sizes_end_it_with_a_line():
    for flags, line in ((["--batch_size=0"], "batch_size is 0"), (["--chunks=1000"], "chunks of 1000 do not divide")):
        told = benchmark("--width=2", *flags)
        assert told.returncode == 2 and line in told.stderr
        assert len(told.stderr.strip().splitlines()) == 1
