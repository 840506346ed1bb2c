"""C2D, I3D-ResNet and Slow against SlowFast's recorded outputs, and live peers with the other publishers' names."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
import recipe
from small_models import perturbed

import vidjax
from vidjax.convert import from_state_dict
from vidjax.models.slow import C2D, I3D, SLOW, SlowNetwork

# Parameters, and GMACs of one clip where they are published (SYSTEMS-2.md); see test_published.py.
COUNTS = {
    "c2d_50_8x8": (24_327_632, 19.493),
    "c2d_50_8x8_nonlocal": (31_686_096, 27.621),
    "i3d_50_8x8": (28_043_472, 28.408),
    "i3d_50_8x8_nonlocal": (35_401_936, 36.535),
    "slow_50_4x16": (32_454_096, 20.871),
    "slow_50_8x8": (32_454_096, 41.741),
    "slow_50_8x8_nonlocal": (39_812_560, 63.976),
    "slow_50_8x8_mmaction2": (32_454_096, 54.75 * (224 / 256) ** 2),  # mmaction2 lists crops of 256
    "i3d_50_32x2_mmaction2": (28_043_472, 43.5 * (224 / 256) ** 2),
    "c2d_50_8x8_nopool": (24_327_632, 8 * 4.088),  # a ResNet-50 of 8 images
    # Counted here.
    "slow_tiny": (148_872, None),
    "slow_tiny_pytorchvideo": (138_344, None),
    "slow_tiny_c2d": (128_392, None),
    "slow_tiny_nonlocal": (170_216, None),
    "slow_tiny_mmaction2": (159_304, None),
}

NARROW = {"width": 12, "num_classes": 7, "image_size": 64}
OF_GOLDENS = {
    "slow_r50": SlowNetwork(SLOW, num_frames=4, **NARROW),
    "c2d_nln": SlowNetwork(C2D, pool=True, num_frames=6, nonlocal_after=((), (1, 3), (1, 3, 5), ()), **NARROW),
    "i3d_nln_softmax": SlowNetwork(I3D, pool=True, num_frames=6, nonlocal_after=((), (1,), (0, 2), ()), **NARROW),
    "i3d_nln_dot_product": SlowNetwork(
        I3D, pool=True, num_frames=6, nonlocal_after=((), (1,), (), ()), affinity="dot_product",
        nonlocal_groups=(1, 3, 1, 1), **NARROW,
    ),
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name == "i3d_nln_softmax" else name for name in OF_GOLDENS]
)
def test_equals_slowfast(name):
    golden, model = recipe.load(name), OF_GOLDENS[name]
    variables = from_state_dict(model, golden.weights, strict=True)
    video = jnp.moveaxis(jnp.asarray(golden.inputs[0]), 1, -1)

    @jax.jit
    def both(variables):
        features = model.apply(variables, video, method="positions")
        head = variables["params"]["head"]
        return model.apply(variables, video), features @ head["kernel"] + head["bias"]

    output, logits = both(variables)
    expected = golden.outputs["output1"]
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(jax.nn.softmax(output), golden.outputs["output0"], atol=1e-4)


DEPTHS, WINDOW = (2, 2, 2, 2), (2, 1, 1)


def compare(model: SlowNetwork, peer, frames: int) -> None:
    """Outputs for a crop larger than in training, with every entry of the peer perturbed and none left over."""
    torch = pytest.importorskip("torch")
    variables = from_state_dict(model, peers.perturb(peer.eval()), strict=True)
    video = recipe.floats("video", (1, 3, frames, 64, 64))
    with torch.no_grad():
        expected = peer(torch.from_numpy(video)).numpy()
    ours = jax.jit(model.apply)(variables, jnp.moveaxis(jnp.asarray(video), 1, -1))
    np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())


def test_equals_pytorchvideo():
    pytest.importorskip("torch")
    from torch_slowfast import VideoResNet

    model = SlowNetwork(I3D, DEPTHS, 8, pool=True, dialect="pytorchvideo", num_classes=5, num_frames=4, image_size=32)
    compare(model, VideoResNet(I3D, DEPTHS, 8, 5, WINDOW), 4)


@pytest.mark.parametrize("affinity", ["gaussian", "dot_product"])
def test_equals_mmaction2(affinity):
    """I3D, which also strides in time in its stem and its pool."""
    pytest.importorskip("torch")
    from torch_slowfast import MmClassifier, MmResNet

    after = ((), (1,), (0,), ())
    model = SlowNetwork(
        I3D, DEPTHS, 8, pool=True, temporal_strides=(2, 2), nonlocal_after=after, affinity=affinity,
        dialect="mmaction2", num_classes=5, num_frames=16, image_size=32,
    )  # fmt: skip
    backbone = MmResNet(I3D, DEPTHS, 8, (2, 2), True, after, affinity)
    compare(model, MmClassifier(backbone, 32 * 8, 5), 16)


def test_a_still_clip_is_seen_as_its_image_by_torchvision():
    """Kernels inflated by averaging see a still clip as the image, except near its ends, where zeros come in."""
    torch, resnet = pytest.importorskip("torch"), peers.torchvision().models.resnet
    peer = resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1]).eval()
    weights = peers.perturb(peer)
    peer.fc = torch.nn.Identity()
    image = recipe.floats("image", (1, 3, 64, 64))
    with torch.no_grad():
        expected = peer(torch.from_numpy(image)).numpy()
    model = SlowNetwork(SLOW, (1, 1, 1, 1))
    variables = from_state_dict(model, weights)
    video = jnp.moveaxis(jnp.asarray(image), 1, -1)[:, None].repeat(5, axis=1)
    encoded = jax.jit(lambda v: model.apply(v, video, method="encode"))(variables)
    np.testing.assert_allclose(encoded[:, 2].mean(axis=(1, 2)), expected, atol=1e-5 * np.abs(expected).max())


def test_training_averages_logits():
    """SlowFast's softmax is part of its test alone."""
    model = vidjax.create_model("slow_tiny", num_classes=5)
    video = jnp.asarray(recipe.floats("video", (1, 8, 64, 64, 3)))
    variables = perturbed(model)

    def outputs(model, train):
        return model(video, train), model.classifier(model.positions(video, train)).reshape(-1, 5)

    for train in (True, False):
        apply = jax.jit(partial(model.apply, train=train, method=outputs, mutable="batch_stats"))
        output, positions = apply(variables)[0]
        expected = positions if train else jax.nn.log_softmax(positions)
        expected = expected.mean(axis=0) if train else jnp.log(jnp.exp(expected).mean(axis=0))
        assert len(positions) == 4 and not np.allclose(positions[0], positions[1], rtol=1e-2)
        np.testing.assert_allclose(output[0], expected, rtol=1e-4, atol=1e-5)
