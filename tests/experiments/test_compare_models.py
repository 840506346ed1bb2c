"""The studies, from the training processes to the table and the plot; failed trainings."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))

import compare_models
import contrastive_pretrain

from vidjax import cli

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


@pytest.mark.parametrize(
    ("study", "function", "name", "flag"),
    [("pretraining", "finetune", "few", "--init_from "), ("captions", "train_pair", "pair", "--init_video_from ")],
)
def test_pre_training_is_compared_with_scratch(tmp_path, monkeypatch, study, function, name, flag):
    trained = []

    def train(config, name, flags, seed):
        trained.append((name, flag in flags, seed))
        top1 = 0.5 + 0.1 * seed + 0.2 * (flag in flags)
        return {"top1": top1, "curve": [(1, 0.1), (2, 0.5), (3, top1)] if flag in flags else [(1, 0.1), (3, top1)]}

    monkeypatch.setattr(compare_models, function, train)
    monkeypatch.setattr(compare_models, "train", lambda script, flags, workdir: trained.append((script, flags[-1])))
    compare_models.main(compare_models.Config(study=study, workdir=str(tmp_path), seeds=(0, 2)))
    assert trained == [
        ("mae_pretrain.py", "0"), (f"{name}_from_scratch_0", False, 0), (f"{name}_pre-trained_0", True, 0),
        ("mae_pretrain.py", "2"), (f"{name}_from_scratch_2", False, 2), (f"{name}_pre-trained_2", True, 2),
    ]  # fmt: skip
    table = (tmp_path / f"{study}.md").read_text()
    assert "| std | steps to 50.0% |" in table
    assert "| from scratch | 50.0%, 70.0% | 60.0% | 14.1% | 3, 3 |" in table
    assert "| pre-trained | 70.0%, 90.0% | 80.0% | 14.1% | 2, 2 |" in table
    assert (tmp_path / f"{study}.png").read_bytes()[:4] == b"\x89PNG"


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
