from functools import cache, partial
from math import prod

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe
from small_models import perturbed

from vidjax.convert import from_state_dict
from vidjax.errors import UserError
from vidjax.layers.rotary import thirds
from vidjax.models.vjepa import VJEPA, Pretraining


def gmacs(frames: int, side: int, width: int, depth: int, hidden: int) -> float:
    """Of an encoder: four projections, an MLP and attention in each block, and the embedding of patches."""
    tokens = frames // 2 * (side // 16) ** 2
    block = tokens * (4 * width * width + 2 * width * hidden + 2 * tokens * width)
    return (depth * block + tokens * 1536 * width) / 1e9


# Parameters of each row as counted in SYSTEMS-2.md, and GMACs as `gmacs` gives them; see test_published.py.
COUNTS = {
    "vjepa2_large": (303_885_312, 5785.321),
    "vjepa2_huge": (631_648_000, None),
    "vjepa2_giant": (1_012_173_952, None),
    "vjepa2_giant_384": (1_012_173_952, None),
    "vjepa2_large_ssv2": (375_485_998 - 22_086_016, None),  # without the predictor, which classification does not use
    "vjepa2_large_pretrain": (303_885_312 + 22_086_016, None),
    "vjepa2_huge_pretrain": (631_648_000 + 22_282_880, None),
    "vjepa2_giant_pretrain": (1_012_173_952 + 22_381_312, None),
    # Counted here, because no exact numbers are published.
    "vjepa2_large_diving48": (353_270_832, None),
    "vjepa2_giant_384_ssv2": (1_105_668_142, None),
    "vjepa2_giant_384_diving48": (1_105_490_608, None),
    "vjepa2_tiny": (595_104, None),
    "vjepa2_tiny_pretrain": (661_584, None),
    "vjepa2_tiny_frames": (595_104 - 256 * 3 * 96, None),
    "vjepa2_tiny_frames_pretrain": (764_832, None),
}


def assert_equal(actual, expected) -> None:
    """Equal within 1e-5 of the largest value."""
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def fields(c: dict) -> dict:
    return {
        "width": c["D"], "depth": c["L"], "heads": c["H"], "patch_size": (2, c["P"], c["P"]), "num_frames": c["T"],
        "image_size": c["S"],
    }  # fmt: skip


def pretraining(c: dict) -> Pretraining:
    predictor = {"predictor_width": c["pD"], "predictor_depth": c["pL"], "predictor_heads": c["pH"]}
    return Pretraining(**fields(c), **predictor, mask_tokens=c["M"])


def channels_last(video: np.ndarray, channels: int) -> jax.Array:
    return jnp.moveaxis(jnp.asarray(video), channels, -1)


# Parity with recorded outputs of the original and of transformers


def test_encoder_equals_transformers():
    golden = recipe.load("vjepa2")
    video = channels_last(golden.inputs[0], 2)
    model = pretraining(golden.config)
    variables = from_state_dict(model, golden.weights, strict=True)
    tokens = jax.jit(lambda *inputs: model.apply(*inputs, method="tokens"))(variables, video)
    assert_equal(tokens, golden.outputs["output0"])
    encoder = VJEPA(**fields(golden.config))
    alone = from_state_dict(encoder, golden.weights)
    encoded = jax.jit(lambda *inputs: encoder.apply(*inputs, method="encode"))(alone, video)
    assert encoded.shape == (2, 2, 4, 4, 48)
    np.testing.assert_array_equal(encoded.reshape(tokens.shape), tokens)


def test_predictor_equals_transformers():
    """Which encodes all tokens and then drops some, unlike training."""
    golden = recipe.load("vjepa2_predictor")
    c, (video, kept, predicted) = golden.config, golden.inputs
    model = pretraining(c)
    variables = from_state_dict(model, golden.weights, strict=True)
    clip = (c["T"] // 2, c["S"] // c["P"], c["S"] // c["P"])

    @jax.jit
    def run(variables, video):
        tokens = model.apply(variables, video, method="tokens")
        context, targets = (jnp.take_along_axis(tokens, indices[..., None], 1) for indices in (kept, predicted))
        places = jnp.asarray(kept), jnp.asarray(predicted)
        return model.apply(variables, context, *places, clip, mask_index=1, method="predict"), context, targets

    for number, output in enumerate(run(variables, channels_last(video, 2))):
        assert_equal(output, golden.outputs[f"output{number}"])


def test_classifier_equals_transformers():
    golden = recipe.load("vjepa2_classify")
    model = VJEPA(**fields(golden.config), num_classes=golden.config["classes"], pooler_depth=golden.config["A"])
    variables = from_state_dict(model, golden.weights)
    logits = jax.jit(model.apply)(variables, channels_last(golden.inputs[0], 2))
    assert_equal(logits, golden.outputs["output0"])


def test_context_predictions_and_targets_equal_the_original():
    """One training step's forward passes: the encoder sees only the context, and a second encoder makes the targets."""
    golden = recipe.load("vjepa2_train")
    video, *masks = golden.inputs
    video, masks = channels_last(video, 1), [jnp.asarray(indices) for indices in masks]
    model = pretraining(golden.config)
    variables = from_state_dict(model, golden.weights, strict=True)
    encoder = VJEPA(**fields(golden.config))
    target = from_state_dict(encoder, golden.weights, strict=True)  # an encoder alone is the moving average

    @jax.jit
    def run(variables, target, video):
        predict = [model.apply(variables, video, *masks[i : i + 2], mask_index=1) for i in (0, 2)]
        context = model.apply(variables, video, masks[0], method="tokens")
        targets = encoder.apply(target, video, method="tokens")
        targets = (targets - targets.mean(-1, keepdims=True)) / jnp.sqrt(targets.var(-1, keepdims=True) + 1e-5)
        return *predict, context, jnp.take_along_axis(targets, masks[1][..., None], axis=1)

    for number, output in enumerate(run(variables, target, video), start=1):
        assert_equal(output, golden.outputs[f"output{number}"])


# Properties

SMALL = {"width": 24, "depth": 2, "heads": 3, "patch_size": (2, 4, 4), "num_frames": 4, "image_size": 8}
PREDICTOR = {"predictor_width": 12, "predictor_depth": 1, "predictor_heads": 2, "mask_tokens": 3}
VIDEO = jnp.asarray(recipe.floats("video", (2, 4, 8, 16, 3)))
CLIP = (2, 2, 4)
MODEL = Pretraining(**SMALL, **PREDICTOR)


@cache
def variables() -> dict:
    return perturbed(MODEL)


@partial(jax.jit, static_argnums=4)
def predict(video, kept, predicted, valid, mask_index):
    return MODEL.apply(jax.tree.map(jnp.asarray, variables()), video, kept, predicted, valid, mask_index)


def masks(seed: int, kept: int = 6) -> tuple[jax.Array, jax.Array]:
    order = np.stack([np.random.default_rng((seed, clip)).permutation(prod(CLIP)) for clip in range(2)])
    return jnp.asarray(order[:, :kept]), jnp.asarray(order[:, kept:])


def test_gmacs_of_the_sheet():
    assert gmacs(64, 256, 1024, 24, 4096) == pytest.approx(COUNTS["vjepa2_large"][1])


def test_indices_that_fill_up_the_shape_change_nothing():
    """Whatever patches they point to, as long as they are not valid."""
    kept, predicted = masks(0)
    exact = predict(VIDEO, kept[:, :4], predicted[:, :7], None, 0)
    counted = np.array([True] * 4 + [False] * 2 + [True] * 7 + [False] * 3)
    filled = predict(VIDEO, kept, predicted, jnp.tile(counted, (2, 1)), 0)
    np.testing.assert_allclose(filled[:, :7], exact, atol=2e-5)
    assert not np.allclose(predict(VIDEO, kept, predicted, None, 0)[:, :7], exact, atol=1e-3)


def test_predictions_depend_on_the_context_and_not_on_its_order():
    kept, predicted = masks(1)
    expected = predict(VIDEO, kept, predicted, None, 0)
    np.testing.assert_allclose(predict(VIDEO, kept[:, ::-1], predicted, None, 0), expected, atol=2e-5)
    np.testing.assert_allclose(predict(VIDEO, kept, predicted[:, ::-1], None, 0)[:, ::-1], expected, atol=2e-5)
    shown = jnp.zeros((2, prod(CLIP))).at[jnp.arange(2)[:, None], kept].set(1.0).reshape(2, *CLIP)
    shown = shown.repeat(2, 1).repeat(4, 2).repeat(4, 3)[..., None] > 0
    np.testing.assert_array_equal(predict(jnp.where(shown, VIDEO, 9.0), kept, predicted, None, 0), expected)
    assert not np.allclose(predict(jnp.where(shown, 9.0, VIDEO), kept, predicted, None, 0), expected, atol=1e-2)


def test_the_mask_token_is_chosen_by_its_number():
    kept, predicted = masks(2)
    first = predict(VIDEO, kept, predicted, None, 0)
    assert not np.allclose(predict(VIDEO, kept, predicted, None, 1), first, atol=1e-3)
    np.testing.assert_array_equal(predict(VIDEO, kept, predicted, None, 3), first)  # of three


def test_scan_rematerialisation_and_drop_path():
    model = VJEPA(**SMALL, num_classes=5, pooler_depth=2)
    values = jax.tree.map(jnp.asarray, perturbed(model))
    expected = jax.jit(model.apply)(values, VIDEO)
    other = model.clone(scan=True, remat="blocks", drop_path=0.5)
    np.testing.assert_allclose(jax.jit(other.apply)(values, VIDEO), expected, atol=1e-5)

    @jax.jit
    def train(seed):
        return other.apply(values, VIDEO, train=True, rngs={"drop_path": jax.random.key(seed)})

    outputs = [train(seed) for seed in range(6)]
    np.testing.assert_array_equal(train(0), outputs[0])
    assert any(not np.allclose(outputs[0], each) for each in outputs[1:])


def test_the_pooler_sees_the_tokens_of_several_blocks():
    model = VJEPA(**SMALL, num_classes=5, pooler_depth=1)
    values = jax.tree.map(jnp.asarray, perturbed(model))
    several, last = model.clone(pooled_blocks=(0, 1)), model.clone(pooled_blocks=(1,))
    run = jax.jit(lambda m, video: m.apply(values, video), static_argnums=0)
    np.testing.assert_array_equal(run(last, VIDEO), run(model, VIDEO))
    assert not np.allclose(run(several, VIDEO), run(model, VIDEO), atol=1e-3)


@pytest.mark.parametrize("std", [0.02, None])
def test_branches_start_smaller_in_later_blocks(std):
    """By the root of twice the number of the block, as in the original; without a std, that of one over the inputs."""
    params = jax.jit(Pretraining(96, 4, 4, 48, 1, 4, patch_size=(2, 8, 8), init_std=std).init)(
        jax.random.key(0), jnp.zeros((1, 2, 16, 16, 3)), jnp.zeros((1, 1), jnp.int32), jnp.ones((1, 1), jnp.int32)
    )["params"]
    for number in range(4):
        mlp = params["encoder"]["transformer"][f"block_{number}"]["mlp"]
        scale = (std or 384**-0.5) / np.sqrt(2 * (number + 1))
        assert mlp["fc2"]["kernel"].std() == pytest.approx(scale, rel=0.05)
        assert mlp["fc1"]["kernel"].std() == pytest.approx(std or 96**-0.5, rel=0.05)
    assert params["predictor"]["head"]["kernel"].std() == pytest.approx(std or 48**-0.5, rel=0.05)


def test_thirds_of_a_head_are_rotated_by_time_row_and_column():
    cosine, sine = thirds(jnp.arange(prod(CLIP)), CLIP, 27)  # 8 channels each, and 3 that are not rotated
    assert cosine.shape == sine.shape == (16, 24)
    time, row, column = np.unravel_index(np.arange(16), CLIP)
    for third, position in enumerate((time, row, column)):
        for channel in range(8):
            angle = position / 10000 ** (channel % 4 / 4)  # tiled, not repeated for each pair
            np.testing.assert_allclose(sine[:, 8 * third + channel], np.sin(angle), atol=1e-6)


def test_heads_without_thirds_are_an_error():
    model = Pretraining(**SMALL, **PREDICTOR | {"predictor_heads": 4})
    with pytest.raises(UserError, match="heads of 3 channels have no thirds to rotate: use fewer heads or a larger"):
        jax.eval_shape(model.init, jax.random.key(0), VIDEO, *masks(0))
