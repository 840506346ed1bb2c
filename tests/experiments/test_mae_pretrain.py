"""Masked pre-training as a user runs it: killed, stopped, resumed, with two processes, with invalid input."""

import contextlib
import io
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import videos

import vidjax
from vidjax import cli, runs
from vidjax.training.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "experiments" / "mae_pretrain.py"
sys.path.insert(0, str(SCRIPT.parent))

import mae_pretrain  # noqa: E402

STEPS = 24
SMALL = f"""
--model videomae_tiny --data.size 32 --data.frames 4 --data.stride 1 --data.workers 1 --batch_size 8 --steps {STEPS}
--mask tube --mask_ratio 0.75 --loop.log_every 1 --loop.save_every 6 --loop.evaluate_every 1000 --probe_clips 0
--picture_clips 1
""".split()


FLAGS = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=2"  # as in this process
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", "XLA_FLAGS": FLAGS}


def start(workdir, *flags, **more):
    command = [sys.executable, str(SCRIPT), "demo", *SMALL, "--workdir", str(workdir), *flags]
    return subprocess.Popen(command, env=ENVIRONMENT | more, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(process):
    out, err = process.communicate(timeout=600)
    assert process.returncode == 0, out + err
    return out


def run_here(workdir, *flags):
    """Like `start`, in this process."""
    flags = ["demo", *SMALL, "--workdir", str(workdir), *flags]
    mae_pretrain.main(cli.parse(mae_pretrain.Config, mae_pretrain.RECIPES, mae_pretrain.DATA_FLAG, flags))


def wait_until(condition, process, seconds=600):
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, "".join(process.communicate())
        assert time.monotonic() < end
        time.sleep(0.001)


def logged(workdir):
    path = Path(workdir) / "metrics.jsonl"
    return len(path.read_text().splitlines()) if path.exists() else 0


def numbers(workdir):
    """The metrics that must be equal bit for bit: all but the speed."""
    entries = [e for e in read_metrics(workdir) if "loss" in e]
    return [(e["step"], e["loss"], e["gradient_norm"], e["learning_rate"], e["clips"]) for e in entries]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A run on a mix of rendered videos and three files: its work directory, its output and the flags of the mix."""
    workdir = tmp_path_factory.mktemp("undisturbed") / "run"
    for i in range(3):
        videos.write_video(workdir.parent / "files" / f"{i}.mp4", videos.numbered(12, first=20 * i))
    mix = ["--data.source", f"mix:synthetic:moving_shapes=5,{workdir.parent / 'files'}=2"]
    with contextlib.redirect_stdout(io.StringIO()) as out:
        run_here(workdir, *mix)
    return workdir, out.getvalue(), mix


def test_output_and_files_of_a_run(undisturbed):
    workdir, out, _ = undisturbed
    for word in (
        "0.714 of the clips from synthetic:moving_shapes, ",
        "files, 3 videos (",
        "devices   2 x cpu",
        "mesh data=2 fsdp=1",
        "GMACs per clip",
        "8 per clip: 2 visible, 6 masked",
        "8 clips in 1",
    ):
        assert word in out
    assert [step for step, *_ in numbers(workdir)] == list(range(1, STEPS + 1))
    made = {path.name for path in workdir.iterdir()}
    assert {"config.json", "metrics.jsonl", "tensorboard", "checkpoints", "reconstructions", "curves.png"} <= made
    assert {path.suffix for path in (workdir / "reconstructions").iterdir()} == {".png", ".gif"}
    assert json.loads((workdir / "config.json").read_text())["data"]["size"] == 32


def start_two(workdir, *flags):
    """Runs the commands of docs/launch.md with another port, work directory and size, and sharded parameters."""
    one, two = re.findall(r"^```bash\n(.*?)^```$", (ROOT / "docs" / "launch.md").read_text(), re.MULTILINE | re.DOTALL)
    assert one == "python experiments/mae_pretrain.py --workdir runs/one\n"  # the README's first command
    settings = dict(word.split("=") for word in re.search(r"^export (.*)$", two, re.MULTILINE)[1].split())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        settings["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{free.getsockname()[1]}"
    line = r"^JAX_PROCESS_ID=(\d) python experiments/mae_pretrain.py (.*) --workdir runs/two(?: &)?$"
    processes = dict(re.findall(line, two, re.MULTILINE))
    assert set(processes) == {"0", "1"}
    flags = ["--fsdp", "2", *flags]
    return [start(workdir, *processes[k].split(), *flags, JAX_PROCESS_ID=k, **settings) for k in "01"]


@pytest.mark.long
def test_a_killed_run_equals_an_uninterrupted_one_with_one_process_or_two(undisturbed, tmp_path):
    def saving():
        """Whether a later checkpoint is being saved, after the first was completed."""
        names = [path.name for path in (tmp_path / "run" / "checkpoints").glob("*")]
        return any(name.isdigit() for name in names) and any("tmp" in name for name in names)

    mix = undisturbed[2]
    process = start(tmp_path / "run", *mix)
    wait_until(saving, process)
    process.kill()
    process.wait()
    shutil.copytree(tmp_path / "run", tmp_path / "two")
    run_here(tmp_path / "run", *mix)
    assert numbers(tmp_path / "run") == numbers(undisturbed[0])

    killed_at = logged(tmp_path / "two")
    processes = start_two(tmp_path / "two", *mix)
    wait_until(lambda: logged(tmp_path / "two") > killed_at + 1, processes[0])
    processes[1].send_signal(signal.SIGTERM)
    out = [finish(process) for process in processes]
    assert "devices   4 x cpu, 2 process(es), mesh data=2 fsdp=2" in out[0]
    assert "resumed from step" in out[0] and "devices" not in out[1]
    assert "stopped by SIGTERM" in out[0] and len(numbers(tmp_path / "two")) < STEPS
    run_here(tmp_path / "two", *mix)
    both, alone = (np.array([row[1] for row in numbers(run)]) for run in (tmp_path / "two", undisturbed[0]))
    np.testing.assert_allclose(both, alone, atol=1e-5)


@pytest.mark.long
def test_init_from_another_run_starts_at_step_0(undisturbed, tmp_path, capsys):
    run_here(tmp_path / "run", "--init_from", str(undisturbed[0]), "--steps", "2")
    out = capsys.readouterr().out
    assert "loaded 100 of 100 parameters" in out and "resumed" not in out
    assert numbers(tmp_path / "run")[0][1] < numbers(undisturbed[0])[0][1]


def test_video_files_with_a_damaged_one_accumulation_moving_average_and_dual_masking(tmp_path, capsys):
    folder = tmp_path / "videos"
    folder.mkdir()
    for n in range(7):
        videos.write_video(folder / f"{n}.mp4", videos.numbered(12, first=n))
    (folder / "damaged.mp4").write_bytes(b"\x00" * 4096)
    flags = """--steps 2 --batch_size 16 --accumulation 2 --ema_decay 0.9 --decoder_mask running_cell --remat blocks
    --optim.clip_norm 1 --data.max_bad_share 0.2"""
    workdir = tmp_path / "run"
    run_here(workdir, "--data.source", str(folder), *flags.split())
    out = capsys.readouterr().out
    listed = [json.loads(line) for line in (workdir / "bad_files.jsonl").read_text().splitlines()]
    assert [Path(entry["path"]).name for entry in listed] == ["damaged.mp4"]
    assert "1 could not be read" in out
    # A batch has the folder twice: the damaged video is invalid both times, and not replaced.
    assert {entry["clips"] for entry in read_metrics(workdir) if "clips" in entry} == {14.0}
    with pytest.raises(ValueError, match=r"data\.max_bad_share 0\.1"):
        run_here(tmp_path / "strict", "--data.source", str(folder), "--data.max_bad_share", "0.1")


@pytest.mark.long
def test_hiera_is_pre_trained_shown_probed_and_starts_a_classifier(tmp_path, capsys):
    flags = "--model hiera_tiny --mask random --target_epsilon 1e-6 --steps 2 --probe_clips 64".split()
    flags += "--data.size 64 --data.short_side 64".split()
    run_here(tmp_path / "run", *flags)
    out = capsys.readouterr().out
    assert "8 mask units per clip: 2 visible, 6 masked and predicted" in out and "linear probe accuracy" in out
    assert len(list((tmp_path / "run" / "reconstructions").iterdir())) == 2
    model = vidjax.create_model("hiera_tiny", num_classes=8)
    variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4, 64, 64, 3)))
    _, report = runs.start_from(tmp_path / "run", model, variables, new=("head", "norm"))
    assert {path.split("/")[0] for path in report.new} == {"head", "norm"}


BAD = [
    (["--data.source", "/no/such/folder"], "/no/such/folder does not exist"),
    (["--data.source", "EMPTY"], "contains no video"),
    (["--data.source", "mix:synthetic:moving_shapes=1,ONE.csv=0"], "the weight of ONE.csv is 0, it must be above 0"),
    (
        ["--data.source", "mix:synthetic:moving_shapes=1,ONE.csv=1"],
        "ONE.csv has 1 videos, but its weight gives it 4 of the 8 of every batch: lower its weight or the batch size",
    ),
    (
        ["--data.source", "mix:synthetic:moving_shapes=7,ONE.csv=1", "--data.stream", "flow"],
        "mix:synthetic:moving_shapes=7,ONE.csv=1 has no field 'flow' that its sources share: choose among video",
    ),
    (["--data.source", "NO_PATH.csv"], "path"),
    (["--data.source", "MISSING.csv"], "names 2 files of 2 that do not exist: a.mp4, b.mp4"),
    (
        ["--model", "videomae_bse"],
        "model videomae_bse has no decoder for pre-training: choose one of videomae_base",
    ),
    (["--model", "videomae_tiny_pretrain"], "model videomae_tiny_pretrain has no decoder for pre-training"),
    (["--model", "beit_tiny"], "model beit_tiny has no decoder for pre-training: choose one of videomae_base"),
    (
        ["--model", "hiera_tiny"],
        "hiera_tiny masks units at random and normalises targets as published: add",
    ),
    (
        ["--model", "hiera_b_image", "--mask", "random", "--target_epsilon", "1e-6"],
        "a clip has 4 frames, but this is a model of images: add --data.frames 1",
    ),
    (["--data.frames", "5"], "5 frames cannot be cut into patches of 2"),
    (
        ["--data.size", "40"],
        "40 pixels of height cannot be cut into patches of 16: use a multiple of 16, such as 32 or 48",
    ),
    (["--mask_ratio", "1.0"], "mask ratio 1.0 leaves no visible"),
    (["--mask_ratio", "0.1"], "mask ratio 0.1 leaves no masked"),
    (["--batch_size", "13"], "a batch of 13 cannot be split over 2 devices"),
    (["--workdir", "OTHER_RUN"], "contains a run of another config: seed was 1, is 0"),
    (["--workdir", "FILE/run"], "cannot write to the work directory"),
    (["--init_from", "NOTHING"], "init_from: there are no weights at NOTHING"),
    (["--data.siez", "16"], "did you mean --data.size"),
]


@pytest.mark.parametrize(("flags", "message"), BAD, ids=[" ".join(flags) for flags, _ in BAD])
def test_invalid_input_exits_with_one_line_and_writes_nothing(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("EMPTY").mkdir()
    Path("NO_PATH.csv").write_text("file,label\na.mp4,1\n")
    Path("MISSING.csv").write_text("path\na.mp4\nb.mp4\n")
    Path("FILE").touch()
    Path("ONE.csv").write_text("path\nFILE\n")
    Path("OTHER_RUN/checkpoints").mkdir(parents=True)
    other = json.loads(
        json.dumps(cli.as_dict(cli.parse(mae_pretrain.Config, mae_pretrain.RECIPES, mae_pretrain.DATA_FLAG, SMALL)))
    )
    Path("OTHER_RUN/config.json").write_text(json.dumps(other | {"seed": 1}))
    before = sorted(Path(".").rglob("*"))
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "demo", *SMALL, "--workdir", "run", *flags])
    with pytest.raises(SystemExit) as stop:
        cli.run(mae_pretrain.main, mae_pretrain.Config, mae_pretrain.RECIPES, mae_pretrain.DATA_FLAG)
    assert stop.value.code == 2
    line = capsys.readouterr().err
    assert message in line and line.count("\n") == 1
    assert sorted(Path(".").rglob("*")) == before
