"""Checks that the scripts make before they write anything."""

import dataclasses
import os
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

import vidjax
from vidjax import cli, runs
from vidjax.data import embeddings
from vidjax.data.text import open_tokenizer
from vidjax.errors import UserError
from vidjax.runs import video_text, weights
from vidjax.runs.sources import open_captioned
from vidjax.training.sharding import make_mesh

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
import compare_models
import contrastive_pretrain
import embed
import evaluate
import finetune
import jepa_pretrain
import mae_pretrain
import retrieve
import scaling
import token_pretrain
import umt_pretrain
import visualize
import zero_shot

REFUSED = [
    (compare_models, {"seeds": ()}, "seeds is empty: give one or more"),
    (contrastive_pretrain, {"steps": 0}, "steps is 0: it must be above 0"),
    (contrastive_pretrain, {"context": 2}, "context is 2: it must be 3 or more, for a start"),
    (contrastive_pretrain, {"seed": -1}, "seed is -1: it must be 0 or more"),
    (contrastive_pretrain, {"ema_decay": 1.5}, "ema_decay is 1.5: it must be between 0 and 1"),
    (finetune, {"accumulation": 0}, "accumulation is 0: it must be above 0"),
    (finetune, {"dropout": 1.0}, "dropout is 1.0: it must be at least 0 and below 1"),
    (finetune, {"cutmix": -1.0}, "cutmix is -1.0: it must be 0 or more"),
    (finetune, {"objective": "evidential"}, "objective evidential: label_smoothing .* give --label_smoothing 0"),
    (jepa_pretrain, {"ema_decay": 1.0}, "ema_decay is 1.0: it must be between 0 and 1"),
    (jepa_pretrain, {"ema_decay": None}, "ema_decay is None: the targets are a moving average's, give its decay"),
    (jepa_pretrain, {"final_ema_decay": 1.5}, "final_ema_decay is 1.5: it must be above 0 and at most 1"),
    (jepa_pretrain, {"long_duration": 0.0}, "long_duration is 0.0: it must be above 0 and at most 1"),
    (jepa_pretrain, {"teacher_layers": 2}, "teacher_layers are those of a teacher: give --teacher too"),
    (jepa_pretrain, {"observed_clips": 0}, "observed_clips is 0: it must be above 0"),
    (mae_pretrain, {"batch_size": 0}, "batch_size is 0: it must be above 0"),
    (mae_pretrain, {"ema_decay": 0.0}, "ema_decay is 0.0: it must be between 0 and 1"),
    (mae_pretrain, {"seed": -1}, "seed is -1: it must be 0 or more"),
    (mae_pretrain, {"picture_clips": -1}, "picture_clips is -1: it must be 0 or more"),
    (token_pretrain, {"temperature": 0.0}, "temperature is 0.0: it must be above 0"),
    (token_pretrain, {"images_per_clip": 17}, "images_per_clip is 17, but clips have 16 frames"),
    (token_pretrain, {"probe_clips": -1}, "probe_clips is -1: it must be 0 or more"),
    (retrieve, {"neighbours": 0}, "neighbours is 0: it must be 1 or more"),
    (retrieve, {"query": "a dog"}, "a search needs both a query and embeddings: give --query"),
    (retrieve, {"query": " ", "index": "a.npz"}, "query is empty: give a sentence"),
    (retrieve, {"query": "a", "index": "a.npz", "dual_softmax": True}, "dual_softmax and rerank are for whole"),
    (umt_pretrain, {"mask_ratio": 1.0}, "mask_ratio is 1.0: it must be at least 0 and below 1"),
    (umt_pretrain, {"layers": 0}, "layers is 0: it must be above 0"),
    (zero_shot, {"shots": 1, "classes": "a.txt"}, "classes sets class names, which --shots does not use"),
    (zero_shot, {"episodes": 1}, "episodes is 1: it must be 2 or more"),
    (zero_shot, {"support": "videos"}, "support applies to --shots: give both"),
]


@pytest.mark.parametrize(("script", "settings", "message"), REFUSED)
def test_invalid_values_raise(script, settings, message):
    needed = {"run": "run"} if script in (retrieve, zero_shot) else {}
    with pytest.raises(ValueError, match=message):
        script.Config(**needed, **settings)


def test_classes_are_read_from_a_file_of_names(tmp_path):
    with pytest.raises(ValueError, match=r"classes \S+a\.txt does not exist: give a file with one class name per line"):
        zero_shot.read_classes(str(tmp_path / "a.txt"))
    (tmp_path / "a.txt").write_text("\n \n")
    with pytest.raises(ValueError, match=r"a\.txt contains no class names: give one per line"):
        zero_shot.read_classes(str(tmp_path / "a.txt"))
    (tmp_path / "a.txt").write_bytes("schön\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"classes \S+a\.txt is not a text file in UTF-8: convert it"):
        zero_shot.read_classes(str(tmp_path / "a.txt"))
    (tmp_path / "a.txt").write_text("schön\n\n b \n", encoding="utf-8")
    assert zero_shot.read_classes(str(tmp_path / "a.txt")) == ("schön", "b")


def test_incomplete_initial_weights_are_rewritten_and_flags_are_split_like_in_a_shell(tmp_path, monkeypatch):
    name = "timesformer_tiny_divided"
    config = compare_models.Config(workdir=str(tmp_path / "a b"), models=(name,), flags="--c 'd e'")
    start = tmp_path / "a b" / f"{name}_start_0"
    half = start.with_name(f"{start.name}_unfinished")
    half.mkdir(parents=True)
    (half / "vidjax.json").write_text("{}")
    seen = []
    monkeypatch.setattr(compare_models, "train", lambda script, flags, workdir: seen.append(flags))
    with pytest.raises(FileNotFoundError):  # nothing was trained
        compare_models.main(config)
    assert {"d e", str(start)} <= set(seen[0])
    assert not half.exists()
    vidjax.load_pretrained(start, verbose=False)
    written = (start / "model.safetensors").stat().st_mtime_ns
    assert compare_models.spread_times(config.workdir, name, 0) == str(start)
    assert (start / "model.safetensors").stat().st_mtime_ns == written
    compare_models.pretrain(dataclasses.replace(config, pretraining_flags="--c 'd e'"), 0)
    assert seen[1][-2:] == ["--c", "d e"]


def test_classes_without_names_are_matched_only_if_complete():
    source = SimpleNamespace(name="videos", class_names=("a", "b"))
    model = SimpleNamespace(num_classes=3, card=SimpleNamespace(class_names=()))
    with pytest.raises(ValueError, match="videos has 2 classes, but the model has 3 without names: use a"):
        evaluate.label_by_name(source, model)


def test_a_target_needs_classes():
    with pytest.raises(ValueError, match="target is 'run', but the model has no classes: omit --target"):
        visualize.find_class("run", ())


def test_keeping_a_head_of_other_classes_raises(monkeypatch):
    report = SimpleNamespace(new=("head/kernel",))
    monkeypatch.setattr(weights, "class_names", lambda source: ())
    monkeypatch.setattr(weights, "start_from", lambda *args, **kwargs: ({}, report))
    with pytest.raises(
        ValueError, match="keep_head: the head in old does not have the 7 classes of the data: omit --keep_"
    ):
        weights.start_classifier("old", vidjax.create_model("r3d_tiny", num_classes=7), {"params": {}}, keep_head=True)


def test_pairs_need_two_videos_and_a_video_text_model_has_fixed_sizes(tmp_path):
    config = contrastive_pretrain.RECIPES["demo"]
    (tmp_path / "a.mp4").write_bytes(b"")
    (tmp_path / "a.csv").write_text("path,caption\na.mp4,a dog\n")
    data = dataclasses.replace(config.data, source=str(tmp_path / "a.csv"))
    with pytest.raises(ValueError, match=r"a\.csv has 1 videos: contrastive training needs at least 2"):
        open_captioned(data, config.seed)
    config = dataclasses.replace(config, video_model="clip_tiny", text_model=None, features=7)
    with pytest.raises(ValueError, match="features is 7, but clip_tiny has 128: omit --features"):
        contrastive_pretrain.make_model(config, open_tokenizer("bytes"))


def test_searching_embeddings_of_another_pooling_or_model_raises(monkeypatch):
    monkeypatch.setattr(embed, "read_meta", lambda path: {"pooling": "tokens"})
    with pytest.raises(ValueError, match=r"a\.npz cannot be searched: give an \.npz file with one vector per window"):
        embed.search(embed.Config(query="a.mp4", index="a.npz"))
    monkeypatch.setattr(retrieve, "read_meta", lambda path: {"pooling": "model", "weights": "others"})
    with pytest.raises(ValueError, match=r"run has other weights than those that a\.npz was made with: embed"):
        retrieve.search(retrieve.Config(run="run", query="a dog", index="a.npz"), {}, None)


def test_devices_are_simulated_only_before_jax_starts(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", os.environ.get("XLA_FLAGS", ""))
    count = len(jax.devices("cpu"))
    with pytest.raises(ValueError, match=rf"JAX has already started with {count} devices, not {count + 1}: use a"):
        scaling.simulate(count + 1)


def test_a_benchmark_needs_a_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmark.py"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(Path(embed.__file__).with_name("benchmark.py"), run_name="__main__")
    assert stop.value.code == 2
    assert "the first argument must be a command: choose one of train, infer, input" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--help"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(Path(embed.__file__).with_name("benchmark.py"), run_name="__main__")
    assert not stop.value.code and capsys.readouterr().out


def test_an_unknown_flag_suggests_the_nearest(capsys):
    with pytest.raises(SystemExit):
        cli.parse(scaling.Config, argv=["--chip", "8"])
    assert "unknown argument --chip: did you mean --chips?" in capsys.readouterr().err


def test_a_video_text_model_needs_its_tokenizer_and_readable_videos(tmp_path, unchecked):
    pair = SimpleNamespace(text=SimpleNamespace(vocabulary=7))
    with pytest.raises(ValueError, match="tokenizer bytes has 259 ids, the text tower 7: give the tokenizer that"):
        video_text.check_tokenizer(open_tokenizer("bytes"), pair)
    with pytest.raises(ValueError, match="contains no tokenizer: give --tokenizer, CLIP's"):
        video_text.tokenizer_of(tmp_path)
    blind = SimpleNamespace(card=SimpleNamespace(preprocess=lambda video: video))
    blind.apply = lambda variables, video, method: video.mean((1, 2, 3))
    rows = len(jax.devices())
    batch = {"video": np.zeros((rows, 1, 1, 2, 2, 3), np.uint8), "label": np.zeros(rows, int)}
    batch |= {"index": np.arange(rows), "valid": np.zeros(rows, bool)}
    with pytest.raises(ValueError, match=r"none of the videos could be read: check them with experiments/check_"):
        video_text.clip_encoder(blind, make_mesh())({}, [batch])


def test_embeddings_need_a_writable_folder_and_readable_videos(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot write to \S+a\.npz\.parts \(Not a directory\): choose another --out"):
        embeddings.open_parts(tmp_path / "file" / "a.npz", {})
    np.savez(tmp_path / "0.npz", features=np.zeros((0, 3)))
    with pytest.raises(ValueError, match="no features were made: none of the 2 videos could be read, look with"):
        embeddings.join([tmp_path / "0.npz"], tmp_path / "a.npz", ["a", "b"], (), {})


def test_a_damaged_config_raises(tmp_path):
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json cannot be read \(Expecting .*\): restore it from a copy"):
        runs.read_config(tmp_path)
