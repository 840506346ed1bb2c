from functools import cache
from math import prod
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
import recipe
from flax.traverse_util import flatten_dict

from vidjax.convert import from_state_dict, load_pretrained
from vidjax.layers.patches import grid
from vidjax.models import videomae
from vidjax.objectives.masking import running_cell, tube
from vidjax.objectives.reconstruction import pixel_targets, reconstruction_loss

# Parameters, and GMACs of one clip where they are published (SYSTEMS.md), of each row; see test_published.py.
COUNTS = {
    "videomae_base": (86_534_800, 180.345),
    "videomae_huge": (632_119_440, 1190.994),
    "videomae_large": (304_270_736, 596.833),
    "videomae_small": (22_033_936, 56.878),
    # The published cost less the embedding of masked patches (1408 x 1536 x width), which is never computed here.
    "videomae_base_pretrain": (94_210_944, 33.779),
    "videomae_huge_pretrain": (692_487_296, 234.839),
    "videomae_large_pretrain": (342_996_992, 140.421),
    "videomae_small_pretrain": (24_029_376, 10.705),
    # Counted here: nobody has published these, or not their parameters to the last one.
    "videomae_tiny": (594_528, None),
    "videomae_tiny_pretrain": (976_704, None),
}

CLOSE = {"rtol": 0, "atol": 1e-4}

SMALL = {"width": 24, "depth": 1, "heads": 3, "patch_size": (2, 4, 4)}
SMALL_PRETRAINING = SMALL | {"decoder_width": 12, "decoder_depth": 1, "decoder_heads": 3}
VIDEO = (2, 4, 8, 16, 3)
GRID = grid(VIDEO[1:4], SMALL["patch_size"])  # (2, 2, 4): no two sides can be mistaken for each other


def perturbed(model: nn.Module, *inputs) -> dict:
    """Variables of noise, none zero and no scale one; made by numpy, which needs no compilation."""
    draw = np.random.default_rng(0).standard_normal

    def noise(path, leaf):
        scale = 0.1 if leaf.ndim == 1 else prod(leaf.shape[:-1]) ** -0.5
        return jnp.asarray(float(path[-1].key == "scale") + scale * draw(leaf.shape), leaf.dtype)

    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    return jax.tree_util.tree_map_with_path(noise, shapes)


@pytest.fixture(scope="module")
def video():
    return jnp.asarray(np.random.default_rng(2).random(VIDEO, np.float32))


@pytest.fixture(scope="module")
def mask():
    return jax.vmap(lambda key: tube(key, GRID, 0.5))(jax.random.split(jax.random.key(3), VIDEO[0]))


@pytest.fixture(scope="module")
def pretraining(video, mask):
    """Model, variables, and both methods compiled once for all tests of this file."""
    model = videomae.Pretraining(**SMALL_PRETRAINING)
    variables = perturbed(model, video, *mask)
    tokens = jax.jit(lambda *inputs: model.apply(*inputs, method="tokens"))
    return SimpleNamespace(model=model, variables=variables, run=jax.jit(model.apply), tokens=tokens)


@pytest.fixture(scope="module")
def classifier(video):
    model = videomae.VideoMAE(**SMALL, num_classes=5)
    variables = perturbed(model, video)
    run = jax.jit(model.apply)
    return SimpleNamespace(model=model, variables=variables, run=run, logits=run(variables, video))


@pytest.fixture(scope="module")
def gradients(pretraining, video, mask):
    """Loss and gradients by rematerialisation policy."""

    def loss(variables, model):
        predicted = model.apply(variables, video, *mask)
        target = jnp.take_along_axis(pixel_targets(video, model.patch_size), mask[1][..., None], axis=1)
        return reconstruction_loss(predicted, target).mean()

    def step(remat):
        model = pretraining.model.clone(remat=remat)
        return jax.jit(jax.value_and_grad(lambda variables: loss(variables, model)))(pretraining.variables)

    return cache(step)


# Parity: recorded and live answers of other implementations


def indices(masked: np.ndarray) -> tuple[jax.Array, jax.Array]:
    """Kept and masked token indices of a mask `b n`."""
    return tuple(jnp.asarray([np.flatnonzero(row) for row in rows]) for rows in (~masked, masked))


def test_pretraining_equals_the_original():
    golden = recipe.load("videomae_pretrain")
    c, (video, masked) = golden.config, golden.inputs
    model = videomae.Pretraining(c["D"], c["L"], c["H"], c["dD"], c["dL"], c["dH"], patch_size=(2, c["P"], c["P"]))
    variables = from_state_dict(model, golden.weights, strict=True)
    predicted = jax.jit(model.apply)(variables, jnp.moveaxis(jnp.asarray(video), 1, -1), *indices(masked))
    np.testing.assert_allclose(predicted, golden.outputs["output0"], **CLOSE)


@pytest.mark.parametrize("name", ["videomae_finetune", "videomae_finetune_full"])
def test_classifier_equals_the_original(name):
    golden = recipe.load(name)
    c, video = golden.config, jnp.moveaxis(jnp.asarray(golden.inputs[0][:1]), 1, -1)  # one clip tells as much as two
    model = videomae.VideoMAE(c["D"], c["L"], c["H"], patch_size=(2, c["P"], c["P"]), num_classes=c["classes"])
    variables = from_state_dict(model, golden.weights, strict=True)
    np.testing.assert_allclose(jax.jit(model.apply)(variables, video), golden.outputs["output0"][:1], **CLOSE)


def test_classifier_equals_mmaction2():
    """Layer scale and all; its files also hold the table of positions, which is computed and must be that of sines."""
    golden = recipe.load("mm_videomae")
    c, video = golden.config, jnp.moveaxis(jnp.asarray(golden.inputs[0]), 1, -1)
    patches = c["T"] // 2 * (c["S"] // c["P"]) ** 2
    angle = np.arange(patches)[:, None] / 10000 ** (np.arange(c["D"]) // 2 * 2 / c["D"])
    table = np.where(np.arange(c["D"]) % 2, np.cos(angle), np.sin(angle)).astype(np.float32)[None]
    model = videomae.VideoMAE(c["D"], c["L"], c["H"], patch_size=(2, c["P"], c["P"]), num_classes=c["classes"])
    variables = from_state_dict(model, golden.weights | {"backbone.pos_embed": table}, strict=True)
    expected = golden.outputs["output0"]
    np.testing.assert_allclose(jax.jit(model.apply)(variables, video), expected, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="in the weights and not in the model: pos_embed; choose"):  # a learned one
        from_state_dict(model, golden.weights | {"backbone.pos_embed": table + 0.1})


def test_pretraining_without_the_encoders_norm_equals_transformers(tmp_path):
    """What VideoMAEForPreTraining is by its default configuration: `use_mean_pooling` leaves the norm out (5.24)."""
    transformers = peers.transformers()
    import torch

    config = transformers.VideoMAEConfig(
        image_size=16, patch_size=4, num_frames=4, hidden_size=24, num_hidden_layers=2, num_attention_heads=3,
        intermediate_size=96, decoder_hidden_size=12, decoder_num_hidden_layers=1, decoder_num_attention_heads=3,
        decoder_intermediate_size=48, layer_norm_eps=1e-6,
    )  # fmt: skip
    peer = transformers.VideoMAEForPreTraining(config).eval()
    peer.decoder.norm.eps = 1e-6  # does not ask the configuration
    peers.perturb(peer)
    peer.save_pretrained(tmp_path)
    model, variables = load_pretrained(tmp_path, strict=True)
    assert config.use_mean_pooling and "norm" not in variables["params"]["encoder"]
    video, masked = recipe.floats("video", (2, 4, 16, 16, 3)), np.zeros((2, 32), bool)
    masked[0, ::2] = masked[1, 16:] = True
    with torch.no_grad():
        expected = peer(torch.from_numpy(video).permute(0, 1, 4, 2, 3), torch.from_numpy(masked)).logits.numpy()
    predicted = jax.jit(model.apply)(variables, jnp.asarray(video), *indices(masked))
    np.testing.assert_allclose(predicted, expected, rtol=0, atol=1e-5)
    fields = {f: getattr(model, f) for f in ("width", "depth", "heads", "patch_size", "num_frames", "image_size")}
    tuned, encoder = load_pretrained(tmp_path, "videomae_tiny", num_classes=5, **fields)  # where fine-tuning starts
    assert not tuned.final_norm
    jax.tree.map(
        np.testing.assert_array_equal, encoder["params"]["transformer"], variables["params"]["encoder"]["transformer"]
    )


def assert_equals_transformers(config: dict, weights: dict, video, masked, expected: dict) -> None:
    patch_size = (2, config["patch"], config["patch"])
    fields = ("width", "depth", "heads", "decoder_width", "decoder_depth", "decoder_heads")
    model = videomae.Pretraining(*(config[field] for field in fields), patch_size=patch_size)
    variables = from_state_dict(model, weights, strict=True)
    kept, dropped = indices(masked)
    pixels = model.card.normalize(jnp.asarray(video))
    encoded = jax.jit(lambda *inputs: model.apply(*inputs, method="tokens"))(variables, pixels, kept)
    predicted = jax.jit(model.apply)(variables, pixels, kept, dropped)
    target = jnp.take_along_axis(pixel_targets(jnp.asarray(video), patch_size), dropped[..., None], axis=1)
    np.testing.assert_allclose(encoded, expected["encoded"], **CLOSE)
    np.testing.assert_allclose(predicted, expected["predicted"], **CLOSE)
    np.testing.assert_allclose(target, expected["target"], **CLOSE)
    np.testing.assert_allclose(reconstruction_loss(predicted, target).mean(), expected["loss"], **CLOSE)


def test_pretraining_equals_transformers_as_recorded():
    golden = recipe.load("videomae_transformers")
    assert_equals_transformers(golden.config, golden.weights, *golden.inputs, golden.outputs)


def test_pretraining_equals_transformers_live():
    peers.transformers()
    import record_videomae as recorder

    config = {
        "frames": 6, "size": 16, "patch": 8, "width": 48, "depth": 3, "heads": 4,
        "decoder_width": 32, "decoder_depth": 1, "decoder_heads": 2, "masked": 7,
    }  # fmt: skip
    peer = recorder.build(config)
    weights = {name: recipe.parameter(name, shape) for name, shape in recorder.fill(peer).items()}
    video, masked = recorder.clips(config)
    assert_equals_transformers(config, weights, video, masked, recorder.answer(peer, video, masked))


# Properties


def test_encoder_of_all_tokens_is_the_encoder_without_indices(pretraining, video):
    everything = jnp.tile(jnp.arange(prod(GRID)), (VIDEO[0], 1))
    with_indices = pretraining.tokens(pretraining.variables, video, everything)
    np.testing.assert_allclose(pretraining.tokens(pretraining.variables, video), with_indices, atol=1e-6)


def test_encoder_keeps_the_order_of_its_indices(pretraining, video, mask):
    kept = mask[0]
    tokens = pretraining.tokens(pretraining.variables, video, kept)
    backwards = pretraining.tokens(pretraining.variables, video, kept[:, ::-1])
    np.testing.assert_allclose(backwards, tokens[:, ::-1], atol=1e-5)


def test_masked_pixels_are_never_seen_and_kept_ones_are(pretraining, video, mask):
    kept, masked = mask
    shown = jnp.zeros((VIDEO[0], prod(GRID))).at[jnp.arange(VIDEO[0])[:, None], kept].set(1.0).reshape(-1, *GRID)
    for axis, size in enumerate(SMALL["patch_size"], start=1):
        shown = shown.repeat(size, axis)
    shown = shown[..., None] > 0
    before = pretraining.run(pretraining.variables, video, kept, masked)
    others_changed = pretraining.run(pretraining.variables, jnp.where(shown, video, 9.0), kept, masked)
    np.testing.assert_array_equal(others_changed, before)
    kept_changed = pretraining.run(pretraining.variables, jnp.where(shown, 9.0, video), kept, masked)
    assert not np.allclose(kept_changed, before, atol=1e-2)


def test_predictions_follow_the_order_asked_for(pretraining, video, mask):
    kept, masked = mask
    forwards = pretraining.run(pretraining.variables, video, kept, masked)
    backwards = pretraining.run(pretraining.variables, video, kept, masked[:, ::-1])
    np.testing.assert_allclose(forwards, backwards[:, ::-1], atol=1e-5)


def test_decoder_predicts_a_part_of_the_tokens(pretraining, video, mask):
    half = jax.vmap(lambda key: running_cell(key, GRID))(jax.random.split(jax.random.key(4), VIDEO[0]))
    predicted = jax.eval_shape(pretraining.model.apply, pretraining.variables, video, mask[0], half)
    assert predicted.shape == (VIDEO[0], prod(GRID) // 2, prod(SMALL["patch_size"]) * 3)


def test_gradients_reach_every_parameter(gradients):
    _, by_path = gradients("none")
    assert not [path for path, leaf in flatten_dict(by_path["params"], sep="/").items() if not leaf.any()]


@pytest.mark.parametrize("remat", ["dots", "blocks"])
def test_rematerialisation_changes_no_number(gradients, remat):
    for one, other in zip(jax.tree.leaves(gradients("none")), jax.tree.leaves(gradients(remat)), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-6)


def test_bfloat16_computes_close_with_float32_parameters(pretraining, video, mask):
    half = pretraining.model.clone(dtype=jnp.bfloat16)
    shapes = jax.eval_shape(half.init, jax.random.key(0), video, *mask)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype("float32")}
    exact = pretraining.run(pretraining.variables, video, *mask)
    near = jax.jit(half.apply)(pretraining.variables, video, *mask)
    assert near.dtype == jnp.bfloat16
    np.testing.assert_allclose(near.astype(jnp.float32), exact, atol=0.03 * np.abs(exact).max())


def test_one_compilation_serves_every_mask(pretraining, video):
    traces = []

    @jax.jit
    def run(key):
        traces.append(key)
        kept, masked = jax.vmap(lambda key: tube(key, GRID, 0.5))(jax.random.split(key, VIDEO[0]))
        return pretraining.model.apply(pretraining.variables, video, kept, masked)

    outputs = [run(jax.random.key(seed)) for seed in range(3)]
    assert len(traces) == 1 and not np.allclose(outputs[0], outputs[1])


def test_drop_path_and_dropout_act_in_training_alone(video):
    model = videomae.VideoMAE(**SMALL | {"depth": 2}, num_classes=5, drop_path=0.5, dropout=0.5)
    variables = perturbed(model, video)

    @jax.jit
    def train(seed):
        rngs = {"drop_path": jax.random.key(seed), "dropout": jax.random.key(7)}
        return model.apply(variables, video, train=True, rngs=rngs)

    outputs = np.stack([train(seed) for seed in range(8)])
    np.testing.assert_array_equal(train(0), outputs[0])
    assert any(not np.allclose(outputs[0], other) for other in outputs[1:])
    plain = model.clone(drop_path=0.0, dropout=0.0)
    np.testing.assert_array_equal(jax.jit(model.apply)(variables, video), jax.jit(plain.apply)(variables, video))


def test_classifier_norms_the_mean_token(classifier, video):
    params = classifier.variables["params"]
    bare = classifier.model.clone(num_classes=None)
    tokens = jax.jit(lambda *inputs: bare.apply(*inputs, method="tokens"))(classifier.variables, video)
    mean = jax.jit(bare.apply)(classifier.variables, video)
    np.testing.assert_allclose(mean, tokens.mean(axis=1), atol=1e-5)
    normed = (mean - mean.mean(-1, keepdims=True)) / jnp.sqrt(mean.var(-1, keepdims=True) + 1e-6)
    normed = normed * params["head_norm"]["scale"] + params["head_norm"]["bias"]
    logits = normed @ params["head"]["kernel"] + params["head"]["bias"]
    np.testing.assert_allclose(classifier.logits, logits, atol=1e-5)
