"""A dry run reports the memory of the actual run, for each training script, and writes nothing."""

import dataclasses
import importlib
import sys
from functools import partial
from pathlib import Path

import jax
import pytest

from vidjax import runs
from vidjax.runs import run
from vidjax.training.memory import BATCHES

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))

TINY = "--data.frames 4 --data.size 32 --data.short_side 32 --data.stride 1 --data.workers 1 --batch_size 16 --fsdp 2"
SCRIPTS = {
    "mae_pretrain": "--model videomae_tiny --ema_decay 0.9 --mask_ratio 0.75 --picture_clips 0",
    "jepa_pretrain": "--model vjepa2_tiny --data.fps None --data.size 64 --data.short_side 64 --observed_clips 2",
    "finetune": "--model r3d_tiny --accumulation 2 --data.validation None",
    "contrastive_pretrain": "--video_model r3d_tiny --data.validation None",
    "video_language_pretrain": "--video_model fr2d_tiny --data.validation None",
    "token_pretrain": "--objective tokenizer --model dalle_tiny",
    "vision_language_pretrain": "--data.validation None",
}


class Stop(Exception):
    """Instead of training."""


def parse(name, *flags):
    from vidjax import cli

    script = importlib.import_module(name)
    argv = [*TINY.split(), *SCRIPTS[name].split(), *flags]
    return script, cli.parse(script.Config, script.RECIPES, script.DATA_FLAG, argv)


@pytest.mark.parametrize(
    "name",
    [name if name in ("finetune", "cross_model") else pytest.param(name, marks=pytest.mark.long) for name in SCRIPTS],
)
def test_a_dry_run_compiles_the_step_of_the_actual_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script, config = parse(name, "--dry_run", "--workdir", str(tmp_path / "run"))
    given = []
    monkeypatch.setattr(run, "dry_run", lambda *arguments: given.extend(arguments) or {"total": 1})
    assert script.main(config) == {"total": 1}
    assert list(tmp_path.iterdir()) == []

    def stop(_, state, batches_from, *, mesh, **__):
        raise Stop(state, next(batches_from(0)), mesh)

    monkeypatch.setattr(run, "fit", stop)
    monkeypatch.setattr(jax, "jit", lambda function, **_: partial(jax.eval_shape, function))  # shapes suffice here
    with pytest.raises(Stop) as stopped:
        script.main(dataclasses.replace(config, dry_run=False))
    _, _, shapes, sharding, batch_shapes, mesh = given
    state, batch, real_mesh = stopped.value.args
    assert mesh == real_mesh and shapes == state
    assert any(not s.is_fully_replicated for s in jax.tree.leaves(sharding))
    assert {n: (s.shape, s.dtype) for n, s in batch_shapes.items()} == {n: (x.shape, x.dtype) for n, x in batch.items()}


def test_weights_must_exist_and_are_not_read(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    script, config = parse("finetune", "--dry_run", "--init_from", "checkpoint.pth")
    with pytest.raises(ValueError, match=r"init_from: there are no weights at checkpoint.pth"):
        script.main(config)
    Path("checkpoint.pth").write_bytes(b"no weights")
    monkeypatch.setattr(run, "dry_run", lambda *_: {"total": 1})
    assert script.main(config) == {"total": 1}
    assert runs.require_source("init_from", "owner/model") is None  # could be a hub id; no request is sent


@pytest.mark.parametrize(("flag", "value"), [("--scan", ()), ("--sequence", ("2",)), ("--remat", ("blocks",))])
def test_a_model_without_blocks_does_not_support_their_flags(flag, value):
    script, config = parse("finetune", "--dry_run", "--fsdp", "1", flag, *value)
    with pytest.raises(ValueError, match=rf"{flag[2:]} is .*, but r3d_tiny has no transformer blocks for it"):
        script.main(config)


def test_sharded_clips_need_only_a_part_of_the_memory(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ("--dry_run", "--fsdp", "1", "--data.validation", "None")
    script, config = parse("finetune", *flags, "--model", "videomae_tiny", "--sequence", "2", "--scan")
    numbers = script.main(config)
    out = capsys.readouterr().out
    assert out.startswith("dry run of videomae_tiny: 16 clips of 4 x 32 x 32 per step on 2 x cpu; nothing")
    assert numbers["fits"] and "\nfits\n" in out and list(tmp_path.iterdir()) == []
    # Each of the two devices has half of the frames of all clips, and all of their labels.
    assert numbers["batches"] == BATCHES * (16 * 2 * 32 * 32 * 3 + 16 * 4 + 16)
