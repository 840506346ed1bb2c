"""DeepVideo against a plain network in PyTorch, written from the paper: no code was published."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe
from small_models import perturbed

import vidjax
from vidjax.models.deepvideo import context, fovea

# Parameters by closed form: the maps have 7x7 cells, of both streams with multiresolution.
COUNTS = {
    "deepvideo_single": (
        96 * (3 * 121 + 1) + 256 * (96 * 25 + 1) + 384 * (256 * 9 + 1) + 384 * (384 * 9 + 1) + 256 * (384 * 9 + 1)
        + 4096 * (256 * 49 + 1) + 4096 * (4096 + 1) + 487 * (4096 + 1),
        None,
    ),
    "deepvideo_early": (
        96 * (10 * 3 * 121 + 1) + 256 * (96 * 25 + 1) + 384 * (256 * 9 + 1) + 384 * (384 * 9 + 1) + 256 * (384 * 9 + 1)
        + 4096 * (256 * 49 + 1) + 4096 * (4096 + 1) + 487 * (4096 + 1),
        None,
    ),
    "deepvideo_late": (
        96 * (3 * 121 + 1) + 256 * (96 * 25 + 1) + 384 * (256 * 9 + 1) + 384 * (384 * 9 + 1) + 256 * (384 * 9 + 1)
        + 4096 * (2 * 256 * 49 + 1) + 4096 * (4096 + 1) + 487 * (4096 + 1),
        None,
    ),
    "deepvideo_slow": (
        96 * (4 * 3 * 121 + 1) + 256 * (2 * 96 * 25 + 1) + 384 * (2 * 256 * 9 + 1) + 384 * (384 * 9 + 1)
        + 256 * (384 * 9 + 1) + 4096 * (256 * 49 + 1) + 4096 * (4096 + 1) + 487 * (4096 + 1),
        None,
    ),
    "deepvideo_single_multiresolution": (
        2 * (96 * (3 * 121 + 1) + 256 * (96 * 25 + 1) + 384 * (256 * 9 + 1) + 384 * (384 * 9 + 1) + 256 * (384 * 9 + 1))
        + 4096 * (2 * 256 * 49 + 1) + 4096 * (4096 + 1) + 487 * (4096 + 1),
        None,
    ),
    # Counted here.
    "deepvideo_tiny_single": (17_304, None),
    "deepvideo_tiny_early": (36_906, None),
    "deepvideo_tiny_late": (37_496, None),
    "deepvideo_tiny_slow": (29_694, None),
    "deepvideo_tiny_multiresolution": (60_636, None),
}  # fmt: skip

STRIDES = {"slow": {"conv1": 2, "conv2": 2, "conv3": 2}}  # over time


def reference(fusion: str, params: dict, streams: dict[str, np.ndarray]) -> np.ndarray:
    """Logits, from the clips of each stream `b t h w c`."""
    torch = pytest.importorskip("torch")
    F = torch.nn.functional

    def tensor(value: np.ndarray):
        return torch.from_numpy(np.array(value))

    def normed(x):  # over the sum of squares of five channels, as in Krizhevsky et al.
        squares = F.pad(x.square(), (0,) * 6 + (2, 2))
        return x / (2 + 1e-4 * sum(squares[:, i : i + x.shape[1]] for i in range(5))).sqrt()

    maps = []
    for prefix, clip in streams.items():
        x = tensor(np.moveaxis(clip, -1, 1))
        for name, stride in zip(("conv1", "conv2", "conv3", "conv4", "conv5"), (3, 1, 1, 1, 1), strict=True):
            kernel = tensor(np.moveaxis(params[prefix + name]["kernel"], (-1, -2), (0, 1)))
            bias, side = tensor(params[prefix + name]["bias"]), kernel.shape[-1]
            strides = (STRIDES.get(fusion, {}).get(name, 1), stride, stride)
            x = F.relu(F.conv3d(x, kernel, bias, strides, (0, side // 2, side // 2)))
            x = normed(x) if name in ("conv1", "conv2") else x
            x = F.max_pool3d(x, (1, 2, 2)) if name in ("conv1", "conv2") or (name, prefix) == ("conv5", "") else x
        maps.append(x)
    x = torch.cat(maps, 1).permute(0, 2, 3, 4, 1).flatten(1)
    for name in ("fc6", "fc7"):
        x = F.relu(x @ tensor(params[name]["kernel"]) + tensor(params[name]["bias"]))
    return (x @ tensor(params["head"]["kernel"]) + tensor(params["head"]["bias"])).numpy()


@pytest.mark.parametrize("kind", ["single", "early", "late", "slow", "multiresolution"])
def test_equals_a_plain_network_in_pytorch(kind):
    fields = {} if kind == "multiresolution" else {"image_size": 54}  # maps of 2x2 cells
    model = vidjax.create_model(f"deepvideo_tiny_{kind}", num_classes=5, **fields)
    video = 3 * recipe.floats(f"clip of {kind}", (2, model.num_frames, model.image_size, model.image_size, 3))
    variables = perturbed(model)
    streams = {"": video[:, [0, 15]] if kind == "late" else video}
    if kind == "multiresolution":
        streams = {"fovea_": video[:, :, 16:48, 16:48], "context_": np.array(context(jnp.asarray(video)))}
    expected = reference(model.fusion, variables["params"], streams)
    logits = jax.jit(model.apply)(variables, jnp.asarray(video))
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())


def test_slow_fusion_halves_the_responses_until_one_has_seen_all_frames():
    """10 frames become 4, 2 and 1; the first response sees frames 0 to 3, the next 2 to 5."""
    model = vidjax.create_model("deepvideo_tiny_slow")
    video = jnp.asarray(recipe.floats("clip", (1, 10, 32, 32, 3)))
    variables = perturbed(model)
    assert [variables["params"][f"conv{i}"]["kernel"].shape[0] for i in range(1, 6)] == [4, 2, 2, 1, 1]

    def encode(video):
        encoded, state = model.apply(
            variables, video, method="encode", capture_intermediates=True, mutable=["intermediates"]
        )
        seen = state["intermediates"]
        return [seen[name]["__call__"][0] for name in ("conv1", "conv2", "conv3")], encoded

    maps, _ = jax.jit(encode)(video)
    assert [x.shape[1] for x in maps] == [4, 2, 1]
    for t in (1, 3, 9):
        changed = np.array(jax.jit(encode)(video.at[:, t].add(1.0))[0][0] != maps[0]).any(axis=(0, 2, 3, 4))
        assert changed.tolist() == [2 * i <= t < 2 * i + 4 for i in range(4)]


def test_the_fovea_is_the_centre_and_the_context_the_whole_at_half_the_resolution():
    rows = jnp.arange(178.0)[None, None, :, None, None] * jnp.ones((1, 1, 178, 178, 1))
    centre, whole = fovea(rows)[0, 0, :, 0, 0], context(rows)[0, 0, :, 0, 0]
    np.testing.assert_array_equal(centre, np.arange(45, 45 + 89))
    np.testing.assert_array_equal(whole, 2 * np.arange(89) + 0.5)


def test_published_sizes_end_in_seven_by_seven_cells():
    """Section 4.2: for whole frames as for each of the two streams."""
    for name, channels in (("deepvideo_single", 256), ("deepvideo_single_multiresolution", 512)):
        model = vidjax.create_model(name)
        video = jnp.zeros((1, 1, model.image_size, model.image_size, 3))
        encoded, _ = jax.eval_shape(partial(model.init_with_output, method="encode"), jax.random.key(0), video)
        assert encoded.shape == (1, 1, 7, 7, channels)


def test_training_lowers_the_loss():
    model = vidjax.create_model("deepvideo_tiny_slow", num_classes=3)
    video, labels = jnp.asarray(recipe.floats("clips", (4, 10, 32, 32, 3))), jnp.array([0, 2, 1, 0])

    @jax.jit
    def step(params):
        def loss(params):
            return -jax.nn.log_softmax(model.apply({"params": params}, video, train=True))[jnp.arange(4), labels].mean()

        value, grads = jax.value_and_grad(loss)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), value, grads

    params, losses = perturbed(model)["params"], []
    for _ in range(5):
        params, value, grads = step(params)
        losses.append(float(value))
    assert losses[-1] < losses[0] and all(np.asarray(leaf).any() for leaf in jax.tree.leaves(grads))
