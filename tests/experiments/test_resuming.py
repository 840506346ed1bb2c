"""Resuming with other flags, as the printed advice suggests, and with moved data."""

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import videos
from small_runs import changed, interrupt_after

from vidjax import cli, runs
from vidjax.runs.workdir import open_workdir
from vidjax.training.metrics import read_metrics

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))

import finetune  # noqa: E402

FLAGS = """demo --model fr2d_tiny --data.frames 2 --data.size 16 --data.short_side 16 --data.workers 1 --batch_size 8
--data.validation None --steps 4 --loop.log_every 1 --loop.save_every 1 --optim.warmup_epochs 0""".split()


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs the same command with additional flags, on eight videos of two classes, two of them damaged."""
    monkeypatch.chdir(tmp_path)
    for name, level in (("dark", 20), ("bright", 220)):
        for i in range(3):
            videos.write_video(Path("videos") / name / f"{i}.mp4", np.full((6, 16, 16, 3), level + i, np.uint8))
        (Path("videos") / name / "damaged.mp4").write_bytes(b"no video")

    def main(*flags):
        argv = [*FLAGS, "--workdir", "run", *flags]
        return finetune.main(cli.parse(finetune.Config, finetune.RECIPES, finetune.DATA_FLAG, argv))

    return main


def config_lines():
    return [entry for entry in read_metrics(Path("run")) if "config" in entry]


def steps():
    return [entry["step"] for entry in read_metrics(Path("run")) if "loss" in entry]


@pytest.mark.long
def test_a_run_with_too_many_bad_files_resumes_with_a_larger_limit(run):
    data = ["--data.train", "videos"]
    with pytest.raises(ValueError, match=r"max_bad_share 0.2 allows: .*; repair or remove them and delete that list"):
        run(*data)
    run(*data, "--data.max_bad_share", "0.5")
    assert steps() == [1, 2, 3, 4] and runs.read_config("run")["data"]["max_bad_share"] == 0.5


@pytest.mark.long
def test_a_run_with_a_gradient_that_is_not_finite_resumes_as_advised(run, monkeypatch, capsys):
    def make_loss(config, *args):
        loss_fn, spoilt = make(config, *args), config.optim.learning_rate > 1

        def loss_of(*args):
            loss, aux = loss_fn(*args)
            return loss * (np.nan if spoilt else 1.0), aux

        return loss_of

    make = finetune.make_loss
    monkeypatch.setattr(finetune, "make_loss", make_loss)
    flags = ["--data.train_examples", "16", "--loop.max_skipped_in_a_row", "2"]
    with pytest.raises(ValueError, match="2 steps in a row had a gradient that is not finite") as stopped:
        run(*flags, "--optim.learning_rate", "10", "--optim.clip_norm", "None")
    advice = re.findall(r"--\S+(?: \d+)?", str(stopped.value))
    assert advice == ["--accept_changes", "--optim.learning_rate", "--optim.clip_norm 1"]
    flags += ["--optim.learning_rate", "0.01", *advice[2].split()]
    with pytest.raises(
        ValueError, match=r"clip_norm was None, is 1.0; optim.learning_rate was 10.0, is 0.01; .*--accept"
    ):
        run(*flags)
    capsys.readouterr()
    run(*flags, "--accept_changes")
    changes = "optim.clip_norm was None, is 1.0; optim.learning_rate was 10.0"
    assert f"resumed from step 1 of 4\nnote: from this step on {changes}" in capsys.readouterr().out
    changes = {"optim.clip_norm": [None, 1.0], "optim.learning_rate": [10.0, 0.01]}
    assert steps() == [1, 2, 3, 4] and config_lines() == [{"step": 1, "config": changes}]
    assert runs.read_config("run")["optim"]["learning_rate"] == 0.01


def test_a_run_resumes_with_moved_data_and_not_with_other_data(run, capsys):
    limit = ["--data.max_bad_share", "0.5"]
    interrupt_after(2, run, "--data.train", "videos", *limit)
    Path("elsewhere").mkdir()
    Path("videos").rename("elsewhere/moved")
    moved = str(Path("elsewhere/moved").resolve())
    interrupt_after(1, run, "--data.train", moved, *limit)
    assert runs.read_config("run")["data"]["train"] == moved
    Path("elsewhere/moved/dark/0.mp4").rename("elsewhere/moved/dark/another.mp4")
    Path("elsewhere/moved").rename("other")
    with pytest.raises(ValueError, match=r"another config: data.train was '.*moved', is 'other'; .* --accept_changes"):
        run("--data.train", "other", *limit)
    capsys.readouterr()
    run("--data.train", "other", *limit, "--accept_changes")
    assert "note: data.train has other examples than before (8 then, 8 now)" in capsys.readouterr().out
    assert [list(entry["config"]) for entry in config_lines()] == [["data.train"], ["data.train"]]


ALL = (
    "workdir data batch_size epochs steps optim loop dtype remat scan ema_decay fsdp sequence init_from dry_run "
    "distributed accept_changes seed"
)
FIELDS = {
    "mae_pretrain": "model mask mask_ratio decoder_mask normalize_target target_epsilon accumulation probe_clips "
    "picture_clips",
    "jepa_pretrain": "model teacher teacher_layers predictor_width short_blocks short_scale long_blocks long_scale "
    "mask_clips short_duration long_duration final_ema_decay context_weight context_warmup probe_clips "
    "observed_clips accumulation",
    "vatt_pretrain": "model objective temperature sound_noise tokenizer context texts text_times probe_clips",
    "umt_pretrain": "model teacher layers mask_ratio drop_path probe_clips accumulation",
    "token_pretrain": "objective model tokenizer token_size mask_ratio least_patches images_per_clip temperature "
    "temperature_steps divergence_weight divergence_steps observed_clips probe_clips accumulation",
    "text_to_image": "model image_tokenizer decoder tokenizer context text_weight observed_clips",
    "finetune": "model heads stills hashtags hashtag_sampling keep_head tune tuned_blocks adapt drop_path dropout "
    "mixup cutmix label_smoothing objective head_factor train_accuracy accumulation teacher teacher_weight "
    "teacher_features label_weight",
    "localize": "model channels max_length encoder init_encoder_from encoder_factor label_smoothing "
    "offset_weight positives selection thresholds dialect",
    "detect": "model dilated stage bins aligned dropout keep_head objective crops dialect",
    "ground": "model channels text_channels max_length words align rounded text tokenizer",
    "contrastive_pretrain": "video_model text_model features tokenizer context init_video_from init_text_from freeze "
    "objective chunk head_factor",
    "video_language_pretrain": "video_model text_model features tokenizer context init_video_from init_text_from chunk "
    "decoder_depth decoder_factor caption_examples",
    "cross_model": "init_masked_from init_contrastive_from depths label_smoothing accumulation",
    "vision_language_pretrain": "model objectives video_model frame_tokens tokenizer context init_video_from "
    "init_text_from queue_size mask_token mask_ratio alpha alpha_epochs matched_examples candidates "
    "caption_examples",
    "blip2_pretrain": "stage model video_model language_model init_video_from init_language_from frozen_type tokenizer "
    "context caption_examples attributes",
    "adaptive": "model budget budgets full_steps full_optim network_factor",
    "preference_tune": "method reward beta smoothing freeze group attributes tokenizer context accumulation",
}
"""The contents of config.json since the first version, by script, which runs are resumed by."""


@pytest.mark.parametrize("script", FIELDS)
def test_config_fields_keep_the_names_of_earlier_versions(script):
    config = __import__(script).RECIPES["demo"]
    assert cli.as_dict(config).keys() == {*ALL.split(), *FIELDS[script].split()}
    assert config.accumulation == 1


RECORDED = json.loads((Path(__file__).resolve().parents[1] / "goldens/recipes_19428ce.json").read_text())
"""The configs of an earlier version, as `tests/goldens/record_recipes.py` explains."""
# Fields that recipes have set since, by the script and the beginning of their name, with the values from before.
SET_SINCE = {
    "mae_pretrain demo": {"epochs": 10, "optim.learning_rate": 0.016, "target_epsilon": 1e-6},
    "finetune videomae_": {"data.protocol": "vidjax"},
    "finetune uniformer_": {"data.protocol": "vidjax"},
    "finetune timesformer_": {"data.fps": None, "data.protocol": "vidjax"},
}


@pytest.mark.parametrize(
    ("script", "name"), [(script, name) for script in RECORDED for name in RECORDED[script]["recipes"]]
)
def test_runs_of_recipes_of_an_earlier_version_resume(script, name, tmp_path):
    old = {}
    for field, value in {**RECORDED[script]["default"], **RECORDED[script]["recipes"][name]}.items():
        *groups, last = field.split(".")
        group = old
        for each in groups:
            group = group.setdefault(each, {})
        group[last] = value
    (tmp_path / "config.json").write_text(json.dumps(old))
    (tmp_path / "checkpoints").mkdir()
    config = __import__(script).RECIPES[name]
    since = next((SET_SINCE[start] for start in SET_SINCE if f"{script} {name}".startswith(start)), {})
    if since:
        with pytest.raises(ValueError, match="another config: ") as refused:
            open_workdir(tmp_path, config)
        assert dict(re.findall(r"(\S+) was (\S+), is", str(refused.value))) == {f: repr(v) for f, v in since.items()}
        assert runs.read_config(tmp_path) == old
    resumed = changed(config, **{field.replace(".", "__"): value for field, value in since.items()})
    open_workdir(tmp_path, resumed)
    assert runs.read_config(tmp_path) == cli.as_dict(resumed)


@pytest.mark.long
def test_a_run_of_an_earlier_version_resumes_unless_its_state_has_another_structure(run):
    examples = ["--data.train_examples", "16"]
    interrupt_after(2, run, *examples)
    # As written before configs had these fields and sources.json existed.
    Path("run/sources.json").unlink()
    old = runs.read_config("run")
    del old["accept_changes"], old["sequence"], old["data"]["max_bad_share"]
    Path("run/config.json").write_text(json.dumps(old))
    with pytest.raises(ValueError, match=r"ema_decay was None, is 0.9; .* another --workdir, with --init_from run"):
        run(*examples, "--ema_decay", "0.9", "--accept_changes")
    assert runs.read_config("run") == old
    run(*examples)
    assert steps() == [1, 2, 3, 4] and not config_lines()
    run(*examples, "--ema_decay", "0.9", "--init_from", "run", "--workdir", "next")
