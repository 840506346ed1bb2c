"""V-JEPA 2.1, against a rewrite in NumPy from what its public code says; no recording of the original exists.

The rewrite reads the published names and does not share a function with the library.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe

from vidjax.convert import export_pretrained, files, from_state_dict
from vidjax.convert.export import entries
from vidjax.convert.vjepa21 import original
from vidjax.errors import UserError
from vidjax.models.vjepa21 import VJEPA21, Pretraining21
from vidjax.objectives import multi_block
from vidjax.runs.latent import context_weights, make_loss, make_targets
from vidjax.training.state import Aux

# The base encoder's is published on the card of a copy of its weights; the others are counted here.
COUNTS = {
    "vjepa2_1_tiny": (503_808, None),
    "vjepa2_1_base": (86_833_152, None),
    "vjepa2_1_large": (304_680_960, None),
    "vjepa2_1_giant": (1_013_267_968, None),
    "vjepa2_1_gigantic": (1_845_216_768, None),
    "vjepa2_1_tiny_pretrain": (640_176, None),
    "vjepa2_1_base_pretrain": (134_445_696, None),
    "vjepa2_1_base_pretrain_distilled": (109_707_904, None),
    "vjepa2_1_large_pretrain": (355_015_552, None),
    "vjepa2_1_large_pretrain_distilled": (327_654_016, None),
    "vjepa2_1_giant_pretrain": (1_068_668_672, None),
    "vjepa2_1_gigantic_pretrain": (1_904_650_240, None),
}

WIDTH, DEPTH, HEADS, PATCH, LEVELS = 28, 3, 2, 4, (0, 2)  # heads of 14: thirds of 4 channels, 2 are not rotated
MODEL = VJEPA21(WIDTH, DEPTH, HEADS, LEVELS, patch_size=(2, PATCH, PATCH), num_frames=4, image_size=12, pooler_depth=1)


NARROW, TOKENS = 14, 3  # a predictor of one head and two blocks, with three mask tokens
PREDICTOR = {"predictor_width": NARROW, "predictor_depth": 2, "predictor_heads": 1, "mask_tokens": TOKENS}
FIELDS = {"patch_size": (2, PATCH, PATCH), "num_frames": 4, "image_size": 12}
WHOLE = Pretraining21(WIDTH, DEPTH, HEADS, LEVELS, **PREDICTOR, predicted_levels=2, **FIELDS)
DISTILLED = WHOLE.clone(predicted_levels=1, target_width=10)


def block_shapes(name: str, width: int) -> dict[str, tuple[int, ...]]:
    shapes, layers = {}, {"attn.qkv": 3 * width, "attn.proj": width, "mlp.fc1": 4 * width, "mlp.fc2": width}
    for layer, outputs in layers.items():
        shapes[f"{name}.{layer}.weight"] = (outputs, 4 * width if layer == "mlp.fc2" else width)
        shapes[f"{name}.{layer}.bias"] = (outputs,)
    return shapes | {f"{name}.{norm}.{entry}": (width,) for norm in ("norm1", "norm2") for entry in ("weight", "bias")}


def published() -> dict[str, np.ndarray]:
    """Random entries with the names and shapes of the original's state dict."""
    shapes = {"video_mod_embed": (1, 1, WIDTH), "img_mod_embed": (1, 1, WIDTH)}
    for name, frames in (("patch_embed", 2), ("patch_embed_img", 1)):
        shapes |= {f"{name}.proj.weight": (WIDTH, 3, frames, PATCH, PATCH), f"{name}.proj.bias": (WIDTH,)}
    for number in range(len(LEVELS)):
        shapes |= {f"norms_block.{number}.{entry}": (WIDTH,) for entry in ("weight", "bias")}
    for number in range(DEPTH):
        shapes |= block_shapes(f"blocks.{number}", WIDTH)
    return {name: 0.3 * recipe.floats(name, shape) for name, shape in shapes.items()}


def published_predictor(model: Pretraining21) -> dict[str, np.ndarray]:
    """The same of its predictor: two layers of the levels side by side, or one of a single level."""
    layers = {"predictor_embed": (NARROW, WIDTH)}
    if model.predicted_levels > 1:
        layers = {"predictor_embed.0": (WIDTH, 2 * WIDTH), "predictor_embed.2": (NARROW, WIDTH)}
    outputs = model.target_width or 2 * WIDTH
    layers |= {"predictor_proj": (outputs, NARROW), "predictor_proj_context": (outputs, NARROW)}
    shapes = {f"{name}.weight": shape for name, shape in layers.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in layers.items()}
    shapes |= {f"mask_tokens.{number}": (1, 1, NARROW) for number in range(TOKENS)}
    shapes |= {f"{kind}_mod_embed": (1, 1, NARROW) for kind in ("video", "img")}
    shapes |= {f"predictor_norm.{entry}": (NARROW,) for entry in ("weight", "bias")}
    for number in range(2):
        shapes |= block_shapes(f"predictor_blocks.{number}", NARROW)
    return {name: 0.3 * recipe.floats(f"predictor {name}", shape) for name, shape in shapes.items()}


def layer_norm(x: np.ndarray, weights: dict, name: str) -> np.ndarray:
    scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def linear(x: np.ndarray, weights: dict, name: str) -> np.ndarray:
    return x @ weights[f"{name}.weight"].reshape(len(weights[f"{name}.bias"]), -1).T + weights[f"{name}.bias"]


def turned(x: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Pairs of channels as complex numbers, turned by the position times 10000 to the power of -2i/third."""
    third, parts = 2 * (x.shape[-1] // 3 // 2), []
    for axis in range(3):
        part = x[..., axis * third : (axis + 1) * third]
        angles = positions[:, axis, None] * 10000.0 ** (-2 * np.arange(third // 2) / third)
        numbers = (part[..., ::2] + 1j * part[..., 1::2]) * np.exp(1j * angles)
        parts.append(np.stack([numbers.real, numbers.imag], axis=-1).reshape(part.shape))
    return np.concatenate([*parts, x[..., 3 * third :]], axis=-1)


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def rewritten_block(x: np.ndarray, weights: dict, name: str, heads: int, positions: np.ndarray) -> np.ndarray:
    qkv = linear(layer_norm(x, weights, f"{name}.norm1"), weights, f"{name}.attn.qkv")
    query, key, value = np.moveaxis(qkv.reshape(len(x), 3, heads, -1), 0, 2)
    scores = turned(query, positions) @ np.swapaxes(turned(key, positions), 1, 2) / math.sqrt(x.shape[-1] / heads)
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    mixed = np.moveaxis(shares / shares.sum(-1, keepdims=True) @ value, 0, 1).reshape(len(x), -1)
    x = x + linear(mixed, weights, f"{name}.attn.proj")
    hidden = gelu(linear(layer_norm(x, weights, f"{name}.norm2"), weights, f"{name}.mlp.fc1"))
    return x + linear(hidden, weights, f"{name}.mlp.fc2")


def rewritten(weights: dict, video: np.ndarray, kept: np.ndarray | None = None) -> np.ndarray:
    """The normalised outputs of all levels side by side, for one clip `t h w c` or its patches at some indices."""
    weights = {name: value.astype(np.float64) for name, value in weights.items()}
    frames, rows, columns = 1 if len(video) == 1 else 2, video.shape[1] // PATCH, video.shape[2] // PATCH
    patches, positions = [], []
    for t in range(len(video) // frames):
        for r in range(rows):
            for c in range(columns):
                cut = video[t * frames :][:frames, r * PATCH :, c * PATCH :][:, :PATCH, :PATCH]
                patches.append(np.moveaxis(cut, -1, 0).ravel())  # channels first, as a convolution's kernel
                positions.append([t, r * 15 / (rows - 1), c * 15 / (columns - 1)])
    kind = ("patch_embed_img.proj", "img_mod_embed") if frames == 1 else ("patch_embed.proj", "video_mod_embed")
    x, outputs, positions = linear(np.array(patches), weights, kind[0]) + weights[kind[1]][0], [], np.array(positions)
    if kept is not None:
        x, positions = x[kept], positions[kept]
    for number in range(DEPTH):
        x = rewritten_block(x, weights, f"blocks.{number}", HEADS, positions)
        if number in LEVELS:
            outputs.append(layer_norm(x, weights, f"norms_block.{LEVELS.index(number)}"))
    return np.concatenate(outputs, axis=-1)


def rewritten_predictor(
    weights: dict, context: np.ndarray, kept: np.ndarray, predicted: np.ndarray, side: int, kind: str, token: int
) -> tuple[np.ndarray, np.ndarray]:
    """Tokens at the indices `predicted` and `kept` of frames of `side` times `side`, in the order of their indices."""
    weights = {name: value.astype(np.float64) for name, value in weights.items()}
    if "predictor_embed.0.weight" in weights:
        context = linear(gelu(linear(context, weights, "predictor_embed.0")), weights, "predictor_embed.2")
    else:
        context = linear(context, weights, "predictor_embed")
    masked = np.repeat(weights[f"mask_tokens.{token}"][0], len(predicted), axis=0)
    indices = np.concatenate([kept, predicted])
    order = np.argsort(indices)
    x = (np.concatenate([context, masked]) + weights[f"{kind}_mod_embed"][0])[order]
    positions = np.stack([indices // side**2, indices % side**2 // side, indices % side], axis=1)[order]
    for number in range(2):
        x = rewritten_block(x, weights, f"predictor_blocks.{number}", 1, positions)
    x = layer_norm(x, weights, "predictor_norm")[np.argsort(order)]
    heads = ("predictor_proj", "predictor_proj_context")
    asked, seen = x[len(kept) :], x[: len(kept)]
    return linear(asked, weights, heads[0]), linear(seen, weights, heads[1])


@pytest.mark.parametrize("shape", [(4, 12, 20), (1, 12, 20)], ids=["video", "image"])
def test_encoder_equals_a_rewrite_in_numpy(shape):
    weights, video = published(), recipe.floats("video", (2, *shape, 3))
    variables = from_state_dict(MODEL, weights, strict=True)

    @jax.jit
    def run(variables, video):
        return MODEL.apply(variables, video, method="hierarchy"), MODEL.apply(variables, video, method="encode")

    several, last = run(variables, jnp.asarray(video))
    expected = np.stack([rewritten(weights, clip) for clip in video])
    np.testing.assert_allclose(several, expected, atol=2e-5 * np.abs(expected).max())
    np.testing.assert_array_equal(last.reshape(2, -1, WIDTH), several[..., -WIDTH:])
    assert last.shape == (2, max(shape[0] // 2, 1), 3, 5, WIDTH)


@pytest.mark.parametrize(("model", "frames", "kind"), [(WHOLE, 4, "video"), (WHOLE, 1, "img"), (DISTILLED, 4, "video")])
def test_predictor_equals_a_rewrite_in_numpy(model, frames, kind):
    """Of a square clip, with another context for each clip; indices that only fill up the shape change nothing."""
    encoder, predictor = published(), published_predictor(model)
    file = wrapped("encoder", encoder) | wrapped("predictor", predictor)
    variables = from_state_dict(model, file, strict=True)
    video, count = recipe.floats("video", (2, frames, 12, 12, 3)), 9 * max(frames // 2, 1)
    orders = np.stack([np.random.default_rng(seed).permutation(count) for seed in range(2)])
    kept, predicted = np.sort(orders[:, :4]), np.sort(orders[:, 4:8])
    filled = np.pad(kept, ((0, 0), (0, 1))), np.pad(predicted, ((0, 0), (0, 1)))
    valid = np.tile(np.arange(5) < 4, (2, 2))
    apply = jax.jit(partial(model.apply, mask_index=1))
    asked, seen = apply(variables, video, *filled, valid)
    for clip in range(2):
        context = rewritten(encoder, video[clip], kept[clip])[:, -model.predicted_levels * WIDTH :]
        expected = rewritten_predictor(predictor, context, kept[clip], predicted[clip], 3, kind, 1)
        for actual, each in zip((asked, seen), expected, strict=True):
            np.testing.assert_allclose(actual[clip, :4], each, atol=2e-5 * np.abs(each).max())
    exported = entries(original(model), model, variables)
    assert exported.keys() == file.keys()
    for name, value in file.items():
        np.testing.assert_array_equal(exported[name], value, err_msg=name)


def test_the_loss_of_a_step_equals_a_rewrite_in_numpy():
    """All levels of the moving average, normalised one by one, in both places; the context's weights by distance."""
    encoder, predictor = published(), published_predictor(WHOLE)
    average = {name: value + 0.1 * recipe.floats(f"average {name}", value.shape) for name, value in encoder.items()}
    file = wrapped("encoder", encoder) | wrapped("predictor", predictor)
    params, ema = (
        from_state_dict(WHOLE, each, strict=True)["params"] for each in (file, file | wrapped("encoder", average))
    )
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 12, 12, 3), np.uint8)
    video, order = np.asarray(WHOLE.card.preprocess(jnp.asarray(pixels))), np.random.default_rng(1).permutation(18)
    kept, predicted = np.sort(order[:5]), np.sort(order[5:12])
    targets = np.stack([rewritten(average, clip) for clip in video]).reshape(2, 18, 2, WIDTH)
    targets = (targets - targets.mean(-1, keepdims=True)) / np.sqrt(targets.var(-1, keepdims=True) + 1e-5)
    places = np.stack(np.unravel_index(np.arange(18), (2, 3, 3)), axis=1)
    distances = [min(np.linalg.norm(places[a] - places[b]) for b in predicted) for a in kept]
    losses = []
    for clip, target in zip(video, targets.reshape(2, 18, -1), strict=True):
        asked, seen = rewritten_predictor(predictor, rewritten(encoder, clip, kept), kept, predicted, 3, "video", 0)
        context = np.abs(seen - target[kept]).mean(-1) / np.sqrt(distances)
        losses.append(
            np.abs(asked - target[predicted]).mean() + 0.5 * 0.25 * context.mean()
        )  # a quarter of the warm-up
    filled = [jnp.asarray(np.tile(np.pad(each, (0, 2)), (2, 1))) for each in (kept, predicted)]
    valid = jnp.asarray(np.tile([*[True] * 5, *[False] * 2, *[True] * 7, *[False] * 2], (2, 1)))
    mask, shapes = multi_block.Mask(*filled, valid), [((7, 9),)]
    weights = context_weights(WHOLE, (2, 3, 3), 0.5, (100, 200))
    loss_fn = make_loss(WHOLE, make_targets(WHOLE, None), lambda key, clips: [mask], shapes, weights)
    aux = Aux({}, ema, None, jnp.asarray(125))
    batch = {"video": jnp.asarray(pixels), "valid": jnp.ones(2, bool)}
    (loss, _), gradient = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params, aux, batch, jax.random.key(0))
    assert float(loss) == pytest.approx(np.mean(losses), rel=1e-5)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    for step, share in ((99, 0), (1000, 1)):
        mean = np.mean(weights(jnp.asarray(step))(mask)[:, :5])
        assert mean == pytest.approx(0.5 * share * np.mean(np.array(distances) ** -0.5), rel=1e-5)


def test_a_distilled_file_has_only_the_average_beside_its_predictor(tmp_path):
    torch = pytest.importorskip("torch")
    weights = wrapped("ema_encoder", published()) | wrapped("predictor", published_predictor(DISTILLED))
    variables = from_state_dict(DISTILLED, weights, strict=True)
    np.testing.assert_array_equal(variables["params"]["encoder"]["video_token"], published()["video_mod_embed"])
    path = export_pretrained(DISTILLED, variables, tmp_path / "out", layout="original")
    content = torch.load(path, weights_only=True)
    assert content.keys() == {"encoder", "predictor"}
    assert "module.backbone.predictor_proj_context.weight" in content["predictor"]
    lacking = {name: value for name, value in weights.items() if "predictor_blocks.1" not in name}
    with pytest.raises(UserError, match="predictor"):
        from_state_dict(DISTILLED, lacking, strict=True)


def wrapped(part: str, weights: dict) -> dict:
    return {f"{part}.module.backbone.{name}": value for name, value in weights.items()}


@pytest.mark.parametrize("average", ["ema_encoder", "target_encoder"])
def test_the_moving_average_of_a_checkpoint_is_read_and_written(average):
    """Distilled models have another name for it; the encoder that was trained and the predictor are left out."""
    weights = published()
    others = {name: value + 1 for name, value in weights.items()}
    file = wrapped("encoder", others) | wrapped(average, weights) | wrapped("predictor", {"predictor_norm.bias": 1})
    variables = from_state_dict(MODEL, file, strict=True)
    exported = entries(original(MODEL), MODEL, variables)
    assert exported.keys() == wrapped("target_encoder", weights).keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(exported[f"target_encoder.module.backbone.{name}"], value, err_msg=name)


def test_a_file_has_its_networks_in_dictionaries(tmp_path):
    torch = pytest.importorskip("torch")
    weights = published()
    path = export_pretrained(MODEL, from_state_dict(MODEL, weights), tmp_path / "out", layout="original")
    assert torch.load(path, weights_only=True).keys() == {"target_encoder"}
    content = {f"module.backbone.{name}": torch.asarray(value) for name, value in weights.items()}
    zeros = {name: torch.zeros_like(value) for name, value in content.items()}
    torch.save({"encoder": zeros, "ema_encoder": content, "epoch": 3}, tmp_path / "distilled.pt")
    loaded = from_state_dict(MODEL, files.read(tmp_path / "distilled.pt"), strict=True)
    jax.tree.map(np.testing.assert_array_equal, loaded, from_state_dict(MODEL, weights))


def test_the_last_level_is_the_last_block():
    with pytest.raises(UserError, match="levels end with block 1: the last of 3 is 2"):
        jax.eval_shape(MODEL.clone(levels=(0, 1)).init, jax.random.key(0), jnp.zeros((1, 4, 12, 12, 3)))
