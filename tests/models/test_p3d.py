"""P3D against a plain network in PyTorch, recorded and live, in evaluation and in training."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
import recipe

from vidjax.convert import from_state_dict
from vidjax.models.p3d import P3D

# Parameters of each row, and GMACs per clip if published (SYSTEMS.md); see test_published.py.
COUNTS = {
    "p3d_63": (25_745_232, 8.44),
    "p3d_131": (48_088_400, 12.90),
    "p3d_199": (66_492_240, 18.403),
    # Counted here, because no exact numbers are published.
    "p3d_tiny": (132_536, None),
}

SMALL = P3D((1, 2, 1, 1), width=4, num_classes=5, image_size=64, dropout=0.0)


def test_equals_recorded_outputs():
    golden = recipe.load("p3d")
    variables = from_state_dict(SMALL, golden.weights, strict=True)
    logits = jax.jit(SMALL.apply)(variables, jnp.moveaxis(jnp.asarray(golden.inputs[0]), 1, -1))
    expected = golden.outputs["output0"]
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))


def test_a_training_step_equals_pytorchs():
    """Logits, gradients and running statistics, in float64, because batch norm over few values amplifies rounding."""
    torch = pytest.importorskip("torch")
    import torch_p3d

    peer = torch_p3d.P3D((1, 2, 1, 1), width=4, num_classes=5)
    weights = peers.perturb(peer)
    peer = peer.double().train()
    video, target = recipe.floats("video", (2, 3, 16, 64, 64)), recipe.floats("target", (2, 5))
    logits = peer(torch.from_numpy(video).double())
    ((logits - torch.from_numpy(target)) ** 2).sum().backward()
    after = {name: value.numpy() for name, value in peer.state_dict().items()}
    peer_gradients = weights | {name: value.grad.float().numpy() for name, value in peer.named_parameters()}
    expected = from_state_dict(SMALL, peer_gradients, strict=True)["params"]
    variables = from_state_dict(SMALL, weights, strict=True)
    with jax.enable_x64(True):
        double = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), variables)
        clip = jnp.asarray(np.moveaxis(video, 1, -1), jnp.float64)

        @partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
        def step(params, state):
            def loss(params):
                logits, after = SMALL.apply({"params": params, **state}, clip, train=True, mutable=["batch_stats"])
                return ((logits - target) ** 2).sum(), (logits, after)

            return jax.grad(loss, has_aux=True)(params)

        gradients, (ours, stats) = jax.device_get(step(double["params"], {"batch_stats": double["batch_stats"]}))
    np.testing.assert_allclose(ours, logits.detach().numpy(), atol=1e-6)
    for (path, leaf), other in zip(jax.tree.leaves_with_path(gradients), jax.tree.leaves(expected), strict=True):
        assert np.abs(leaf - other).max() <= 1e-5 * np.abs(other).max(), path
    # Flax stores the biased variance, PyTorch the unbiased one.
    for norm, place, cells in (
        ("bn1", ("stem_norm",), 2 * 16 * 32 * 32),
        ("layer4.0.bn4", ("group_3_0", "expand_norm"), 8),
    ):
        running = stats["batch_stats"]
        for key in place:
            running = running[key]
        was = weights[f"{norm}.running_var"]
        unbiased = 0.9 * was + (running["var"] - 0.9 * was) * cells / (cells - 1)
        np.testing.assert_allclose(unbiased, after[f"{norm}.running_var"], rtol=1e-5)
        np.testing.assert_allclose(running["mean"], after[f"{norm}.running_mean"], atol=1e-6)


def test_parameters_fit_other_clips_and_remaining_frames_are_averaged():
    video = jnp.asarray(recipe.floats("clip", (1, 32, 32, 48, 3)))
    variables = jax.jit(SMALL.init)(jax.random.key(0), jnp.zeros((1, 16, 64, 64, 3)))
    features = jax.jit(partial(SMALL.apply, method="encode"))(variables, video)
    assert features.shape == (1, 2, 1, 2, 128)
    head = variables["params"]["head"]
    expected = features.mean(axis=(1, 2, 3)) @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(jax.jit(SMALL.apply)(variables, video), expected, atol=1e-5)
    with pytest.raises(ValueError, match=r"15 frames are too few: .* at least 16"):
        jax.eval_shape(SMALL.apply, variables, jnp.zeros((1, 15, 64, 64, 3)))


def test_initialisation_follows_the_port():
    model = P3D((1, 1, 1, 1), width=32, num_classes=64, image_size=32)
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 16, 32, 32, 3)))["params"]
    stds = {
        (2 / (7 * 32)) ** 0.5: params["stem"]["kernel"],
        (2 / (3 * 64)) ** 0.5: params["group_1_0"]["spatial"]["kernel"],
        (2 / (1 * 256)) ** 0.5: params["group_1_0"]["expand"]["kernel"],
        (1 / 3 / (256 * 9)) ** 0.5: params["group_3_0"]["spatial"]["kernel"],
    }
    for expected, kernel in stds.items():
        assert kernel.std() == pytest.approx(expected, rel=0.03)
