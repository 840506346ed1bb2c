"""Fine-tuning with a frozen teacher: what the loss is, which clips the teacher sees, and which teachers are refused."""

import dataclasses
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import perturbed
from small_runs import changed, draw_variables, interrupt_after, two_devices

import vidjax
from vidjax.convert import save_pretrained
from vidjax.data.config import AugmentConfig, LabelledDataConfig
from vidjax.data.moving_shapes import CLASSES
from vidjax.data.sources import open_source
from vidjax.errors import UserError
from vidjax.layers.normalization import valid_clips
from vidjax.objectives.distillation import match
from vidjax.runs.teacher import Teacher, load_teacher
from vidjax.training.loop import LoopConfig
from vidjax.training.metrics import read_metrics
from vidjax.training.optimizer import OptimizerConfig
from vidjax.training.state import Aux

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
import finetune

DATA = LabelledDataConfig(
    frames=2, size=32, short_side=32, workers=1, augment=AugmentConfig(crop="center"), train_examples=16
)
CONFIG = finetune.Config(
    model="fr2d_tiny", data=DATA, batch_size=8, steps=3, optim=OptimizerConfig(learning_rate=1e-3, warmup_epochs=0),
    loop=LoopConfig(log_every=1, save_every=1), teacher="set by each test", teacher_features=0.5,
)  # fmt: skip
SOURCE = open_source("synthetic:moving_shapes")


def flow_model(class_names):
    """A small model with the input and card of i3d_flow, which has two channels."""
    like = vidjax.create_model("i3d_flow")
    card = dataclasses.replace(like.card, class_names=tuple(class_names))
    return vidjax.create_model("fr2d_tiny", channels=2, num_classes=len(class_names), card=card)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A checkpoint of a model of flow with the classes of the data in another order."""
    model = flow_model(CLASSES[::-1])
    folder = tmp_path_factory.mktemp("teacher")
    save_pretrained(folder / "flow", model, perturbed(model))
    return str(folder / "flow")


def test_the_loss_adds_the_squared_differences_to_what_the_teacher_says_of_its_stream(teacher):
    config = dataclasses.replace(CONFIG, teacher=teacher, teacher_weight=2.0, mixup=0.0, cutmix=0.0)
    model = vidjax.create_model("fr2d_tiny", num_classes=8)
    loaded, frozen = load_teacher(config, model, SOURCE)
    assert (loaded.stream, loaded.field, loaded.model.card.class_names) == ("flow", "flow", CLASSES)
    draw, variables = np.random.default_rng(0), draw_variables(model)
    batch = {
        "video": draw.integers(0, 256, (3, 2, 32, 32, 3), np.uint8),
        "flow": draw.integers(0, 256, (3, 2, 32, 32, 2), np.uint8),
        "label": np.array([1, 2, 3]),
        "valid": np.array([True, True, False]),
    }
    state = {name: value for name, value in variables.items() if name != "params"}

    def losses_of(teacher, config=config):
        loss_fn = jax.jit(finetune.make_loss(config, model, None, teacher))
        loss, (_, metrics) = loss_fn(variables["params"], Aux(state, None, frozen, 0), batch, jax.random.key(0))
        return loss, metrics

    (alone, _), (loss, metrics) = losses_of(None), losses_of(loaded)
    seen = []
    for each, values, clips, train in (
        (model, variables, batch["video"] / 255, True),
        (loaded.model, frozen, batch["flow"] / 255, False),
    ):
        clips = jnp.asarray((clips - np.array(each.card.mean)) / np.array(each.card.std), jnp.float32)
        settings = {"train": train, "mutable": list(state), "rngs": {"dropout": jax.random.key(1)}}
        with valid_clips(jnp.asarray(batch["valid"])):
            outputs = [jax.jit(partial(each.apply, method=m, **settings))(values, clips) for m in (None, "embed")]
            seen.append([np.asarray(output, float) for output, _ in outputs])
    (logits, features), (taught, known) = seen
    of_logits, of_features = (
        np.square(a - b).mean(axis=1)[:2].mean() for a, b in ((logits, taught), (features, known))
    )
    np.testing.assert_allclose(loss - alone, 2 * of_logits + 0.5 * of_features, rtol=1e-4)
    unlabelled, _ = losses_of(loaded, dataclasses.replace(config, label_weight=0.0))
    np.testing.assert_allclose(unlabelled, loss - alone, rtol=1e-4)
    np.testing.assert_allclose(metrics["teacher_loss"], of_logits, rtol=1e-4)
    agree = (logits.argmax(axis=1) == taught.argmax(axis=1))[:2].mean()
    assert metrics["teacher_agreement"] == agree
    gradient = jax.grad(lambda target: match(jnp.ones((1, 2)), target).sum())(jnp.zeros((1, 2)))
    assert not gradient.any()  # the teacher is frozen


@pytest.mark.long
def test_a_killed_student_of_a_teacher_of_flow_resumes_with_the_same_losses(teacher, tmp_path):
    losses = []
    with two_devices():
        for name in ("whole", "killed"):
            config = dataclasses.replace(CONFIG, teacher=teacher, workdir=str(tmp_path / name))
            if name == "killed":
                interrupt_after(2, finetune.main, config)
            finetune.main(config)
            entries = [entry for entry in read_metrics(tmp_path / name) if "loss" in entry]
            losses.append([(entry["loss"], entry["teacher_features_loss"]) for entry in entries])
    assert losses[0] == losses[1] and len(losses[0]) == 3 and np.isfinite(losses).all()
    model, variables = vidjax.load_pretrained(tmp_path / "killed", verbose=False)
    shapes = jax.tree.map(np.shape, variables)
    assert len(model.card.mean) == 3 and shapes == jax.tree.map(np.shape, perturbed(model))


def test_wrong_teachers_are_one_line_before_anything_is_written(teacher, tmp_path):
    others = {"classes": flow_model([*CLASSES[:7], "jump"]), "unnamed": vidjax.create_model("fr2d_tiny", num_classes=3)}
    others["frames"] = vidjax.create_model("fr2d_tiny", num_classes=8)
    others["encoder"] = vidjax.create_model("fr2d_tiny", num_classes=None)
    for name, model in others.items():
        save_pretrained(tmp_path / name, model, perturbed(model))
    refused = [
        ({"teacher": str(tmp_path / "classes")}, r"teacher \S+classes lacks 1 of the 8 classes, 'down and right'"),
        ({"teacher": str(tmp_path / "unnamed")}, r"teacher \S+unnamed has 3 classes, the data 8: give another"),
        (
            {"teacher": str(tmp_path / "encoder")},
            r"teacher \S+encoder has no classes: give a classifier, such as",
        ),
        ({"teacher": str(tmp_path / "absent")}, r"teacher: there are no weights at \S+absent"),
        ({"teacher": teacher, "data__train": "synthetic:many_shapes"}, "has 0 classes: give labels"),
        ({"teacher": teacher, "model": "vit_tiny"}, r"teacher_features: the teacher's are of shape .*: omit it"),
    ]
    for fields, message in refused:
        with pytest.raises(UserError, match=message):
            finetune.main(changed(CONFIG, workdir=str(tmp_path / "run"), **fields))
    data = dataclasses.replace(DATA, stream="flow")
    with pytest.raises(UserError, match=r"\S+frames sees frames and data\.stream is flow: choose a teacher"):
        load_teacher(changed(CONFIG, teacher=str(tmp_path / "frames"), data=data), flow_model(CLASSES), SOURCE)
    without = dataclasses.replace(SOURCE, fields={name: SOURCE.fields[name] for name in ("video", "label")})
    with pytest.raises(UserError, match="takes 2 channels, which 0 streams of synthetic:moving_shapes have: extract"):
        load_teacher(dataclasses.replace(CONFIG, teacher=teacher), others["unnamed"], without)
    assert not (tmp_path / "run").exists()
    create = partial(finetune.Config, model="fr2d_tiny")
    for fields, message in (
        ({"teacher_features": 1.0}, "teacher_features are those of a teacher: give --teacher too"),
        ({"teacher": "a", "teacher_weight": 0.0}, "teacher_weight and teacher_features are 0: raise one of them"),
        ({"teacher": "a", "teacher_weight": -1.0}, "teacher_weight is -1.0: it must be 0 or more"),
        ({"label_weight": 0.0}, "label_weight weighs labels against a teacher: give --teacher too"),
    ):
        with pytest.raises(UserError, match=message):
            create(**fields)


def test_a_teacher_of_the_same_stream_sees_the_same_clips():
    teacher = Teacher(vidjax.create_model("fr2d_tiny", num_classes=8), "video", "video", 3, (1.0, 0.0))
    assert teacher.shapes(DATA) == {} and teacher.fields == ()
