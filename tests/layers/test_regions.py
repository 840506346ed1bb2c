"""RoIAlign in eight settings and the head for AVA, against recorded outputs of torchvision and SlowFast."""

import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe

from vidjax.layers.regions import RegionHead, roi_align

SETTINGS = [
    (aligned, samples, bins, scale)
    for aligned in (True, False)
    for samples in (0, 2)
    for bins, scale in (((3, 3), 0.25), ((2, 5), 0.125))
]


@pytest.mark.parametrize("number", range(8))
def test_equals_torchvision(number):
    aligned, samples, bins, scale = SETTINGS[number]
    golden = recipe.load("roi_align")
    described = json.loads((recipe.HERE / "roi_align.json").read_text())["outputs"][number]
    assert (
        described.startswith(f"aligned={aligned}, sampling_ratio={samples} ")
        and f"{bins}, spatial_scale {scale}" in described
    )
    features, boxes = np.moveaxis(golden.inputs[0], 1, -1), golden.inputs[1]
    align = partial(roi_align, bins=bins, scale=scale, samples=samples, aligned=aligned, most=12)
    regions = jax.jit(align)(jnp.asarray(features[boxes[:, 0].astype(int)]), jnp.asarray(boxes[:, None, 1:]))
    expected = golden.outputs[f"output{number}"]
    np.testing.assert_allclose(jnp.moveaxis(regions[:, 0], -1, 1), expected, atol=1e-5)


def test_a_box_inside_the_map_needs_no_more_points_than_the_default():
    features = jax.random.normal(jax.random.key(0), (1, 9, 14, 2))
    boxes = jnp.array([[[0.0, 0.0, 14.0, 9.0], [1.5, 2.0, 9.0, 8.5]]])
    align = partial(roi_align, features, boxes, (2, 2), 1.0)
    np.testing.assert_allclose(align(), align(most=40), atol=1e-6)


def test_the_head_equals_slowfasts():
    golden = recipe.load("ava_roi_head")
    c, (slow, fast, boxes) = golden.config, golden.inputs
    head = RegionHead(c["classes"], c["resolution"], 1 / c["scale_factor"], c["aligned"])
    params = {"classes": {"kernel": golden.weights["projection.weight"].T, "bias": golden.weights["projection.bias"]}}
    clips = boxes[:, 0].astype(int)
    pathways = [jnp.moveaxis(jnp.asarray(x[clips]), 1, -1) for x in (slow, fast)]
    logits = head.apply({"params": params}, pathways, jnp.asarray(boxes[:, None, 1:]))
    np.testing.assert_allclose(jax.nn.sigmoid(logits[:, 0]), golden.outputs["output0"], atol=1e-5)
