"""Spatio-temporal detection: the loss by hand, a run that resumes, and a video with its actions drawn."""

import csv
import itertools
import json
import shutil
import sys
from functools import partial
from pathlib import Path

import av
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import videos
from small_runs import draw_variables

import vidjax
from vidjax import cli
from vidjax.convert import save_pretrained
from vidjax.data import pipeline
from vidjax.data.config import DetectionConfig
from vidjax.errors import UserError
from vidjax.models.detector import Detector
from vidjax.runs import detection
from vidjax.training.checkpoint import load_variables
from vidjax.training.state import Aux

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))

import detect
import detect_predict

SMALL = partial(vidjax.create_model, "slow_tiny", num_frames=2, image_size=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four videos of three seconds, each with two boxes at two key frames."""
    folder = tmp_path_factory.mktemp("ava")
    rows = []
    for number in range(4):
        videos.write_video(folder / "videos" / f"v{number}.mp4", videos.numbered(30, 32, 48, 9 * number), rate=10)
        rows += [f"v{number},{t},{x},0.1,{x + 0.4},0.9,{'ab'[t - 1]},1\n" for t in (1, 2) for x in (0.0, 0.5)]
    (folder / "train.csv").write_text("".join(rows))
    (folder / "val.csv").write_text("".join(rows[:4]))
    return folder


FLAGS = """
videos --model slow_tiny --bins 2 --data.frames 2 --data.stride 1 --data.size 32 --data.short_side 32
--data.workers 1 --data.max_bad_share 1 --batch_size 4 --steps 3 --loop.log_every 1 --loop.save_every 1
--loop.evaluate_every 3
""".split()


def parse(folder, *flags):
    named = {"train": "train.csv", "validation": "val.csv", "videos": "videos"}
    argv = [*FLAGS, *(word for name, path in named.items() for word in (f"--data.{name}", str(folder / path))), *flags]
    return cli.parse(detect.Config, detect.RECIPES, detect.DATA_FLAG, argv)


@pytest.mark.parametrize("objective", ["sigmoid", "softmax"])
def test_the_loss_is_the_mean_over_the_boxes_that_are_shown(objective):
    """Of two clips one is invalid; of its three boxes one is padding, and one has two actions (or none)."""
    config = detect.Config(objective=objective, dropout=0.0)
    model = Detector(SMALL(dilated=True), 3, bins=1, dropout=0.0)
    variables = draw_variables(model)
    actions = np.array([[[1, 0, 1], [0, 0, 0], [1, 1, 1]]] * 2, np.uint8)
    boxes = np.array([[[0, 0, 1, 1], [0.2, 0.1, 0.9, 0.7], [-1, -1, -1, -1]]] * 2, np.float32)
    video = np.random.default_rng(0).integers(0, 256, (2, 2, 32, 32, 3), np.uint8)
    batch = {"video": video, "boxes": boxes, "actions": actions, "valid": np.array([True, False])}
    batch = jax.tree.map(jnp.asarray, batch)
    aux = Aux({"batch_stats": variables["batch_stats"]}, None, None, 0)
    loss, (_, metrics) = jax.jit(detect.make_loss(config, model))(
        variables["params"], aux, batch, jax.random.key(0)
    )  # fmt: skip
    # Batch norm sees the valid clip alone.
    apply = jax.jit(partial(model.apply, train=True, mutable=["batch_stats"]))
    logits, _ = apply(variables, model.card.preprocess(batch["video"][:1]), batch["boxes"][:1])
    p = np.asarray(jax.nn.sigmoid(logits[0, :2]) if objective == "sigmoid" else jax.nn.softmax(logits[0, :2]))
    if objective == "sigmoid":
        expected = -np.where(actions[0, :2], np.log(p), np.log(1 - p)).mean()
    else:
        expected = -np.log(p[0, [0, 2]]).mean()
    assert float(loss) == pytest.approx(float(expected), rel=1e-4)
    assert int(metrics["boxes"]) == (2 if objective == "sigmoid" else 1)


def test_a_box_is_scored_in_the_crop_that_shows_most_of_it():
    mesh = jax.make_mesh((1, 1, 1), ("data", "fsdp", "sequence"), devices=jax.devices()[:1])

    class Says(Detector):
        """Its logits are the first pixel of the clip: that is, which crop it is."""

        def apply(self, variables, video, boxes):
            return jnp.broadcast_to(video[:, :1, 0, 0, :1], (*boxes.shape[:2], 1))

    model = Says(SMALL(), 1, card=vidjax.create_model("slow_tiny").card)
    video = jnp.zeros((1, 3, 2, 4, 4, 3), jnp.uint8) + jnp.array([0, 100, 200], jnp.uint8)[:, None, None, None, None]
    nowhere = [-1.0] * 4
    boxes = jnp.array([[
        [[0, 0, 0.4, 1], [0.9, 0, 1, 1], nowhere, nowhere],
        [nowhere, [0.4, 0, 0.9, 1], [0, 0, 1, 1], nowhere],
        [nowhere, [0, 0, 0.4, 1], nowhere, nowhere],
    ]])  # fmt: skip
    batch = {"video": video, "boxes": boxes, "index": jnp.zeros(1, int), "valid": jnp.ones(1, bool)}
    scores, _, _ = detection.make_score(model, mesh, "sigmoid")({}, batch)
    logits = model.card.preprocess(jnp.array([0, 100, 100], jnp.uint8)[:, None] * jnp.ones(3, jnp.uint8))[:, 0]
    np.testing.assert_allclose(scores[0, :3, 0], jax.nn.sigmoid(logits), atol=1e-6)
    assert scores[0, 3, 0] == 0


@pytest.fixture(scope="module")
def trained(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    return workdir, detect.main(parse(folder, "--workdir", str(workdir)))


@pytest.mark.long
def test_a_run_that_is_killed_resumes_to_the_same_numbers(folder, trained, tmp_path, monkeypatch):
    workdir, numbers = trained
    assert 0 <= numbers["map_50"] <= 1 and numbers["last_loss"] > 0
    assert (workdir / "detections.png").stat().st_size > 1000
    with open(workdir / "detections.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert len(rows) == 4 * 2 and rows[0][:7] == ["v0", "1", "0.0000", "0.1000", "0.4000", "0.9000", "a"]
    read = pipeline.train_batches

    def dying(*arguments, **settings):
        yield from itertools.islice(read(*arguments, **settings), 2)
        raise KeyboardInterrupt

    config = parse(folder, "--workdir", str(tmp_path / "run"))
    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "train_batches", dying)
        with pytest.raises(KeyboardInterrupt):
            detect.main(config)
    detect.main(config)
    whole, resumed = (load_variables(each)[0] for each in (workdir, tmp_path / "run"))
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        np.testing.assert_array_equal(value, resumed[name])


def test_a_run_starts_from_a_detector_and_from_a_classifier(trained, tmp_path):
    workdir, _ = trained
    model, variables = vidjax.load_pretrained(workdir, verbose=False)
    shapes = jax.tree.map(jnp.zeros_like, variables)
    started = detection.start_detector(str(workdir), model, shapes, keep_head=True)
    jax.tree.map(np.testing.assert_array_equal, started, variables)
    started = detection.start_detector(str(workdir), model, shapes, keep_head=False)
    assert not started["params"]["head"]["classes"]["kernel"].any()
    classifier = model.backbone.clone(num_classes=5)
    drawn = draw_variables(classifier)
    save_pretrained(tmp_path / "classifier", classifier, drawn)
    started = detection.start_detector(str(tmp_path / "classifier"), model, shapes, keep_head=False)
    stem = started["params"]["backbone"]["stem"]["conv"]["kernel"]
    np.testing.assert_array_equal(stem, drawn["params"]["stem"]["conv"]["kernel"])
    assert not started["params"]["head"]["classes"]["kernel"].any()
    with pytest.raises(UserError, match="is no detector and has no head for boxes: omit --keep_head"):
        detection.start_detector(str(tmp_path / "classifier"), model, shapes, keep_head=True)


def test_actions_are_drawn_on_the_video_and_written_as_avas_results(folder, trained, tmp_path):
    shutil.copy(folder / "videos" / "v1.mp4", tmp_path / "v1.mp4")
    named = {name: str(tmp_path / f"found.{name}") for name in ("csv", "json")}
    config = detect_predict.Config(
        str(tmp_path / "v1.mp4"), run=str(trained[0]), boxes=str(folder / "train.csv"), least_score=0.0, crops=1,
        out=str(tmp_path / "drawn.mp4"), **named,
    )  # fmt: skip
    report = detect_predict.main(config)
    assert json.loads(Path(named["json"]).read_text()) == report
    assert [frame["time"] for frame in report["frames"]] == [1, 2]
    actions = report["frames"][0]["boxes"][0]["actions"]
    rows = list(csv.reader(Path(named["csv"]).read_text().splitlines()))
    assert len(rows) == 2 * 2 * 2 and {row[6] for row in rows} == {"a", "b"}
    by_name = {row[6]: float(row[7]) for row in rows[:2]}
    assert {each["class"]: each["score"] for each in actions} == pytest.approx(by_name, abs=1e-5)
    with av.open(config.out) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 30 and frames[0].shape == (360, 540, 3)

    def yellow(frame):
        return ((frame[..., 0] > 200) & (frame[..., 1] > 160) & (frame[..., 2] < 130)).sum()

    # Key frames are a second apart: the boxes are shown half a second before and after.
    assert yellow(frames[12]) > 500 and yellow(frames[1]) == yellow(frames[28]) == 0
    with pytest.raises(UserError, match=r"drawn.mp4 already exists, and nothing is overwritten: give another --out"):
        detect_predict.Config(config.video, run=config.run, boxes=config.boxes, out=config.out)


REFUSED = [
    ({"stage": 0}, "stage is 0: it must be above 0"),
    ({"dropout": 1.0}, "dropout is 1.0: it must be at least 0 and below 1"),
    ({"keep_head": True}, "keep_head needs the weights of init_from"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_invalid_values_are_one_line(fields, message):
    with pytest.raises(UserError, match=message):
        detect.Config(**fields)
    with pytest.raises(UserError, match=r"data\.sampling is uniform: clips lie around key frames, omit it"):
        DetectionConfig(sampling="uniform")


def test_what_does_not_fit_is_refused_before_training(folder, tmp_path):
    for flags, message in (
        (
            ("--model", "vivit_tiny_factorized_encoder"),
            "has the shape 1x1x1, too few places for boxes: take an earlier",
        ),
        (("--stage", "7"), "SlowNetwork has 4 stages, so stage cannot be 7: lower it"),
    ):
        with pytest.raises(UserError, match=message):
            detect.main(parse(folder, *flags, "--workdir", str(tmp_path / "run")))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", [name for name in detect.RECIPES if name.startswith("ava")])
def test_recipes_train_the_published_models(name):
    config = detect.RECIPES[name]
    model = detect.make_model(config, ("a",) * 80)
    assert model.backbone.dilated and model.backbone.num_classes is None and model.num_classes == 80
    assert (config.data.frames, config.data.stride) == ((4, 16) if "slow_" in name else (32, 2))
    assert config.optim.learning_rate * config.batch_size / 256 == pytest.approx(0.1)
