"""BEVT against recorded outputs of the original, and its video stream in a classifier."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe
from flax.traverse_util import flatten_dict
from small_models import perturbed

import vidjax
from vidjax.convert import export_pretrained, from_state_dict, load_weights
from vidjax.models.bevt import Pretraining

# Parameters: backbone and head in SYSTEMS-2.md (2.5); the tiny row is counted here.
COUNTS = {"bevt_base": (101_282_248 + 8_396_800, None), "bevt_tiny": (53_108, None)}


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["bevt", "bevt_shifted"])
def test_both_streams_equal_the_original(name):
    golden = recipe.load(name)
    c, (video, image, masked, image_masked) = golden.config, golden.inputs
    model = Pretraining(c["D"], tuple(c["depths"]), tuple(c["heads"]), tuple(c["window"]), vocabulary=c["V"])
    variables = from_state_dict(model, golden.weights, strict=True)
    inputs = (
        jnp.moveaxis(jnp.asarray(video), 1, -1), jnp.asarray(masked, bool),
        jnp.moveaxis(jnp.asarray(image), 1, -1)[:, None], jnp.asarray(image_masked, bool)[:, None],
    )  # fmt: skip
    for number, logits in enumerate(jax.jit(model.apply)(variables, *inputs)):
        close(logits.reshape(2, -1, c["V"]), golden.outputs[f"output{number}"])


@pytest.fixture(scope="module")
def tiny():
    model = vidjax.create_model("bevt_tiny")
    return model, jax.tree.map(jnp.asarray, perturbed(model))


def test_hidden_places_do_not_matter_and_frames_of_images_are_apart(tiny):
    model, variables = tiny
    video = jnp.asarray(recipe.floats("video", (1, 4, 32, 32, 3)))
    masked = jnp.zeros((1, 2, 8, 8), bool).at[0, 1, 2, 3].set(True)
    run = jax.jit(partial(model.apply, method="predict_video"))
    before = run(variables, video, masked)
    assert before.shape == (1, 4, 8, 8, 64)  # a token for each frame
    np.testing.assert_array_equal(run(variables, video.at[:, 2:, 8:12, 12:16].set(9.0), masked), before)
    assert not np.allclose(run(variables, video.at[:, :2, 8:12, 12:16].set(9.0), masked), before, atol=1e-2)
    run = jax.jit(partial(model.apply, method="predict_images"))
    frames = jnp.zeros((1, 4, 8, 8), bool).at[0, 0, 2, 3].set(True)
    before, after = (run(variables, pixels, frames) for pixels in (video, video.at[:, 3].set(9.0)))
    np.testing.assert_array_equal(before[:, :3], after[:, :3])
    assert not np.allclose(before[:, 3], after[:, 3], atol=1e-2)


def test_a_video_swin_starts_from_a_run_and_from_the_original(tiny, tmp_path):
    """All but the head, the last norm included."""
    model, variables = tiny
    vidjax.save_pretrained(tmp_path / "ours", model, variables)
    export_pretrained(model, variables, tmp_path / "original", layout="original")
    swin = vidjax.create_model("video_swin_tiny", num_classes=3)
    initial = jax.jit(partial(swin.init, jax.random.key(0)))(jnp.zeros((1, 8, 32, 32, 3)))
    for source in ("ours", "original"):
        weights, report = load_weights(tmp_path / source, swin, initial)
        assert {path.partition("/")[0] for path in report.new} == {"head"}, source
        encoder = flatten_dict(variables["params"]["encoder"])
        for path, value in flatten_dict(weights["params"]).items():
            if path[0] != "head":
                np.testing.assert_array_equal(value, encoder[path])


def image_stream(model: Pretraining, variables: dict, folder) -> dict[str, np.ndarray]:
    """The entries of an image stream, which has the original's names, with two-dimensional tables."""
    torch = pytest.importorskip("torch")
    file = export_pretrained(model, variables, folder, layout="original")
    entries = {name.removeprefix("backbone."): value.numpy() for name, value in torch.load(file)["state_dict"].items()}
    stream = {name.replace("patch_embed_2d", "patch_embed"): entries[name] for name in entries if "_2d." in name}
    for name, value in entries.items():
        if name.endswith("bias_table"):
            value = value[: 5 * 5]  # of windows of 3x3
        if name not in stream and not name.startswith(("fpn_", "lm_down_st", "patch_embed_2d", "cls_head")):
            stream[name] = value
    return stream | {
        "lm_head.weight": entries["cls_head.lm_head.weight"],
        "lm_head.bias": entries["cls_head.lm_head.bias"],
    }


def test_the_video_stream_starts_as_an_image_stream(tiny, tmp_path):
    """The kernel is averaged over the frames, and tables are the same at all distances in time."""
    model, variables = tiny
    entries = image_stream(model, variables, tmp_path)
    params = from_state_dict(model, entries)["params"]
    kernel = params["image_embedding"]["kernel"]
    np.testing.assert_array_equal(kernel, variables["params"]["image_embedding"]["kernel"])
    np.testing.assert_allclose(params["encoder"]["patch_embedding"]["kernel"], np.repeat(kernel / 2, 2, 0), rtol=1e-6)
    np.testing.assert_array_equal(
        params["encoder"]["patch_embedding_norm"]["scale"], variables["params"]["image_embedding_norm"]["scale"]
    )
    table = params["encoder"]["stage_0"]["block_1"]["relative_position"]
    flat = entries["layers.0.blocks.1.attn.relative_position_bias_table"]
    np.testing.assert_allclose(table, np.broadcast_to(flat.reshape(1, 5, 5, -1), table.shape), rtol=1e-6)


@pytest.mark.parametrize("shape", [(1, 4, 36, 32, 3), (1, 3, 32, 32, 3)])
def test_clips_that_are_not_whole_cells_are_one_line(tiny, shape):
    model, variables = tiny
    with pytest.raises(ValueError, match=r"(36 pixels of height|3 frames) cannot be cut into patches of"):
        jax.eval_shape(
            partial(model.apply, method="predict_video"), variables, jnp.zeros(shape), jnp.zeros((1, 2, 9, 8), bool)
        )
