"""The studies, from the training processes to the table and the plot; failed trainings."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))

import compare_models
import contrastive_pretrain

import vidjax
from studies import starts
from vidjax import cli
from vidjax.data import moving_shapes
from vidjax.errors import UserError

FLAGS = """--steps 2 --loop.evaluate_every 1 --data.validation_examples 8 --data.frames 2 --data.size 16
--data.short_side 16 --data.workers 1 --batch_size 8"""


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[2]))


@pytest.mark.long
def test_families_are_trained_once_and_tabulated(tmp_path, capsys):
    config = compare_models.Config(workdir=str(tmp_path), models=("vit_tiny",), flags=FLAGS)
    result = compare_models.main(config)
    assert result["vit_tiny"]["steps"] == 2 and 0 <= result["vit_tiny"]["top1"] <= 1
    assert len(result["vit_tiny"]["curve"]) == 2
    assert "| `vit_tiny` | frame by frame, averaged |" in (tmp_path / "families.md").read_text()
    assert json.loads((tmp_path / "families.json").read_text()) == json.loads(json.dumps(result))
    assert (tmp_path / "families.png").read_bytes()[:4] == b"\x89PNG"


def test_hand_made_features_are_beside_the_families(tmp_path, monkeypatch):
    row = {"parameters": 1, "gmacs": 1.0, "steps": 1, "training_gmacs": 3.0, "seconds": 1.0, "top1": 0.5}
    drawn, draw = [], compare_models.save_points
    monkeypatch.setattr(compare_models, "finetune", lambda *args: {**row, "curve": [(1, 0.5)]})
    monkeypatch.setattr(compare_models, "save_points", lambda *args: drawn.append(args[-1]) or draw(*args))
    for name, top1 in {"dt": 1.0, "idt": 1.0, "tdd": 0.875}.items():
        (tmp_path / "tracks" / name).mkdir(parents=True)
        (tmp_path / "tracks" / name / "results.json").write_text(json.dumps({"top1": top1}))
    config = compare_models.Config(workdir=str(tmp_path), models=("vit_tiny",), trajectories=str(tmp_path / "tracks"))
    results = compare_models.main(config)
    assert drawn == [{"chance": 0.125, "dt, idt": 1.0, "tdd": 0.875}]
    assert results["idt"] == {"time": "improved ones, iDT", "top1": 1.0} and results["vit_tiny"]["top1"] == 0.5
    assert "| `tdd` | a network's maps along iDT, TDD | | | | | 87.5% |" in (tmp_path / "families.md").read_text()
    with pytest.raises(UserError, match=r"nowhere has no results of dt, idt, tdd: give --trajectories an --out"):
        compare_models.main(dataclasses.replace(config, trajectories=str(tmp_path / "nowhere")))
    with pytest.raises(UserError, match="trajectories are shown beside families, not by captions"):
        dataclasses.replace(config, study="captions")


def test_pre_trained_video_towers_are_compared_with_scratch(tmp_path, monkeypatch):
    trained, flag = [], "--init_video_from "

    def train_pair(config, name, flags, seed):
        trained.append((name, flag in flags, seed))
        top1 = 0.5 + 0.1 * seed + 0.2 * (flag in flags)
        return {"top1": top1, "curve": [(1, 0.1), (2, 0.5), (3, top1)] if flag in flags else [(1, 0.1), (3, top1)]}

    monkeypatch.setattr(compare_models, "train_pair", train_pair)
    monkeypatch.setattr(compare_models, "train", lambda script, flags, workdir: trained.append((script, flags[-1])))
    compare_models.main(compare_models.Config(study="captions", workdir=str(tmp_path), seeds=(0, 2)))
    assert trained == [
        ("mae_pretrain.py", "0"), ("pair_from_scratch_0", False, 0), ("pair_pre-trained_0", True, 0),
        ("mae_pretrain.py", "2"), ("pair_from_scratch_2", False, 2), ("pair_pre-trained_2", True, 2),
    ]  # fmt: skip
    table = (tmp_path / "captions.md").read_text()
    assert "| std | steps to 50.0% |" in table
    assert "| from scratch | 50.0%, 70.0% | 60.0% | 14.1% | 3, 3 |" in table
    assert "| pre-trained | 70.0%, 90.0% | 80.0% | 14.1% | 2, 2 |" in table
    assert (tmp_path / "captions.png").read_bytes()[:4] == b"\x89PNG"


def test_pre_trainings_are_compared_for_equal_clips_and_for_equal_time(tmp_path, monkeypatch):
    """Latent prediction is half as fast as VideoMAE here, and gets half of its clips for the same time."""
    trained, tuned = [], []

    def train(script, flags, workdir):
        steps = int(flags[flags.index("--steps") + 1])
        trained.append((script, workdir.name, steps, [Path(flag).name for flag in flags if str(tmp_path) in flag]))
        workdir.mkdir()
        speed = 32 if script == "mae_pretrain.py" else 16
        entry = {"step": steps, "loss": 1.0, "clips_per_second": speed}
        (workdir / "metrics.jsonl").write_text(json.dumps(entry) + "\n")

    def finetune(config, name, flags, seed):
        start = [Path(flag.strip("'")).name for flag in flags.split() if str(tmp_path) in flag]
        tuned.append((name, start))
        return {"top1": 0.4 + 0.1 * len(start) + 0.05 * seed}

    monkeypatch.setattr(compare_models, "train", train)
    monkeypatch.setattr(compare_models, "finetune", finetune)
    config = {"study": "pretraining", "workdir": str(tmp_path), "seeds": (0, 1), "clips": 640}
    compare_models.main(compare_models.Config(**config, methods=("frozen_teacher",)))
    assert trained[:5] == [
        ("mae_pretrain.py", "videomae_clips_0_0", 40, []),
        ("mae_pretrain.py", "frozen_teacher_clips_0_0", 20, []),
        ("jepa_pretrain.py", "frozen_teacher_clips_1_0", 20, ["frozen_teacher_clips_0_0"]),
        ("mae_pretrain.py", "frozen_teacher_seconds_0_0", 13, []),  # 20 s allowed, 10 + 20 s taken
        ("jepa_pretrain.py", "frozen_teacher_seconds_1_0", 13, ["frozen_teacher_seconds_0_0"]),
    ]
    assert [start for _, start in tuned[:5]] == [
        [], [], ["videomae_clips_0_0"], ["frozen_teacher_clips_1_0"], ["frozen_teacher_seconds_1_0"],
    ]  # fmt: skip
    assert len({name for name, _ in tuned}) == len(tuned) == 10
    lines = [line.split(" | ") for line in (tmp_path / "pretraining.md").read_text().splitlines()[2:]]
    assert len(lines) == 6 and lines[0][:2] == ["| no pre-training", "from scratch"]
    assert lines[0][2:] == ["`videomae_tiny`, 48 pixels", "-", "-", "40.0%, 45.0%", "42.5%", "3.5% |"]
    assert lines[-2][:2] == ["| equal time", "frozen_teacher"] and lines[-1][1] == "videomae"
    assert lines[-2][2:] == ["`vjepa2_tiny`, 48 pixels", "426", "0:20", "50.0%, 55.0%", "52.5%", "3.5% |"]
    assert (tmp_path / "pretraining.png").read_bytes()[:4] == b"\x89PNG"


def test_stages_of_internvideo_start_from_the_ones_before(tmp_path, monkeypatch):
    trained = []
    top1 = {
        "masked_from_scratch_3": 0.4, "masked_pre-trained_3": 0.6, "contrastive_from_scratch_3": 0.3,
        "contrastive_pre-trained_3": 0.5, "mean_of_both_scores_3": 0.65, "cross-model_3": 0.7,
    }  # fmt: skip

    def train(script, flags, workdir):
        trained.append((script, workdir.name, [Path(flag).name for flag in flags if str(tmp_path) in flag]))

    def finetune(config, name, flags, seed):
        train("finetune.py", flags.split(), tmp_path / name)
        return {"top1": top1[name], "curve": [(1, 0.1), (2, top1[name])]}

    def read_metrics(workdir):
        return [{"step": 1, "loss": 1.0}, {"step": 1, "evaluation/top1": top1[workdir.name]}]

    for function in (train, finetune, read_metrics):
        monkeypatch.setattr(compare_models, function.__name__, function)
    compare_models.main(compare_models.Config(study="internvideo", workdir=str(tmp_path), seeds=(3,)))
    both = ["masked_pre-trained_3", "contrastive_pre-trained_3"]
    assert trained == [
        ("mae_pretrain.py", "pretrained_3", []),
        ("contrastive_pretrain.py", "captioned_3", []),
        ("finetune.py", "masked_from_scratch_3", []),
        ("finetune.py", "masked_pre-trained_3", ["pretrained_3"]),
        ("finetune.py", "contrastive_from_scratch_3", []),
        ("finetune.py", "contrastive_pre-trained_3", ["captioned_3"]),
        ("cross_model.py", "mean_of_both_scores_3", both),
        ("cross_model.py", "cross-model_3", both),
    ]
    table = (tmp_path / "internvideo.md").read_text().splitlines()[2:]
    assert [row.split(" | ")[0::2] for row in table] == [
        ["| masked encoder, from scratch", "40.0%"], ["| masked encoder, pre-trained", "60.0%"],
        ["| contrastive encoder, from scratch", "30.0%"], ["| contrastive encoder, pre-trained", "50.0%"],
        ["| mean of both scores", "65.0%"], ["| cross-model", "70.0%"],
    ]  # fmt: skip
    assert (tmp_path / "internvideo.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.long
def test_pairs_are_trained_and_their_metrics_read(tmp_path, monkeypatch):
    def train(script, flags, workdir):
        assert script == "contrastive_pretrain.py"
        config, recipes = contrastive_pretrain.Config, contrastive_pretrain.RECIPES
        flags = [*flags, "--workdir", str(workdir)]
        contrastive_pretrain.main(cli.parse(config, recipes, contrastive_pretrain.DATA_FLAG, flags))

    monkeypatch.setattr(compare_models, "train", train)
    config = compare_models.Config(workdir=str(tmp_path), flags=FLAGS.replace("--data.size 16", "--data.size 24"))
    flags = compare_models.PAIRED.replace("videomae_tiny", "fr2d_tiny")
    result = compare_models.train_pair(config, "pair", flags, 0)
    assert [step for step, _ in result["curve"]] == [1, 2] and result["top1"] == result["curve"][-1][1]


def test_a_failed_training_and_an_unknown_model_raise(tmp_path):
    config = compare_models.Config(workdir=str(tmp_path), models=("vit_tiny",), flags="--data.train nowhere")
    with pytest.raises(ValueError, match=r"ended with status 2, see .*vit_tiny.log: .*nowhere does not exist"):
        compare_models.main(config)
    with pytest.raises(ValueError, match="models has tsn_50: choose from"):
        compare_models.Config(models=("tsn_50",))
    with pytest.raises(ValueError, match="methods has dino: choose from videomae, videomae_v2, jepa"):
        compare_models.Config(methods=("dino",))


@pytest.mark.long
def test_units_of_a_standardised_start_vary_over_clips_and_recurrent_kernels_keep_lengths(tmp_path):
    """The outputs of the first layer, computed as patches times kernel."""
    start = starts.standardize_units(str(tmp_path), "lrcn_tiny", 0)
    model, variables = vidjax.load_pretrained(start, verbose=False)
    params = variables["params"]
    clips = np.stack([moving_shapes.render(index, np.arange(4), 67) for index in range(32)])
    patches = np.lib.stride_tricks.sliding_window_view(model.card.preprocess(clips), (7, 7), (2, 3))[:, :, ::2, ::2]
    conv1 = np.einsum("btxychw,hwcd->btxyd", patches, params["conv1"]["kernel"][0]) + params["conv1"]["bias"]
    np.testing.assert_allclose(conv1.mean(axis=(0, 1, 2, 3)), 0, atol=1e-3)
    np.testing.assert_allclose(conv1.std(axis=(0, 1, 2, 3)), 1, atol=1e-3)
    for gate in np.split(params["lstm7"]["state_kernel"], 4, axis=1):
        np.testing.assert_allclose(gate @ gate.T, np.eye(256), atol=1e-4)
    assert params["lstm7"]["input_kernel"].std() == pytest.approx(np.sqrt(2 / 256), rel=1e-3)
