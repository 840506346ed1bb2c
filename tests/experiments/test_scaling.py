"""Scaling out: what is printed is the program's own, and the arithmetic is the stated one."""

import json
import os
import queue
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

import vidjax
from benchmark import input_scaling
from benchmark.collectives import Collective
from vidjax.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "experiments"))

import scaling  # noqa: E402  of experiments/

TINY = scaling.Config(
    model="videomae_tiny_pretrain", batch_per_device=1, fsdp=4, devices=8, frames=4, size=32, dtype="float32"
)


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
@pytest.mark.long
def test_what_is_printed_is_the_programs_own(tmp_path, capsys):
    config = scaling.Config(**(vars(TINY) | {"json": str(tmp_path / "numbers.json"), "chips": (8, 256)}))
    numbers = scaling.main(config)
    report = json.loads((tmp_path / "numbers.json").read_text())
    assert report["mode"] == "scaling" and report["settings"]["chips"] == [8, 256] and report["machine"]["devices"] == 8
    for kind in ("collective", "projection"):
        assert [row for row in report["rows"] if row["of"] == kind] == [{"of": kind, **r} for r in numbers[f"{kind}s"]]
    rows = {(row["kind"], row["members"], row["distance"]): row for row in numbers["collectives"]}
    tiny = vidjax.create_model(TINY.model, num_frames=TINY.frames, image_size=TINY.size)
    params = jax.eval_shape(tiny.init, jax.random.key(0), *vidjax.models.example_inputs(tiny))["params"]
    sizes = [leaf.size for leaf in jax.tree.leaves(params)]
    # Copies exchange the gradients of what is shared: of each such parameter a quarter a device, of 4 bytes a value.
    # XLA treats one of the small ones likewise.
    assert rows["all-reduce", 2, 4]["bytes"] == pytest.approx(sum(size for size in sizes if size >= 2**14), rel=0.01)
    whole = rows["all-reduce", 8, 1]  # the loss and the gradients of small parameters
    assert 0 < whole["bytes"] < 4 * sum(size for size in sizes if size < 2**14) + 100
    assert whole["wire_bytes"] == pytest.approx(2 * 7 / 8 * whole["bytes"])
    out = capsys.readouterr().out
    assert "2 copies of the parameters, each sharded over 4 devices" in out
    for row in numbers["collectives"]:
        assert f"{row['wire_bytes'] / 1e6:,.2f}" in out


def test_the_step_time_is_the_stated_arithmetic():
    config = scaling.Config(fsdp=8, devices=16, batch_per_device=2, mfu=0.5, latency=1e-5)
    facts = {"macs": 1e12, "devices": 16}
    within = Collective("all-gather", 10**8, tuple(range(8)), 3)
    between = Collective("all-reduce", 10**8, (0, 8), 1)
    everyone = Collective("all-reduce", 10**6, tuple(range(16)), 1)
    row = scaling.project(config, facts, [within, between, everyone], "H200", 4096)
    assert row["compute_seconds"] == pytest.approx(6 * 1e12 * 2 / (989e12 * 0.5))
    nvlink = 3 * 7 * 1e8 / 450e9
    alone, side_by_side = 2 * 511 / 512 * 1e8 / 50e9, 2 * 4095 / 4096 * 1e6 / 400e9  # a card; the eight of a node
    assert row["transfer_seconds"] == pytest.approx(nvlink + alone + side_by_side)
    assert row["latency_seconds"] == pytest.approx(5e-5)
    communication = row["transfer_seconds"] + 5e-5
    assert row["step_seconds"]["no_overlap"] == pytest.approx(row["compute_seconds"] + communication)
    assert row["step_seconds"]["full_overlap"] == max(row["compute_seconds"], communication)
    assert row["efficiency"]["no_overlap"] == row["compute_seconds"] / row["step_seconds"]["no_overlap"]
    assert row["clips_per_second_per_host"] == pytest.approx(8 * 2 / row["step_seconds"]["full_overlap"])
    one_slice = scaling.project(config, facts, [between], "v5p", 4096)  # never leaves the slice
    assert one_slice["transfer_seconds"] == pytest.approx(2 * 511 / 512 * 1e8 / 200e9)
    node = scaling.project(config, facts, [within, between], "H200", 8)  # one copy: nothing between copies
    assert node["transfer_seconds"] == pytest.approx(nvlink)


@pytest.mark.long
def test_input_scaling_measures_each_process_alone_and_beside_the_other(tmp_path, capsys):
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("needs two cores")
    small = {"rows": 2, "clips": 4, "rounds": 1, "frames": 2, "size": 16, "json": str(tmp_path / "numbers.json")}
    rows = scaling.measure_input(input_scaling.InputScaling("synthetic:moving_shapes", **small))
    assert [row["clock"] for row in rows] == ["second", "cpu_second"]
    out = capsys.readouterr().out
    for row in rows:
        assert row["alone"] > 0 and row["efficiency"] == pytest.approx(row["together"] / row["alone"])
        assert row["least"] == row["efficiency"] == row["most"] and f"{row['together']:.2f}" in out
    report = json.loads((tmp_path / "numbers.json").read_text())
    assert report["mode"] == "scaling input" and report["rows"] == rows and report["machine"]["cores"] > 0


def test_wrong_input_is_refused():
    for flags, message in (
        ({"chips": (12,)}, "12 chips are not a multiple of fsdp 8"),
        ({"devices": 8}, "8 devices hold one copy of the parameters: compile for 16"),
        ({"mfu": 40.0}, "mfu is 40.0: it must be above 0 and at most 1"),
        ({"latency": -1.0}, "latency is -1.0: it must be 0 or more"),
        ({"decode_rate": 0.0}, "decode_rate is 0.0: it must be more than 0"),
        ({"records_rate": -1.0}, "records_rate is -1.0: it must be more than 0"),
        ({"batch_per_device": 0}, "batch_per_device is 0: it must be above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            scaling.Config(**flags)
    with pytest.raises(ValueError, match="999 processes need as many cores"):
        input_scaling.measure_input_scaling(input_scaling.InputScaling("synthetic:moving_shapes", processes=999))
    with pytest.raises(ValueError, match="rows is 0: it must be 1 or more"):
        input_scaling.InputScaling("synthetic:moving_shapes", rows=0)
    with pytest.raises(ValueError, match="nowhere does not exist"):
        input_scaling.measure_input_scaling(input_scaling.InputScaling("nowhere", processes=1))
    with pytest.raises(UserError, match=r"cannot write --json to nowhere/a\.json \(No such file or directory\)"):
        scaling.Config(json="nowhere/a.json")
    with pytest.raises(UserError, match=r"cannot write --json to nowhere/b\.json \(No such file or directory\)"):
        input_scaling.InputScaling("synthetic:moving_shapes", json="nowhere/b.json")
    with pytest.raises(ValueError, match="a reading process ended: see its message above"):
        input_scaling.wait_for(queue.Queue(), [SimpleNamespace(is_alive=lambda: False)])
