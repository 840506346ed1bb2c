"""Fine-tuning on hashtags: a run, its resuming, what it predicts, and invalid settings."""

import csv
import json
import sys
from pathlib import Path

import pytest
import videos
from small_runs import changed, interrupt_after, two_devices

import vidjax
from vidjax.data import moving_shapes
from vidjax.data.config import AugmentConfig, LabelledDataConfig, SourceConfig
from vidjax.data.sources import open_source
from vidjax.errors import UserError
from vidjax.runs.sources import open_labelled
from vidjax.training.loop import LoopConfig
from vidjax.training.metrics import read_metrics
from vidjax.training.optimizer import OptimizerConfig

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
import evaluate
import finetune
import predict

DATA = LabelledDataConfig(
    train_split="hashtags_train", validation="synthetic:moving_shapes", validation_split="hashtags_validation",
    validation_examples=192, frames=2, size=16, short_side=16, workers=1, augment=AugmentConfig(crop="center"),
)  # fmt: skip
CONFIG = finetune.Config(
    model="fr2d_tiny", data=DATA, hashtags="all", batch_size=16, steps=80, mixup=0.0, cutmix=0.0,
    optim=OptimizerConfig(learning_rate=0.08, warmup_epochs=0), label_smoothing=0.0,
    loop=LoopConfig(log_every=20, save_every=40, evaluate_every=80),
)  # fmt: skip


def test_validation_has_the_hashtags_of_training(tmp_path):
    chosen = tmp_path / "chosen.json"
    chosen.write_text(json.dumps(["#red", "circle", "up", "square"]))
    train, validation = open_labelled(DATA, 0, hashtags=str(chosen))
    assert train.class_names == validation.class_names == ("red", "circle", "up", "square")
    assert len(validation) == 192 and len(train) == len(train.weights) < len(moving_shapes.SPLITS["train"])
    assert train.weights.argmin() != train.weights.argmax()
    assert any("15 other hashtags do not count" in note for note in validation.notes)
    every, _ = open_labelled(changed(DATA, validation=None, train_examples=50), 0, hashtags="all")
    assert len(every.class_names) == 19 and len(every) == len(every.weights) == 50
    uniform, _ = open_labelled(DATA, 0, hashtags=str(chosen), hashtag_sampling="uniform")
    assert uniform.weights is None and len(uniform) == len(train)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": ("a", "b")}, "hashtags are the classes of one data set, and heads are of several: omit one"),
        ({"objective": "evidential"}, "hashtags are learned by cross-entropy, not evidential: omit --objective"),
        ({"hashtags": None, "hashtag_sampling": "uniform"}, "hashtag_sampling is for hashtags: give --hashtags all"),
        ({"train_accuracy": True}, "train_accuracy is of one label per clip, and hashtags are several: omit one"),
    ],
)
def test_settings_for_one_label_are_refused_in_one_line(fields, message):
    with pytest.raises(UserError, match=message):
        changed(CONFIG, **fields)


def test_evaluating_hashtags_takes_one_data_set_whose_names_are_known():
    for flag in ("head", "unknown"):
        with pytest.raises(UserError, match=f"of one data set: omit --hashtags or --{flag}"):
            evaluate.Config("run", hashtags=True, **{flag: "other"})
    model = vidjax.create_model("fr2d_tiny", num_classes=19, num_frames=2, image_size=16)
    with pytest.raises(UserError, match="the weights have no names of hashtags: evaluate a run of finetune"):
        evaluate.label_by_name(open_source("synthetic:moving_shapes", "hashtags_validation"), model, hashtags=True)


@pytest.mark.long
def test_a_killed_run_on_hashtags_resumes_with_the_same_losses_and_learns(tmp_path, capsys):
    losses = []
    with two_devices():
        for name in ("whole", "killed"):
            config = changed(CONFIG, workdir=str(tmp_path / name))
            if name == "killed":
                interrupt_after(50, finetune.main, config)
            numbers = finetune.main(config)
            entries = read_metrics(tmp_path / name)
            losses.append({entry["step"]: entry["loss"] for entry in entries if "loss" in entry})
    assert len(losses[0]) == 5 and losses[0] == {step: losses[1][step] for step in losses[0]}
    (last,) = [entry for entry in entries if "evaluation/map" in entry]
    assert numbers["map"] == last["evaluation/map"] and numbers["top1"] == last["evaluation/top1"]
    assert numbers["map"] > 1.4 * 3 / 19  # chance: a video has three of 19 hashtags
    out = capsys.readouterr().out
    assert f"hashtags  mean average precision {numbers['map']:.1%} at the last step" in out
    assert "note: synthetic:moving_shapes: 19 hashtags, 2 of a video; " in out
    assert "evaluate.py --run" in out and "--views 4x3 --hashtags" in out

    source = SourceConfig(source="synthetic:moving_shapes", split="hashtags_validation", workers=1)
    config = evaluate.Config(str(tmp_path / "killed"), data=source, hashtags=True, out=str(tmp_path / "out"))
    result = evaluate.main(config)
    rows = list(csv.DictReader((tmp_path / "out" / "predictions.csv").open()))
    assert result["counted"] == len(rows) == 1024 and all(len(row["label"].split()) == 3 for row in rows)
    hits = [row["predicted"] in row["label"].split() for row in rows]
    assert result["top1"] == sum(hits) / 1024 and sum(row["videos"] for row in result["per_class"]) == 3 * 1024
    mean = sum(row["average_precision"] for row in result["per_class"]) / 19
    assert result["mean_average_precision"] == pytest.approx(mean) == pytest.approx(numbers["map"], abs=0.1)
    assert "#up_and_left                       128" in (tmp_path / "out" / "evaluation.txt").read_text()
    assert not (tmp_path / "out" / "scores.npz").exists()

    videos.write_video(tmp_path / "clip.mp4", videos.numbered(8, 32, 32))
    (file,) = predict.main(predict.Config((str(tmp_path / "clip.mp4"),), str(tmp_path / "whole"), topk=19))["files"]
    rows = file["windows"][0]["predictions"]
    names = {name.replace(" ", "_") for name in moving_shapes.CLASSES} | {*moving_shapes.COLORS}
    assert {row["class"] for row in rows} == names | {"circle", "square", "triangle"}
    assert sum(row["probability"] for row in rows) == pytest.approx(1)
