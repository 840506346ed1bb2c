"""The two-stream networks against a plain network in PyTorch, and what their stacks of flow are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe
from small_models import perturbed

import vidjax
from vidjax.errors import UserError
from vidjax.layers.flow import stack_trajectories, subtract_mean
from vidjax.models.two_stream import join_streams, weighted_sum

# By closed form, with maps of 6x6; the first convolution sees 3 or 20 channels.
COUNTS = {
    "two_stream_rgb": (90_627_813, None),
    "two_stream_flow": (90_707_781, None),
    "two_stream_trajectories": (90_707_781, None),
    # One pair of linear layers for both streams; twice as many inputs of the first; a convolution of 1,024 channels.
    "two_stream_sum": (97_236_421, None),
    "two_stream_max": (97_236_421, None),
    "two_stream_concatenation": (97_236_421 + 6 * 6 * 512 * 4_096, None),
    "two_stream_convolution": (97_236_421 + 1_024 * 512 + 512, None),
    "two_stream_tiny_sum": (55_934, None),
    "two_stream_tiny_max": (55_934, None),
    "two_stream_tiny_concatenation": (56_958, None),
    "two_stream_tiny_convolution": (58_014, None),
    "two_stream_tiny_rgb": (28_024, None),
    "two_stream_tiny_flow": (29_494, None),
    "two_stream_tiny_trajectories": (29_494, None),
}


def reference(params: dict, images: np.ndarray, norms: int, flow=None, fusion: str = "", layer: int = 0) -> np.ndarray:
    """Logits of images `b h w c`, with whose maps those of flow are fused."""
    torch = pytest.importorskip("torch")
    F = torch.nn.functional

    def block(x, number, prefix=""):
        layer, (stride, padding) = params[f"{prefix}conv_{number}"], ((2, 0), (2, 1), (1, 1), (1, 1), (1, 1))[number]
        kernel = torch.from_numpy(np.transpose(layer["kernel"][0], (3, 2, 0, 1)).copy())
        return F.relu(F.conv2d(x, kernel, torch.from_numpy(layer["bias"]), stride, padding))

    def finish(x, number, norms):
        x = torch.nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0)(x) if number < norms else x
        return F.max_pool2d(x, 2) if number in (0, 1, 4) else x

    x, y = (each if each is None else torch.from_numpy(np.moveaxis(each, -1, 1)) for each in (images, flow))
    for number in range(5):
        x = block(x, number)
        if number < layer:
            y = block(y, number, "temporal_")
        if number == layer - 1:
            both = torch.cat([x, y], dim=1)
            x = {"sum": x + y, "max": torch.maximum(x, y)}.get(fusion, both)
            if fusion == "convolution":
                mix = params[f"fusion_{number}"]
                kernel = torch.from_numpy(mix["kernel"].T[..., None, None].copy())
                x = F.relu(F.conv2d(both, kernel, torch.from_numpy(mix["bias"])))
        elif number < layer:
            y = finish(y, number, 1)
        x = finish(x, number, norms)
    x = x.permute(0, 2, 3, 1).flatten(1)
    for name in ("fc6", "fc7"):
        x = F.relu(x @ torch.from_numpy(params[name]["kernel"]) + torch.from_numpy(params[name]["bias"]))
    return (x @ torch.from_numpy(params["head"]["kernel"]) + torch.from_numpy(params["head"]["bias"])).numpy()


@pytest.mark.parametrize(("name", "norms"), [("rgb", 2), ("flow", 1)])
def test_equals_a_plain_network_in_pytorch(name, norms):
    model = vidjax.create_model(f"two_stream_tiny_{name}", num_classes=5)
    variables = perturbed(model)
    shape = (2, model.num_frames, 64, 64, model.channels)
    video = 3 * recipe.floats(f"clip of {name}", shape)
    images = video[:, 0]
    if name == "flow":
        centred = video - video.mean(axis=(2, 3), keepdims=True)
        images = np.concatenate([centred[:, frame] for frame in range(4)], axis=-1)
    logits = jax.jit(model.apply)(variables, video)
    np.testing.assert_allclose(logits, reference(variables["params"], images, norms), atol=1e-4)


@pytest.mark.parametrize(("fusion", "layer"), [("sum", 5), ("max", 3), ("concatenation", 1), ("convolution", 5)])
def test_early_fusion_equals_two_networks_in_pytorch_joined_after_a_layer(fusion, layer):
    model = vidjax.create_model(f"two_stream_tiny_{fusion}", num_classes=5, fusion_layer=layer)
    variables = perturbed(model)
    video = 3 * recipe.floats("clip of both", (2, 4, 64, 64, 5))
    flow = video[..., 3:] - video[..., 3:].mean(axis=(2, 3), keepdims=True)
    stacked = np.concatenate([flow[:, frame] for frame in range(4)], axis=-1)
    expected = reference(variables["params"], video[:, 2, ..., :3], 2, stacked, fusion, layer)
    np.testing.assert_allclose(jax.jit(model.apply)(variables, video), expected, atol=1e-4)


def test_early_fusion_begins_with_the_networks_of_both_streams():
    models = [vidjax.create_model(f"two_stream_tiny_{name}", num_classes=5) for name in ("convolution", "rgb", "flow")]
    fused, spatial, temporal = (perturbed(model)["params"] for model in models)
    joined = join_streams({"params": fused}, {"params": spatial}, {"params": temporal})["params"]
    assert joined["conv_0"] is spatial["conv_0"] and joined["temporal_conv_4"] is temporal["conv_4"]
    assert joined["fc6"] is spatial["fc6"] and joined["fusion_4"] is fused["fusion_4"]
    assert joined["head"] is fused["head"] and joined.keys() == fused.keys()
    maps = np.abs(recipe.floats("maps", (2, 3, 64)))
    kernel = weighted_sum(jax.random.key(0), (128, 64))
    np.testing.assert_allclose(np.concatenate(maps, axis=-1) @ kernel, maps[0] / 4 + maps[1] * 3 / 4, rtol=1e-5)


def test_trajectories_follow_what_moves():
    flow = np.round(2 * recipe.floats("fields", (2, 6, 9, 8, 2))).astype(np.float32)  # whole pixels
    stacked = np.asarray(jax.jit(stack_trajectories, static_argnums=1)(flow, 3, 1.0))
    assert stacked.shape == (2, 2, 9, 8, 6)
    for clip, group, row, column in np.ndindex(2, 2, 9, 8):
        y, x = row, column
        for frame in range(3):
            here = flow[clip, 3 * group + frame, np.clip(y, 0, 8), np.clip(x, 0, 7)]
            np.testing.assert_array_equal(stacked[clip, group, row, column, 2 * frame : 2 * frame + 2], here)
            x, y = x + int(here[0]), y + int(here[1])
    halves = stack_trajectories(2 * jnp.asarray(flow), 3, 0.5)  # in another unit
    np.testing.assert_allclose(halves, 2 * stacked, atol=1e-5)


def test_the_motion_of_the_camera_is_taken_off():
    flow = recipe.floats("fields", (1, 4, 64, 64, 2))
    moved = flow + np.array([3.0, -2.0], np.float32)
    np.testing.assert_allclose(subtract_mean(jnp.asarray(moved)), subtract_mean(jnp.asarray(flow)), atol=1e-5)
    assert np.abs(subtract_mean(jnp.asarray(moved)).mean(axis=(2, 3))).max() < 1e-5


def test_clips_that_cannot_be_stacked_are_refused():
    model = vidjax.create_model("two_stream_tiny_flow")
    for shape, message in (
        ((1, 6, 64, 64, 2), "6 frames cannot be stacked by 4: use a multiple of 4, such as 4"),
        ((1, 4, 32, 32, 2), r"the frames have the size \(32, 32\), but the model takes \(64, 64\)"),
        ((1, 4, 64, 64, 3), r"the model takes \(batch, frames, height, width, 2\)"),
    ):
        with pytest.raises((UserError, ValueError), match=message):
            jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape))
    model = vidjax.create_model("two_stream_tiny_sum", fusion_layer=6)
    with pytest.raises(UserError, match="fusion_layer is 6: it must be 1 to 5"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4, 64, 64, 5)))
    with pytest.raises(UserError, match="trajectories are those of optical flow: set flow=True"):
        vidjax.create_model("two_stream_tiny_rgb", trajectories=True).init(
            jax.random.key(0), jnp.zeros((1, 1, 64, 64, 3))
        )
