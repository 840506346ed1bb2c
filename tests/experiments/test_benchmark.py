"""The benchmark measures both sides of the same model, and says plainly what it cannot."""

import dataclasses
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from benchmark import budget, commands, measure, ours, peers, table
from benchmark.budget import find_largest
from benchmark.clips import Clips
from benchmark.loss import Loss
from benchmark.ours import describe, make_model
from benchmark.peers import NoPeerError, check_parameters, make_peer
from benchmark.settings import Job, Memory, Train, check_models, jobs
from benchmark.visible import Visible
from vidjax.errors import UserError
from vidjax.training.sharding import make_mesh

ROOT = Path(__file__).resolve().parents[2]
HAS_TORCH = importlib.util.find_spec("torch") is not None


def run(*command: str, path: Path = ROOT) -> subprocess.CompletedProcess:
    """A script as it is run, on one device, quickly compiled."""
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_backend_optimization_level=0"}
    environment = {**os.environ, "PYTHONPATH": f"{path}{os.pathsep}{ROOT}", **flags}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, cwd=ROOT)


def job(name: str, **fields) -> Job:
    """A measurement of a model at its own size."""
    given = {"frames": None, "size": None, "batch_size": 8, "dtype": "float32", "threads": None, "steps": 1, **fields}
    return Job(name, True, **given)


@pytest.mark.long
def test_training_is_measured_on_both_sides_without_tyro_av_and_tensorflow(tmp_path):
    flags = "--models videomae_tiny_pretrain --frames 2 --size 32 --batch_sizes 2 --rounds 1 --steps 2 --threads 1"
    files = "--json", str(tmp_path / "numbers.json"), "--chart", str(tmp_path / "chart.png")
    for name in ("tyro", "av", "tensorflow", "tensorflow_datasets"):  # before the real ones, also in the processes
        (tmp_path / f"{name}.py").write_text("raise ImportError('the benchmark of models must not need it')\n")
    done = run("experiments/benchmark.py", "train", *flags.split(), *files, path=tmp_path)
    assert done.returncode == 0, done.stderr
    first, *lines = done.stdout.splitlines()
    assert first == "training steps (AdamW) of clips of 2 x 32 x 32 on 1 x cpu"
    assert lines[0].startswith("jax ") and lines[1] == "the peak of 'cpu' is unknown: no MFU"
    assert any(line.startswith("model ") for line in lines)
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["mode"] == "train" and numbers["settings"]["steps"] == 2
    sides = ["vidjax", "PyTorch eager"][: 1 + HAS_TORCH]
    rows = numbers["rows"]
    assert [row["side"] for row in rows] == sides
    for row in rows:
        assert "failed" not in row, row
        assert 0 < row["least_seconds"] <= row["step_seconds"] <= row["most_seconds"]
        assert row["clips_per_second"] == pytest.approx(row["batch_size"] / row["step_seconds"])
        assert row["mfu"] is None and row["memory_bytes"] > 1e6 and 0 < row["loss"] < 10
        assert row["parameters"] == rows[0]["parameters"] and row["best"]
        line = next(line for line in lines if line.startswith("videomae") and f" {row['side']} " in line)
        for name, factor in (("step_seconds", 1e3), ("clips_per_second", 1)):
            assert f" {table.digits(factor * row[name])} " in line
    assert rows[0]["compile_seconds"] > 0 and rows[0]["program_bytes"] > 4 * rows[0]["parameters"]
    for row in rows:
        assert row["vidjax_speed"] == pytest.approx(rows[0]["clips_per_second"] / row["clips_per_second"])

    from PIL import Image

    chart = Image.open(tmp_path / "chart.png")
    assert chart.format == "PNG" and chart.width > 800 and chart.height > 150
    assert len(chart.convert("RGB").getcolors(1 << 20)) > 10  # not empty


def test_a_forward_pass_is_measured_without_an_optimizers_moments():
    for training, moments in ((True, 2), (False, 0)):
        measured = dataclasses.replace(job("r3d_tiny"), training=training)
        state = jax.eval_shape(ours.make_program(measured, make_mesh())[1])
        sizes = [sum(leaf.size for leaf in jax.tree.leaves(part)) for part in (state.params, state.opt_state)]
        assert sizes[1] // sizes[0] == moments


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (lambda: Train(models=("uniformer_tinny",)), "there is no model 'uniformer_tinny'"),
        (lambda: Train(models=("clip_base_16",)), "neither a classifier nor a masked autoencoder"),
        (lambda: Train(models=("dynamicvit_tiny",)), "dynamicvit_tiny is neither a classifier"),  # for infer only
        (lambda: Memory(batch_sizes=(4, 0)), "each 1 or more"),
        (lambda: Memory(budget_gb=0), "budget_gb is 0"),
        (lambda: Loss(batch_size=0), "batch_size is 0: it must be 1 or more"),
        (lambda: Train(rounds=0), "rounds is 0: it must be 1 or more"),
        (lambda: Train(models=()), r"models is \(\) and dtypes is \('.*',\): name one or more of each"),
        (lambda: Loss(batch_size=16, width=2, chunks=(9,)), "chunk size 9 does not divide"),
    ],
)
def test_what_cannot_be_meant_is_refused(settings, line):
    with pytest.raises(ValueError, match=line):
        commands.main(settings())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("field", "value"), [("implementation", "foo"), ("remat", "all")])
def test_a_value_that_a_models_field_does_not_know_is_refused(field, value):
    with pytest.raises(ValueError, match=rf"{field} (of model '\w+' )?is '{value}': (choose|it must be) one of"):
        check_models(Train(**{field: (value,)}))


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_measured(tmp_path):
    for settings in (Train, Loss, Clips):
        with pytest.raises(
            UserError, match=rf"cannot write --json to {tmp_path} \(Is a directory\): give another file"
        ):
            settings(json=str(tmp_path))
    with pytest.raises(UserError, match=r"cannot write --chart to nowhere/a\.png \(No such file or directory\)"):
        Memory(chart="nowhere/a.png")


def test_what_a_library_raises_while_models_are_described_is_no_sentence_of_ours(monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(ROOT / "experiments" / "benchmark.py")])
    monkeypatch.setattr(ours, "describe", lambda *_: np.zeros(2).reshape(3))
    with pytest.raises(ValueError, match="cannot reshape"):
        measure.describe_or_refuse([], ())
    monkeypatch.setattr(ours, "describe", lambda *_: make_model(job("nothing")))
    assert "there is no model 'nothing'" in measure.describe_or_refuse([], ())["refused"]


def test_a_batch_that_devices_cannot_split_is_refused_unless_the_batch_is_searched():
    settings = {"models": ("r2plus1d_tiny",), "frames": 4, "size": 32, "batch_sizes": (3,)}
    with pytest.raises(ValueError, match="a batch of 3 cannot be split over 8 devices: make it a multiple of 8"):
        measure.prepare(Memory(**settings))
    assert measure.prepare(Memory(**settings, budget_gb=1))[0]["devices"] == 8


def test_a_wrong_name_is_one_line():
    done = run("experiments/benchmark.py", *"train --models uniformer_tinny".split())
    assert done.returncode == 2 and "there is no model 'uniformer_tinny'" in done.stderr and not done.stdout
    assert len(done.stderr.strip().splitlines()) == 1


@pytest.mark.skipif(not HAS_TORCH, reason="needs PyTorch")
@pytest.mark.parametrize(
    "name",
    [
        "videomae_tiny", "videomae_tiny_pretrain", "vivit_tiny_joint", "timesformer_tiny_divided", "uniformer_tiny",
        "uniformerv2_tiny_ssv2", "r2plus1d_34", "slowfast_tiny", "x3d_tiny", "ipcsn_tiny", "tsm_50_8", "mvit_tiny",
        "mvitv2_tiny", "video_swin_tiny", "vjepa2_tiny_pretrain", "c3d_tiny", "i3d_tiny",
        "blip_tiny",
    ],
)  # fmt: skip
def test_peers_are_of_our_size(name):
    import torch

    facts = describe([job(name)], (8,))["models"][name]
    with torch.device("meta"):
        try:
            peer, axes = make_peer(name, make_model(job(name)))
        except NoPeerError as error:
            pytest.skip(str(error))
    assert check_parameters(peer, facts["parameters"], 0) == (facts["parameters"], "")
    assert set(axes.split()) == set("bcthw")
    with pytest.raises(NoPeerError, match="not the same model"):
        check_parameters(peer, facts["parameters"] + 2, 1)
    assert "position tables differ" in check_parameters(peer, facts["parameters"] + 2, 2)[1]


def test_models_without_a_peer_say_so():
    with pytest.raises(NoPeerError, match="no PyTorch peer of p3d_tiny"):
        make_peer("p3d_tiny", make_model(job("p3d_tiny")))


def test_fields_are_compared_where_a_model_has_them():
    settings = Train(models=("r3d_tiny", "videomae_tiny"), remat=("none", "blocks"), scan=(False, True))
    assert check_models(settings) == [
        f"r3d_tiny has no field {field}: it is measured without it" for field in ("remat", "scan")
    ]
    assert [job.side for job in jobs(settings, "r3d_tiny", "float32", 4)] == ["vidjax"]
    sides = [job.side for job in jobs(settings, "videomae_tiny", "float32", 4)]
    assert sides == [f"vidjax remat={remat} scan={scan}" for remat in ("none", "blocks") for scan in (False, True)]


def fail(reason: str) -> dict:
    raise MemoryError(reason)


def die() -> dict:
    os.kill(os.getpid(), 9)


def test_what_fails_is_a_row_and_ends_nothing(monkeypatch):
    """A side that runs out of memory is not tried with larger batches; the others go on."""
    good = {"compile": None, "memory": 1, "loss": 1.0}
    asked = []

    def sides_of(settings, facts, name, dtype, batch_size):
        def ours():
            asked.append(batch_size)
            if batch_size == 4:
                return measure.attempt(fail, "RESOURCE_EXHAUSTED: Out of memory\nand much more")
            return {**good, "seconds": [0.25 * batch_size] * 3}

        return {"vidjax": ours, "PyTorch eager": lambda: {**good, "seconds": [2.0 if batch_size == 8 else 0.5] * 3}}

    monkeypatch.setattr(measure, "sides_of", sides_of)
    machine = {
        "device": "NVIDIA H200",
        "devices": 2,
        "platform": "gpu",
        "models": {"m": {"macs": 1e12, "parameters": 7, "steps_differ": False}},
    }
    settings = Train(models=("m",), batch_sizes=(8, 4, 1, 2), rounds=2, dtypes=("bfloat16",))
    lines = []
    (rows,) = measure.measure_models(settings, machine, lines.append)
    assert asked == [1, 1, 2, 2, 4] and len(lines) == 5 + 2 * 4
    by_side = {(row["side"], row["batch_size"]): row for row in rows}
    failed = by_side["vidjax", 4]
    assert "RESOURCE_EXHAUSTED: Out of memory; larger batches are skipped" in failed["failed"]
    assert "and much more" not in failed["failed"] and ("vidjax", 8) not in by_side
    ours, peer = by_side["vidjax", 2], by_side["PyTorch eager", 4]
    assert ours["clips_per_second"] == 4 and peer["best"] and not by_side["PyTorch eager", 8]["best"]
    assert peer["vidjax_speed"] == pytest.approx((4 / 2) / 8)  # for each device
    assert ours["mfu"] == pytest.approx(6e12 * 4 / 989e12 / 2) and peer["mfu"] == pytest.approx(6e12 * 8 / 989e12)


def test_a_killed_process_is_a_row():
    assert "killed" in measure.measure(die)["failed"]


def test_the_largest_number_is_found_in_few_steps():
    for slope, fixed in ((3, 10), (7, 1000), (1, 0)):
        asked = []

        def needs(number, slope=slope, fixed=fixed, asked=asked):
            asked.append(number)
            return slope * number + fixed + number // 5

        number, needed, count = find_largest(needs, 5000)
        assert needs(number) == needed <= 5000 < needs(number + 1) and count <= 10
    assert find_largest(lambda number: 100 * number, 99) == (0, 100, 1)


def test_the_largest_batch_is_found_by_compiling_alone(monkeypatch):
    monkeypatch.setattr(budget, "COMPILATIONS", 3)
    small = dataclasses.replace(job("videomae_tiny", frames=2, size=32), training=False)
    result = budget.largest_batch(small, 1.0)
    assert result["tried"] == 3 and result["batch_size"] == 32 * jax.device_count()  # the limit of the third try
    assert 1e6 < result["program_bytes"] < 1e9
    monkeypatch.setattr(budget, "COMPILATIONS", 1)
    assert budget.largest_batch(small, 1e-3)["batch_size"] == 0


def test_memory_by_frames_is_a_table(tmp_path, capsys, monkeypatch):
    row = {"implementation": "ring", "remat": "blocks", "devices": 8}
    row |= {"bytes": {16: 1.5e9, 32: 2.5e9}, "fits": {"16": 32, "80": 64}}
    machine = {"device": "TPU v5", "devices": 8, "platform": "tpu"}
    monkeypatch.setattr(commands, "measure_clips", lambda config: (machine, [row]))
    config = Clips("videomae_tiny", frames=(16, 32, 64), json=str(tmp_path / "numbers.json"))
    assert commands.main(config) == [row]
    title, titles, line = capsys.readouterr().out.splitlines()
    assert "compiled for TPU v5: GB per device by frames, and the most frames (up to 64)" in title
    assert titles.split() == "attention remat devices 16 frames 32 frames in 16 GB in 80 GB".split()
    assert line.split() == "ring blocks 8 1.50 2.50 32 64".split()
    report = json.loads((tmp_path / "numbers.json").read_text())
    assert report["mode"] == "clips" and report["settings"]["model"] == "videomae_tiny" and report["machine"] == machine
    assert report["rows"][0]["bytes"] == {"16": 1.5e9, "32": 2.5e9}


def test_chunks_save_memory_and_change_no_gradient(tmp_path, capsys):
    rows = commands.main(
        Loss(batch_size=256, width=8, chunks=(16,), steps=2, rounds=1, json=str(tmp_path / "numbers.json"))
    )
    header, titles, *lines = capsys.readouterr().out.splitlines()
    assert header.startswith("256 pairs of 8 values on ") and titles.split()[:3] == ["objective", "form", "temporary"]
    assert len(lines) == 6 and lines[3].startswith("sigmoid") and "chunks of 16" in lines[3]
    assert json.loads((tmp_path / "numbers.json").read_text())["rows"] == rows
    assert [row["form"] for row in rows] == ["whole", "chunks of 16"] * 3
    for whole, few in zip(rows[::2], rows[1::2], strict=True):
        assert few["temporary_bytes"] < whole["temporary_bytes"]
        assert whole["temporary_bytes"] * jax.device_count() > 256 * 256 * 4
        assert whole["differs"] == 0 < few["differs"] < 1e-5


@pytest.mark.skipif(not HAS_TORCH, reason="needs PyTorch")
@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        (
            "vivit_tiny_factorized_self_attention",
            "ViViT has only joint attention over tubelets, not that of vivit_tiny_fact",
        ),
        ("timesformer_tiny_axial", "transformers' TimeSformer has no axial attention"),
        ("fr2d_tiny", "torchvision has no fr2d_tiny"),
        ("s3d_tiny", "torchvision has no s3d_tiny"),
        ("r2plus1d_18", "torchvision is not installed: pip install torchvision"),
        ("videomae_tiny", "transformers is not installed: pip install transformers"),
    ],
)
def test_a_missing_peer_has_a_reason(name, sentence, monkeypatch):
    monkeypatch.setattr(peers.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(NoPeerError, match=sentence):
        make_peer(name, make_model(job(name)))


def test_time_by_mask_ratio_is_a_table_and_a_chart(tmp_path, capsys):
    files = {name: str(tmp_path / f"{name}.out.{end}") for name, end in (("json", "json"), ("chart", "png"))}
    settings = {"frames": 4, "size": 64, "batch_size": 1, "ratios": (0.0, 0.75), "steps": 1, "rounds": 1}
    rows = commands.main(Visible(**settings, **files))
    assert [(row["ratio"], row["tokens"]) for row in rows] == [("0%", 32), ("75%", 8)]
    assert rows[0]["work_share"] == rows[0]["time_share"] == 1 and 0.2 < rows[1]["work_share"] < 0.3
    assert capsys.readouterr().out.splitlines()[2].split()[:2] == ["0%", "32"]
    assert json.loads(Path(files["json"]).read_text())["rows"] == rows and Path(files["chart"]).exists()
    with pytest.raises(ValueError, match="r3d_tiny has no encoder of visible tokens: choose a VideoMAE or V-JEPA 2"):
        commands.main(Visible(model="r3d_tiny"))
