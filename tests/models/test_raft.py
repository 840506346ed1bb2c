"""RAFT against torchvision's recorded flow, and its properties."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe
from small_models import perturbed

import vidjax
from vidjax.convert import from_state_dict, layouts
from vidjax.convert.export import entries
from vidjax.models.raft import bilinear, correlate, look_up

COUNTS = {  # in torchvision's weights enums
    "raft_small": (990_162, None),
    "raft_large": (5_257_536, None),
    "raft_tiny": (32_088, None),
}


@pytest.fixture(scope="module", params=["raft_small", pytest.param("raft_large", marks=pytest.mark.long)])
def run(request):
    golden = recipe.load(request.param)
    model = vidjax.create_model(request.param, updates=golden.config["updates"])
    variables = from_state_dict(model, golden.weights, strict=True)
    return golden, model, variables


def test_the_flow_after_each_update_equals_torchvisions(run):
    golden, model, variables = run
    video = np.clip(np.stack([np.moveaxis(image, 1, -1) for image in golden.inputs], axis=1), -2, 2) / 2
    flows, last = jax.jit(lambda v, x: (model.apply(v, x, method="flows"), model.apply(v, x)))(variables, video)
    for update, flow in enumerate(flows):
        expected = np.moveaxis(golden.outputs[f"output{update}"], 1, -1)
        np.testing.assert_allclose(flow[:, 0, 3::4, 1::4], expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(last, flows[-1], atol=1e-5)


def test_weights_return_to_torchvisions_names(run):
    golden, model, variables = run
    exported = entries(layouts(model)[0], model, variables)
    assert exported.keys() == golden.weights.keys()
    for name, value in golden.weights.items():
        np.testing.assert_array_equal(exported[name], value)


def test_what_is_looked_up_is_interpolated_with_zeros_around():
    first, second = (jnp.asarray(recipe.floats(name, (1, 1, 8, 8, 3))) for name in ("first", "second"))
    volumes = correlate(first, second)
    assert [volume.shape[-2:] for volume in volumes] == [(8, 8), (4, 4), (2, 2), (1, 1)]
    places = jnp.zeros((1, 1, 8, 8, 2)).at[0, 0, 2, 3].set(jnp.array([6.5, 4.0]))
    found = look_up(volumes, places, 1)[0, 0, 2, 3].reshape(4, 3, 3)
    volume = np.asarray(volumes[0])[0, 0, 2, 3]
    mean = (np.pad(volume, 1)[:, :-1] + np.pad(volume, 1)[:, 1:]) / 2  # halfway from column x - 1 to x
    for i, x in enumerate((6, 7, 8)):  # x comes first; between 7 and 8 half of it is outside
        np.testing.assert_allclose(found[0, i], mean[4:7, x], atol=1e-5)
    coarse = np.asarray(volumes[1])[0, 0, 2, 3]
    np.testing.assert_allclose(coarse, volume.reshape(4, 2, 4, 2).mean(axis=(1, 3)), atol=1e-5)
    np.testing.assert_allclose(bilinear(jnp.array([-0.25, 1.75]), 3), [[0.75, 0, 0], [0, 0.25, 0.75]])


def test_every_pair_of_frames_of_a_longer_clip_has_its_own_flow():
    model = vidjax.create_model("raft_tiny")
    variables = jax.tree.map(jnp.asarray, perturbed(model))
    frames = jnp.asarray(recipe.floats("video", (2, 2, 64, 64, 3)))
    flow = jax.jit(model.apply)(variables, jnp.concatenate([frames, frames], axis=1))
    assert flow.shape == (2, 3, 64, 64, 2) and jnp.isfinite(flow).all()
    np.testing.assert_allclose(flow[:, 2], flow[:, 0], atol=1e-4)
    assert np.abs(flow[:, 1] - flow[:, 0]).max() > 1e-3 and np.abs(flow[1] - flow[0]).max() > 1e-3


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 1, 64, 64, 3), "1 frames are too few: the model needs at least 2"),
        ((1, 2, 56, 64, 3), "56 pixels of height are too few: the model needs at least 64"),
        ((1, 2, 64, 68, 3), "68 pixels of width cannot be cut into patches of 8"),
    ],
)
def test_bad_input_is_one_line(shape, message):
    model = vidjax.create_model("raft_tiny")
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
