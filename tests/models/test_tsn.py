"""TSN and TSM against mmaction2's recorded outputs and torchvision's ResNet."""

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
import recipe

from vidjax.convert import from_state_dict
from vidjax.models.tsn import SegmentNetwork, shift_channels

# Parameters, and GMACs of one clip where they are published (SYSTEMS.md); see test_published.py.
COUNTS = {
    "tsn_50": (24_327_632, 8 * 4.088),
    "tsm_50_8": (24_327_632, 32.697),
    "tsm_50_16": (24_327_632, 2 * 32.697),
    # Counted here.
    "tsn_tiny": (128_392, None),
    "tsm_tiny": (128_392, None),
}
COUNTS_WITH_FIELDS = {"tsm_50_8 of 174 classes": ("tsm_50_8", 23_864_558, 32.697, {"num_classes": 174})}


@pytest.mark.parametrize(("name", "frames"), [("tsn_r50", 3), ("tsm_r50", 4)])
def test_equals_mmaction2(name, frames):
    golden = recipe.load(name)
    model = SegmentNetwork(num_classes=7, shift=name == "tsm_r50")
    variables = from_state_dict(model, golden.weights, strict=True)
    images = jnp.moveaxis(jnp.asarray(golden.inputs[0]), 1, -1)
    video = images.reshape(-1, frames, *images.shape[1:])

    @jax.jit
    def both(variables):
        encoded = model.apply(variables, video, method="encode")
        return model.apply(variables, video), encoded.mean(axis=(2, 3)).reshape(len(images), -1)[:, ::8]

    for ours, key in zip(both(variables), ("output0", "output1"), strict=True):
        expected = golden.outputs[key]
        np.testing.assert_allclose(ours, expected.reshape(ours.shape), atol=1e-5 * np.abs(expected).max())


def test_frames_are_seen_as_torchvision_sees_images():
    torch, resnet = pytest.importorskip("torch"), peers.torchvision().models.resnet
    peer = resnet.resnet50().eval()
    weights = {name: recipe.parameter(name, tuple(value.shape)) for name, value in peer.state_dict().items()}
    peer.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in weights.items()})
    images = recipe.floats("images", (2, 3, 64, 64))
    peer.fc = torch.nn.Identity()
    with torch.no_grad():
        expected = peer(torch.from_numpy(images)).numpy()
    model = SegmentNetwork()
    variables = from_state_dict(model, weights)
    video = jnp.moveaxis(jnp.asarray(images), 1, -1)[:, None].repeat(2, axis=1)  # the mean of equal frames
    ours = jax.jit(model.apply)(variables, video)
    np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())


def test_channels_move_by_one_frame_and_zeros_come_in():
    video = jnp.arange(1.0, 4)[None, :, None, None, None] * jnp.ones(16)  # frame t holds t
    shifted = shift_channels(video)[0, :, 0, 0]
    np.testing.assert_array_equal(shifted[:, :2], [[2, 2], [3, 3], [0, 0]])
    np.testing.assert_array_equal(shifted[:, 2:4], [[0, 0], [1, 1], [2, 2]])
    np.testing.assert_array_equal(shifted[:, 4:], np.broadcast_to([[1], [2], [3]], (3, 12)))


def test_order_matters_to_a_shifted_network_alone():
    video = jnp.asarray(recipe.floats("video", (1, 4, 32, 32, 3)))
    for shift in (False, True):
        model = SegmentNetwork(depths=(1, 1, 1, 1), width=8, shift=shift)
        variables = model.init(jax.random.key(0), video)
        forwards, backwards = (model.apply(variables, clip) for clip in (video, video[:, ::-1]))
        assert np.allclose(forwards, backwards, atol=1e-5) != shift
