"""Video Mobile-Former: the image model's recorded outputs, and its bridges by hand."""

from functools import partial
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe
from flax.traverse_util import flatten_dict

import vidjax
from vidjax.convert import from_state_dict
from vidjax.models import example_inputs
from vidjax.models.video_mobileformer import DynamicReLU, GlobalToLocal, LocalToGlobal, VideoMobileFormer
from vidjax.training.cost import count_macs

# Counted here: nothing exact is published.
COUNTS = {
    "video_mobileformer_tiny": (29_384, None),
    "video_mobileformer_52m": (2_898_372, None),
    "video_mobileformer_96m": (3_877_420, None),
    "video_mobileformer_151m": (6_912_188, None),
    "video_mobileformer_214m": (8_572_240, None),
    "video_mobileformer_294m": (10_397_632, None),
    "video_mobileformer_508m": (12_993_432, None),
}


def of_golden() -> tuple[VideoMobileFormer, recipe.Golden]:
    golden = recipe.load("mobileformer")
    fields = golden.config | {name: tuple(golden.config[name]) for name in ("first", "blocks")}
    return VideoMobileFormer(**fields | {"blocks": tuple(map(tuple, fields["blocks"]))}), golden


def test_a_clip_of_one_frame_is_seen_as_the_image_model_sees_it():
    model, golden = of_golden()
    variables = from_state_dict(model, golden.weights, strict=True, inflation="central")
    video = jnp.moveaxis(jnp.asarray(golden.inputs[0]), 1, -1)[:, None]
    expected = golden.outputs["output0"]
    np.testing.assert_allclose(
        jax.jit(model.apply)(variables, video), expected, rtol=0, atol=1e-5 * np.abs(expected).max()
    )


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("52m", 3.5),
        pytest.param("151m", 7.6, marks=pytest.mark.long),
        pytest.param("508m", 14.0, marks=pytest.mark.long),
    ],
)
def test_sizes_and_costs_are_those_of_the_image_model(name, millions):
    """Its published parameters, with kernels of one frame and 1000 classes, and the cost in its name.

    The cost of 52m is 5.2 % lower: products with the slopes of the ReLUs and in batch norm are not counted here.
    """
    model = vidjax.create_model(f"video_mobileformer_{name}", num_classes=1000, num_frames=1)
    video = example_inputs(model)[0]
    shapes = jax.eval_shape(model.init, jax.random.key(0), video)
    flat = {path: leaf.shape for path, leaf in flatten_dict(shapes["params"], sep="/").items()}
    frames = {path: shape[0] if len(shape) == 5 else 1 for path, shape in flat.items()}
    assert sum(prod(shape) / frames[path] for path, shape in flat.items()) / 1e6 == pytest.approx(millions, abs=0.051)
    apply = partial(model.apply, capture_intermediates=True, mutable=["intermediates"])
    traced, (_, state) = jax.make_jaxpr(apply, return_shape=True)(shapes, video)
    outputs = flatten_dict(state["intermediates"], sep="/")
    deep = [path.removesuffix("/kernel") for path, count in frames.items() if count == 3]
    beyond = sum(2 * 9 * outputs[f"{path}/__call__"][0].size for path in deep)  # of the frames before and after
    assert (count_macs(traced) - beyond) / 1e6 == pytest.approx(float(name[:-1]), rel=0.053)


def test_depthwise_kernels_alone_span_frames():
    model, golden = of_golden()
    params = flatten_dict(from_state_dict(model, golden.weights)["params"], sep="/")
    spans = {path for path, value in params.items() if path.endswith("kernel") and value.ndim == 5 and len(value) > 1}
    assert spans == {f"block_{i}/conv{n}/kernel" for i, n in ((0, 1), (1, 1), (1, 3), (2, 2), (3, 1), (3, 3), (4, 2))}
    image = golden.weights["features.2.conv2.0.weight"]  # averaged over three frames
    np.testing.assert_allclose(params["block_2/conv2/kernel"][2, :, :, 0], np.moveaxis(image[:, 0], 0, -1) / 3)


# The bridges, by hand: two channels, each a head, two places and two tokens of two features.
PLACES = np.array([[1.0, 3.0], [5.0, 7.0]], np.float32)
TOKENS = np.array([[0.0, 2.0], [1.0, -1.0]], np.float32)


def run(module, params: dict, *inputs: np.ndarray) -> np.ndarray:
    params = jax.tree.map(jnp.asarray, params)
    return module.apply({"params": params}, *(jnp.asarray(x)[None] for x in inputs))[0]


def linear(*rows: tuple[float, ...], bias: tuple[float, ...] | None = None) -> dict:
    kernel = np.array(rows, np.float32)
    return {"kernel": kernel, "bias": np.array(bias or (0.0,) * kernel.shape[1], np.float32)}


def test_tokens_read_the_features_as_they_are():
    """Queries of 0 take the mean, queries of log(3) / 4 weigh the second place (4 more) three times the first."""
    log3 = float(np.log(3.0)) / 4
    params = {
        "query": linear((0.0, 0.0), (log3, 0.0)),  # of the tokens: (2 log3, 0) and (-log3, 0)
        "gate": linear((0.0, 0.0), (0.0, 0.0)),  # twice the hard sigmoid of 0, so 1
        "out": linear((1.0, 0.0), (0.0, 1.0)),
        "norm": {"scale": np.ones(2, np.float32), "bias": np.zeros(2, np.float32)},
    }
    read = np.array([[(1 + 9 * 5) / 10, 5.0], [(3 * 1 + 5) / 4, 5.0]])  # weights 1 to 3 squared, and 3 to 1
    sums = TOKENS + read
    centred = sums - sums.mean(axis=-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    features = PLACES[None, None]  # a frame of one row
    np.testing.assert_allclose(run(LocalToGlobal(), params, TOKENS, features), expected, atol=1e-5)
    halved = params | {"gate": linear((0.0, 0.0), (0.0, 0.0), bias=(-1.5, -1.5))}
    sums = TOKENS + read / 2
    centred = sums - sums.mean(axis=-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(run(LocalToGlobal(), halved, TOKENS, features), expected, atol=1e-5)


def test_features_read_the_tokens_without_a_projection_of_their_own():
    """The first head's keys are 0 and log(2), so that place x weighs the second token 2^x times the first."""
    log2 = float(np.log(2.0))
    params = {"key": linear((0.0, 0.0), (0.0, 0.0)), "value": linear((10.0, 0.0), (0.0, 1.0))}
    params["key"] = linear((log2, 0.0), (0.0, 0.0))  # keys (0, 0) and (log2, 0); values (0, 2) and (10, -1)
    expected = PLACES + np.array([[10 * 2 / 3, 0.5], [10 * 32 / 33, 0.5]])
    out = run(GlobalToLocal(), params, PLACES[None, None], TOKENS)
    np.testing.assert_allclose(out[0, 0], expected, rtol=1e-5)


def test_slopes_of_the_relu_depend_on_the_first_token():
    """At the start it is a ReLU; by hand with slopes 1.5 and -0.5 for positive and negative values."""
    x = np.array([-2.0, 4.0], np.float32)[None, None, None]
    tokens = np.arange(8.0, dtype=np.float32).reshape(2, 4)
    params = {"squeeze": linear(*[(1.0,)] * 4), "slopes": linear((0.0,) * 4)}
    np.testing.assert_allclose(run(DynamicReLU(), params, x, tokens)[0, 0, 0], [0.0, 4.0])
    params["slopes"] = linear((0.25, 0.25, -0.25, -0.25))  # the squeezed token is 6; a sixth of 1.5 is added to a half
    np.testing.assert_allclose(run(DynamicReLU(), params, x, tokens)[0, 0, 0], [1.0, 6.0])


def test_stages_halve_height_and_width_and_keep_time():
    model = vidjax.create_model("video_mobileformer_tiny")
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 32, 32, 3)))
    video = jax.ShapeDtypeStruct((2, 5, 40, 24, 3), jnp.float32)
    maps = jax.eval_shape(lambda *inputs: model.apply(*inputs, method="stages"), variables, video)
    assert [m.shape for m in maps] == [(2, 5, 20, 12, 8), (2, 5, 10, 6, 12)]
