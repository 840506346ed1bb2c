"""Contrastive pre-training, resumed, sharded and started from runs; zero-shot, retrieval; invalid input."""

import dataclasses
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import videos
from flax.traverse_util import flatten_dict
from small_runs import changed, interrupt_after

import vidjax
from vidjax import runs
from vidjax.data.config import AugmentConfig, CaptionedDataConfig, SourceConfig
from vidjax.data.text import open_tokenizer
from vidjax.models.video_text import VideoText
from vidjax.runs import video_text, workdir
from vidjax.runs.pairs import start_pair
from vidjax.training.loop import LoopConfig
from vidjax.training.metrics import read_metrics
from vidjax.training.optimizer import OptimizerConfig
from vidjax.training.sharding import make_mesh

EXPERIMENTS = Path(__file__).resolve().parents[2] / "experiments"
sys.path.insert(0, str(EXPERIMENTS))

import contrastive_pretrain  # noqa: E402
import embed  # noqa: E402
import retrieve  # noqa: E402
import zero_shot  # noqa: E402

SMALL = contrastive_pretrain.Config(
    video_model="fr2d_tiny",  # batch norm, and quick to compile
    text_model="text_tiny",
    features=16,
    data=CaptionedDataConfig(
        frames=2,
        size=16,
        short_side=16,
        stride=4,
        workers=1,
        augment=AugmentConfig(crop="center"),
        split="compositions_train",
        validation="synthetic:moving_shapes",
        validation_split="compositions_held_out",
        validation_examples=24,
    ),
    batch_size=16,
    steps=6,
    optim=OptimizerConfig(learning_rate=1e-2, warmup_epochs=0),
    loop=LoopConfig(log_every=1, save_every=2, evaluate_every=3),
)


@pytest.fixture(scope="module")
def captioned(tmp_path_factory):
    """Twelve videos of four classes with captions, the first with two."""
    folder = tmp_path_factory.mktemp("captioned")
    lines = []
    for i in range(12):
        videos.write_video(folder / f"{i}.mp4", np.full((9, 24, 24, 3), 60 * (i % 4), np.uint8))
        captions = [f"a clip of brightness {i}"] + ["a dark clip"] * (i == 0)
        lines.append({"path": f"{i}.mp4", "label": f"brightness_{i % 4}", "caption": captions})
    (folder / "captions.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    return folder


@pytest.fixture(scope="module")
def config(captioned):
    """Validation on all of these videos."""
    return changed(SMALL, data__validation=str(captioned / "captions.jsonl"), data__validation_examples=None)


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("contrastive") / "run"
    numbers = contrastive_pretrain.main(changed(config, workdir=str(workdir)))
    return workdir, numbers


def validated(workdir):
    """The validation metrics of the best checkpoint."""
    entries = [entry for entry in read_metrics(workdir) if "evaluation/score" in entry]
    return max(entries, key=lambda entry: entry["evaluation/score"])


def logged(workdir):
    entries = [entry for entry in read_metrics(workdir) if "loss" in entry]
    return [(e["step"], e["loss"], e["gradient_norm"], e["learning_rate"], e["logit_scale"]) for e in entries]


def test_a_run_saves_two_towers_that_embed_clips_and_texts(run):
    workdir, numbers = run
    made = {path.name for path in workdir.iterdir()}
    assert {"config.json", "vidjax.json", "checkpoints", "best", "metrics.jsonl", "curves.png", "similarity"} <= made
    assert {"top1", "text_to_video_r1", "video_to_text_r1", "score"} <= numbers.keys()
    model, variables = vidjax.load_pretrained(workdir, verbose=False)
    assert isinstance(model, VideoText) and (model.num_frames, model.image_size) == (2, 16)
    video, text = jax.jit(model.apply)(
        variables, jnp.ones((2, 2, 16, 16, 3)), jnp.array([[257, 98, 258], [257, 99, 258]])
    )
    np.testing.assert_allclose(np.linalg.norm(np.concatenate([video, text]), axis=1), 1, rtol=1e-5)
    assert runs.usual_clips(workdir, model)["stride"] == 4


@pytest.mark.long
def test_an_interrupted_run_equals_an_uninterrupted_one(run, config, tmp_path):
    config = changed(config, workdir=str(tmp_path))
    interrupt_after(4, contrastive_pretrain.main, config)
    assert 0 < len(logged(tmp_path)) < SMALL.steps
    contrastive_pretrain.main(config)
    assert logged(tmp_path) == logged(run[0])
    whole, broken = (runs.read_weights(workdir, "last")[0] for workdir in (run[0], tmp_path))
    assert all(np.array_equal(whole[name], broken[name]) for name in whole)


@pytest.mark.long
def test_eight_devices_in_chunks_give_the_losses_of_one(tmp_path):
    # Without batch norm, which amplifies rounding errors.
    config = changed(SMALL, video_model="clip_tiny", text_model=None, features=None, data__validation=None, steps=3)
    all_devices, one = (make_mesh(devices=jax.local_devices()[:count]) for count in (8, 1))
    contrastive_pretrain.main(changed(config, workdir=str(tmp_path / "eight"), chunk=8), all_devices)
    contrastive_pretrain.main(changed(config, workdir=str(tmp_path / "one")), one)
    eight, one = (np.array(logged(tmp_path / name)) for name in ("eight", "one"))
    assert len(eight) == config.steps
    np.testing.assert_allclose(eight[:, 1], one[:, 1], rtol=1e-5)


@pytest.mark.long
def test_the_kl_objective_with_templates_and_a_frozen_tower(tmp_path):
    folder = tmp_path / "videos"
    for name, level in (("dark", 20), ("bright", 220)):
        for i in range(4):
            videos.write_video(folder / name / f"{i}.mp4", np.full((6, 32, 32, 3), level + 3 * i, np.uint8))
    config = changed(
        SMALL,
        workdir=str(tmp_path / "run"),
        data__source=str(folder),
        data__templates="a {} clip",
        objective="kl",
        freeze="text",
        data__validation=str(folder),
        data__validation_examples=None,
        batch_size=8,
        steps=20,
        optim__learning_rate=0.1,
        loop__evaluate_every=20,
    )
    numbers = contrastive_pretrain.main(config)
    assert numbers["score"] == numbers["top1"] == 1.0 and numbers["last_loss"] < numbers["first_loss"]
    model = contrastive_pretrain.make_model(config, open_tokenizer("bytes"))
    clip, ids = jnp.zeros((1, 2, 16, 16, 3)), jnp.zeros((1, 96), jnp.int32)
    initial = jax.jit(model.init)(jax.random.split(jax.random.key(0))[0], clip, ids)
    initial = flatten_dict(initial, sep="/")
    trained = runs.read_weights(tmp_path / "run", "last")[0]
    for name, value in initial.items():
        unchanged = np.allclose(value, trained[name], rtol=1e-6, atol=1e-7)  # runs initialise to rounding
        assert unchanged == name.startswith("params/text/"), name


@pytest.mark.parametrize("tower", ["video", "text", "alone"])
def test_towers_start_from_either_kind_of_run(run, tmp_path, tower):
    workdir, _ = run
    model, variables = vidjax.load_pretrained(workdir, verbose=False)
    config = changed(SMALL, init_video_from=str(workdir), seed=5)
    if tower == "text":
        config = changed(SMALL, init_text_from=str(workdir), seed=5)
    if tower == "alone":
        alone = {kind: tree["video"]["tower"] for kind, tree in variables.items() if "video" in tree}
        vidjax.convert.save_pretrained(tmp_path / "tower", model.video.tower, alone)
        config = changed(SMALL, init_video_from=str(tmp_path / "tower"), seed=5)
    within = "/text/" if tower == "text" else "/video/tower/"
    new = contrastive_pretrain.make_model(config, open_tokenizer("bytes"))
    clip, ids = jnp.zeros((1, 2, 16, 16, 3)), jnp.zeros((1, 96), jnp.int32)
    initial = jax.jit(new.init)(jax.random.key(5), clip, ids)
    started = flatten_dict(start_pair(new, initial, video=config.init_video_from, text=config.init_text_from), sep="/")
    initial, old = flatten_dict(initial, sep="/"), flatten_dict(variables, sep="/")
    for name in started:
        of_tower = within in name
        np.testing.assert_array_equal(started[name], (old if of_tower else initial)[name], err_msg=name)
    assert any(not np.array_equal(initial[name], old[name]) for name in old if within in name)
    whole = start_pair(new, unflat(initial), str(workdir))
    whole = flatten_dict(whole, sep="/")
    assert all(np.array_equal(whole[name], old[name]) for name in old)


def unflat(flat):
    from flax.traverse_util import unflatten_dict

    return unflatten_dict(flat, sep="/")


def test_zero_shot_equals_validation_and_reports_its_settings(run, captioned, tmp_path, capsys):
    workdir, _ = run
    data = SourceConfig(source=str(captioned / "captions.jsonl"), workers=1)
    config = zero_shot.Config(run=str(workdir), data=data, out=str(tmp_path / "plain"))
    assert zero_shot.main(config)["top1"] == pytest.approx(validated(workdir)["evaluation/top1"])
    config = dataclasses.replace(config, templates="actionclip", out=str(tmp_path / "out"))
    numbers = zero_shot.main(config)
    assert numbers["counted"] == numbers["decoded"] == 12
    assert len(numbers["per_template"]) == 16
    made = {path.name for path in (tmp_path / "out").iterdir()}
    assert made == {
        "zero_shot.json", "zero_shot.txt", "per_template.csv", "per_class.csv", "predictions.csv", "confusion.png"
    }  # fmt: skip
    assert "top-1 of each template" in capsys.readouterr().out
    views = zero_shot.main(dataclasses.replace(config, views="2x3", batch_size=16, out=str(tmp_path / "views")))
    assert views["views"] == "2x3"
    shots = {"shots": 1, "ways": 3, "queries": 1, "episodes": 20}
    few = zero_shot.main(dataclasses.replace(config, **shots, out=str(tmp_path / "few")))
    assert few["accuracy"] == 1.0 and few["queries"] == 3  # clips of a class are equal; one query for each of three
    support = zero_shot.main(
        dataclasses.replace(config, shots=3, support=data.source, episodes=2, out=str(tmp_path / "support"))
    )
    assert support["accuracy"] == 1.0


def test_retrieval_equals_validation_and_finds_queries(run, captioned, tmp_path, capsys, monkeypatch):
    workdir, _ = run
    data = SourceConfig(source=str(captioned / "captions.jsonl"), workers=1)
    retrieval, scales = retrieve.retrieval, []
    monkeypatch.setattr(
        retrieve, "retrieval", lambda *args, **settings: scales.append(settings) or retrieval(*args, **settings)
    )
    config = retrieve.Config(run=str(workdir), data=data, out=str(tmp_path / "out"), dual_softmax=True)
    numbers = retrieve.main(config)
    logit_scale = vidjax.load_pretrained(workdir, verbose=False)[1]["params"]["logit_scale"]
    assert scales == [{}, {"dual_softmax": pytest.approx(np.exp(logit_scale))}]
    assert numbers["dual_text_to_video"]["candidates"] == 12 and numbers["dual_video_to_text"]["candidates"] == 13
    assert (numbers["videos"], numbers["captions"]) == (12, 13)
    for way in ("text_to_video", "video_to_text"):
        assert numbers[way]["r1"] == pytest.approx(validated(workdir)[f"evaluation/{way}_r1"])
    assert numbers["text_to_video"]["candidates"] == 12
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "retrieval.json", "retrieval.txt", "ranks.csv", "similarity.png"
    }  # fmt: skip
    out = tmp_path / "embeddings.npz"
    embed.main(embed.Config(run=str(workdir), pooling="model", data=data, out=str(out)))
    capsys.readouterr()
    query = retrieve.Config(run=str(workdir), query="a dark clip", index=str(out), neighbours=3)
    answers = retrieve.main(query)
    assert len(answers) == 3 and answers[0]["similarity"] >= answers[1]["similarity"]
    assert "Nearest to 'a dark clip'" in capsys.readouterr().out
    with np.load(out) as arrays:
        np.testing.assert_allclose(np.linalg.norm(arrays["features"], axis=1), 1, rtol=1e-5)
    mean = tmp_path / "mean.npz"
    embed.main(embed.Config(run=str(workdir), data=data, out=str(mean)))
    with pytest.raises(ValueError, match="--pooling model"):
        retrieve.main(dataclasses.replace(query, index=str(mean)))


def manifest(folder, *captions):
    path = folder / "captions.jsonl"
    lines = []
    for i, caption in enumerate(captions):
        videos.write_video(folder / f"{i}.mp4", np.full((9, 24, 24, 3), 20 * i, np.uint8))
        lines.append({"path": f"{i}.mp4", "caption": caption} if caption is not None else {"path": f"{i}.mp4"})
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return str(path)


def test_long_captions_are_truncated_counted_and_reported_once(tmp_path, capsys):
    source = manifest(tmp_path, "a very long caption " * 10, *"abcdefg")
    config = changed(
        SMALL,
        workdir=str(tmp_path / "run"),
        data__source=source,
        data__validation=None,
        context=20,
        batch_size=8,
        steps=2,
    )
    contrastive_pretrain.main(config)
    out = capsys.readouterr().out
    assert out.count("captions are truncated to 20 tokens") == 1
    assert "read since the last start were truncated" in out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 1}, "batch_size is 1: contrastive training needs 2"),
        ({"video_model": "clip_tiny"}, "includes a text tower"),
        ({"text_model": None}, "needs a text tower"),
        ({"text_model": "text_small"}, "there is no text tower 'text_small'"),
        ({"video_model": "videomae_tiny_pretrain"}, "is for masked pre-training"),
        ({"tokenizer": "nowhere.txt"}, "nowhere.txt"),
        ({"objective": "kl"}, "give --data.templates"),
        ({"data__split": "compositions"}, "data.split compositions is unknown"),
        ({"chunk": 5}, "chunk is 5: it must divide the batch of 16"),
        ({"optim__layer_decay": 0.5}, "layer_decay is not supported with two towers"),
        ({"data__repeats": 2}, "would contrast a video with itself"),
        ({"video_model": "clip_tiny", "text_model": None, "features": 7}, "features is 7, but clip_tiny has 128"),
        ({"init_from": "a", "init_video_from": "b"}, "init_from loads both towers"),
    ],
)
def test_invalid_settings_raise(tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        contrastive_pretrain.main(changed(SMALL, workdir=str(tmp_path / "run"), **change))
    assert not (tmp_path / "run").exists()


def test_invalid_captions_raise(run, tmp_path):
    wrong = {"1 of the 3 examples": ("a", None, "c"), "line 2: its caption is empty": ("a", "", "c")}
    for message, captions in wrong.items():
        source = manifest(tmp_path, *captions)
        with pytest.raises(ValueError, match=message):
            contrastive_pretrain.main(changed(SMALL, workdir=str(tmp_path / "run"), data__source=source))
    source = manifest(tmp_path, "a", "b", "c")
    with pytest.raises(ValueError, match="a batch of 16 repeats some of the 3 videos"):
        contrastive_pretrain.main(changed(SMALL, workdir=str(tmp_path / "run"), data__source=source))
    (tmp_path / "templates.txt").write_text("a clip of {}\na clip\n")
    with pytest.raises(ValueError, match="'a clip' has no slots"):
        contrastive_pretrain.main(
            changed(SMALL, workdir=str(tmp_path / "run"), data__templates=str(tmp_path / "templates.txt"))
        )
    assert not (tmp_path / "run").exists()
    (tmp_path / "classes.txt").write_text("Red\nred\n")
    config = zero_shot.Config(run=str(run[0]), classes=str(tmp_path / "classes.txt"), out=str(tmp_path / "out"))
    (tmp_path / "named.csv").write_text("path,label\n0.mp4,red\n")
    with pytest.raises(ValueError, match="class names repeat"):
        zero_shot.main(dataclasses.replace(config, data=SourceConfig(source=str(tmp_path / "named.csv"))))
    vidjax.convert.save_pretrained(tmp_path / "vit", *tiny_vit())
    with pytest.raises(ValueError, match="which has no text tower"):
        retrieve.main(retrieve.Config(run=str(tmp_path / "vit"), query="x", index="nowhere.npz"))


def test_a_run_resumes_with_a_tokeniser_that_was_moved_and_not_with_another(tmp_path, monkeypatch):
    for name in ("has_checkpoint", "fits"):
        monkeypatch.setattr(f"vidjax.training.checkpoint.{name}", lambda *_: True)
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "words.json").write_text("{}")
    config = changed(SMALL, tokenizer=str(tmp_path / "here" / "words.json"), workdir=str(tmp_path / "run"))
    run = workdir.open_run(config, None)
    workdir.keep_tokenizer(config.tokenizer, run)
    (run / "metrics.jsonl").touch()  # the run has begun
    (tmp_path / "here" / "words.json").unlink()
    moved = changed(config, tokenizer=str(tmp_path / "there" / "words.json"))
    (tmp_path / "there" / "words.json").write_text("{ }")
    with pytest.raises(ValueError, match="tokenizer was"):
        workdir.open_run(moved, None)
    (tmp_path / "there" / "words.json").write_text("{}")
    assert workdir.open_run(moved, None) == run


def tiny_vit():
    model = vidjax.create_model("vit_tiny", depth=1, num_classes=None)
    return model, jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 8, 32, 32, 3)))


def test_a_video_text_model_gets_the_bias_of_the_sigmoid_loss():
    config = changed(SMALL, video_model="clip_tiny", text_model=None, features=None, objective="sigmoid")
    assert contrastive_pretrain.make_model(config, open_tokenizer("bytes")).bias == -10


def test_a_run_saves_the_files_of_its_tokeniser(tmp_path):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {"[pad]": 0, "[start]": 1, "[end]": 2, "red": 3, "circle": 4}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[pad]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[start] $A [end]", special_tokens=[("[start]", 1), ("[end]", 2)]
    )
    (tmp_path / "run").mkdir()
    tokenizer.save(str(tmp_path / "words.json"))
    for name in ("config.json", "vidjax.json"):
        (tmp_path / "run" / name).write_text('{"tokenizer": "absent"}')
    workdir.keep_tokenizer(str(tmp_path / "words.json"), tmp_path / "run")
    (tmp_path / "words.json").rename(tmp_path / "moved")
    assert video_text.tokenizer_of(tmp_path / "run").encode("red circle") == [1, 3, 4, 2]
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    tokenizer.save(str(tmp_path / "endless.json"))
    with pytest.raises(ValueError, match="adds no end token, which text_tiny needs"):
        contrastive_pretrain.make_model(SMALL, open_tokenizer(str(tmp_path / "endless.json")))
