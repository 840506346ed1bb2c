"""Adapters and prompts in blocks, against NumPy modules written here from the original code."""

import re
from functools import partial
from math import erf

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from small_models import perturbed

from vidjax.errors import UserError
from vidjax.layers.activations import exact_gelu
from vidjax.layers.adapters import METHODS, Adapter, is_added
from vidjax.layers.transformer import Block, Encoder
from vidjax.models import create_model, variable_shapes
from vidjax.models.clip import ImageTower
from vidjax.training.optimizer import layer_numbers

CLIPS, FRAMES, TOKENS, WIDTH, HEADS = 2, 3, 5, 8, 2
EVERYWHERE = [(method, False) for method in METHODS] + [("st_adapter", True), ("prompt", True)]


def linear(x, p):
    return x @ p["kernel"] + p["bias"]


def norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt(np.square(x).mean(-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(erf)(x / np.sqrt(2)))


def attention(x, p):
    """Of one sequence, head by head."""
    query, key, value = (np.split(linear(x, p[name]), HEADS, axis=-1) for name in ("query", "key", "value"))
    heads = []
    for q, k, v in zip(query, key, value, strict=True):
        weights = np.exp(q @ k.T / np.sqrt(q.shape[-1]))
        heads.append(weights / weights.sum(-1, keepdims=True) @ v)
    return linear(np.concatenate(heads, axis=-1), p["out"])


def bottleneck(x, p, activation=gelu):
    return linear(activation(linear(x, p["down"])), p["up"])


def mlp(x, p):
    return linear(gelu(linear(x, p["fc1"])), p["fc2"])


def over_time(clip, p):
    """ST-Adapter on `t n d`: patch tokens alone, zeros before the first and after the last frame."""
    hidden = linear(clip[:, 1:], p["down"])
    padded = np.pad(hidden, ((1, 1), (0, 0), (0, 0)))
    kernel = p["convolution"]["kernel"][:, 0, 0, 0]
    moved = sum(kernel[i] * padded[i : i + len(clip)] for i in range(3)) + p["convolution"]["bias"]
    out = clip.copy()
    out[:, 1:] += linear(moved, p["up"])
    return out


def block(clip, p, method, everywhere):
    """A block on one clip `t n d`, as the method's paper or code has it."""
    each = partial(map, lambda frame: attention(norm(frame, p["norm1"]), p["attention"]))
    if method == "st_adapter" and everywhere:
        clip = over_time(clip, p["attention_adapter"])
    if method == "aim":
        moved = np.stack(list(each(np.swapaxes(clip, 0, 1))), axis=1)  # a sequence for each place
        clip = clip + bottleneck(moved, p["time_adapter"])
    attended = np.stack(list(each(clip)))
    if method in ("adapter", "aim"):
        attended = attended + bottleneck(attended, p["attention_adapter"])
    clip = clip + attended
    if method == "st_adapter":
        clip = over_time(clip, p["mlp_adapter"])
    out = mlp(norm(clip, p["norm2"]), p["mlp"])
    if method == "adapter":
        out = out + bottleneck(out, p["mlp_adapter"])
    if method == "adaptformer":
        out = out + 0.1 * bottleneck(clip, p["mlp_adapter"], lambda x: np.maximum(x, 0))
    if method == "aim":
        out = out + 0.5 * bottleneck(norm(clip, p["norm2"]), p["mlp_adapter"])
    return clip + out


def encoder(clip, params, method, everywhere):
    """Two blocks; prompts stand after the class token, as in VPT, where ours come last."""
    for i in range(2):
        p = params[f"block_{i}"]
        if method != "prompt":
            clip = block(clip, p, method, everywhere)
            continue
        if i == 0 or everywhere:
            prompts = np.tile(params[f"prompt_{i}"], (len(clip), 1, 1))
        count = prompts.shape[1]
        clip = block(np.concatenate([clip[:, :1], prompts, clip[:, 1:]], axis=1), p, method, everywhere)
        prompts, clip = clip[:, 1 : 1 + count], np.concatenate([clip[:, :1], clip[:, 1 + count :]], axis=1)
    return clip


@pytest.mark.parametrize(("method", "everywhere"), EVERYWHERE)
def test_blocks_equal_those_of_the_paper_and_start_as_those_without(method, everywhere):
    adapter = Adapter(method, 3, everywhere)
    ours = Encoder(partial(Block, HEADS, 2.0, activation=exact_gelu, adapter=adapter), 2, adapter=adapter)
    x = np.random.default_rng(0).standard_normal((CLIPS * FRAMES, TOKENS, WIDTH), np.float32)
    shapes = jax.eval_shape(partial(ours.init, frames=FRAMES), jax.random.key(0), x)
    draw = np.random.default_rng(1).standard_normal
    params = jax.tree.map(lambda leaf: 0.5 * draw(leaf.shape, np.float32), shapes["params"])
    expected = [encoder(clip, params, method, everywhere) for clip in x.reshape(CLIPS, FRAMES, TOKENS, WIDTH)]
    run = jax.jit(partial(ours.apply, frames=FRAMES))
    np.testing.assert_allclose(run({"params": params}, x), np.concatenate(expected), atol=1e-4, rtol=1e-4)
    if method == "prompt":
        return
    initial = flatten_dict(jax.jit(partial(ours.init, frames=FRAMES))(jax.random.key(0), x)["params"], sep="/")
    started = {path: leaf for path, leaf in flatten_dict(params, sep="/").items() if not is_added(path)}
    params = unflatten_dict(initial | started, sep="/")
    expected = np.concatenate([encoder(clip, params, None, False) for clip in x.reshape(CLIPS, FRAMES, TOKENS, WIDTH)])
    np.testing.assert_allclose(run({"params": params}, x), expected, atol=1e-4, rtol=1e-4)  # as without


SMALL = {"num_classes": 3, "num_frames": 2, "image_size": 16, "width": 8, "depth": 1, "heads": 2}
FITTING = {
    "videomae_tiny": ("adapter", "adaptformer", "prompt"),
    "vivit_tiny_joint": ("adapter", "adaptformer", "prompt"),
    "vivit_tiny_factorized_encoder": ("adapter", "adaptformer", "prompt"),
    "vivit_tiny_factorized_self_attention": ("adapter", "adaptformer"),
    "vivit_tiny_factorized_dot_product": ("adapter", "adaptformer"),
    "timesformer_tiny_divided": ("adapter", "adaptformer"),
    "timesformer_tiny_joint": ("adapter", "adaptformer", "prompt"),
    "vit_tiny": METHODS,
}


@pytest.mark.long
@pytest.mark.parametrize("name", FITTING)
def test_an_adapted_model_starts_as_its_base_and_has_its_parameters(name):
    base = create_model(name, **SMALL)
    video = np.random.default_rng(0).standard_normal((1, 2, 16, 16, 3), np.float32)
    own = flatten_dict(perturbed(base)["params"], sep="/")
    expected = jax.jit(base.apply)({"params": unflatten_dict(own, sep="/")}, video)
    for method in METHODS:
        model = create_model(name, **SMALL, adapter=Adapter(method, 3, everywhere=True))
        if method not in FITTING[name]:
            with pytest.raises(UserError, match=f"{method} does not fit this .*: choose adapter or adaptformer"):
                variable_shapes(model)
            continue
        params = flatten_dict(perturbed(model)["params"], sep="/")
        added = {path for path in params if is_added(path)}
        assert set(params) - added == set(own) and added
        layers = flatten_dict(layer_numbers(unflatten_dict(params, sep="/")), sep="/")
        for path in added:  # layer decay has a prompt with its block
            place = "/".join(path.split("/")[:2]).replace("prompt", "block")
            assert layers[path] == layers.get(f"{place}/norm2/scale", 0)
        if method != "prompt":  # which changes the attention from the start
            zeros = {path: 0 * params[path] for path in added if re.search("/up/|/convolution/|_time/", path)}
            actual = jax.jit(model.apply)({"params": unflatten_dict(params | zeros, sep="/")}, video)
            np.testing.assert_array_equal(actual, expected)


@pytest.mark.long
def test_aim_and_st_adapter_see_time_in_an_image_tower_and_the_base_does_not():
    video = np.random.default_rng(0).standard_normal((1, 3, 16, 16, 3), np.float32)
    permuted = video[:, [1, 0, 2]]
    for method in (None, "st_adapter", "aim"):
        adapter = method and Adapter(method, 3)
        tower = ImageTower(8, 2, 2, 4, patch_size=(1, 8, 8), num_frames=3, image_size=16, adapter=adapter)
        run = partial(jax.jit(tower.apply), perturbed(tower))
        assert np.allclose(run(video), run(permuted), atol=1e-5) == (method is None)


# Trained parameters without the head: AdaptFormer's table has 1.26 M with the 100 classes of CIFAR, AIM's 11 M with the
# 400 of Kinetics and 32 frames, ST-Adapter's and VPT's are those of their code.
COUNTS = {
    ("videomae_base", "adaptformer", 64, False): 12 * (2 * 768 * 64 + 64 + 768),
    ("videomae_base", "adapter", 64, False): 2 * 12 * (2 * 768 * 64 + 64 + 768),
    ("vit_base_16", "st_adapter", 384, False): 12 * (2 * 768 * 384 + 384 + 768 + 4 * 384),
    ("vit_base_16", "st_adapter", 384, True): 24 * (2 * 768 * 384 + 384 + 768 + 4 * 384),
    ("vit_base_16", "aim", 192, False): 3 * 12 * (2 * 768 * 192 + 192 + 768) + 32 * 768,
    ("vit_base_16", "prompt", 50, False): 50 * 768,
    ("vit_base_16", "prompt", 50, True): 12 * 50 * 768,
}


@pytest.mark.parametrize(("name", "method", "width", "everywhere"), COUNTS)
def test_the_trained_parameters_are_as_many_as_published(name, method, width, everywhere):
    model = create_model(name, num_classes=None, num_frames=32, depth=1, adapter=Adapter(method, width, everywhere))
    flat = flatten_dict(variable_shapes(model)["params"], sep="/")
    repeated = 1 if method == "prompt" and not everywhere else 12
    count = sum(
        leaf.size * (repeated if "block_0" in path or "prompt_0" in path else 1)
        for path, leaf in flat.items()
        if is_added(path)
    )
    assert count == COUNTS[name, method, width, everywhere]
    if method == "aim":
        assert round((count + 400 * 769) / 1e6) == 11
    if method == "adaptformer":
        assert int((count + 100 * 769) / 1e4) == 126
