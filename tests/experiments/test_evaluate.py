"""evaluate.py and predict.py by the rules of published code, on a model and a clip that NumPy can compute."""

import csv
import dataclasses
import json
import sys
from pathlib import Path

import flax.linen as nn
import numpy as np
import pytest
import videos

import vidjax
from vidjax import runs
from vidjax.data.config import GivenClipConfig, SourceConfig
from vidjax.data.decode import decode
from vidjax.errors import UserError
from vidjax.layers.card import Card
from vidjax.layers.head import average_positions, pool_windows

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
import evaluate
import predict

LENGTH, HEIGHT, WIDTH, RATE, SIDE, CELL = 90, 48, 81, 25, 48, 8
KERNEL = np.random.default_rng(0).normal(0, 9, (3, 5)).astype(np.float32)
CARD = Card((0.5,) * 3, (0.25,) * 3, stride=4, test_size=SIDE, class_names=tuple("abcde"), views="10x3")


class Cells(nn.Module):
    """Mean colours of cells of 8 x 8 pixels, and a linear classifier at each position of a window of 4 x 4 cells."""

    average: str = "softmax"
    whole: bool = False
    num_classes: int = 5
    num_frames: int = 8
    image_size: int = 32
    card: Card = CARD

    @nn.compact
    def __call__(self, video, train=False):
        cells = nn.avg_pool(video, (1, CELL, CELL), (1, CELL, CELL))
        side = cells.shape[2] if self.whole else self.image_size // CELL
        logits = nn.Dense(5, name="head")(pool_windows(cells, (self.num_frames, side, side)))
        return average_positions(logits, self.average)


VARIABLES = {"params": {"head": {"kernel": KERNEL, "bias": np.zeros(5, np.float32)}}}
MODELS = {
    "slowfast": Cells("softmax", card=dataclasses.replace(CARD, protocol="slowfast", rate=30.0)),
    "pytorchvideo": Cells("logits", card=dataclasses.replace(CARD, protocol="pytorchvideo", rate=30.0)),
    "mmaction2": Cells(whole=True, card=dataclasses.replace(CARD, protocol="mmaction2")),
    "mmaction2, logits of views": Cells(
        whole=True, card=dataclasses.replace(CARD, protocol="mmaction2", average="logits")
    ),
}


def softmax(logits):
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def places(dialect):
    """Frames of the ten clips and left edges of the three crops, as each publisher's code computes them."""
    span = 8 * 4 * RATE / 30  # the stride is counted at 30 frames per second
    if dialect == "slowfast":
        starts = [(LENGTH - span) * i / 10 for i in range(10)]
        return [[int(start + (span - 1) * k / 7) for k in range(8)] for start in starts], (0, 17, 33)
    if dialect == "pytorchvideo":
        clips = []
        for i in range(10):
            start = (LENGTH - span) * i / 9
            inside = [f for f in range(LENGTH) if start - 1e-6 <= f < start + span - 1e-6]
            clips.append([inside[int((len(inside) - 1) * k / 7)] for k in range(8)])
        return clips, (0, 17, 33)
    starts = [round((LENGTH - 29) * i / 9) for i in range(10)]
    return [[start + 4 * k for k in range(8)] for start in starts], (0, 16, 32)


def expected(path, dialect, model):
    """The probabilities of a video, without any code of the models, of sampling and of cropping."""
    clips, lefts = places(dialect)
    scores = []
    for clip in clips:
        frames = decode(path, clip)
        for left in lefts:
            pixels = (frames[:, :, left : left + SIDE].astype(np.float64) / 255 - 0.5) / 0.25
            cells = pixels.reshape(8, SIDE // CELL, CELL, SIDE // CELL, CELL, 3).mean(axis=(0, 2, 4))
            if model.whole:
                scores.append(cells.mean(axis=(0, 1)) @ KERNEL)
                continue
            positions = np.stack([cells[y : y + 4, x : x + 4].mean(axis=(0, 1)) for y in range(3) for x in range(3)])
            logits = positions @ KERNEL
            scores.append(np.log(softmax(logits).mean(axis=0)) if model.average == "softmax" else logits.mean(axis=0))
    views = np.stack(scores)
    assert views.shape == (30, 5)
    return softmax(views).mean(axis=0) if model.card.average == "softmax" else softmax(views.mean(axis=0))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A video whose colours change from frame to frame and from place to place."""
    folder = tmp_path_factory.mktemp("videos")
    phases = np.arange(LENGTH)[:, None, None, None] * [0.31, 0.17, 0.23]
    across = phases + np.arange(WIDTH)[:, None] * [0.05, 0.11, 0.08] + np.arange(HEIGHT)[:, None, None] * 0.06
    frames = np.round(127 + 120 * np.sin(across)).astype(np.uint8)
    path = videos.write_video(folder / "a" / "clip.avi", frames, rate=RATE, codec="mpeg4")
    return folder, path


@pytest.fixture
def probabilities(clip, tmp_path, monkeypatch, capsys):
    """A function that runs evaluate.py with a model on the video, and returns the probabilities and what is printed."""
    count = iter(range(99))

    def run(model, **settings):
        seen = []
        classify = evaluate.classify
        with monkeypatch.context() as patch:
            patch.setattr(runs, "load_pretrained", lambda *args, **kwargs: (model, VARIABLES))
            patch.setattr(evaluate, "classify", lambda *args: seen.append(classify(*args)) or seen[0])
            data = settings.pop("data", SourceConfig(source=str(clip[0]), workers=1))
            out = str(tmp_path / f"{next(count)}")
            evaluate.main(evaluate.Config(run="weights", data=data, batch_size=8, out=out, **settings))
        return seen[0][0][0], capsys.readouterr().out

    return run


@pytest.mark.parametrize("name", MODELS)
def test_views_are_placed_and_averaged_as_in_each_publishers_code(name, clip, probabilities):
    model = MODELS[name]
    wanted = expected(clip[1], name.partition(",")[0], model)
    result, printed = probabilities(model, views="10x3")
    np.testing.assert_allclose(result, wanted, atol=1e-5)
    assert f"10x3 views of 8 frames, dense, {model.card.protocol}, {model.card.average} averaged" in printed
    assert "published views: 10x3" in printed
    np.testing.assert_array_equal(probabilities(model, views="published")[0], result)


def test_the_dialects_give_different_numbers(clip):
    """The whole rule of each, and with the same head the places of the views alone."""
    whole = [expected(clip[1], name.partition(",")[0], model) for name, model in MODELS.items()]
    alone = [expected(clip[1], name, MODELS["mmaction2"]) for name in ("slowfast", "pytorchvideo", "mmaction2")]
    for results in (whole, alone):
        for i, one in enumerate(results):
            assert all(np.abs(one - other).max() > 1e-3 for other in results[:i])


def test_flags_override_the_card(clip, probabilities):
    model = MODELS["slowfast"]
    data = SourceConfig(source=str(clip[0]), workers=1, protocol="mmaction2", stride=4)
    wanted = expected(clip[1], "mmaction2", model)
    np.testing.assert_allclose(probabilities(model, views="10x3", data=data)[0], wanted, atol=1e-5)
    logits, printed = probabilities(MODELS["mmaction2"], views="10x3", average="logits")
    np.testing.assert_allclose(logits, expected(clip[1], "mmaction2", MODELS["mmaction2, logits of views"]), atol=1e-5)
    assert "logits averaged" in printed
    unknown = model.clone(card=dataclasses.replace(model.card, views=""))
    with pytest.raises(UserError, match=r"was published with is unknown: write clips x crops, such as 4x3"):
        probabilities(unknown, views="published")
    with pytest.raises(UserError, match="views is publish: write clips x crops"):
        evaluate.Config(run="weights", views="publish")


def test_unknown_videos_are_compared_with_the_known_ones(clip, tmp_path, monkeypatch, capsys):
    model, out = MODELS["mmaction2, logits of views"], tmp_path / "out"
    monkeypatch.setattr(runs, "load_pretrained", lambda *args, **kwargs: (model, VARIABLES))
    frames = decode(clip[1], np.arange(40))
    for number, name in enumerate("ffg"):
        videos.write_video(tmp_path / "others" / name / f"{number}.avi", np.roll(frames, 9 * number, 2), codec="mpeg4")
    data = SourceConfig(source=str(clip[0]), workers=1)
    config = evaluate.Config(run="weights", data=data, views="2x3", out=str(out), unknown=str(tmp_path / "others"))
    result = evaluate.main(config)["open_set"]
    with (out / "uncertainty.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["label"], row["known"]) for row in rows] == [("a", "yes"), ("f", "no"), ("f", "no"), ("g", "no")]
    for row in rows:
        assert float(row["softmax"]) == pytest.approx(1 - float(row["probability"]), abs=1e-5)
    known, *others = (float(row["softmax"]) for row in rows)
    assert result["softmax"]["auroc"] == np.mean([value > known for value in others])
    assert sum(result["entropy"]["histogram"]["unknown"]) == result["videos"] == 3
    assert (out / "uncertainty.png").stat().st_size > 0 and json.loads((out / "evaluation.json").read_text())
    assert "open set: 1 known videos, 3 of unknown classes from" in capsys.readouterr().out

    (tmp_path / "others" / "g").rename(tmp_path / "others" / "'A'")
    (tmp_path / "none.csv").write_text("path,label\n")
    for unknown, message in (
        (tmp_path / "others", r"unknown: 1 of the 3 videos of \S+others are known to the model, such as ''A'': leave"),
        (tmp_path / "none.csv", r"none\.csv"),
    ):
        with pytest.raises(UserError, match=message):
            evaluate.main(dataclasses.replace(config, unknown=str(unknown), out=str(tmp_path / "new")))
    assert not (tmp_path / "new").exists()


def test_predictions_follow_the_same_rules(clip, monkeypatch):
    for name, model in MODELS.items():
        monkeypatch.setattr(vidjax, "load_pretrained", lambda *args, model=model, **kwargs: (model, VARIABLES))
        config = predict.Config(
            paths=(str(clip[1]),), run="weights", views="published", data=GivenClipConfig(workers=1)
        )
        (file,) = predict.main(config)["files"]
        probabilities = {row["class"]: row["probability"] for row in file["windows"][0]["predictions"]}
        wanted = expected(clip[1], name.partition(",")[0], model)
        np.testing.assert_allclose([probabilities[letter] for letter in "abcde"], wanted, atol=1e-5)


def test_cards_without_a_published_test_leave_clips_as_they_were():
    model = Cells(card=Card(stride=4))
    given = {"frames": 8, "size": 32, "stride": 4, "short_side": 32}
    assert GivenClipConfig().clips(runs.usual_clips("weights", model)) == GivenClipConfig().clips(given)
