"""Training on several data sets with a softmax each, and evaluating and predicting with one of them."""

import dataclasses
import json
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import videos
from small_models import perturbed

import vidjax
from vidjax import runs
from vidjax.data.config import AugmentConfig, LabelledDataConfig
from vidjax.data.moving_shapes import CLASSES
from vidjax.errors import UserError
from vidjax.runs.sources import open_labelled
from vidjax.training.loop import LoopConfig
from vidjax.training.metrics import read_metrics
from vidjax.training.optimizer import OptimizerConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
import evaluate
import finetune
import predict

HEADS = ("shapes", "bars")
SHAPES = "synthetic:moving_shapes"
BARS = ("up", "walk")  # the first is also a direction of the shapes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two classes of two videos each."""
    folder = tmp_path_factory.mktemp("bars")
    for number, name in enumerate(BARS):
        for k in range(2):
            videos.write_video(folder / name / f"{k}.mp4", videos.numbered(8, 32, 32, first=9 * number + k))
    return folder


def data(folder, **fields):
    usual = {
        "frames": 2,
        "size": 32,
        "short_side": 32,
        "stride": 2,
        "workers": 1,
        "train": f"mix:{SHAPES}=1,{folder}=1",
    }
    return LabelledDataConfig(**usual | {"augment": AugmentConfig(crop="center")} | fields)


def test_labels_of_a_mix_are_those_of_the_head_and_its_class(folder):
    train, validation = open_labelled(data(folder, validation=f"mix:{SHAPES}=1,{folder}=9"), 0, HEADS)
    assert train.class_names == (*(f"shapes: {name}" for name in CLASSES), "bars: up", "bars: walk")
    shapes = open_labelled(LabelledDataConfig(), 0)[0]
    assert [train.label(i) for i in range(5)] == [shapes.label(i) for i in range(5)]
    assert [train.label(len(shapes) + i) for i in range(4)] == [8, 8, 9, 9] and len(train.parts) == 2
    assert validation.class_names == train.class_names
    with validation.open(len(validation) - 1, ["video"]) as example:
        assert example.label == 9


def test_a_head_of_a_model_is_a_classifier_of_its_data_set():
    names = ("a: up", "a: down", "b: up", "b: left", "b: right")
    model = vidjax.create_model("two_stream_tiny_rgb", num_classes=5)
    model = model.clone(card=dataclasses.replace(model.card, class_names=names, heads=("a", "b")))
    assert model.card.head_sizes == (2, 3)
    variables = perturbed(model)
    one, few = runs.choose_head(model, variables, "b", "the run")
    assert one.card.class_names == ("up", "left", "right") and one.card.heads == () and one.num_classes == 3
    video = jnp.asarray(np.random.default_rng(0).normal(size=(1, 1, 64, 64, 3)), jnp.float32)
    np.testing.assert_array_equal(one.apply(few, video), model.apply(variables, video)[:, 2:])
    assert runs.choose_head(one, few, None, "the run") == (one, few)
    for chosen, head, message in (
        (model, None, "the run has the heads a, b: give --head with one of them"),
        (model, "c", "the run has the heads a, b: give --head"),
        (one, "b", "the run has one head: omit --head"),
    ):
        with pytest.raises(UserError, match=message):
            runs.choose_head(chosen, variables, head, "the run")


def test_wrong_heads_are_one_line(folder):
    for fields, heads, message in (
        (
            {"train": SHAPES},
            HEADS,
            "heads are of the sources of a mix, and data.train is synthetic:moving_shapes: give mix",
        ),
        ({}, ("a", "b", "c"), "data.train has 2 sources, and there are 3 heads: name each of them once"),
        ({"validation": SHAPES}, HEADS, "and data.validation is synthetic:moving_shapes: give mix"),
        (
            {"train": f"mix:synthetic:many_shapes=1,{folder}=1"},
            HEADS,
            "many_shapes has no labels, and a head needs classes",
        ),
    ):
        with pytest.raises(UserError, match=message):
            open_labelled(data(folder, **fields), 0, heads)
    for fields in ({"heads": ("a", "a")}, {"heads": HEADS, "objective": "evidential", "label_smoothing": 0.0}):
        with pytest.raises(UserError, match="give different names, and --objective cross_entropy"):
            finetune.Config(**fields)


@pytest.mark.long
def test_a_run_on_two_data_sets_is_evaluated_for_each_and_says_which_it_predicts(folder, tmp_path, capsys):
    both = data(folder, validation=f"mix:{SHAPES}=1,{folder}=1")
    config = finetune.Config(
        model="fr2d_tiny", data=both, heads=HEADS, batch_size=8, steps=3, mixup=0.0, cutmix=0.0, train_accuracy=True,
        optim=OptimizerConfig(learning_rate=1e-3, warmup_epochs=0),
        loop=LoopConfig(log_every=1, save_every=3, evaluate_every=3), workdir=str(tmp_path / "run"),
    )  # fmt: skip
    finetune.main(config)
    entries = read_metrics(tmp_path / "run")
    losses = [entry["loss"] for entry in entries if "loss" in entry]
    assert len(losses) == 3 and np.isfinite(losses).all()
    assert abs(losses[0] - np.log(8) - np.log(2)) < 1.5  # of both, as the sum
    (last,) = [entry for entry in entries if "evaluation/top1" in entry]
    shares = last["evaluation/shapes_top1"], last["evaluation/bars_top1"]
    assert 0 <= min(shares) <= last["evaluation/top1"] <= max(shares) <= 1
    assert "heads     shapes " in capsys.readouterr().out
    run = str(tmp_path / "run")
    videos_of = evaluate.SourceConfig(source=str(folder), workers=1)
    with pytest.raises(UserError, match="run has the heads shapes, bars: give --head with one of them"):
        evaluate.main(evaluate.Config(run=run, data=videos_of))
    numbers = evaluate.main(evaluate.Config(run=run, data=videos_of, head="bars", out=str(tmp_path / "bars")))
    assert [row["class"] for row in numbers["per_class"]] == list(BARS) and numbers["counted"] == 4
    (file,) = predict.main(predict.Config((str(folder / "up" / "0.mp4"),), run, topk=2))["files"]
    rows = file["windows"][0]["predictions"]
    assert [row["class"].split(": ")[0] for row in rows] == ["shapes", "shapes", "bars", "bars"]
    assert abs(sum(row["probability"] for row in rows[2:]) - 1) < 1e-5
    (file,) = predict.main(predict.Config((str(folder / "up" / "0.mp4"),), run, topk=2, head="bars"))["files"]
    assert {row["class"] for row in file["windows"][0]["predictions"]} == set(BARS)
    described = json.loads((tmp_path / "run" / "vidjax.json").read_text())
    assert described["fields"]["card"]["heads"] == list(HEADS)
