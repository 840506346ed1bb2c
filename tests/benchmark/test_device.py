"""The report on a device has all that was measured, and a line for all that was not."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmark import commands, flags
from benchmark.convolution import PARTS, Convolution, convolutions_of, draw, in_jax, in_pytorch
from benchmark.device import Device
from benchmark.settings import check_models
from vidjax.errors import UserError

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "benchmark" / "device.sh"
SMALL = Convolution(("r3d_tiny",), frames=4, size=32)


def test_the_3d_convolutions_of_a_model_are_found():
    found = convolutions_of("r3d_tiny", SMALL)
    assert found[0].name == "3 x 4 x 32 x 32, 3x7x7 / 1,2,2 to 16"
    assert len(set(found)) == len(found) > 3 and all(min(shapes.size) > 1 for shapes in found)
    with pytest.raises(UserError, match="r2plus1d_tiny has no convolution over time and space"):
        convolutions_of("r2plus1d_tiny", SMALL)


def test_all_sides_compute_the_same_convolution_and_gradients():
    pytest.importorskip("torch")
    shapes = convolutions_of("r3d_tiny", SMALL)[-1]
    plain, ours, theirs = (
        in_jax(shapes, "float32", True),
        in_jax(shapes, "float32", False),
        in_pytorch(shapes, "float32"),
    )
    for part, axes in zip(PARTS, ((0, 2, 3, 4, 1), (0, 2, 3, 4, 1), (2, 3, 4, 1, 0)), strict=True):
        result = theirs[part]()
        result = result if part == "forward" else next(each for each in result if each is not None)
        wanted = result.numpy().transpose(axes)
        for side in (plain, ours):
            np.testing.assert_allclose(side[part](), wanted, atol=1e-4 * np.abs(wanted).max())
    assert jax.eval_shape(plain["forward"]).shape == draw(shapes)[2].shape


def test_parts_that_failed_are_lines(tmp_path, capsys):
    row = {"model": "r3d_18", "side": "vidjax", "batch_size": 8, "step_seconds": 0.25, "clips_per_second": 32.0}
    rows = [row | {"mfu": 0.4, "memory_bytes": int(2e9)}, {**row, "side": "PyTorch eager", "failed": "no | peer"}]
    machine = {"device": "NVIDIA H200", "devices": 1, "versions": {"jax": "0.11.2"}}
    (tmp_path / "1-speed.json").write_text(json.dumps({"machine": machine, "rows": rows}))
    for name, status in {"1-speed": 124, "2-solid": 1, "3-scan": 0}.items():
        (tmp_path / f"{name}.status").write_text(f"{status}\n")
        (tmp_path / f"{name}.log").write_text("first\nout of luck\n\n")
    solid = {"model": "r3d_18", "convolution": "3 x 4", "side": "XLA", "batch_size": 8, **dict.fromkeys(PARTS, 0.001)}
    (tmp_path / "3-scan.json").write_text(json.dumps({"machine": machine, "rows": [solid]}))
    assert len(commands.main(Device(str(tmp_path), str(tmp_path / "out")))) == 3
    text = (tmp_path / "out.md").read_text()
    assert capsys.readouterr().out == text
    assert text.splitlines()[2] == "1 x NVIDIA H200, jax 0.11.2"
    assert text.splitlines()[6:] == [
        "| 1-speed | r3d_18 | vidjax | 8 | 250 | 32.0 | 40.0 | 2.00 |",
        "| 1-speed | r3d_18 | PyTorch eager | 8 | no / peer |  |  |  |",
        "| 1-speed | the part itself |  |  | out of time |  |  |  |",
        "| 2-solid | the part itself |  |  | status 1: out of luck |  |  |  |",
        *(f"| 3-scan | 3 x 4, {part} | XLA | 8 | 1.00 |  |  |  |" for part in PARTS),
    ]
    parts = json.loads((tmp_path / "out.json").read_text())["parts"]
    assert parts["1-speed"]["rows"] == rows and parts["2-solid"]["status"] == 1


def test_a_folder_without_parts_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"has no NAME\.status: run experiments/benchmark/device\.sh"):
        Device(str(tmp_path))


@pytest.mark.parametrize("tiny", ["", "1"])
def test_the_commands_of_the_script_are_valid_and_take_under_ten_minutes(tmp_path, tiny):
    calls, python = tmp_path / "calls", tmp_path / "python"
    python.write_text(f'#!/bin/sh\nshift\necho "$@" >>{calls}\n')  # instead of measuring
    python.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "TINY": tiny}
    done = subprocess.run(
        ["bash", str(SCRIPT), str(tmp_path / "report")], capture_output=True, text=True, env=environment
    )
    seconds = [int(line.split()[-2]) for line in done.stderr.splitlines()]
    assert done.returncode == 0 and len(seconds) == (3 if tiny else 6) and sum(seconds) <= 580
    *parts, report = (line.split() for line in calls.read_text().splitlines())
    assert report[0] == "device" and report[-2:] == ["--out", str(tmp_path / "report")]
    for mode, *argv in parts:
        assert argv[-2] == "--json"
        config = flags.parse(commands.COMMANDS[mode][1], argv=argv[:-2])  # the folder is gone
        assert config.frames == (4 if tiny else None)
        if mode == "convolution":
            assert convolutions_of(config.models[0], config)
        else:
            assert not check_models(config)  # no model lacks a compared field


@pytest.mark.long
def test_the_script_measures_tiny_models(tmp_path):
    for name in ("tyro", "av", "tensorflow", "tensorflow_datasets"):  # before the real ones
        (tmp_path / f"{name}.py").write_text("raise ImportError('the script must not need it')\n")
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0", "TINY": "1"}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # the script calls `python`
    environment = {**os.environ, "PYTHONPATH": str(tmp_path), "PATH": path, **flags}
    out = tmp_path / "report"
    done = subprocess.run(["bash", str(SCRIPT), str(out)], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    parts = json.loads(out.with_suffix(".json").read_text())["parts"]
    assert list(parts) == ["4-convolution", "5-attention", "6-remat-scan"]
    assert {name: part.get("failed") for name, part in parts.items() if part["status"]} == {}
    assert {row["side"] for row in parts["6-remat-scan"]["rows"]} == {
        f"vidjax remat=blocks scan={scan}" for scan in (False, True)
    }
    assert all(row["clips_per_second"] > 0 for row in parts["6-remat-scan"]["rows"])
    failed = [row["side"] for row in parts["5-attention"]["rows"] if "failed" in row]
    assert failed == ["vidjax implementation=cudnn"]  # which needs a GPU
    text = out.with_suffix(".md").read_text()
    assert text == done.stdout and "kernel's gradient | vidjax | 2 |" in text
