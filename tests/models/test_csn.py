"""CSN against the recorded outputs of PyTorchVideo and mmaction2."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe
from flax.traverse_util import flatten_dict

from vidjax.convert import from_state_dict
from vidjax.errors import UserError
from vidjax.models import create_model, variable_shapes
from vidjax.models.csn import Bottleneck, ChannelSeparatedNetwork

# Parameters, and GMACs of one clip where they are published (SYSTEMS-2.md); see test_published.py.
COUNTS = {
    "ircsn_50": (13_131_152, 42.308),
    "ircsn_152": (29_703_568, 74.045),
    "ircsn_152_vmz": (29_703_568, 74.045),
    "ipcsn_152": (33_016_592, 83.294),
    "ipcsn_152_vmz": (33_016_592, 83.294),
    "ircsn_101_pytorchvideo": (22_213_776, 56.468),
    "ircsn_50_pytorchvideo": (13_131_152, 42.308),
    "ircsn_152_pytorchvideo": (29_703_568, 74.045),
    "ircsn_101": (22_213_776, 56.468),
    # Counted here.
    "ipcsn_50": (14_396_176, None),
    "ipcsn_101": (24_601_616, None),
    "ircsn_tiny": (85_024, None),
    "ircsn_tiny_pytorchvideo": (85_024, None),
    "ipcsn_tiny": (90_704, None),
}


def test_equals_pytorchvideo():
    golden = recipe.load("csn")
    model = ChannelSeparatedNetwork(width=24, dialect="pytorchvideo", num_classes=7, num_frames=8, image_size=64)
    variables = from_state_dict(model, golden.weights, strict=True)
    logits = jax.jit(model.apply)(variables, jnp.moveaxis(jnp.asarray(golden.inputs[0]), 1, -1))
    expected = golden.outputs["output0"]
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())


def test_equals_mmaction2():
    golden = recipe.load("mm_ipcsn")
    model = ChannelSeparatedNetwork("ip", width=12)
    variables = from_state_dict(model, golden.weights, strict=True)
    video = jnp.moveaxis(jnp.asarray(golden.inputs[0]), 1, -1)

    @jax.jit
    def both(variables):
        return model.apply(variables, video, method="encode"), model.apply(variables, video, method="embed")

    grid, features = both(variables)
    expected = np.moveaxis(golden.outputs["output0"], 1, -1)
    np.testing.assert_allclose(grid, expected, atol=1e-5 * np.abs(expected).max())
    # Its head averages the whole map, whatever the size of the training clips.
    np.testing.assert_allclose(features, expected.mean(axis=(1, 2, 3)), atol=1e-5 * np.abs(expected).max())


def test_the_other_kind_is_rejected():
    weights = recipe.load("mm_ipcsn").weights
    with pytest.raises(UserError, match="choose the matching model"):
        from_state_dict(ChannelSeparatedNetwork("ir", width=12), weights)


@pytest.mark.parametrize(("name", "preserved"), [("ircsn_152", 0), ("ipcsn_152", 50)])
def test_channels_interact_only_in_pointwise_convolutions(name, preserved):
    model = create_model(name)
    shapes = variable_shapes(model)["params"]
    kernels = {path: leaf.shape for path, leaf in flatten_dict(shapes, sep="/").items() if path.endswith("/kernel")}
    blocks = {path: shape for path, shape in kernels.items() if path.startswith("group_")}
    assert all(shape[:4] == (3, 3, 3, 1) or shape[:3] == (1, 1, 1) for shape in blocks.values())
    assert sum(shape[:3] == (3, 3, 3) for shape in blocks.values()) == 50  # one a block
    assert sum("interaction" in path for path in blocks) == preserved


def test_channels_do_not_mix_in_the_middle_of_a_reduced_block():
    """With a diagonal first convolution, an input channel reaches its inner channel alone."""
    block = Bottleneck(6)
    x = jnp.asarray(recipe.floats("x", (1, 5, 5, 5, 6)))
    variables = block.init(jax.random.key(0), x, False)
    variables["params"]["conv1"]["kernel"] = jnp.eye(6)[None, None, None]

    def inner(x):
        _, kept = block.apply(variables, x, False, capture_intermediates=lambda module, _: module.name == "conv2")
        return kept["intermediates"]["conv2"]["__call__"][0]

    changed = jnp.abs(inner(x.at[0, 2, 2, 2, 4].add(10.0)) - inner(x)) > 1e-6
    assert changed[0, 1:4, 1:4, 1:4, 4].all() and changed.sum() == 27
