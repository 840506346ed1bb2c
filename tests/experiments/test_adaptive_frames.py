"""The study of AdaFrame, from videos to the table and the model; its clips; one's own videos."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe

import vidjax
from vidjax.data import moving_shapes
from vidjax.data.config import LabelledSourceConfig
from vidjax.errors import UserError
from vidjax.layers.card import Card
from vidjax.runs.adaframe import at_places

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
import adaptive_frames
import evaluate

VIDEOS = LabelledSourceConfig(
    validation="synthetic:moving_shapes",
    train_examples=24,
    validation_examples=12,
    frames=6,
    sampling="uniform",
    workers=1,
)


def test_two_frames_of_each_video_show_its_shape():
    clips = adaptive_frames.render(0, 12)
    assert clips.pixels.shape == (12, 16, 32, 32, 3) and clips.pixels.dtype == np.uint8
    # What differs from most frames of a video is the shape.
    shown = (clips.pixels != np.median(clips.pixels, axis=1, keepdims=True)).any(axis=(2, 3, 4))
    expected = np.zeros((12, 16), bool)
    for row, first in enumerate(clips.first):
        expected[row, first : first + 2] = True
    np.testing.assert_array_equal(shown, expected)
    assert set(clips.labels) == {0, 1, 2} and len(set(clips.first)) > 4


@pytest.mark.long
def test_the_study_writes_accuracy_over_cost_and_time_a_picture_and_a_model(tmp_path, capsys):
    settings = {"train_clips": 64, "validation_clips": 16, "frame_steps": 2, "steps": 20, "looks": 2}
    config = adaptive_frames.Config(out=str(tmp_path / "out"), lags=(0.0, 0.3), **settings)
    rows = adaptive_frames.main(config)
    names = [(row["name"], row.get("lag")) for row in rows]
    assert names == [
        ("full", None), *[("chosen", None)] * 2, ("ended early", 0.0), ("ended early", 0.3), *[("random", None)] * 2
    ]  # fmt: skip
    for name in ("random", "chosen"):
        one, two = (row for row in rows if row["name"] == name)
        assert (one["frames"], two["frames"]) == (1, 2) and two["found"] >= one["found"]
        assert 0 < one["macs"] < two["macs"] < rows[0]["macs"] == 1
        # Of 16 frames, and a memory that costs little: of 4x4 pixels instead of 32x32.
        assert two["macs"] - one["macs"] == pytest.approx(1 / 16, rel=0.3)
    for row in rows[3:5]:
        assert 1 <= row["frames"] <= 2 and rows[1]["macs"] <= row["macs"] <= rows[2]["macs"]
    assert all(row["seconds"] > 0 and 0 <= row["top1"] <= 1 for row in rows)
    assert json.loads((tmp_path / "out" / "adaptive.json").read_text()) == rows
    assert "| 2.00 | chosen |" in (tmp_path / "out" / "adaptive.md").read_text()
    assert "| 2.00 | chosen |" in capsys.readouterr().out
    for picture in ("frames.png", "adaptive.png"):
        assert (tmp_path / "out" / picture).read_bytes()[:4] == b"\x89PNG"
    model, variables = vidjax.load_pretrained(tmp_path / "out" / "model", verbose=False)
    assert (model.lag, model.patience, model.steps) == (0.3, 1, 2)
    clips = adaptive_frames.render(1_000_000, 16)
    logits = model.apply(variables, model.card.preprocess(clips.pixels))
    top1 = float((logits.argmax(axis=-1) == clips.labels).mean())
    assert top1 == pytest.approx(rows[4]["top1"])  # of features, and of the frames of videos


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Checkpoints of a network and of one for small frames, and of some that AdaFrame cannot use."""
    folder = tmp_path_factory.mktemp("networks")
    card = Card(class_names=moving_shapes.class_names("train"))
    small = vidjax.create_model("tsn_tiny", num_classes=8, card=card, image_size=32)
    models = {
        "run": small,
        "glance": small.clone(width=4, image_size=8),
        "shifted": small.clone(shift="both"),
        "odd": small.clone(image_size=12),
        "grey": small.clone(image_size=8, card=replace(card, mean=(0.5,) * 3)),
        "other": small.clone(image_size=8, card=replace(card, class_names=card.class_names[::-1])),
    }
    variables = jax.jit(small.init)(jax.random.key(0), jnp.zeros((1, 2, 32, 32, 3)))
    light = jax.jit(models["glance"].init)(jax.random.key(1), jnp.zeros((1, 2, 8, 8, 3)))
    for name, model in models.items():
        vidjax.save_pretrained(folder / name, model, light if name == "glance" else variables)
    return folder


def own(networks, out, **settings):
    """A config for videos that are not rendered by the script."""
    names = {"run": str(networks / "run"), "glance": str(networks / "glance"), "data": VIDEOS, "out": str(out)}
    return adaptive_frames.Config(**names | {"steps": 3, "looks": 2, "batch_size": 4} | settings)


@pytest.mark.long
def test_ones_own_videos_are_searched_by_the_features_of_ones_own_networks(networks, tmp_path, capsys):
    config = own(networks, tmp_path / "out")
    rows = adaptive_frames.main(config)
    assert rows[0]["frames"] == 6 and not any("found" in row for row in rows)
    features = np.load(tmp_path / "out" / "features" / "validation" / "features.npy")
    model, variables = vidjax.load_pretrained(networks / "run", verbose=False)
    assert features.shape == (12, 6, 256)
    guesses = features.mean(axis=1) @ variables["params"]["head"]["kernel"] + variables["params"]["head"]["bias"]
    labels = np.load(tmp_path / "out" / "features" / "validation" / "labels.npy")
    assert rows[0]["top1"] == (guesses.argmax(axis=1) == labels).mean()
    joined, variables = vidjax.load_pretrained(tmp_path / "out" / "model", verbose=False)
    assert (joined.shrink, joined.num_frames, joined.card.class_names) == (4, 6, model.card.class_names)
    videos = evaluate.SourceConfig(source="synthetic:moving_shapes", workers=1)
    evaluated = evaluate.main(evaluate.Config(config.out + "/model", data=videos, out=str(tmp_path / "scores")))
    assert (evaluated["clips"]["sampling"], evaluated["clips"]["frames"]) == ("uniform", 6)
    assert "features of 0 in" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"out.model is not an empty directory: give another one, nothing is over"):
        adaptive_frames.main(config)
    shutil.rmtree(tmp_path / "out" / "model")  # as if the run was killed
    again = adaptive_frames.main(config)
    assert "features of 24 in" in capsys.readouterr().out
    assert [row["top1"] for row in again] == [row["top1"] for row in rows]

    video = jnp.asarray(recipe.floats("video", (3, 6, 32, 32, 3)))
    places = jnp.asarray([[0.0, 0.4], [1.0, 0.2], [0.6, 0.6]])
    few = at_places(joined, variables, video, places)
    every = joined.apply(variables, video, places=places, method="episode")
    np.testing.assert_allclose(few, every.logits[:, -1], atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"glance": None}, "one's own videos need both networks: give --run and --glance with --data"),
        ({"run": None, "glance": None}, "one's own videos need both networks"),
        ({"data": LabelledSourceConfig()}, "there are no videos to measure on: give --data.validation"),
        ({"lags": ()}, r"lags are \(\): give one or more of 0 or above"),
        ({"run": "shifted"}, "run .*shifted does not see each frame by itself, .* give a TSN, such as tsn_50"),
        ({"glance": "other"}, "glance .*other has other classes than the data: fine-tune it on these before"),
        ({"glance": "grey"}, "glance normalises pixels in another way than run"),
        ({"glance": "odd"}, "glance sees 12 pixels and run 32: the second must be a multiple of the first"),
        ({"glance": "run"}, "glance sees 32 pixels and run 32"),
        ({"looks": 7}, "looks is 7, and videos have 6 frames: give --data.frames or --looks"),
    ],
)
def test_wrong_input_is_one_line_before_any_work(networks, tmp_path, settings, message):
    paths = {k: str(networks / v) for k, v in settings.items() if k in ("run", "glance") and v}
    with pytest.raises(UserError, match=message):
        adaptive_frames.main(own(networks, tmp_path / "out", **settings | paths))
    assert not (tmp_path / "out").exists()
