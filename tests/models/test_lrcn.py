"""LRCN against a plain reference in PyTorch with the layers and blobs of Caffe."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe
from small_models import perturbed

import vidjax
from vidjax.convert import from_state_dict, layouts
from vidjax.convert.export import entries
from vidjax.models.lrcn import LAYERS, LRCN, POOLED

# Parameters, by closed form: kernels (of half the channels where there are two groups) and biases.
COUNTS = {
    "lrcn": (
        96 * (3 * 49 + 1) + 384 * (48 * 25 + 1) + 512 * (384 * 9 + 1) + 512 * (256 * 9 + 1) + 384 * (256 * 9 + 1)
        + 4096 * (384 * 36 + 1) + 4 * 256 * (4096 + 256 + 1) + 101 * (256 + 1),
        None,
    ),
    "lrcn_caffenet": (
        96 * (3 * 121 + 1) + 256 * (48 * 25 + 1) + 384 * (256 * 9 + 1) + 384 * (192 * 9 + 1) + 256 * (192 * 9 + 1)
        + 4096 * (256 * 36 + 1) + 4 * 256 * (4096 + 256 + 1) + 101 * (256 + 1),
        None,
    ),
    # Counted here.
    "lrcn_tiny": (549_488, None),
    "lrcn_tiny_caffenet": (540_904, None),
}  # fmt: skip

NARROW = LRCN(width=6, hidden=8, units=4, num_classes=5, image_size=99)  # its last map has 2x2 cells


def caffe_weights(model: LRCN) -> dict[str, np.ndarray]:
    """Blobs by layer and index."""
    shapes, inputs = {}, 3
    for name, layer in LAYERS[model.network].items():
        features = layer.features * model.width // 96
        shapes[f"{name}.0"], shapes[f"{name}.1"] = (features, inputs // layer.groups, *[layer.kernel] * 2), (features,)
        inputs = features
    units, hidden = model.units, model.hidden
    shapes |= {"fc6.0": (hidden, 4 * inputs), "fc6.1": (hidden,)}
    shapes |= {"lstm1.0": (4 * units, hidden), "lstm1.1": (4 * units,), "lstm1.2": (4 * units, units)}
    shapes |= {"fc8-final.0": (model.num_classes, units), "fc8-final.1": (model.num_classes,)}
    return {name: recipe.parameter(name, shape) for name, shape in shapes.items()}


def reference(model: LRCN, weights: dict[str, np.ndarray], video: np.ndarray) -> np.ndarray:
    """Probabilities of each frame, from frames of BGR pixels `b t c h w`."""
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    blob = {name: torch.from_numpy(value) for name, value in weights.items()}
    x = torch.from_numpy(video).flatten(0, 1)
    for name, layer in LAYERS[model.network].items():
        x = F.relu(F.conv2d(x, blob[f"{name}.0"], blob[f"{name}.1"], layer.stride, layer.padding, groups=layer.groups))
        x = F.max_pool2d(x, 3, 2, ceil_mode=True) if name in POOLED else x
        x = F.local_response_norm(x, 5, 1e-4, 0.75, 1.0) if name in ("conv1", "conv2") else x
    x = F.relu(F.linear(x.flatten(1), blob["fc6.0"], blob["fc6.1"])).unflatten(0, video.shape[:2])
    hidden = cell = torch.zeros(len(video), model.units)
    probabilities = []
    for t in range(x.shape[1]):
        gates = F.linear(x[:, t], blob["lstm1.0"], blob["lstm1.1"]) + F.linear(hidden, blob["lstm1.2"])
        i, f, o, g = gates.chunk(4, dim=1)  # Caffe's order
        cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
        hidden = o.sigmoid() * cell.tanh()
        probabilities.append(F.softmax(F.linear(hidden, blob["fc8-final.0"], blob["fc8-final.1"]), dim=1))
    return torch.stack(probabilities, 1).numpy()


@pytest.mark.parametrize("network", ["hybrid", "caffenet"])
def test_equals_a_plain_network_in_pytorch_with_caffes_layers(network):
    model = NARROW.clone(network=network)
    weights = caffe_weights(model)
    video = 3 * recipe.floats("video", (2, 3, 99, 99, 3))
    expected = reference(model, weights, np.ascontiguousarray(np.moveaxis(video[..., ::-1], -1, 2)))
    variables = from_state_dict(model, weights, strict=True)

    @jax.jit
    def both(variables):
        clip = jnp.asarray(video)
        return model.apply(variables, clip), model.apply(variables, clip, method="frames")

    logits, of_frames = both(variables)
    np.testing.assert_allclose(jax.nn.softmax(of_frames), expected, atol=1e-5)
    np.testing.assert_allclose(jnp.exp(logits), expected.mean(axis=1), atol=1e-5)  # as the mean of probabilities
    assert np.ptp(expected, axis=1).max() > 0.01  # frames differ

    written = entries(layouts(model)[0], model, variables)
    assert written.keys() == weights.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(written[name], value, err_msg=name)


def test_a_frame_is_classified_from_the_frames_before_it():
    model = vidjax.create_model("lrcn_tiny", num_classes=3)
    variables = perturbed(model)
    video = jnp.asarray(recipe.floats("frames", (1, 4, 67, 67, 3)))
    frames = jax.jit(lambda video: model.apply(variables, video, method="frames"))
    changed = np.abs(frames(video) - frames(video.at[:, 2].add(1.0)))[0].max(axis=-1)
    assert (changed[:2] == 0).all() and (changed[2:] > 0).all()


def test_a_passed_head_sees_the_mean_output_and_classes_need_a_head():
    video = jnp.zeros((1, 4, 67, 67, 3))
    features = vidjax.create_model("lrcn_tiny")
    with pytest.raises(ValueError, match="the model has no classes: set num_classes"):
        jax.eval_shape(lambda: features.init(jax.random.key(0), video, method="frames"))
    assert jax.eval_shape(features.init_with_output, jax.random.key(0), video)[0].shape == (1, 256)


def test_the_mean_cross_entropy_of_frames_is_lowered_by_training():
    model = vidjax.create_model("lrcn_tiny", num_classes=3)
    video, labels = jnp.asarray(recipe.floats("clips", (4, 2, 67, 67, 3))), jnp.array([0, 2, 1, 0])

    @jax.jit
    def step(params):
        def loss(params):
            logits = model.apply({"params": params}, video, train=True, method="frames")
            return -jax.nn.log_softmax(logits)[jnp.arange(4), :, labels].mean()

        value, grads = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value, grads

    params, losses = perturbed(model)["params"], []
    for _ in range(5):
        params, value, grads = step(params)
        losses.append(float(value))
    assert losses[-1] < losses[0] and all(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads))


def test_dropout_acts_only_in_training():
    model = vidjax.create_model("lrcn_tiny", num_classes=3, dropout=0.9, unit_dropout=0.5)
    variables = perturbed(model)
    video = jnp.asarray(recipe.floats("clips", (1, 2, 67, 67, 3)))
    train = jax.jit(lambda key: model.apply(variables, video, train=True, rngs={"dropout": key}))
    one, same, other = (train(jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)
