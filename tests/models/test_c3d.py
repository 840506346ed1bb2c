"""C3D against recorded outputs of mmaction2 and a plain reference in PyTorch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe

from vidjax.convert import from_state_dict
from vidjax.models.c3d import C3D

# Parameters of each row, and GMACs per clip if published (SYSTEMS.md); see test_published.py.
COUNTS = {
    "c3d": (79_991_015, 38.549),
    # Counted here, because no exact numbers are published.
    "c3d_tiny": (453_600, None),
}
# Variants with other fields: row, parameters, GMACs, fields.
COUNTS_WITH_FIELDS = {
    "c3d of 400 classes": ("c3d", 79_634_576, None, {"num_classes": 400}),
    "c3d of 101 classes": ("c3d", 78_409_573, 38.547, {"num_classes": 101}),
}

NARROW = C3D(width=4, hidden=16, num_classes=5, image_size=48)
WIDTHS = {
    "conv1": (4, 3), "conv2": (8, 4), "conv3a": (16, 8), "conv3b": (16, 16),
    "conv4a": (32, 16), "conv4b": (32, 32), "conv5a": (32, 32), "conv5b": (32, 32),
}  # fmt: skip


@pytest.mark.long  # of full size
def test_equals_mmaction2():
    golden = recipe.load("mm_c3d")
    model = C3D()
    variables = from_state_dict(model, golden.weights, strict=True)
    video = jnp.moveaxis(jnp.asarray(golden.inputs[0][:1]), 1, -1)
    expected = golden.outputs["output0"][:1]
    np.testing.assert_allclose(jax.jit(model.apply)(variables, video), expected, atol=1e-5 * np.abs(expected).max())


def port_weights() -> dict[str, np.ndarray]:
    """Weights of a narrow network with the parameter names of the PyTorch ports."""
    shapes = {f"{name}.weight": (*shape, 3, 3, 3) for name, shape in WIDTHS.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in WIDTHS.items()}
    for name, shape in {"fc6": (16, 32 * 2 * 2), "fc7": (16, 16), "fc8": (5, 16)}.items():
        shapes |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return {name: recipe.parameter(name, shape) for name, shape in shapes.items()}


def test_equals_a_plain_network_in_pytorch():
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    weights = port_weights()
    tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
    video = recipe.floats("video", (2, 3, 16, 48, 48))
    x = torch.from_numpy(video)
    for name in WIDTHS:
        x = F.relu(F.conv3d(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"], padding=1))
        if name == "conv1":
            x = F.max_pool3d(x, (1, 2, 2))
        elif name in ("conv2", "conv3b", "conv4b"):
            x = F.max_pool3d(x, 2)
    x = F.max_pool3d(x, 2, padding=(0, 1, 1)).flatten(1)
    for name in ("fc6", "fc7"):
        x = F.relu(F.linear(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"]))
    expected = F.linear(x, tensors["fc8.weight"], tensors["fc8.bias"]).numpy()
    variables = from_state_dict(NARROW, weights, strict=True)
    logits = jax.jit(NARROW.apply)(variables, jnp.moveaxis(jnp.asarray(video), 1, -1))
    np.testing.assert_allclose(logits, expected, atol=1e-5 * max(1, np.abs(expected).max()))


def test_dropout_acts_only_in_training():
    variables = from_state_dict(NARROW, port_weights(), strict=True)
    video = jnp.asarray(recipe.floats("clip", (1, 16, 48, 48, 3)))
    train = jax.jit(lambda key: NARROW.apply(variables, video, train=True, rngs={"dropout": key}))
    one, same, other = (train(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)


def test_clips_of_another_size_are_rejected():
    with pytest.raises(ValueError, match=r"made for .*set its fields num_frames and image_size"):
        jax.eval_shape(NARROW.init, jax.random.key(0), jnp.zeros((1, 16, 64, 64, 3)))
    wide = NARROW.clone(image_size=64, num_frames=32)
    shapes = jax.eval_shape(wide.init, jax.random.key(0), jnp.zeros((1, 32, 64, 64, 3)))
    features = jax.eval_shape(partial(wide.apply, method="encode"), shapes, jnp.zeros((1, 32, 64, 64, 3)))
    assert features.shape == (1, 2, 3, 3, 32)


def test_initialisation_follows_mmaction2():
    params = jax.jit(C3D(width=16, hidden=64, image_size=32).init)(jax.random.key(0), jnp.zeros((1, 16, 32, 32, 3)))
    kernel = params["params"]["conv5a"]["kernel"]
    assert kernel.std() == pytest.approx((2 / (128 * 27)) ** 0.5, rel=0.03)
    assert params["params"]["fc6"]["kernel"].std() == pytest.approx(0.005, rel=0.03)
