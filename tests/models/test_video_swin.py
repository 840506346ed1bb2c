"""Video Swin against the original's recorded outputs and torchvision's."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
import recipe
from flax.traverse_util import flatten_dict

import vidjax
from vidjax.convert import export_pretrained, from_state_dict
from vidjax.models.video_swin import VideoSwin, distances, from_windows, regions, to_windows

# Parameters, and GMACs of one clip (SYSTEMS.md and, for Something-Something, the original's README); see
# test_published.py.
COUNTS = {
    "video_swin_t": (28_158_070, 87.764),
    "video_swin_s": (49_816_678, 165.682),
    "video_swin_b": (88_048_984, 281.333),
    "video_swin_b_16": (88_834_038, 320.6),  # parameters are given as 89 M
    "video_swin_l": (196_953_916, 603.269),
    # Counted here.
    "video_swin_tiny": (36_692, None),
}
COUNTS_WITH_FIELDS = {"video_swin_t of 16 frames": ("video_swin_t", 28_158_070, 43.882, {"num_frames": 16})}

SMALL = {"width": 12, "depths": (2, 2), "heads": (2, 4), "window": (2, 4, 4), "dropout": 0.0, "num_classes": 5}


def flat(tree: dict) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(tree, sep="/").items()}


def assert_equal(ours, expected, within: float = 1e-5) -> None:
    np.testing.assert_allclose(ours, expected, rtol=0, atol=within * np.abs(expected).max())


# Parity


@pytest.mark.parametrize("name", ["video_swin_tiny", "video_swin_clipped"])
def test_equals_the_original(name):
    """With padding in all axes; with windows that are larger than the map in time, height and width."""
    golden = recipe.load(name)
    c = golden.config
    model = VideoSwin(c["D"], tuple(c["L"]), tuple(c["H"]), tuple(c["window"]), tuple(c["patch"]))
    variables = from_state_dict(model, golden.weights, strict=True)
    video = jnp.moveaxis(jnp.asarray(golden.inputs[0]), 1, -1)
    ours = jax.jit(lambda variables: model.apply(variables, video, method="encode"))(variables)
    assert_equal(jnp.moveaxis(ours, -1, 1), golden.outputs["output0"])


@pytest.fixture(scope="module")
def torchvisions():
    """torchvision's model with perturbed weights, and ours with the same."""
    torch, swin = pytest.importorskip("torch"), peers.torchvision().models.video.swin_transformer
    size = {"depths": [2, 2], "num_heads": [2, 4], "window_size": [2, 4, 4]}
    peer = swin.SwinTransformer3d(patch_size=[2, 4, 4], embed_dim=12, stochastic_depth_prob=0.0, num_classes=5, **size)
    weights = peers.perturb(SimpleNamespace(**{
        "state_dict": lambda: {k: v for k, v in peer.state_dict().items() if "index" not in k},
        "load_state_dict": lambda entries: peer.load_state_dict(entries, strict=False),
    }))  # fmt: skip
    model = VideoSwin(**SMALL)
    video = recipe.floats("video", (2, 6, 36, 40, 3))

    def run(module) -> "torch.Tensor":
        return module(torch.from_numpy(video).permute(0, 4, 1, 2, 3))

    return SimpleNamespace(
        torch=torch, peer=peer.eval(), run=run, model=model, video=jnp.asarray(video),
        weights=weights, variables=from_state_dict(model, weights, strict=True),
    )  # fmt: skip


def test_outputs_and_gradients_equal_torchvisions(torchvisions):
    p, labels = torchvisions, np.array([3, 1])

    def loss(params):
        logits = p.model.apply({"params": params}, p.video)
        return -jax.nn.log_softmax(logits)[np.arange(2), labels].mean(), logits

    gradients, logits = jax.jit(jax.grad(loss, has_aux=True))(p.variables["params"])
    expected = p.run(p.peer)
    assert_equal(logits, expected.detach().numpy())
    p.torch.nn.functional.cross_entropy(expected, p.torch.from_numpy(labels)).backward()
    entries = {name: value.grad.numpy() for name, value in p.peer.named_parameters()}
    expected = flat(from_state_dict(p.model, entries, strict=True)["params"])
    largest = max(np.abs(value).max() for value in expected.values())
    for path, value in flat(gradients).items():  # those of key biases are rounding errors
        scale = max(np.abs(value).max(), 1e-3 * largest)
        np.testing.assert_allclose(value, expected[path], rtol=0, atol=1e-3 * scale, err_msg=path)


@pytest.mark.parametrize("layout", ["original", "mmaction2", "torchvision"])
def test_exported_weights_have_the_published_names_and_load_again(torchvisions, layout, tmp_path):
    p = torchvisions
    file = export_pretrained(p.model, p.variables, tmp_path, layout=layout)
    entries = p.torch.load(file, weights_only=True)
    if layout == "torchvision":
        p.peer.load_state_dict(entries, strict=True)  # with the distances in windows
        for name, value in p.weights.items():
            np.testing.assert_array_equal(entries[name], value)
    else:
        entries = entries["state_dict"]
        last = "norm3" if layout == "mmaction2" else "norm"
        assert {f"backbone.{last}.weight", "cls_head.fc_cls.weight"} < set(entries)
        shape = entries["backbone.layers.1.blocks.0.attn.relative_position_bias_table"].shape
        assert tuple(shape) == (3 * 7 * 7, 4)
    again = from_state_dict(p.model, {name: np.asarray(value) for name, value in entries.items()}, strict=True)
    for path, value in flat(p.variables).items():
        np.testing.assert_array_equal(flat(again)[path], value)


def image_weights(side: int) -> dict[str, np.ndarray]:
    """Entries of an image Swin of the small size, with published names, buffers and 1000 classes."""
    golden = recipe.load("video_swin_clipped")
    weights = {}
    for name, value in golden.weights.items():
        shape = value.shape
        if name.endswith("bias_table"):
            shape = ((2 * side - 1) ** 2, shape[1])
        if name == "patch_embed.proj.weight":
            shape = (*shape[:2], *shape[3:])
        weights[name] = recipe.parameter(name, shape)
    weights["layers.0.blocks.1.attn_mask"] = np.zeros((4, side**2, side**2), np.float32)
    return weights | {"head.weight": np.zeros((1000, 96), np.float32), "head.bias": np.zeros(1000, np.float32)}


@pytest.mark.parametrize("side", [4, 6])
def test_image_weights_are_inflated(side):
    """The kernel is averaged, and tables are repeated over time, after resizing as by PyTorch."""
    torch = pytest.importorskip("torch")
    image = image_weights(side)
    model = VideoSwin(24, (2, 2, 2), (2, 4, 8), (4, 4, 4))
    params = flat(from_state_dict(model, image)["params"])
    kernel = np.moveaxis(image["patch_embed.proj.weight"], (0, 1), (-1, -2)) / 2
    np.testing.assert_allclose(params["patch_embedding/kernel"], np.stack([kernel, kernel]), rtol=1e-6)
    table = torch.from_numpy(image["layers.1.blocks.0.attn.relative_position_bias_table"])
    table = table.T.reshape(1, 4, 2 * side - 1, 2 * side - 1)
    if side != 4:
        table = torch.nn.functional.interpolate(table, size=(7, 7), mode="bicubic")
    expected = np.broadcast_to(table[0].permute(1, 2, 0), (7, 7, 7, 4))
    np.testing.assert_allclose(params["stage_1/block_0/relative_position"], expected, atol=1e-5)


def test_a_clip_that_repeats_an_image_has_the_features_of_that_image():
    model = VideoSwin(24, (2, 2, 2), (2, 4, 8), (4, 4, 4))
    variables = from_state_dict(model, image_weights(4))
    image = jnp.asarray(recipe.floats("image", (1, 1, 64, 64, 3)))
    embed = jax.jit(lambda variables, video: model.apply(variables, video, method="embed"))
    once, often = (embed(variables, image.repeat(frames, axis=1)) for frames in (2, 16))
    assert_equal(often, once, within=1e-4)


# Properties


def test_tokens_attend_within_their_window_and_shifted_ones_across_its_borders():
    """Which cells of the first stage's map depend on the cell (1, 3, 3), by the shift of the second block."""
    model = VideoSwin(8, (2,), (2,), (2, 4, 4), (1, 1, 1))
    video = jnp.asarray(recipe.floats("video", (1, 6, 12, 12, 3)))
    variables = jax.tree.map(lambda leaf: leaf + 0.3, jax.jit(model.init)(jax.random.key(0), video))

    # One program, called twice: within a program XLA may round the two differently.
    encode = jax.jit(lambda video: model.apply(variables, video, method="encode"))
    difference = encode(video) - encode(video.at[0, 1, 3, 3].add(3.0))
    cells = np.asarray(jnp.abs(difference).max(axis=-1)[0] > 1e-6)
    # The window (0-1, 0-3, 0-3) changes in the first block. Shifted windows begin at 1, 3, 5 frames and 2, 6, 10 cells.
    assert not cells[3:5].any() and not cells[:, 6:10].any() and not cells[:, :, 6:10].any()
    assert cells[0, 0, 0] and cells[2, 5, 5]
    # Frames 5 and 0 are in one window after the shift, and cells 10 and 0, but do not attend to each other.
    assert not cells[5].any() and not cells[:, 10:].any()


def test_windows_of_a_shifted_map_are_inverted_and_separate_its_end_from_its_start():
    window, shift, sides = (2, 3, 3), (1, 1, 1), (4, 6, 3)
    x = jnp.asarray(recipe.floats("map", (2, *sides, 5)))
    windows = to_windows(x, window, shift)
    assert windows.shape == (2, 4, 18, 5)
    np.testing.assert_array_equal(windows[:, 0, 0], x[:, 1, 1, 1])
    np.testing.assert_array_equal(from_windows(windows, window, shift, sides), x)
    # Of cells that a shift brings into one window, those from beyond the end see only each other.
    parts = regions(window, shift, (4, 6, 6)).reshape(-1, *window)
    for i, part in enumerate(parts):
        first = np.array(np.unravel_index(i, (2, 2, 2))) * window + shift
        cells = first[:, None, None, None] + np.indices(window)
        beyond = cells >= np.array((4, 6, 6))[:, None, None, None]
        alike = (beyond.reshape(3, 18)[:, :, None] == beyond.reshape(3, 18)[:, None]).all(axis=0)
        np.testing.assert_array_equal(part.ravel()[:, None] == part.ravel(), alike)
    parts = regions(window, (1, 0, 0), sides)
    assert (parts[:2] == 0).all() and sorted(set(parts[2].tolist())) == [0, 4] and parts[2, 8] < parts[2, 9]


def test_distances_index_a_flattened_table():
    """By hand, for two frames of one row of three cells: distances -1..1 in time, -2..2 in width."""
    index = distances((2, 1, 3))
    assert index.shape == (6, 6) and index[0, 0] == 1 * 5 + 2
    assert index[0, 5] == 0 and index[5, 0] == 14  # from (0, 0) to (1, 2), and back
    assert index[4, 2] == 2 * 5 + 1  # from (1, 1) to (0, 2)


def test_any_number_of_frames_and_any_size_has_a_map_of_stages():
    model = vidjax.create_model("video_swin_tiny")
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 32, 32, 3)))
    for (t, h, w), grids in {(8, 32, 32): ((4, 8, 8), (4, 4, 4)), (1, 1, 30): ((1, 1, 8), (1, 1, 4))}.items():
        video = jax.ShapeDtypeStruct((2, t, h, w, 3), jnp.float32)
        maps = jax.eval_shape(lambda *inputs: model.apply(*inputs, method="stages"), variables, video)
        assert [m.shape for m in maps] == [(2, *grids[0], 16), (2, *grids[1], 32)]
