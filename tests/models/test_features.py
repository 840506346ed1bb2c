"""Features of every family: the grid of `encode`, the input of the head, stages, and custom heads."""

from functools import lru_cache, partial
from itertools import pairwise

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import vidjax
from vidjax.models import FAMILIES, VARIANTS, example_inputs, variable_shapes
from vidjax.models.videomae import VideoMAE

# One row of each family, and rows with another grid.
ODD = {"timesformer_tiny_space", "vivit_tiny_factorized_encoder", "videomae_tiny_pretrain"}
TINY = sorted(ODD.union(min(name for name in family.VARIANTS if "_tiny" in name) for family in FAMILIES))
CLASSIFIERS = [name for name in TINY if "num_classes" in VARIANTS[name]().__dataclass_fields__]
STAGED = [name for name in TINY if hasattr(vidjax.create_model(name), "stages")]
STAGES = dict.fromkeys(("video_mobileformer_tiny", "video_swin_tiny", "vivit_tiny_factorized_encoder"), 2)
STAGES |= {"c3d_tiny": 5, "i3d_tiny": 5}
"""Numbers of scales other than four."""


class Pair(nn.Module):
    """A head with two outputs."""

    @nn.compact
    def __call__(self, features):
        return nn.Dense(2, name="point")(features), nn.Dense(1, name="score")(features)[..., 0]


@lru_cache
def shapes_of(model, method=None, batch=2):
    """Shapes of the model's outputs for clips of its own size."""
    inputs = [jax.ShapeDtypeStruct((batch, *x.shape[1:]), x.dtype) for x in example_inputs(model)]
    inputs = inputs if method is None else inputs[:1]
    return jax.eval_shape(partial(model.apply, method=method), variable_shapes(model), *inputs)


def filled(model):
    """Random variables."""
    shapes = flatten_dict(variable_shapes(model), sep="/")
    draw = np.random.default_rng(1)
    flat = {path: 0.3 * draw.standard_normal(leaf.shape).astype(np.float32) for path, leaf in shapes.items()}
    flat = {path: abs(value) + 1 if path.endswith("/var") else value for path, value in flat.items()}
    return jax.tree.map(jnp.asarray, nest(flat))


def nest(flat):
    nested = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
        place[name] = value
    return nested


@pytest.mark.parametrize("name", TINY)
def test_encode_returns_features_on_the_space_time_grid(name):
    model = vidjax.create_model(name)
    encoded = shapes_of(model, "encode")
    video = example_inputs(model)[0].shape
    assert encoded.ndim == 5 and encoded.shape[0] == 2
    tower = getattr(model, "video", model)
    patch = getattr(getattr(tower, "image", tower), "patch_size", None)
    if name in ("video_swin_tiny", "bevt_tiny"):  # patches are merged
        patch = (patch[0], 2 * patch[1], 2 * patch[2])
    expected = None if patch is None else tuple(side // p for side, p in zip(video[1:4], patch, strict=True))
    if name == "timesformer_tiny_space":  # averaged over time
        expected = (1, *expected[1:])
    if name == "vivit_tiny_factorized_encoder":  # one token per frame
        expected = (expected[0], 1, 1)
    assert encoded.shape[1:4] == (expected or encoded.shape[1:4])
    assert all(1 <= cells <= side for cells, side in zip(encoded.shape[1:4], video[1:4], strict=True))


@pytest.mark.parametrize("name", STAGED)
def test_stages_are_grids_from_the_finest_to_that_of_encode(name):
    model = vidjax.create_model(name)
    stages, encoded = shapes_of(model, "stages"), shapes_of(model, "encode")
    assert len(stages) == STAGES.get(name, 4) and stages[-1] == encoded
    sizes = [np.array(stage.shape[1:4]) for stage in stages]
    assert all((finer >= coarser).all() for finer, coarser in pairwise(sizes))
    assert all((finer > coarser).any() for finer, coarser in pairwise(sizes))


def test_the_last_stage_equals_the_output_of_encode():
    for name in ("uniformer_tiny", "vivit_tiny_factorized_encoder"):
        model = vidjax.create_model(name)
        video = jnp.asarray(np.random.default_rng(0).standard_normal(example_inputs(model)[0].shape), jnp.float32)
        variables = filled(model)
        stages, encoded = jax.jit(
            lambda v, x, m=model: tuple(m.apply(v, x, method=way) for way in ("stages", "encode"))
        )(variables, video)
        np.testing.assert_array_equal(stages[-1], encoded)
        assert stages[0].shape[2:4] != (1, 1)


def test_grid_positions_correspond_to_patches():
    """Without blocks, a token is an embedded patch: a bright patch appears at its frame, row and column."""
    model = VideoMAE(8, 0, 1, patch_size=(2, 4, 4))
    video = jnp.zeros((1, 6, 8, 12, 3))
    variables = model.init(jax.random.key(0), video)
    encode = partial(model.apply, variables, method="encode")
    changed = encode(video.at[0, 4:6, 0:4, 8:12].set(1.0)) != encode(video)
    assert changed.shape == (1, 3, 2, 3, 8)
    assert {tuple(map(int, place)) for place in np.argwhere(np.asarray(changed[0].any(axis=-1)))} == {(2, 0, 2)}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_a_custom_head_replaces_the_linear_layer(name):
    model = vidjax.create_model(name, num_classes=3, head=Pair())
    variables = variable_shapes(model)
    point, score = shapes_of(model)
    assert point.shape == (2, 2) and score.shape == (2,)
    assert set(variables["params"]["head"]) == {"point", "score"}
    features = model.clone(num_classes=None, head=None)  # without the head's parameters, which are not read
    inputs = example_inputs(model)
    output, embedded = (
        jax.eval_shape(partial(features.apply, method=way), variables, *inputs) for way in (None, "embed")
    )
    assert output.shape == embedded.shape


def test_a_variant_without_classes_uses_a_custom_head():
    model = vidjax.create_model("videomae_tiny", head=nn.Dense(7))
    assert model.num_classes is None and shapes_of(model).shape == (2, 7)


def test_a_head_must_be_a_module():
    with pytest.raises(ValueError, match="head of model 'vit_tiny' is 'mlp': it must be"):
        vidjax.create_model("vit_tiny", head="mlp")


def test_weights_of_a_classifier_load_with_another_head(tmp_path):
    """Only the head is newly initialised, as for another number of classes."""
    model = vidjax.create_model("videomae_tiny", num_classes=3)
    variables = filled(model)
    vidjax.save_pretrained(tmp_path / "saved", model, variables)
    other, loaded = vidjax.load_pretrained(tmp_path / "saved", "videomae_tiny", head=Pair(), verbose=False)
    assert isinstance(other.head, Pair) and set(loaded["params"]["head"]) == {"point", "score"}
    old, new = (flatten_dict(v["params"], sep="/") for v in (variables, loaded))
    for path in old.keys() - {"head/kernel", "head/bias"}:
        np.testing.assert_array_equal(old[path], new[path], err_msg=path)
