"""Temporal localisation: the loss by hand, crops, a run that resumes, and actions in files of any frame rate."""

import itertools
import json
import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import videos
from flax.traverse_util import flatten_dict, unflatten_dict
from small_runs import draw_variables

from vidjax import cli
from vidjax.convert import save_pretrained
from vidjax.data.config import SourceConfig
from vidjax.data.segments import SegmentConfig, open_segments
from vidjax.errors import UserError
from vidjax.layers.card import Card
from vidjax.models.actionformer import LOCALIZERS
from vidjax.models.videomae import VideoMAE
from vidjax.runs import localization, localizer, untrimmed
from vidjax.training.checkpoint import load_variables
from vidjax.training.state import Aux

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))

import embed
import localize
import localize_predict

STEPS = 40, 9, 25, 70
"""Features of the training videos, of 4 frames, 2 frames apart, at 10 frames per second."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Features in which channel 0 or 1 is high during an action of class 0 or 1, and annotations."""
    folder, database = tmp_path_factory.mktemp("data"), {}
    (folder / "f").mkdir()
    draw = np.random.default_rng(0)
    for number, steps in enumerate((*STEPS, 30)):
        features, duration = draw.normal(0, 0.1, (steps, 8)), ((steps - 1) * 2 + 4) / 10
        found = []
        for kind, begin in ((0, 0.1), (1, 0.6)):
            start, end = begin * duration, (begin + 0.25) * duration
            found.append({"segment": [start, end], "label": "ab"[kind]})
            features[round(start * 5) : round(end * 5), kind] += 1
        np.save(folder / "f" / f"v{number}.npy", features.astype(np.float32))
        subset = "training" if number < len(STEPS) else "validation"
        database[f"v{number}"] = {"subset": subset, "duration": duration, "annotations": found}
    (folder / "a.json").write_text(json.dumps({"database": database}))
    return folder


FLAGS = """
demo --max_length 32 --data.fps 10 --data.stride 2 --data.frames 4 --batch_size 4 --steps 4 --loop.log_every 1
--loop.save_every 2 --loop.evaluate_every 4
""".split()


def parse(folder, *flags):
    argv = [*FLAGS, "--data.features", str(folder / "f"), "--data.annotations", str(folder / "a.json"), *flags]
    return cli.parse(localize.Config, localize.RECIPES, localize.DATA_FLAG, argv)


@pytest.fixture(scope="module", autouse=True)
def tiny():
    """A model with two levels instead of four, which compiles in half the time."""
    row = partial(LOCALIZERS["actionformer_tiny"], depths=(1, 1, 1), width=16, neck_width=16, head_width=16, window=3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(localize, "LOCALIZERS", {**LOCALIZERS, "actionformer_tiny": row})
        yield


def small_model():
    row = localize.LOCALIZERS["actionformer_tiny"]
    return row(num_classes=2, channels=8, max_length=32, dropout=0, drop_path=0)


def test_the_loss_is_focal_and_distance_iou_over_the_positive_points_of_a_hand_worked_video():
    """One action from 10.5 to 14.5 of 20 valid steps: points 12 and 13 of the first level are positive, no others."""
    model = small_model()
    variables = draw_variables(model)
    features = np.random.default_rng(2).normal(size=(2, 32, 8)).astype(np.float32)
    features[0, 20:] = 0
    batch = {
        "inputs": features, "length": np.array([20, 32], np.int32), "valid": np.array([True, False]),
        "segments": np.array([[[10.5, 14.5], [0, 0]]] * 2, np.float32), "labels": np.array([[1, 0]] * 2, np.int32),
        "annotated": np.array([[True, False]] * 2),
    }  # fmt: skip
    config = localize.Config(model="actionformer_tiny", offset_weight=3.0, label_smoothing=0.1)
    state = {"running": {"positives": np.float32(50)}}
    loss_fn = jax.jit(localize.make_loss(config, model))
    loss, (state, _) = loss_fn(variables["params"], Aux(state, None, None, 0), batch, jax.random.key(0))

    logits, offsets = jax.jit(model.apply)(variables, features, batch["length"])
    places = [(level, place) for level in range(2) for place in range(0, 20, 2**level)]
    positive = {(0, 12), (0, 13)}
    number = 0.9 * 50 + 0.1 * len(positive)
    focal = regression = 0.0
    for level, place in places:
        target = np.zeros(2)
        if (level, place) in positive:
            target[1] = 1
            left, right = np.asarray(offsets[level][0, place >> level], np.float64)
            wanted = np.array([place - 10.5, 14.5 - place])
            shared = min(left, wanted[0]) + min(right, wanted[1])
            union, hull = left + right + 4 - shared, max(left, wanted[0]) + max(right, wanted[1])
            centres = (right - left) / 2 - (wanted[1] - wanted[0]) / 2
            regression += 1 - shared / union + (centres / hull) ** 2
        target = 0.9 * target + 0.1 / 3
        p = 1 / (1 + np.exp(-np.asarray(logits[level][0, place >> level], np.float64)))
        right_share = p * target + (1 - p) * (1 - target)
        entropy = -target * np.log(p) - (1 - target) * np.log(1 - p)
        focal += ((0.25 * target + 0.75 * (1 - target)) * (1 - right_share) ** 2 * entropy).sum()
    assert float(state["running"]["positives"]) == pytest.approx(number)
    assert float(loss) == pytest.approx(focal / number + 3 * regression / number, rel=1e-4)


def test_a_training_example_is_a_crop_whose_segments_lie_on_their_features(folder):
    config = parse(folder)
    source, model = open_segments(config.data, "training"), small_model()
    lengths = set()
    for seed, index in itertools.product(range(20), range(len(STEPS))):
        random = np.random.default_rng(seed)
        example = localization.train_example(source, index, random, model, config.data)
        length = int(example["length"])
        lengths.add((index, length))
        assert (example["inputs"][length:] == 0).all() and example["annotated"].any()
        for (start, end), kind in zip(
            example["segments"][example["annotated"]], example["labels"][example["annotated"]], strict=True
        ):
            assert start >= -1 and end <= length + 1 and end - start >= 0.45 * 0.25 * STEPS[index]
            inside = slice(int(np.ceil(start)) + 1, int(end) - 1)
            assert (example["inputs"][inside, kind] > 0.5).all()
    assert {length for index, length in lengths if index in (0, 3)} == {32}  # longer videos than the model's length
    assert {length for index, length in lengths if index == 2} == {22, 23, 24, 25}  # 0.9 of the length or more


def test_features_are_stretched_as_by_interpolation_without_aligned_corners():
    features = np.array([[0.0], [1.0], [2.0]])
    np.testing.assert_allclose(untrimmed.stretch(features, 6)[:, 0], [0, 0.25, 0.75, 1.25, 1.75, 2])


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    return workdir, localize.main(parse(folder, "--workdir", str(workdir)))


@pytest.mark.long
def test_a_run_that_is_killed_resumes_to_the_same_numbers(folder, trained, tmp_path, monkeypatch):
    workdir, numbers = trained
    assert 0 <= numbers["map_50"] <= 1 and numbers["last_loss"] > 0
    assert (workdir / "timelines.png").stat().st_size > 1000
    read = localization.train_batches

    def dying(*arguments, **settings):
        yield from itertools.islice(read(*arguments, **settings), 3)
        raise KeyboardInterrupt

    config = parse(folder, "--workdir", str(tmp_path / "run"))
    with monkeypatch.context() as patch:
        patch.setattr(localization, "train_batches", dying)
        with pytest.raises(KeyboardInterrupt):
            localize.main(config)
    localize.main(config)
    whole, resumed = (load_variables(each)[0] for each in (workdir, tmp_path / "run"))
    assert whole.keys() == resumed.keys() and "running/positives" in whole
    for name, value in whole.items():
        np.testing.assert_array_equal(value, resumed[name])
    with pytest.raises(UserError, match="the features have 5 channels"):
        localize.main(replace(config, channels=5, workdir=str(tmp_path / "other")))


def test_segments_are_found_beyond_the_models_length_and_scored_in_seconds(folder):
    """A model that says what the features say: positive logits where channels are high."""
    config = parse(folder)
    source = open_segments(replace(config.data, train="training"), "training")
    model = small_model()
    mesh = jax.make_mesh((1, 1, 1), ("data", "fsdp", "sequence"), devices=jax.devices()[:1])

    def oracle(_, batch):
        valid = np.arange(batch["inputs"].shape[1]) < np.asarray(batch["length"])[:, None]
        probabilities, offsets = [], []
        for stride in model.strides:
            high = np.asarray(batch["inputs"])[:, ::stride, :2] * valid[:, ::stride, None] > 0.5
            probabilities.append(high * (0.9 if stride == 1 else 0.0))
            edges = np.cumsum(~high, axis=1)
            same = (edges[:, :, None] == edges[:, None]) & high[:, :, None] & high[:, None]  # b t t k
            left = np.tril(np.ones(same.shape[1:3]), -1)[None, ..., None]
            right = 1 - left - np.eye(left.shape[1])[..., None]
            sides = [(same * side).sum(axis=2).max(axis=-1) for side in (left, right)]
            offsets.append(np.stack(sides, axis=-1).astype(float))
        return probabilities, offsets

    tracks = [lambda index=index: localization.read(source, index, 32, False) for index in range(len(source))]
    found = localization.find_segments(tracks, STEPS, model, {}, config.selection, mesh, 4, oracle)
    for number, video in enumerate(source.videos):
        rows = found[found.video == number]
        for (start, end), label in zip(video.segments, video.labels, strict=True):
            best = rows[rows.label == label][:1]
            np.testing.assert_allclose(best.segment[0], [start, end], atol=0.45)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    model = VideoMAE(
        8, 1, 2, patch_size=(2, 8, 8), num_classes=3, num_frames=4, image_size=16, card=Card(stride=2)
    )  # fmt: skip
    save_pretrained(tmp_path_factory.mktemp("models") / "tiny", model, draw_variables(model))
    return tmp_path_factory.getbasetemp().glob("models*/tiny").__next__()


def test_actions_are_found_at_the_times_of_the_frames_also_at_a_variable_rate(encoder, trained, tmp_path):
    """The same pictures at the same times: each frame stored, or only those that differ from the one before."""
    draw = np.random.default_rng(1)
    shown = np.where(draw.uniform(size=80) < 0.8, 1, draw.integers(4, 10, 80))  # for how many 1/25 s
    scenes, pictures = np.repeat(np.arange(80), shown), videos.numbered(80, 32, 32)
    changes = np.flatnonzero(np.diff(scenes, prepend=-1))
    videos.write_video(tmp_path / "v" / "constant.mp4", pictures[scenes], options={"crf": "0"})
    videos.write_video(
        tmp_path / "w" / "variable.mkv", pictures, times=changes / 25, options={"crf": "0"},
        last=len(scenes) - changes[-1],
    )  # fmt: skip
    data = SourceConfig(source=str(tmp_path / "v"), fps=12.5)
    embed.main(embed.Config(run=str(encoder), data=data, out=str(tmp_path / "f"), window=4, stride=2))
    shutil.copytree(trained[0], tmp_path / "run")
    shutil.copy(tmp_path / "f" / "videos.json", tmp_path / "run" / "features.json")
    paths = (str(tmp_path / "v" / "constant.mp4"), str(tmp_path / "w" / "variable.mkv"))
    report = localize_predict.main(
        localize_predict.Config(paths, run=str(tmp_path / "run"), least_score=0.0, json=str(tmp_path / "found.json"))
    )
    one, other = (entry["segments"] for entry in report["files"])
    assert len(one) > 3 and json.loads((tmp_path / "found.json").read_text()) == report
    for first, second in zip(one[:5], other[:5], strict=True):
        assert first["class"] == second["class"]
        for name in ("start", "end", "score"):
            assert first[name] == pytest.approx(second[name], abs=0.01)
    assert max(each["end"] for each in one) <= len(scenes) / 25
    with pytest.raises(UserError, match=r"was not trained on features in a folder that embed.py wrote"):
        localize_predict.main(localize_predict.Config(paths, run=str(trained[0])))


@pytest.mark.long
def test_an_encoder_is_trained_too_in_a_run_that_resumes_and_finds_actions_in_files(encoder, tmp_path, capsys):
    """Videos in which light or dark frames are the actions."""
    database = {}
    for number, (subset, count) in enumerate((("training", 60), ("training", 44), ("validation", 60))):
        frames = np.full((count, 16, 16, 3), 128, np.uint8)
        frames[8:20], frames[26:40] = 20, 235
        videos.write_video(tmp_path / "v" / f"v{number}.mp4", frames)
        found = [{"segment": [8 / 25, 20 / 25], "label": "dark"}, {"segment": [26 / 25, 40 / 25], "label": "light"}]
        database[f"v{number}"] = {"subset": subset, "duration": count / 25, "annotations": found}
    (tmp_path / "a.json").write_text(json.dumps({"database": database}))
    flags = """--data.fps 12.5 --data.frames 4 --data.stride 2 --data.size 16 --data.short_side 16 --batch_size 2
    --max_length 16 --loop.save_every 3""".split()
    given = ["--data.videos", str(tmp_path / "v"), "--data.annotations", str(tmp_path / "a.json")]

    def config(name, *more):
        argv = [*FLAGS, *flags, *given, "--workdir", str(tmp_path / name), *more]
        return cli.parse(localize.Config, localize.RECIPES, localize.DATA_FLAG, argv)

    new = ["--encoder", "fr2d_tiny", "--encoder_factor", "0.5"]
    numbers = localize.main(config("whole", *new))
    assert 0 <= numbers["map_50"] <= 1 and (tmp_path / "whole" / "timelines.png").is_file()
    assert "windows of 4 frames, 2 apart, 16 pixels" in capsys.readouterr().out
    read = localization.train_batches

    def dying(*arguments, **settings):
        yield from itertools.islice(read(*arguments, **settings), 3)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(localization, "train_batches", dying)
        with pytest.raises(KeyboardInterrupt):
            localize.main(config("killed", *new, "--data.validation", "None"))
    localize.main(config("killed", *new, "--data.validation", "None"))
    whole, resumed = (load_variables(tmp_path / name)[0] for name in ("whole", "killed"))
    assert {name.partition("/")[0] for name in whole} == {"params", "batch_stats", "running"}
    for name, value in whole.items():
        np.testing.assert_array_equal(value, resumed[name])

    paths, run = (str(tmp_path / "v" / "v0.mp4"),), str(tmp_path / "whole")
    (file,) = localize_predict.main(localize_predict.Config(paths, run=run, least_score=0.0))["files"]
    assert {each["class"] for each in file["segments"]} == {"dark", "light"}
    assert max(each["end"] for each in file["segments"]) <= 60 / 25
    with pytest.raises(UserError, match="has an encoder of its own: omit --encoder"):
        localize_predict.main(localize_predict.Config(paths, run=run, encoder=str(encoder)))

    # Another run starts from the whole of it.
    zeros = unflatten_dict({name: np.zeros_like(value) for name, value in whole.items()}, sep="/")
    other = config("other", *new)
    model = localize.make_model(other, open_segments(other.data, "training"))
    started = localizer.start_weights(replace(other, init_from=run), model, zeros)
    for name, value in flatten_dict(started["params"], sep="/").items():
        np.testing.assert_array_equal(value, whole[f"params/{name}"])


def test_a_run_starts_from_one_of_other_classes_but_for_the_layer_of_these(folder, trained, capsys):
    whole, source = load_variables(trained[0])[0], open_segments(parse(folder).data, "training")
    zeros = unflatten_dict({name: np.zeros_like(value) for name, value in whole.items()}, sep="/")
    config = parse(folder, "--init_from", str(trained[0]))
    for names, unknown in ((("a", "b"), None), (("a", "c"), "does not know 1: c;"), (("b", "a"), "does not know 0;")):
        model = localize.make_model(config, replace(source, class_names=names))
        started = flatten_dict(localizer.start_weights(config, model, dict(zeros))["params"], sep="/")
        for name, value in started.items():
            new = unknown is not None and name.startswith("classes/out/")
            np.testing.assert_array_equal(value, 0 * value if new else whole[f"params/{name}"])
        printed = capsys.readouterr().out
        assert (unknown in printed) if unknown else ("does not know" not in printed)


REFUSED = [
    ({"encoder": "fr2d_tiny"}, "an encoder is trained on videos: give --encoder and --data.videos, or neither"),
    ({"init_encoder_from": "runs/a"}, "init_encoder_from is for an encoder that is trained: give --encoder too"),
    ({"model": "actionformer"}, "there is no localiser 'actionformer': choose one of actionformer_thumos_i3d, "),
    ({"label_smoothing": 1.0}, "label_smoothing is 1.0: it must be at least 0 and below 1"),
    ({"positives": 0.0}, "positives is 0.0: it must be above 0"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_invalid_values_are_one_line(fields, message):
    with pytest.raises(UserError, match=message):
        localize.Config(**fields)
    for wrong in ({"crop": (0.9, 0.5)}, {"stride": 0.0}, {"least_part": 2.0}):
        with pytest.raises(UserError, match=f"data.{next(iter(wrong))}"):
            SegmentConfig(**wrong)


@pytest.mark.parametrize("name", [name for name in localize.RECIPES if not name.startswith(("demo", "videos"))])
def test_recipes_train_the_published_models(name):
    config = localize.RECIPES[name]
    source = localization.SegmentSource("x", ("a",) * (1 if config.data.one_class else 20), (), config.channels)
    model = localize.make_model(config, source)
    row = LOCALIZERS[config.model]()
    assert (model.num_classes, model.channels) == (row.num_classes, row.channels) and not model.dropout
    assert (model.max_length, model.strides[-1]) == (2304 if "thumos" in name else 192, 32)
    assert config.data.resize == config.data.one_class == ("thumos" not in name) and not config.data.ignored
    assert config.optim.learning_rate * config.batch_size / 256 == pytest.approx(1e-4 if "thumos" in name else 1e-3)
