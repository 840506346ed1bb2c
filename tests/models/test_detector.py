"""A detector is its backbone and a head on the boxes: SlowFast's on AVA, and on any network with places."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe
from flax.traverse_util import flatten_dict
from small_runs import draw_variables

import vidjax
from vidjax.convert import from_state_dict
from vidjax.errors import UserError
from vidjax.models import variable_shapes
from vidjax.models.detector import Detector
from vidjax.models.slowfast import SlowFast


def shape_of(name, stage=1, **fields):
    """The shape of the first map that the head sees, without computing it."""
    model = Detector(vidjax.create_model(name, **fields), 5, stage)
    video = jax.ShapeDtypeStruct(model.example_inputs()[0].shape, jnp.float32)

    def maps(video):
        return model.init_with_output(jax.random.key(0), video, method="maps")[0]

    return tuple(each.shape for each in jax.eval_shape(maps, video))


@pytest.mark.long
@pytest.mark.parametrize(("name", "parameters"), [("slowfast_50_8x8", 33_828_888), ("slow_50_8x8", 31_798_416)])
def test_published_detectors_have_as_many_parameters(name, parameters):
    backbone = vidjax.create_model(name, num_classes=None, dilated=True)
    shapes = variable_shapes(Detector(backbone, 80))["params"]
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == parameters


def test_slowfasts_weights_on_ava_load():
    """Its names are those of the classifier, whose last layer is the head's."""
    golden = recipe.load("slowfast_r50")
    net = SlowFast(8, width=24, num_frames=16, image_size=64, dilated=True)
    detector = from_state_dict(Detector(net, 7), golden.weights, strict=True)
    classifier = from_state_dict(net.clone(num_classes=7), golden.weights, strict=True)
    head = classifier["params"].pop("head")
    for kind in ("params", "batch_stats"):
        ours, theirs = (flatten_dict(each, sep="/") for each in (detector[kind]["backbone"], classifier[kind]))
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    np.testing.assert_array_equal(detector["params"]["head"]["classes"]["kernel"], head["kernel"])


def test_maps_are_those_of_pathways_stages_or_tokens():
    assert shape_of("slowfast_tiny", image_size=64, dilated=True) == ((1, 2, 4, 4, 512), (1, 8, 4, 4, 64))
    assert shape_of("slow_tiny", image_size=64, dilated=True) == ((1, 8, 4, 4, 256),)
    assert shape_of("r2plus1d_tiny", stage=2) == ((1, 2, 4, 4, 32),)
    assert shape_of("videomae_tiny")[0][2:4] == shape_of("vivit_tiny_factorized_encoder", stage=2)[0][2:4] == (4, 4)


REFUSED = [
    (nn.Dense(3), {}, "Dense has neither stages nor tokens on a grid"),
    ("videomae_tiny", {"stage": 2}, "VideoMAE has 1 stages, so stage cannot be 2: lower it"),
    ("vivit_tiny_factorized_encoder", {}, "has the shape .*x1x1, too few places for boxes: take an earlier stage"),
]


@pytest.mark.parametrize(("net", "fields", "message"), REFUSED)
def test_models_without_places_are_refused(net, fields, message):
    model = Detector(vidjax.create_model(net) if isinstance(net, str) else net, 5, **fields)
    video = jax.ShapeDtypeStruct((1, 4, 48, 48, 3), jnp.float32)
    with pytest.raises(UserError, match=message):
        jax.eval_shape(lambda x: model.init_with_output(jax.random.key(0), x, method="maps")[0], video)


def test_boxes_are_fractions_and_do_not_depend_on_one_another():
    model = Detector(vidjax.create_model("slow_tiny", num_frames=2, image_size=64, dilated=True), 3, bins=2)
    variables = draw_variables(model)
    video = jnp.asarray(np.random.default_rng(0).standard_normal((2, 2, 64, 64, 3)), jnp.float32)
    boxes = jnp.array([[[0.0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9], [-1, -1, -1, -1]]] * 2)

    @jax.jit
    def outputs(variables):
        maps = model.apply(variables, video, method="maps")[0]
        one_bin = model.clone(bins=1).apply(variables, video, boxes)
        return maps, model.apply(variables, video, boxes), model.apply(variables, video, boxes[:, 1:2]), one_bin

    maps, together, alone, one_bin = outputs(variables)
    np.testing.assert_allclose(alone, together[:, 1:2], atol=1e-5)
    # One bin of the whole map, of a sample in the centre of each cell, is the mean.
    layer = variables["params"]["head"]["classes"]
    np.testing.assert_allclose(one_bin[:, 0], maps.mean(axis=(1, 2, 3)) @ layer["kernel"] + layer["bias"], atol=1e-4)
