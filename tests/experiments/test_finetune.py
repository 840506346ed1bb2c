"""Fine-tuning and evaluation as a user runs them, the files of a run, and invalid input."""

import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import videos
from small_runs import changed, interrupt_after, truncate_largest

import vidjax
from vidjax import cli, runs
from vidjax.data.config import AugmentConfig, LabelledDataConfig, SourceConfig
from vidjax.models import example_inputs
from vidjax.training.loop import LoopConfig
from vidjax.training.metrics import read_metrics
from vidjax.training.optimizer import OptimizerConfig

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))

import evaluate  # noqa: E402
import finetune  # noqa: E402

SMALL = finetune.Config(
    model="fr2d_tiny",  # batch norm, and quick to compile
    data=LabelledDataConfig(
        frames=2,
        size=16,
        short_side=16,
        stride=4,
        workers=1,
        augment=AugmentConfig(crop="center"),
        train_examples=64,
        validation="synthetic:moving_shapes",
        validation_examples=24,
    ),
    batch_size=16,
    steps=6,
    mixup=0.0,
    cutmix=0.0,
    train_accuracy=True,
    optim=OptimizerConfig(learning_rate=1e-2, warmup_epochs=0),
    loop=LoopConfig(log_every=1, save_every=3, evaluate_every=3),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finetuned") / "run"
    numbers = finetune.main(changed(SMALL, workdir=str(workdir)))
    return workdir, numbers


def logged(workdir):
    entries = [entry for entry in read_metrics(workdir) if "loss" in entry]
    return [(e["step"], e["loss"], e["gradient_norm"], e["learning_rate"], e["accuracy"]) for e in entries]


def weights(workdir, which="last"):
    return runs.read_weights(workdir, which)[0]


def test_a_run_saves_a_model_with_its_classes_and_clip_settings(run):
    workdir, numbers = run
    made = {path.name for path in workdir.iterdir()}
    assert {"config.json", "vidjax.json", "checkpoints", "best", "metrics.jsonl", "curves.png"} <= made
    model, variables = vidjax.load_pretrained(workdir)
    assert model.card.class_names[:2] == ("right", "up and right") and model.num_classes == 8
    assert (model.num_frames, model.image_size, model.dtype) == (2, 16, None)
    assert "batch_stats" in variables
    assert runs.usual_clips(workdir, model) | {"frames": 2, "size": 16, "stride": 4, "short_side": 16} == (
        runs.usual_clips(workdir, model)
    )
    validated = [entry["evaluation/top1"] for entry in read_metrics(workdir) if "evaluation/top1" in entry]
    assert numbers["top1"] == validated[-1] and numbers["best_top1"] == max(validated) and len(validated) == 2


def test_validation_equals_evaluate_on_the_same_clips(run, tmp_path, capsys):
    workdir, numbers = run
    data = SourceConfig(source="synthetic:moving_shapes", split="validation", workers=1)
    subset = draw_validation(tmp_path, count=24)
    config = evaluate.Config(run=str(workdir), which="last", data=dataclasses.replace(data, source=subset))
    result = evaluate.main(dataclasses.replace(config, out=str(tmp_path / "out")))
    assert result["top1"] == pytest.approx(numbers["top1"], abs=0.05)  # the same videos after JPEG
    assert result["decoded"] == result["counted"] == 24 and result["unreadable"] == []
    assert "top-1" in capsys.readouterr().out


def draw_validation(folder, count):
    """TFRecords of the validation videos that the run draws."""
    import tensorflow as tf

    from vidjax.data import images, records
    from vidjax.data.sources import draw, open_source

    source = draw(open_source("synthetic:moving_shapes", "validation"), count, SMALL.seed)
    with tf.io.TFRecordWriter(str(folder / "videos-0.tfrecord")) as writer:
        for index in range(count):
            clip = source.read(index, None, 16)
            frames = images.encode_frames(clip.frames, quality=100)
            name = source.class_names[clip.label]
            size = clip.frames.shape[1:3]
            record = records.Record(frames, clip.info.rate, *size, clip.label, name, (), source.ids[index])
            writer.write(records.encode_record(record))
    (folder / "classes.json").write_text(json.dumps(source.class_names))
    return f"tfrecord:{folder}"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """TFRecords of the validation videos that the run draws."""
    return draw_validation(tmp_path_factory.mktemp("drawn"), count=24)


def test_evaluation_does_not_depend_on_the_batch_size(run, drawn, tmp_path):
    data = SourceConfig(source=drawn, workers=1)
    results = []
    for batch_size, views in ((8, "2x3"), (16, "2x3")):
        out = tmp_path / f"{batch_size}"
        config = evaluate.Config(run=str(run[0]), data=data, views=views, batch_size=batch_size, out=str(out))
        result = evaluate.main(config)
        results.append({name: result[name] for name in ("top1", "top5", "mean_class_accuracy", "per_class", "decoded")})
        predictions = (out / "predictions.csv").read_text()
        results[-1]["predictions"] = [line.split(",")[:3] for line in predictions.splitlines()]
        probabilities = [float(line.split(",")[3]) for line in predictions.splitlines()[1:]]
        results[-1]["probabilities"] = np.round(probabilities, 4).tolist()
        assert {path.name for path in out.iterdir()} == {
            "evaluation.json", "evaluation.txt", "per_class.csv", "predictions.csv", "confusion.png", "scores.npz",
        }  # fmt: skip
    assert results[0] == results[1]


def test_views_are_averaged(run, tmp_path):
    """Compares softmax and logits averages with ones computed by hand."""
    from vidjax.data.batches import evaluation_batches
    from vidjax.data.config import ClipConfig
    from vidjax.data.sources import open_source

    name = draw_validation(tmp_path, count=8)
    model, variables = vidjax.load_pretrained(run[0], verbose=False)
    clips = ClipConfig(frames=2, size=16, short_side=16, stride=4, workers=1)
    (batch,) = evaluation_batches(open_source(name), clips, batch_size=8, view_counts=(3, 1))
    video = batch["video"].reshape(24, *batch["video"].shape[2:]).astype(np.float32) / 255
    logits = np.asarray(jax.jit(model.apply)(variables, model.card.normalize(jnp.asarray(video)))).reshape(8, 3, 8)
    expected = {
        "softmax": np.asarray(jax.nn.softmax(logits)).mean(axis=1),
        "logits": np.asarray(jax.nn.softmax(logits.mean(axis=1))),
    }
    for average, probabilities in expected.items():
        out = tmp_path / average
        data = SourceConfig(source=name, workers=1)
        evaluate.main(evaluate.Config(run=str(run[0]), data=data, views="3x1", average=average, out=str(out)))
        rows = [line.split(",") for line in (out / "predictions.csv").read_text().splitlines()[1:]]
        np.testing.assert_allclose([float(row[3]) for row in rows], probabilities.max(axis=1), atol=2e-5)
        assert [row[2] for row in rows] == [model.card.class_names[i] for i in probabilities.argmax(axis=1)]


def test_the_head_is_newly_initialised_or_kept_for_the_same_classes(run, capsys):
    model, variables = vidjax.load_pretrained(run[0], which="best", verbose=False)
    initial = jax.tree.map(jnp.zeros_like, variables)
    config = changed(SMALL, init_from=str(run[0]), keep_head=True)
    kept = runs.start_classifier(config.init_from, model, initial, keep_head=True)
    chex.assert_trees_all_equal(kept, variables)
    capsys.readouterr()
    new = runs.start_classifier(config.init_from, model, initial, keep_head=False)
    assert "newly initialised: head/bias, head/kernel" in capsys.readouterr().out
    expected = variables["params"] | {"head": initial["params"]["head"]}
    chex.assert_trees_all_equal(new["params"], expected)
    assert np.abs(variables["params"]["head"]["kernel"]).max() > 0


def test_a_linear_probe_trains_only_the_head_and_a_partial_run_the_last_blocks(run, tmp_path):
    start = weights(run[0], "best")
    for tune, blocks, moving in (
        ("linear_probe", 2, ("params/head",)),
        ("partial", 1, ("params/head", "params/group_3_0")),
    ):
        workdir = tmp_path / tune
        config = changed(SMALL, init_from=str(run[0]), keep_head=True, tune=tune, tuned_blocks=blocks, steps=2)
        finetune.main(changed(config, workdir=str(workdir), data__validation=None))
        after = weights(workdir)
        moved = {name for name in start if not np.array_equal(start[name], after[name])}
        for name in start:
            norm_or_statistic = "norm" in name or name.startswith("batch_stats")
            expected = name.startswith(moving) or (tune == "partial" and norm_or_statistic)
            assert (name in moved) == expected, name


def test_an_interrupted_run_equals_an_uninterrupted_one(tmp_path):
    flags = """--model vit_tiny --data.frames 2 --data.size 16 --data.short_side 16 --data.workers 1 --batch_size 8
    --data.train_examples 32 --data.validation_examples 8 --data.repeats 2 --steps 12 --mixup 0.8 --cutmix 1.0
    --no_train_accuracy --drop_path 0.1 --ema_decay 0.9 --loop.log_every 1 --loop.save_every 4
    --loop.evaluate_every 4""".split()

    def train(workdir):
        recipe = ["demo", *flags, "--workdir", str(workdir)]
        finetune.main(cli.parse(finetune.Config, finetune.RECIPES, finetune.DATA_FLAG, recipe))

    def numbers(workdir):
        speeds = ("clips_per_second", "data_wait_fraction")
        return [{name: value for name, value in e.items() if name not in speeds} for e in read_metrics(workdir)]

    train(tmp_path / "whole")
    interrupt_after(7, train, tmp_path / "broken")
    assert len(numbers(tmp_path / "broken")) < len(numbers(tmp_path / "whole"))
    train(tmp_path / "broken")
    assert numbers(tmp_path / "broken") == numbers(tmp_path / "whole")
    for which in ("last", "best"):
        first, second = weights(tmp_path / "whole", which), weights(tmp_path / "broken", which)
        assert first.keys() == second.keys()
        for name, value in first.items():
            np.testing.assert_array_equal(value, second[name], err_msg=name)
    ema = {entry["step"]: entry for entry in read_metrics(tmp_path / "whole") if "evaluation/ema_top1" in entry}
    assert set(ema) == {4, 8, 12} and "evaluation/top1" in ema[12]


def test_a_finished_run_whose_last_checkpoint_is_damaged_trains_on(run, tmp_path):
    """From the previous one, to the same weights."""
    shutil.copytree(run[0], tmp_path / "run")
    truncate_largest(tmp_path / "run" / "checkpoints" / "6")
    finetune.main(changed(SMALL, workdir=str(tmp_path / "run")))
    assert (tmp_path / "run" / "damaged_checkpoints" / "6").is_dir()
    assert logged(tmp_path / "run")[-3:] == logged(run[0])[-3:]
    again = weights(tmp_path / "run")
    assert all((again[name] == value).all() for name, value in weights(run[0]).items())


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """Two classes of training videos, and invalid sources."""
    monkeypatch.chdir(tmp_path)
    for split, classes in (("train", "ab"), ("other", "ac"), ("three", "abc")):
        for name in classes:
            videos.write_video(Path(split) / name / "1.mp4", videos.numbered(6))
    videos.write_video(Path("flat/1.mp4"), videos.numbered(6))
    Path("EMPTY_RUN/checkpoints").mkdir(parents=True)
    Path("EMPTY_RUN/config.json").write_text("{}")
    Path("EMPTY_RUN/vidjax.json").write_text("{}")


def test_resuming_with_other_classes_raises_and_keeps_the_description(run, folders, tmp_path):
    config = changed(SMALL, data__train="train", data__validation=None, data__train_examples=None, steps=1)
    config = changed(config, workdir=str(tmp_path / "run"), train_accuracy=False)
    finetune.main(config)
    described = (tmp_path / "run" / "vidjax.json").read_text()
    os.rename("train/b", "train/0b")
    with pytest.raises(
        ValueError, match="was started with the classes a, b, but train now has 0b, a: use the original"
    ):
        finetune.main(config)
    assert (tmp_path / "run" / "vidjax.json").read_text() == described
    # A head with as many classes of other names is not kept.
    again = changed(config, workdir=str(tmp_path / "next"), init_from=str(tmp_path / "run"), keep_head=True)
    with pytest.raises(ValueError, match=r"keep_head: the head in .* lacks 1 of the 2 classes, '0b': .* \(a, b\), or"):
        finetune.main(again)


def test_a_run_without_validation_is_loaded_from_its_newest_checkpoint(run, tmp_path):
    shutil.copytree(run[0], tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "best")
    (tmp_path / "run" / "best").mkdir()
    _, variables = vidjax.load_pretrained(tmp_path / "run", verbose=False)
    np.testing.assert_array_equal(variables["params"]["head"]["kernel"], weights(run[0])["params/head/kernel"])


BAD = [
    (["--data.validation", "other"], "other has 1 classes that the model does not know, such as 'c'"),
    (["--data.train", "flat"], "flat has 0 classes: give labels of at least two"),
    (["--data.validation", "flat"], "flat has no labels, and this needs them"),
    (
        ["--data.train", "mix:train=1,other=1"],
        "mix:train=1,other=1: other has 1 classes that train lacks, such as 'c': give sources of the same classes",
    ),
    (["--data.train", "mix:train=1,flat=2"], "flat has no labels"),
    (["--data.train", "mix:train=1,three=1", "--data.train_examples", "2"], "train_examples does not apply to a mix"),
    (["--data.train", "mix:train=3,three=1"], "train has 2 videos, but its weight gives it 12 of the 16 of every"),
    (["--train_accuracy", "--mixup", "0.8"], "train_accuracy needs hard labels"),
    (["--model", "videomae_tiny_pretrain"], "model videomae_tiny_pretrain has no classes: choose videomae_tiny"),
    (["--model", "clip_tiny"], "model clip_tiny has no classes: choose a classifier"),
    (["--model", "stts_tiny"], "model stts_tiny chooses what it computes, see adaptive.py: choose a classifier"),
    (["--model", "r2plus1d_tny"], "nearest names are"),
    (["--model", "slowfast_tiny"], "2 frames are too few: the model needs at least 4"),
    (["--model", "slowfast_tiny", "--data.frames", "6"], "use a multiple of 4, such as 4 or 8"),
    (["--model", "mvit_tiny"], "image_size 16 is too small for 4 scales, each half of the one before: use at least 32"),
    (["--model", "vidtr_tiny", "--data.size", "20"], "20 pixels of height cannot be cut into patches of 8"),
    (["--model", "tsm_tiny_pool", "--data.frames", "5"], "but the clip has 5: use an even number"),
    (["--data.sampling", "segments", "--data.consecutive", "3"], "2: it must be a multiple of data.consecutive, 3"),
    (["--init_from", "nothing"], "there are no weights at nothing"),
    (["--init_from", "EMPTY_RUN"], "EMPTY_RUN has no checkpoint"),
    (["--keep_head"], "keep_head needs the weights of init_from"),
    (
        ["--init_from", "RUN", "--keep_head"],
        "keep_head: the head in RUN lacks 2 of the 2 classes, 'a', 'b': name them as among its 8 (right, up and right",
    ),
    (["--tune", "partial", "--tuned_blocks", "9"], "9 blocks cannot be trained: the model has 4"),
    (["--data.repeats", "3"], "whole videos with 3 repeats"),
    (["--batch_size", "13"], "a batch of 13 cannot be split over 2 devices"),
    (["--ema_decay", "0"], "ema_decay is 0.0: it must be between 0 and 1"),
]


@pytest.mark.parametrize(("flags", "message"), BAD, ids=[" ".join(flags) for flags, _ in BAD])
def test_invalid_input_exits_with_one_line_and_writes_nothing(flags, message, run, folders, monkeypatch, capsys):
    os.symlink(run[0], "RUN")
    before = sorted(Path(".").rglob("*"))
    small = """demo --model fr2d_tiny --data.frames 2 --data.size 16 --data.short_side 16 --data.workers 1 --steps 1
    --batch_size 16 --no_train_accuracy --data.train train --data.validation train --workdir out""".split()
    monkeypatch.setattr(sys, "argv", [str(EXPERIMENTS / "finetune.py"), *small, *flags])
    with pytest.raises(SystemExit) as stop:
        cli.run(finetune.main, finetune.Config, finetune.RECIPES, finetune.DATA_FLAG)
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert sorted(Path(".").rglob("*")) == before


BAD_EVALUATION = [
    (["--run", "RUN", "--data.source", "other"], "other has 2 classes that the model does not know, such as 'a'"),
    (["--run", "RUN", "--data.source", "flat"], "flat has no labels, and this needs them"),
    (["--run", "RUN", "--data.source", "nowhere"], "nowhere does not exist"),
    (["--run", "EMPTY_RUN", "--data.source", "train"], "EMPTY_RUN has no checkpoint"),
    (["--run", "PRETRAINING", "--data.source", "train"], "this Pretraining has no classes to evaluate"),
    (["--run", "RUN", "--views", "4"], "views is 4: write clips x crops, such as 4x3"),
    (["--run", "RUN", "--out", "train"], "train is not an empty directory, and nothing is overwritten"),
    (["--run", "RUN", "--batch_size", "13"], "a batch of 13 cannot be split over 2 devices"),
]


@pytest.mark.parametrize(("flags", "message"), BAD_EVALUATION, ids=[" ".join(flags) for flags, _ in BAD_EVALUATION])
def test_invalid_evaluations_exit_with_one_line_and_write_nothing(flags, message, run, folders, monkeypatch, capsys):
    os.symlink(run[0], "RUN")
    model = vidjax.create_model("videomae_tiny_pretrain", num_frames=4, image_size=32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model))
    variables = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    vidjax.convert.save_pretrained("PRETRAINING", model, variables)
    before = sorted(Path(".").rglob("*"))
    monkeypatch.setattr(sys, "argv", [str(EXPERIMENTS / "evaluate.py"), *flags])
    with pytest.raises(SystemExit) as stop:
        cli.run(evaluate.main, evaluate.Config)
    assert stop.value.code == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1
    assert sorted(Path(".").rglob("*")) == before


def test_unreadable_files_are_listed_and_not_counted(run, folders, tmp_path, capsys):
    names = vidjax.load_pretrained(run[0], verbose=False)[0].card.class_names
    for name in names[:3]:
        videos.write_video(Path("good") / name.replace(" ", "_") / "1.mp4", videos.numbered(9))
    (Path("good") / names[0] / "broken.mp4").write_bytes(b"no video")
    data = SourceConfig(source="good", workers=1, max_bad_share=0.5)
    result = evaluate.main(evaluate.Config(run=str(run[0]), data=data, out=str(tmp_path / "out")))
    assert (result["videos"], result["decoded"], result["counted"]) == (4, 3, 3)
    assert [Path(path).name for path in result["unreadable"]] == ["broken.mp4"]
    assert "3 of 4 videos decoded; 1 unreadable, see bad_files.jsonl" in capsys.readouterr().out
    (listed,) = (tmp_path / "out" / "bad_files.jsonl").read_text().splitlines()
    assert "broken.mp4" in listed
    assert [row["videos"] for row in result["per_class"]][:4] == [1, 1, 1, 0]
