"""BEiT against recorded outputs of transformers and live peers, and from pre-training to a classifier."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
import recipe
from flax.traverse_util import flatten_dict
from small_models import perturbed

import vidjax
from vidjax.convert import from_state_dict, load_pretrained, load_weights
from vidjax.models.beit import BEiT, Pretraining, RelativePosition

# Parameters of each row, from SYSTEMS-2.md (2.5) but for the pre-training of the large one; no cost is published.
COUNTS = {
    "beit_base_16": (86_530_984, None),
    "beit_large_16": (304_430_568, None),
    "beit_base_16_pretrain": (91_965_776, None),
    "beit_large_16_pretrain": (311_534_016, None),
    # Counted here.
    "beit_tiny": (66_360, None),
    "beit_tiny_pretrain": (69_388, None),
}
# With the second norm of transformers for a configuration without use_mean_pooling, which the sheet counted.
COUNTS_WITH_FIELDS = {
    "beit_base_16_pretrain of two norms": ("beit_base_16_pretrain", 91_967_312, None, {"encoder_norm": True})
}


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def fields(c: dict) -> dict:
    size = {"width": c["D"], "depth": c["L"], "heads": c["H"], "patch_size": (1, c["P"], c["P"]), "image_size": c["S"]}
    return size | {"epsilon": 1e-12}


def test_masked_prediction_equals_transformers():
    golden = recipe.load("beit")
    c, (image, masked) = golden.config, golden.inputs
    model = Pretraining(**fields(c), vocabulary=c["V"], encoder_norm=True)
    variables = from_state_dict(model, golden.weights, strict=True)
    video = jnp.moveaxis(jnp.asarray(image), 1, -1)[:, None]
    close(jax.jit(model.apply)(variables, video, jnp.asarray(masked)), golden.outputs["output0"])


def test_the_classifier_equals_transformers():
    golden = recipe.load("beit_classify")
    c, (image,) = golden.config, golden.inputs
    model = BEiT(**fields(c), num_classes=c["classes"])
    variables = from_state_dict(model, golden.weights, strict=True)
    close(jax.jit(model.apply)(variables, jnp.moveaxis(jnp.asarray(image), 1, -1)[:, None]), golden.outputs["output0"])


@pytest.mark.parametrize("kind", ["BeitForImageClassification", "BeitForMaskedImageModeling"])
def test_directories_of_transformers_load(kind, tmp_path):
    """With everything perturbed, of 3 labels or of tokens; the classifier also at another size."""
    transformers = peers.transformers()
    import torch

    pretraining = kind == "BeitForMaskedImageModeling"
    config = transformers.BeitConfig(
        hidden_size=48, num_hidden_layers=2, num_attention_heads=3, intermediate_size=96, image_size=32, patch_size=8,
        vocab_size=40, use_mask_token=pretraining, use_shared_relative_position_bias=pretraining,
        use_relative_position_bias=not pretraining, num_labels=3,
    )  # fmt: skip
    peer = getattr(transformers, kind)(config).eval()
    in_memory = peers.perturb(peer)
    peer.save_pretrained(tmp_path)
    model, variables = load_pretrained(tmp_path, strict=True, verbose=False)
    jax.tree.map(np.testing.assert_array_equal, from_state_dict(model, in_memory, strict=True), variables)
    run = jax.jit(model.apply)
    for size in [(32, 32)] if pretraining else [(32, 32), (40, 24)]:
        image = recipe.floats("image", (2, *size, 3))
        masked = recipe.floats("masked", (2, 16)) > 0
        more = {"bool_masked_pos": torch.from_numpy(masked)} if pretraining else {}
        with torch.no_grad():
            expected = peer(torch.from_numpy(image).permute(0, 3, 1, 2), **more).logits.numpy()
        inputs = (jnp.asarray(image)[:, None], *([jnp.asarray(masked)] if pretraining else []))
        close(run(variables, *inputs), expected)


def test_relative_positions_depend_on_distance_and_treat_the_class_token_apart():
    """By hand, for one row of three patches."""
    positions = RelativePosition((1, 3), 1)
    params = {"table": jnp.arange(5.0)[None, :, None], "class_table": jnp.array([[10.0], [20.0], [30.0]])}
    expected = [[30, 10, 10, 10], [20, 2, 1, 0], [20, 3, 2, 1], [20, 4, 3, 2]]
    np.testing.assert_array_equal(positions.apply({"params": params}, 1, 3)[0], expected)


def test_masked_patches_do_not_matter_and_others_do():
    model = vidjax.create_model("beit_tiny_pretrain", num_frames=2)
    variables = jax.tree.map(jnp.asarray, perturbed(model))
    video = jnp.asarray(recipe.floats("video", (1, 2, 32, 32, 3)))
    masked = jnp.zeros((1, 32), bool).at[0, 5].set(True)  # at (1, 1) of the first frame
    run = jax.jit(model.apply)
    before = run(variables, video, masked)
    np.testing.assert_array_equal(run(variables, video.at[:, 0, 8:16, 8:16].set(9.0), masked), before)
    other = run(variables, video.at[:, 1, 8:16, 8:16].set(9.0), masked)
    np.testing.assert_array_equal(other[:, :16], before[:, :16])  # frames are apart
    assert not np.allclose(other[:, 16:], before[:, 16:], atol=1e-2)


@pytest.mark.parametrize("layout", ["original", "ours"])
def test_a_classifier_starts_from_pre_training_with_copies_of_the_shared_positions(layout, tmp_path):
    pretraining = vidjax.create_model("beit_tiny_pretrain")
    variables = perturbed(pretraining)
    if layout == "ours":
        vidjax.save_pretrained(tmp_path / "out", pretraining, variables)
    else:
        vidjax.export_pretrained(pretraining, variables, tmp_path / "out", layout=layout)
    model = vidjax.create_model("beit_tiny", num_classes=3, image_size=48)
    initial = jax.jit(partial(model.init, jax.random.key(0)))(jnp.zeros((1, 1, 48, 48, 3)))
    loaded, report = load_weights(tmp_path / "out", model, initial)
    assert {path.partition("/")[0] for path in report.new} == {"head", "head_norm"}
    flat, encoder = (flatten_dict(each, sep="/") for each in (loaded["params"], variables["params"]["encoder"]))
    np.testing.assert_array_equal(flat["patch_embedding/kernel"], encoder["patch_embedding/kernel"])
    np.testing.assert_array_equal(
        flat["transformer/block_1/relative_position/class_table"], encoder["relative_position/class_table"]
    )
    table = flat["transformer/block_1/relative_position/table"]  # of 6 patches a side instead of 4
    assert table.shape == (11, 11, 3)
    np.testing.assert_array_equal(table[5, 5], encoder["relative_position/table"][3, 3])


def test_blocks_are_initialised_smaller_the_later_they_come():
    model = vidjax.create_model("beit_tiny_pretrain")
    params = jax.jit(partial(model.init, jax.random.key(0)))(jnp.zeros((1, 1, 32, 32, 3)), jnp.zeros((1, 16), bool))
    blocks = params["params"]["encoder"]["transformer"]
    std = [blocks[f"block_{i}"]["mlp"]["fc2"]["kernel"].std() for i in range(2)]
    cut = 0.5396  # the std of a standard normal distribution within -1 to 1
    np.testing.assert_allclose(std, [cut * 0.02 * 2**-0.5, cut * 0.02 * 4**-0.5], rtol=0.05)
    np.testing.assert_allclose(blocks["block_1"]["mlp_scale"], 0.1)
