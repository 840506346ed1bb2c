"""VidTr against the outputs of its authors' code."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe
from flax.traverse_util import flatten_dict
from small_models import perturbed

import vidjax
from vidjax.convert import export_pretrained, from_state_dict
from vidjax.models.vidtr import VidTr, most_varied, select_frames

# Parameters of the authors' code, built at these sizes. Its table's GFLOPs leave out attention.
COUNTS = {
    "vidtr_tiny": (50_048, None),
    "vidtr_tiny_compact": (48_512, None),
    "vidtr_s": (87_473_296, None),
    "vidtr_m": (88_689_808, None),
    "vidtr_l": (91_122_832, None),
    "vidtr_s_compact": (87_159_952, None),
    "vidtr_m_compact": (88_364_176, None),
}


def of_golden(name: str) -> tuple[VidTr, recipe.Golden]:
    golden = recipe.load(name)
    c = golden.config
    drops = {}
    for block, count in zip(c.get("pools", ()), c.get("drops", ()), strict=True):
        drops[block] = count
    model = VidTr(
        c["D"], c["L"], c["H"], c["T"] == 16, tuple(drops.get(i, 0) for i in range(max(drops, default=-1) + 1)),
        (1, c["P"], c["P"]), c["classes"], num_frames=c["T"], image_size=c["S"], scan=name == "vidtr_positions",
    )  # fmt: skip  # with positions in every block, both blocks are equal
    return model, golden


@pytest.mark.parametrize("name", ["vidtr", "vidtr_positions", "vidtr_compact"])
def test_equals_the_authors_code(name, tmp_path):
    model, golden = of_golden(name)
    variables = from_state_dict(model, golden.weights, strict=True)
    video = jnp.moveaxis(jnp.asarray(golden.inputs[0]), 1, -1)
    expected = golden.outputs["output0"]
    np.testing.assert_allclose(
        jax.jit(model.apply)(variables, video), expected, rtol=0, atol=1e-5 * np.abs(expected).max()
    )
    file = export_pretrained(model, variables, tmp_path, layout="original")
    if file.suffix == ".pth":
        entries = pytest.importorskip("torch").load(file, weights_only=True)["model"]
        assert set(entries) == {f"module.{entry}" for entry in golden.weights}
        for entry, value in golden.weights.items():
            np.testing.assert_array_equal(entries[f"module.{entry}"], value)


def test_frames_of_uneven_attention_are_kept_in_the_order_of_time():
    """By hand: the rows deviate by 0, 0.1, 0.4 and 0.2."""
    rows = jnp.asarray([[0.5, 0.5], [0.6, 0.4], [0.1, 0.9], [0.7, 0.3]])
    np.testing.assert_array_equal(most_varied(rows, 2), [2, 3])
    np.testing.assert_array_equal(most_varied(rows[::-1], 3), [0, 1, 2])
    both = most_varied(jnp.stack([rows, rows[::-1]]), 1)
    np.testing.assert_array_equal(both, [[2], [1]])  # each group of rows has its own frames


def test_each_head_and_place_keeps_its_own_frames():
    x = jnp.arange(4.0)[None, None, :, None, None] * jnp.ones((1, 2, 4, 2, 3))  # frame t holds t
    kept = jnp.asarray([[[[0, 3], [1, 2]], [[2, 3], [0, 1]]]])  # of two places and two heads
    chosen = select_frames(x, kept)
    np.testing.assert_array_equal(chosen[0, ..., 0], np.swapaxes(kept[0], 1, 2))


def test_the_compact_form_leaves_frames():
    model = vidjax.create_model("vidtr_tiny_compact", num_classes=3)
    video = jnp.asarray(recipe.floats("video", (1, 8, 32, 32, 3)))
    variables = jax.eval_shape(model.init, jax.random.key(0), video)
    encoded = jax.eval_shape(lambda *inputs: model.apply(*inputs, method="encode"), variables, video)
    assert encoded.shape == (1, 4, 4, 4, 32)


def test_drop_path_acts_only_in_training_and_remat_changes_nothing():
    sizes = {"patch_size": (1, 8, 8), "num_classes": 3, "dropout": 0.0, "num_frames": 2, "image_size": 16}
    model = VidTr(8, 2, 2, **sizes, drop_path=0.9)
    video, variables = jnp.asarray(recipe.floats("video", (8, 2, 16, 16, 3))), perturbed(model)

    def gradient(model):
        def loss(variables, key):
            logits = model.apply(variables, video, train=True, rngs={"drop_path": key})
            return (logits**2).sum(), logits

        return jax.jit(jax.value_and_grad(loss, has_aux=True))

    jax.eval_shape(model.apply, variables, video)  # needs no random key
    plain, key = gradient(model), jax.random.key(0)
    result = plain(variables, key)
    assert np.abs(result[0][1] - plain(variables, jax.random.key(1))[0][1]).max() > 1e-3
    chex.assert_trees_all_close(gradient(model.clone(remat="blocks"))(variables, key), result, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["vidtr_tiny", "vidtr_tiny_compact"])
def test_weights_of_an_image_model_are_repeated_over_the_frames(name):
    model = vidjax.create_model(name)
    weights = {"cls_token": (1, 1, 32), "pos_embed": (1, 17, 32), "patch_embed.proj.weight": (32, 3, 8, 8)}
    weights |= {"patch_embed.proj.bias": (32,), "norm.weight": (32,), "norm.bias": (32,)}
    for i in range(3):
        block = {"norm1.weight": (32,), "norm1.bias": (32,), "norm2.weight": (32,), "norm2.bias": (32,)}
        block |= {"attn.qkv.weight": (96, 32), "attn.qkv.bias": (96,), "attn.proj.weight": (32, 32)}
        block |= {"attn.proj.bias": (32,), "mlp.fc1.weight": (128, 32), "mlp.fc1.bias": (128,)}
        block |= {"mlp.fc2.weight": (32, 128), "mlp.fc2.bias": (32,)}
        weights |= {f"blocks.{i}.{entry}": shape for entry, shape in block.items()}
    weights = {entry: recipe.parameter(entry, shape) for entry, shape in weights.items()}
    params = flatten_dict(from_state_dict(model, weights, strict=True)["params"], sep="/")
    position = weights["pos_embed"][0]
    if name == "vidtr_tiny":
        np.testing.assert_array_equal(params["position"].reshape(9, 17, 32), np.broadcast_to(position, (9, 17, 32)))
        np.testing.assert_array_equal(params["frame_token"], np.broadcast_to(weights["cls_token"][0], (8, 32)))
    else:
        np.testing.assert_array_equal(params["position"][0], position[0])
        np.testing.assert_array_equal(
            params["position"][1:].reshape(8, 16, 32), np.broadcast_to(position[1:], (8, 16, 32))
        )
