"""A cross-model run as a user runs it: only what is new is trained, and the work directory loads as a model."""

import dataclasses
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import perturbed
from small_runs import changed

import vidjax
from vidjax import cli, runs
from vidjax.data.moving_shapes import class_names
from vidjax.models.clip import CARD, ImageTower
from vidjax.models.text import TextTower
from vidjax.models.video_text import VideoText
from vidjax.runs.cross_model import late_depths, start_encoders, unnamed_heads

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))

import cross_model
import predict

FLAGS = """demo --data.frames 2 --data.size 16 --data.short_side 16 --data.workers 1 --data.train_examples 16
--data.validation None --batch_size 8 --steps 2 --loop.log_every 1 --loop.save_every 2 --depths 1""".split()
SMALL = {"width": 16, "depth": 2, "heads": 2, "patch_size": (2, 8, 8), "num_frames": 2, "image_size": 16}


CLASSES = class_names("train")


def classifier(name, names):
    model = vidjax.create_model(name, num_classes=len(names), **SMALL)
    return model.clone(card=dataclasses.replace(model.card, class_names=names))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints of two classifiers of the eight directions, one of other classes, and a video-text model."""
    folder = tmp_path_factory.mktemp("saved")
    image = ImageTower(16, 1, 1, 8, patch_size=(1, 8, 8), num_frames=2, image_size=16)
    models = {
        "masked": classifier("videomae_tiny", CLASSES),
        "contrastive": classifier("vivit_tiny_joint", CLASSES),
        "others": classifier("vivit_tiny_joint", CLASSES[::-1]),
        "fewer": classifier("vivit_tiny_joint", CLASSES[:5]),
        "unnamed": vidjax.create_model("vivit_tiny_joint", num_classes=len(CLASSES), **SMALL),
        "features": vidjax.create_model("vivit_tiny_joint", **SMALL),
        "pair": VideoText(image, TextTower(259, 7, 16, 1, 1, 8), CARD),
    }
    for name, model in models.items():
        vidjax.save_pretrained(folder / name, model, perturbed(model))
    return folder


def config_of(saved, workdir, *flags, contrastive="contrastive"):
    encoders = ["--init_masked_from", str(saved / "masked"), "--init_contrastive_from", str(saved / contrastive)]
    argv = [*FLAGS, *encoders, "--workdir", str(workdir), *flags]
    return cli.parse(cross_model.Config, cross_model.RECIPES, cross_model.DATA_FLAG, argv)


@pytest.mark.long
def test_only_what_is_new_is_trained_and_the_run_is_a_model(saved, tmp_path, capsys):
    numbers = cross_model.main(config_of(saved, tmp_path / "run"))
    assert numbers["first_loss"] != numbers["last_loss"]
    printed = capsys.readouterr().out
    assert "attention after the blocks 1" in printed and "gates     attention and MLP: inward_1" in printed
    model, variables = vidjax.load_pretrained(tmp_path / "run", which="last", strict=True)
    params = variables["params"]
    for name in ("masked", "contrastive"):
        before = vidjax.load_pretrained(saved / name, verbose=False)[1]["params"]
        for part, values in before.items():
            same = jax.tree.leaves(jax.tree.map(np.array_equal, values, params[name][part]))
            assert not any(same) if part == "head" else all(same), f"{name}/{part}"
    assert params["inward_1"]["attention_gate"] != 0 != params["outward"]["mlp_gate"]
    assert model.card.class_names == CLASSES
    clips = runs.cut_clips(tmp_path / "run", model, predict.GivenClipConfig())
    classify = predict.make_classify(model, variables, clips)
    np.testing.assert_allclose(classify(jnp.zeros((1, 1, 2, 16, 16, 3), jnp.uint8)).sum(), 1, rtol=1e-5)


def test_a_video_text_model_lends_its_video_tower(saved, tmp_path):
    config = config_of(saved, tmp_path, contrastive="pair")
    model = cross_model.make_model(config, CLASSES)
    variables = jax.tree.map(jnp.asarray, perturbed(model))
    started = start_encoders(model, variables, config.init_masked_from, config.init_contrastive_from)["params"]
    tower = vidjax.load_pretrained(saved / "pair", verbose=False)[1]["params"]["video"]
    jax.tree.map(np.testing.assert_array_equal, started["contrastive"]["tower"], tower)
    jax.tree.map(
        np.testing.assert_array_equal, started["contrastive"]["head"], variables["params"]["contrastive"]["head"]
    )
    assert model.contrastive.card == CARD and model.contrastive.num_classes == 8 and not unnamed_heads(model)
    assert (model.card.class_names, model.card.stride, model.card.protocol) == (CLASSES, 2, "vidjax")  # of the clips


def test_a_head_without_class_names_is_reported(saved, tmp_path):
    """Its classes may be in another order than those of the data."""
    config = config_of(saved, tmp_path, contrastive="unnamed")
    assert unnamed_heads(cross_model.make_model(config, CLASSES)) == ["contrastive"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--init_contrastive_from None", "give --init_masked_from and --init_contrastive_from, two classifiers"),
        (
            "--init_contrastive_from {}/others",
            r"the contrastive encoder in \S+others has other .* order: 'down and right' where the data has 'right': f",
        ),
        ("--init_contrastive_from {}/fewer", r"encoder in \S+fewer has 5 classes, and the data 8: fine-tune it on"),
        ("--init_contrastive_from {}/features", r"the contrastive encoder in \S+features has no classes: fine-tune it"),
        ("--init_masked_from {}/contrastive", "the masked encoder is a ViViT: give a classifier of videomae_"),
        ("--depths 1 3", "depths: there is no block 3 in the masked encoder, which has 2: choose from 1 to 2"),
        ("--data.frames 4", r"data\.frames is 4, but both encoders take 2: give --data\.frames 2"),
    ],
)
def test_invalid_encoders_are_refused_before_anything_is_written(saved, tmp_path, flags, message):
    config = config_of(saved, tmp_path / "run", *flags.format(saved).split())
    with pytest.raises(ValueError, match=message) as refused:
        cross_model.main(config)
    assert "\n" not in str(refused.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"optim__layer_decay": 0.5}, r"optim\.layer_decay is not supported with two encoders"),
        ({"scan": True}, "scan and sequence are not supported"),
        ({"init_from": "runs/a"}, "init_from: give the two encoders, --init_masked_from"),
        ({"label_smoothing": 1.0}, r"label_smoothing is 1\.0: it must be at least 0 and below 1"),
    ],
)
def test_invalid_values_raise(settings, message):
    with pytest.raises(ValueError, match=message):
        changed(cross_model.Config(), **settings)


def test_encoders_attend_in_the_second_half_by_default():
    assert [late_depths(depth) for depth in (2, 4, 12)] == [(1, 2), (2, 3, 4), (6, 8, 10, 12)]
