"""Saliency maps equal explicit constructions, and highlight objects that the model is known to use."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import vidjax
from vidjax.data import moving_shapes
from vidjax.evaluation import saliency
from vidjax.layers.convolution import Conv3D
from vidjax.models.videomae import VideoMAE

SMALL = {"width": 24, "depth": 2, "heads": 2, "num_frames": 4, "image_size": 16, "num_classes": 3}
T, H, W = 4, 2, 2  # grid of tokens, for patches of one frame


def build(name: str, **fields):
    """A small model, random variables, and two clips."""
    return fill(vidjax.create_model(name, **SMALL | fields))


def fill(model: nn.Module):
    """The model, random variables, and two clips."""
    shape = (2, model.num_frames, model.image_size, model.image_size, 3)
    video = jnp.asarray(np.random.default_rng(0).standard_normal(shape), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), video)
    draw = np.random.default_rng(1).standard_normal
    leaves = {path: jnp.asarray(draw(leaf.shape), jnp.float32) / 3 for path, leaf in flatten_dict(shapes).items()}
    variables = unflatten_dict(
        {path: jnp.abs(leaf) + 0.1 if path[-1] == "var" else leaf for path, leaf in leaves.items()}
    )
    return model, variables, video


def look(function, model, variables, video, **settings):
    return jax.device_get(jax.jit(partial(function, model, **settings))(variables, video))


def both(model, variables, video):
    return saliency.rollout(model, variables, video), saliency.head_maps(model, variables, video)


@pytest.fixture(scope="module")
def divided():
    """A TimeSformer with divided attention, its variables, clips, and its attention weights by block and kind."""
    model, variables, video = build("timesformer_tiny_divided")
    weights = look(saliency.attention_weights, model, variables, video)
    return model, variables, video, {path[1:3]: np.float64(value) for path, value in weights.items()}


def halved(attention: np.ndarray) -> np.ndarray:
    return (attention + np.eye(attention.shape[-1])) / 2


@pytest.mark.parametrize(
    ("name", "fields", "class_token"),
    [("videomae_tiny", {"patch_size": (2, 8, 8)}, False), ("vivit_tiny_joint", {}, True)],
)
def test_rollout_of_a_plain_transformer_is_a_product_of_matrices(name, fields, class_token):
    model, variables, video = build(name, **fields)
    weights = look(saliency.attention_weights, model, variables, video)
    first, second = (halved(np.float64(weights[path]).mean(axis=1)) for path in sorted(weights))
    rolled = second @ first
    expected = rolled[:, 0, 1:] if class_token else rolled.mean(axis=1)
    maps = look(saliency.rollout, model, variables, video)
    assert maps.shape == (2, 2, 2, 2)
    np.testing.assert_allclose(maps.reshape(2, -1), expected, atol=1e-6)


def test_rollout_of_divided_attention_is_a_product_of_matrices(divided):
    model, variables, video, weights = divided
    place = lambda t, n: 1 + t * H * W + n  # noqa: E731
    for clip in range(2):
        rolled = np.eye(1 + T * H * W)
        for block in ("block_0", "block_1"):
            in_time = weights[block, "time"].mean(axis=1).reshape(2, H * W, T, T)[clip]
            in_space = weights[block, "space"].mean(axis=1).reshape(2, T, 1 + H * W, 1 + H * W)[clip]
            time, space = np.zeros((2, *rolled.shape))
            time[0, 0] = 1  # the class token takes no part in attention over time
            for n in range(H * W):
                rows = [place(t, n) for t in range(T)]
                time[np.ix_(rows, rows)] = in_time[n]
            for t in range(T):  # and has a copy in each frame, whose outputs are averaged
                rows = [place(t, n) for n in range(H * W)]
                space[np.ix_(rows, rows)] = in_space[t, 1:, 1:]
                space[rows, 0] = in_space[t, 1:, 0]
                space[0, rows] = in_space[t, 0, 1:] / T
                space[0, 0] += in_space[t, 0, 0] / T
            rolled = halved(space) @ halved(time) @ rolled
        maps = look(saliency.rollout, model, variables, video)[clip]
        np.testing.assert_allclose(maps.ravel(), rolled[0, 1:], atol=1e-6)


def test_rollout_of_the_factorized_dot_product_averages_temporal_and_spatial_heads():
    model, variables, video = build("vivit_tiny_factorized_dot_product", patch_size=(1, 8, 8))
    weights = look(saliency.attention_weights, model, variables, video)
    rolled = np.eye(T * H * W)
    for block in ("block_0", "block_1"):
        parts = [weights["transformer", block, "attention", f"{kind}_dot_product"] for kind in ("temporal", "spatial")]
        in_time, in_space = (np.float64(part)[0].mean(axis=1) for part in parts)  # per position, per frame
        both = np.einsum("nts,nm->tnsm", in_time, np.eye(H * W)) + np.einsum("tnm,ts->tnsm", in_space, np.eye(T))
        rolled = halved(both.reshape(rolled.shape) / 2) @ rolled
    maps = look(saliency.rollout, model, variables, video)[0]
    np.testing.assert_allclose(maps.ravel(), rolled.mean(axis=0), atol=1e-6)


def test_head_maps_of_divided_attention_are_one_for_time_and_one_for_space(divided):
    model, variables, video, weights = divided
    maps = look(saliency.head_maps, model, variables, video, block=0)
    assert set(maps) == {f"transformer/block_0/{kind}/attention/dot_product" for kind in ("time", "space")}
    in_space = weights["block_0", "space"].reshape(2, T, 2, 1 + H * W, 1 + H * W)[..., 0, 1:]  # by the class token
    expected = in_space.transpose(0, 2, 1, 3).reshape(2, 2, T, H, W)
    np.testing.assert_allclose(maps["transformer/block_0/space/attention/dot_product"], expected, atol=1e-6)
    in_time = weights["block_0", "time"].reshape(2, H * W, 2, T, T).mean(axis=-2)  # no class token: by all tokens
    expected = in_time.transpose(0, 2, 3, 1).reshape(2, 2, T, H, W)
    np.testing.assert_allclose(maps["transformer/block_0/time/attention/dot_product"], expected, atol=1e-6)
    with pytest.raises(ValueError, match="there is no block 2 with attention"):
        look(saliency.head_maps, model, variables, video, block=2)


def test_attention_to_frames_is_distributed_over_their_patches():
    model, variables, video = build("vivit_tiny_factorized_encoder", patch_size=(1, 8, 8), temporal_depth=1)
    weights = look(saliency.attention_weights, model, variables, video)
    maps = look(saliency.head_maps, model, variables, video)
    assert {name.split("/")[0] for name in maps} == {"spatial_transformer", "temporal_transformer"}
    frames = maps["temporal_transformer/block_0/attention/dot_product"]
    by_class_token = weights["temporal_transformer", "block_0", "attention", "dot_product"][:, :, 0, 1:]
    fractions = frames / by_class_token[..., None, None]  # of a frame's patches, the same for all heads
    np.testing.assert_allclose(fractions[:, 0], fractions[:, 1], rtol=1e-4)
    assert (fractions > 0).all() and (fractions.sum((-2, -1)) < 1).all()  # the rest goes to the frame's class token
    assert (look(saliency.rollout, model, variables, video).sum((1, 2, 3)) < 1).all()


def averages(grid: tuple, kernel: tuple, strides: tuple) -> np.ndarray:
    """The matrix of an average pool, which pads by half the kernel and leaves the padding out, after a class token."""
    cells = np.array(list(np.ndindex(grid)))
    centres = np.array(list(np.ndindex(*(-(-side // stride) for side, stride in zip(grid, strides, strict=True)))))
    seen = (np.abs(cells - (centres * strides)[:, None]) <= np.array(kernel) // 2).all(axis=-1)
    matrix = np.eye(1 + len(centres), 1 + len(cells))
    matrix[1:, 1:], matrix[0, 1:] = seen / seen.sum(axis=1, keepdims=True), 0
    return matrix


def test_rollout_through_pools_is_a_product_of_matrices():
    """Of MViTv2: pooled keys in the first block, and in the second a pooled shortcut."""
    size = {"depths": (1, 1), "width": 8, "key_stride": 2, "num_frames": 4, "image_size": 16}
    model, variables, video = fill(vidjax.create_model("mvitv2_tiny", **size, num_classes=3))
    weights = look(saliency.attention_weights, model, variables, video)
    first, second = (np.float64(weights[f"block_{i}", "attention", "dot_product"]).mean(axis=1) for i in range(2))
    grid, kernel, halves = (2, 4, 4), (3, 3, 3), (1, 2, 2)
    rolled = (np.eye(33) + first @ averages(grid, kernel, halves)) / 2
    rolled = (averages(grid, (1, 3, 3), halves) + second @ averages(grid, kernel, (1, 1, 1))) @ rolled / 2
    maps, heads = look(both, model, variables, video)
    np.testing.assert_allclose(maps.reshape(2, -1), rolled[:, 0, 1:], atol=1e-6)
    assert heads["block_1/attention/dot_product"].shape == (2, 2, *grid)  # traced back through the pool of the keys
    assert (heads["block_1/attention/dot_product"] > 0).all()


def test_rollout_of_separable_attention_is_a_product_of_matrices():
    """Of VidTr: a table with a row and a column of tokens that are not patches."""
    size = {"width": 16, "depth": 2, "heads": 2, "num_frames": 3, "image_size": 16}
    model, variables, video = fill(vidjax.create_model("vidtr_tiny", **size, num_classes=3))
    weights = look(saliency.attention_weights, model, variables, video)
    rolled = np.eye(4 * 5)[None]
    for block in ("block_0", "block_1"):
        in_time, in_space = (
            np.float64(weights[block, "attention", name]).mean(axis=2) for name in ("over_time", "over_space")
        )
        both = np.einsum("btnm,bmts->btnsm", in_space, in_time)
        rolled = halved(both.reshape(2, 20, 20)) @ rolled
    maps = look(saliency.rollout, model, variables, video)
    np.testing.assert_allclose(maps.reshape(2, 3, 4), rolled[:, 0].reshape(2, 4, 5)[:, 1:, 1:], atol=1e-6)


def test_rollout_follows_the_frames_that_are_kept_and_merged_tokens():
    """Patches receive all that the class token of the joint block after them attends to, or the mean of all tokens."""
    size = {"width": 16, "depth": 2, "heads": 2, "drops": (2,), "num_frames": 4, "image_size": 16}
    model, variables, video = fill(vidjax.create_model("vidtr_tiny", **size, num_classes=3))
    weights = look(saliency.attention_weights, model, variables, video)
    maps = look(saliency.rollout, model, variables, video)
    attended = weights["block_1", "attention", "dot_product"].mean(axis=1)[:, 0, 1:].sum(axis=-1)
    np.testing.assert_allclose(maps.sum(axis=(1, 2, 3)), attended / 2, rtol=1e-5)
    size = {"width": 8, "depths": (1, 1), "num_frames": 4, "image_size": 24}
    model, variables, video = fill(vidjax.create_model("video_swin_tiny", **size, num_classes=3))
    maps, heads = look(both, model, variables, video)
    np.testing.assert_allclose(maps.sum(axis=(1, 2, 3)), 1, rtol=1e-5)
    received = heads["stage_1/block_0/attention/dot_product"]
    assert received.shape == (2, 4, 2, 6, 6) and (received > 0).all()


@pytest.mark.long
def test_uniformer_maps_are_on_the_grid_of_its_first_embedding():
    fields = {"widths": (8, 8, 16, 16), "depths": (1, 1, 1, 1), "head_width": 8, "num_frames": 4, "image_size": 32}
    model = vidjax.create_model("uniformer_tiny", **fields, num_classes=3)
    video = jnp.asarray(np.random.default_rng(0).standard_normal((1, 4, 32, 32, 3)), jnp.float32)
    variables = jax.jit(model.init)(jax.random.key(0), video)
    rolled, heads = look(both, model, variables, video)
    assert rolled.shape == (1, 2, 8, 8)
    np.testing.assert_allclose(rolled.sum(), 1, rtol=1e-5)
    assert set(heads) == {f"stage_{i}/block_0/joint/attention/dot_product" for i in (2, 3)}
    for maps in heads.values():
        assert maps.shape == (1, 2, 2, 8, 8)
        np.testing.assert_allclose(maps.sum((2, 3, 4)), 1, rtol=1e-5)


class Brightness(nn.Module):
    """The logit of class 1 increases with brightness."""

    num_classes: int | None = 2

    @nn.compact
    def __call__(self, video):
        cells = nn.relu(Conv3D(2, (1, 4, 4), (1, 4, 4), (0, 0, 0), name="cells")(video))
        cells = Conv3D(2, (1, 2, 2), (1, 2, 2), (0, 0, 0), name="coarse")(cells)
        features = cells.mean(axis=(1, 2, 3))
        return features if self.num_classes is None else nn.Dense(self.num_classes, name="head")(features)


@pytest.fixture(scope="module")
def moving():
    """Clips of a bright moving object, `b t h w 3` in [0, 1], and its mask, `b t h w`."""
    pixels = np.stack([moving_shapes.render(index, np.arange(8) * 2, 32) for index in (7, 16, 26)])
    return jnp.asarray(pixels, jnp.float32) / 255, pixels.min(axis=-1) > 88


def hit_rate(mask: np.ndarray, maps: np.ndarray) -> float:
    """Fraction of frames in which the maximum of the map is on the object."""
    t, h, w = (side // cells for side, cells in zip(mask.shape[1:], maps.shape[1:], strict=True))
    cells = mask.reshape(len(mask), -1, t, maps.shape[2], h, maps.shape[3], w).any(axis=(2, 4, 6))
    cells, maps = (x.reshape(*x.shape[:2], -1) for x in (cells, maps))
    return float(np.take_along_axis(cells, maps.argmax(-1)[..., None], axis=-1).mean())


def test_class_activation_highlights_the_evidence_for_the_class(moving):
    video, mask = moving
    model = Brightness()
    params = jax.jit(model.init)(jax.random.key(0), video)["params"]
    params["cells"]["kernel"] = jnp.stack([jnp.ones((1, 4, 4, 3)), -jnp.ones((1, 4, 4, 3))], axis=-1)
    params["coarse"]["kernel"] = jnp.broadcast_to(jnp.eye(2), (1, 2, 2, 2, 2))
    params["head"] = {"kernel": jnp.array([[-1.0, 1], [0, 0]]), "bias": jnp.array([0.5, 0.25])}
    variables = {"params": params}
    assert saliency.map_layers(model, variables, video) == {"cells": (3, 8, 8, 8, 2), "coarse": (3, 8, 4, 4, 2)}
    maps = saliency.class_activation(model, variables, video)  # of "cells", as 4 rows are too coarse
    assert maps.shape == (3, 8, 8, 8) and hit_rate(mask, maps) == 1
    last = saliency.class_activation(model, variables, video, layer="coarse")
    np.testing.assert_allclose(last.sum((1, 2, 3)) + 0.25, model.apply(variables, video)[:, 1], rtol=1e-5)
    against = saliency.class_activation(model, variables, video, target=0, layer="coarse")
    np.testing.assert_allclose(against, -last, rtol=1e-5)
    with pytest.raises(ValueError, match="no feature map 'fine': choose one of cells, coarse"):
        saliency.class_activation(model, variables, video, layer="fine")
    with pytest.raises(ValueError, match="Brightness has no classes: class activation needs a classifier"):
        saliency.class_activation(Brightness(None), variables, video)
    with pytest.raises(ValueError, match="Brightness has no attention to roll out"):
        saliency.rollout(model, variables, video)


def test_rollout_and_head_maps_highlight_attended_patches(moving):
    video, mask = moving
    model = VideoMAE(4, 1, 1, patch_size=(1, 4, 4), num_classes=2)
    params = jax.tree.map(jnp.zeros_like, jax.jit(model.init)(jax.random.key(0), video)["params"])
    # Bright patches have the token (+, -, 0, 0), dark ones (-, +, 0, 0), and all attend to the bright ones.
    bright = jnp.full((1, 4, 4, 3, 1), 1e4 / 48) * jnp.array([1.0, -1, 0, 0])
    params["patch_embedding"] = {"kernel": bright, "bias": -5e3 * jnp.array([1.0, -1, 0, 0])}
    attention = params["transformer"]["block_0"]["attention"]
    params["transformer"]["block_0"]["norm1"]["scale"] = jnp.ones(4)
    attention["query"]["bias"] = jnp.array([4.0, 0, 0, 0])
    attention["key"]["kernel"] = jnp.eye(4)
    variables = {"params": params}
    rolled, heads = look(both, model, variables, video)
    assert hit_rate(mask, rolled) == 1
    (maps,) = heads.values()
    assert hit_rate(mask, maps[:, 0]) == 1
    with pytest.raises(ValueError, match="VideoMAE has no convolutional feature map"):
        saliency.class_activation(model, variables, video)
