"""X3D against the recorded outputs of SlowFast and PyTorchVideo."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe
from flax.traverse_util import flatten_dict
from small_models import perturbed

from vidjax.convert import from_state_dict
from vidjax.convert.export import entries
from vidjax.convert.x3d import MMACTION2
from vidjax.models import create_model, variable_shapes
from vidjax.models.x3d import X3D, Block, squeezed_width

# Parameters, and GMACs of one clip where they are published (SYSTEMS-2.md); see test_published.py.
COUNTS = {
    "x3d_xs": (3_794_322, 0.605),
    "x3d_s": (3_794_322, 1.963),
    "x3d_m": (3_794_322, 4.732),
    "x3d_l": (6_153_432, 18.368),
    "x3d_xs_pytorchvideo": (3_794_274, 0.605),
    "x3d_s_pytorchvideo": (3_794_274, 1.963),
    "x3d_m_pytorchvideo": (3_794_274, 4.732),
    "x3d_l_pytorchvideo": (6_153_384, 18.368),
    "x3d_s_mmaction2": (3_794_322, 1.963),
    "x3d_m_mmaction2": (3_794_322, 4.732),
    # Counted here.
    "x3d_tiny": (16_397, None),
    "x3d_tiny_pytorchvideo": (16_381, None),
    "x3d_tiny_mmaction2": (16_397, None),
}

# Expanded by 1.5 in width, 1.2 in depth; the golden clips are larger than these sizes.
EXPANDED = {"depths": (2, 3, 6, 4), "head_width": 96, "num_classes": 7, "image_size": 64}
SLOWFAST = X3D((18, 36, 72, 144), stem_width=18, num_frames=6, **EXPANDED)
PYTORCHVIDEO = X3D((24, 40, 72, 144), stem_width=24, num_frames=5, dialect="pytorchvideo", **EXPANDED)


def test_equals_slowfast():
    golden = recipe.load("x3d_m")
    variables = from_state_dict(SLOWFAST, golden.weights, strict=True)
    video = jnp.moveaxis(jnp.asarray(golden.inputs[0]), 1, -1)

    @jax.jit
    def both(variables):
        features, head = SLOWFAST.apply(variables, video, method="positions"), variables["params"]["head"]
        return SLOWFAST.apply(variables, video), features @ head["kernel"] + head["bias"]

    output, logits = both(variables)
    scores, expected = golden.outputs["output0"], golden.outputs["output1"]
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(jnp.exp(output), scores, atol=1e-5 * scores.max())


def test_equals_pytorchvideo():
    golden = recipe.load("x3d_s_pytorchvideo")
    variables = from_state_dict(PYTORCHVIDEO, golden.weights, strict=True)
    logits = jax.jit(PYTORCHVIDEO.apply)(variables, jnp.moveaxis(jnp.asarray(golden.inputs[0]), 1, -1))
    expected = golden.outputs["output0"]
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())


def test_mmaction2_has_slowfasts_weights_under_other_names():
    variables = from_state_dict(SLOWFAST, recipe.load("x3d_m").weights, strict=True)
    model = SLOWFAST.clone(dialect="mmaction2")
    renamed = entries(MMACTION2, model, variables)
    assert renamed["backbone.conv1_s.conv.weight"].shape == (18, 3, 1, 3, 3)
    assert renamed["backbone.conv1_t.conv.weight"].shape == (18, 1, 5, 1, 1)
    assert renamed["backbone.layer4.3.conv2.conv.weight"].shape == (324, 1, 3, 3, 3)
    assert renamed["backbone.layer1.0.se_module.fc1.weight"].shape == (8, 40, 1, 1, 1)
    assert renamed["cls_head.fc1.weight"].shape == (96, 324)  # a linear layer there
    jax.tree.map(np.testing.assert_array_equal, from_state_dict(model, renamed, strict=True), variables)


def test_mmaction2s_head_averages_the_whole_map():
    model = create_model("x3d_tiny_mmaction2", num_classes=5, num_frames=2, image_size=32)
    variables = perturbed(model)
    video = jnp.asarray(recipe.floats("video", (1, 3, 64, 64, 3)))

    @jax.jit
    def both(variables):
        return model.apply(variables, video), model.apply(variables, video, method="encode")

    logits, grid = both(variables)
    assert grid.shape == (1, 3, 2, 2, 24)
    params, statistics = variables["params"], variables["batch_stats"]["head_norm"]
    x = grid @ params["head_conv"]["kernel"][0, 0, 0]
    x = (x - statistics["mean"]) / np.sqrt(statistics["var"] + 1e-5)
    x = np.maximum(x * params["head_norm"]["scale"] + params["head_norm"]["bias"], 0).mean(axis=(1, 2, 3))
    x = np.maximum(x @ params["head_hidden"]["kernel"], 0)
    np.testing.assert_allclose(logits, x @ params["head"]["kernel"] + params["head"]["bias"], atol=1e-5)


def shapes_of(name: str) -> dict:
    model = create_model(name)
    return flatten_dict(variable_shapes(model)["params"], sep="/")


def test_every_other_block_squeezes():
    assert [squeezed_width(width) for width in (54, 108, 216, 432)] == [8, 8, 16, 32]
    assert squeezed_width(169) == 16  # 8 would be below nine tenths of 10.6
    paths = {path.split("/")[0] for path in shapes_of("x3d_m") if "/squeeze/reduce/kernel" in path}
    assert paths == {f"group_{g}_{i}" for g, depth in enumerate((3, 5, 11, 7)) for i in range(0, depth, 2)}


def test_pytorchvideo_lacks_the_norm_of_the_first_shortcut():
    lacking = shapes_of("x3d_tiny").keys() - shapes_of("x3d_tiny_pytorchvideo").keys()
    assert lacking == {"group_0_0/shortcut_norm/scale", "group_0_0/shortcut_norm/bias"}


def test_initialisation_follows_slowfast():
    block = Block(64, 144, 2, squeeze=True)
    params = jax.jit(block.init, static_argnums=2)(jax.random.key(0), jnp.zeros((1, 1, 4, 4, 24)), False)["params"]
    for name, fan_out in (("conv1", 144), ("conv2", 27 * 144), ("conv3", 64), ("shortcut", 64)):
        assert np.std(params[name]["kernel"]) == pytest.approx((2 / fan_out) ** 0.5, rel=0.05), name
    assert not params["norm3"]["scale"].any() and params["norm1"]["scale"].all() and params["norm2"]["scale"].all()
    assert not any(params["squeeze"][name]["bias"].any() for name in ("reduce", "expand"))
