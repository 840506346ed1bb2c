"""ActionFormer against recorded outputs of its released code: outputs, targets, losses and detections."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe

from vidjax.convert import from_state_dict, layouts
from vidjax.convert.export import entries
from vidjax.errors import UserError
from vidjax.evaluation.segments import Clock, Selection, select
from vidjax.models import variable_shapes
from vidjax.models.actionformer import LOCALIZERS, ActionFormer
from vidjax.objectives import localization

PARAMETERS = {  # SYSTEMS-2.md
    "actionformer_thumos_i3d": 29_251_612,
    "actionformer_anet_i3d": 8_123_145,
    "actionformer_anet_tsp": 6_943_497,
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_has_the_published_number_of_parameters(name):
    shapes = variable_shapes(LOCALIZERS[name]())
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == PARAMETERS[name]


def build(c: dict) -> ActionFormer:
    window = c["n_mha_win_size"]
    return ActionFormer(
        num_classes=c["num_classes"], channels=c["input_dim"], width=c["embd_dim"], neck_width=c["fpn_dim"],
        head_width=c["head_dim"], heads=c["n_head"], max_length=c["max_seq_len"], depths=tuple(c["backbone_arch"]),
        window=window if isinstance(window, int) else tuple(window), neck=c.get("fpn_type", "identity"),
        position=c.get("use_abs_pe", False), drop_path=c.get("droppath", 0.0),
    )  # fmt: skip


@pytest.fixture(scope="module", params=["actionformer", "actionformer_full"])
def run(request):
    """The golden, its description, the model, its variables and outputs."""
    golden = recipe.load(request.param)
    description = json.loads((recipe.HERE / f"{request.param}.json").read_text())
    model, lengths = build(golden.config), np.array(golden.config["lengths"])
    features = np.moveaxis(golden.inputs[0], 1, 2) * (np.arange(golden.config["T"]) < lengths[:, None])[..., None]
    variables = from_state_dict(model, golden.weights, strict=True)
    return golden, description, model, variables, jax.jit(model.apply)(variables, features, lengths)


def levels_of(model: ActionFormer, golden) -> list[np.ndarray]:
    steps, lengths = np.arange(golden.config["T"]), np.array(golden.config["lengths"])
    return [(steps < lengths[:, None])[:, ::stride] for stride in model.strides]


def test_outputs_equal_the_original(run):
    golden, description, _, variables, (logits, offsets) = run
    assert sum(leaf.size for leaf in jax.tree.leaves(variables)) == description["parameters"]
    for number, output in enumerate([*logits, *offsets]):
        expected = golden.outputs[f"output{number}"]
        np.testing.assert_allclose(output, expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))


def test_targets_and_losses_equal_the_original(run):
    golden, description, model, _, (logits, offsets) = run
    truth, first = description["ground_truth"], 2 * len(model.strides)
    most = max(map(len, truth["segments"])) + 1  # one row that is not annotated
    segments, labels = np.full((2, most, 2), [3.0, 4.0], np.float32), np.zeros((2, most), int)
    annotated = np.zeros((2, most), bool)
    for video, (rows, kinds) in enumerate(zip(truth["segments"], truth["labels"], strict=True)):
        segments[video, : len(rows)], labels[video, : len(rows)], annotated[video, : len(rows)] = rows, kinds, True
    points = localization.points(golden.config["T"], model.strides)
    targets = localization.targets(points, *map(jnp.asarray, (segments, labels, annotated)), model.num_classes)
    classes, expected = golden.outputs[f"output{first}"], golden.outputs[f"output{first + 1}"]
    np.testing.assert_array_equal(targets.classes, classes)
    positive = classes.sum(axis=-1) > 0
    np.testing.assert_allclose(targets.offsets[positive], expected[positive], rtol=1e-6)
    valid = jnp.concatenate(levels_of(model, golden), axis=1)
    losses = localization.localize(
        jnp.concatenate(logits, 1), jnp.concatenate(offsets, 1), targets, valid, jnp.float32(100),
        golden.config.get("label_smoothing", 0.0),
    )  # fmt: skip
    expected = golden.outputs[f"output{first + 2}"]
    np.testing.assert_allclose(losses[:2], expected[:2], rtol=1e-5)
    weight = golden.config.get("loss_weight", 1.0)
    assert losses[0] + weight * losses[1] == pytest.approx(expected[2], rel=1e-5)


def test_detections_equal_the_original(run):
    golden, description, model, _, (logits, offsets) = run
    test, meta, first = description["test"], description["meta"], 2 * len(model.strides) + 3
    selection = Selection(
        test["min_score"], test["pre_nms_topk"], test["duration_thresh"], test["nms_sigma"], test["multiclass_nms"],
        test["max_seg_num"], test["voting_thresh"],
    )  # fmt: skip
    clock = Clock(meta["fps"], meta["feat_stride"], meta["feat_num_frames"], meta["duration"])
    masks = levels_of(model, golden)
    probabilities = [np.asarray(jax.nn.sigmoid(x[0])) * mask[0][:, None] for x, mask in zip(logits, masks, strict=True)]
    results = select(probabilities, [np.asarray(x[0]) for x in offsets], model.strides, selection, clock)
    for number, result in enumerate(results):
        np.testing.assert_allclose(result, golden.outputs[f"output{first + number}"], atol=1e-5)
    np.testing.assert_allclose(clock.seconds(clock.steps(np.array([2.0, 3.5]))), [2.0, 3.5])


def test_weights_return_to_the_published_names(run):
    golden, _, model, variables, _ = run
    exported = entries(layouts(model)[0], model, variables)
    assert {name.removeprefix("module.") for name in exported} == golden.weights.keys()
    for name, value in golden.weights.items():
        np.testing.assert_array_equal(exported[f"module.{name}"], value)


@pytest.mark.long
def test_a_step_of_training_has_finite_gradients_and_drops_paths():
    model = LOCALIZERS["actionformer_tiny"]()
    features, lengths = jax.random.normal(jax.random.key(0), (2, 64, 32)), jnp.array([64, 9])
    variables = jax.jit(model.init)(jax.random.key(1), features, lengths)
    points = localization.points(64, model.strides)
    targets = localization.targets(
        points, jnp.array([[[3.0, 30.0]]] * 2), jnp.ones((2, 1), int), jnp.ones((2, 1), bool), 8
    )
    valid = jnp.concatenate([(jnp.arange(64) < lengths[:, None])[:, ::s] for s in model.strides], axis=1)

    @jax.jit
    def loss(variables, key):
        logits, offsets = model.apply(variables, features, lengths, train=True, rngs={"drop_path": key, "dropout": key})
        joined = (jnp.concatenate(x, axis=1) for x in (logits, offsets))
        return sum(localization.localize(*joined, targets, valid, jnp.float32(100))[:2])

    gradients = jax.grad(loss)(variables, jax.random.key(2))
    assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert loss(variables, jax.random.key(2)) != loss(variables, jax.random.key(7))


def test_wrong_sizes_are_one_line():
    model = LOCALIZERS["actionformer_tiny"]()
    with pytest.raises(UserError, match="features of 60 steps: pad them to a multiple of 8"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 60, 32)), jnp.array([60]))
    with pytest.raises(UserError, match="window has 2 numbers"):
        jax.eval_shape(model.clone(window=(3, 3)).init, jax.random.key(0), jnp.zeros((1, 64, 32)), jnp.array([60]))
