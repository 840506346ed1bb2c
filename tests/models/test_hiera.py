"""Hiera against recorded outputs of transformers and of the original, and a live peer."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
import recipe
from flax.traverse_util import flatten_dict
from small_models import perturbed

import vidjax
from vidjax.convert import from_state_dict, load_pretrained
from vidjax.layers.mask_units import pool_cells, roll, unroll
from vidjax.models.hiera import Hiera, unit_size
from vidjax.models.hiera_mae import Pretraining
from vidjax.objectives.masking import hidden_patches
from vidjax.objectives.reconstruction import first_frame_targets, reconstruction_loss

# Parameters of each row: from SYSTEMS-2.md (2.7), and for rows that are not there, counted by hand from the original's
# modules. No cost is published.
COUNTS = {
    "hiera_tiny": (304_176, None),
    "hiera_tiny_image": (299_440, None),
    "hiera_tiny_mae": (396_880, None),
    "hiera_b": (51_092_560, None),
    "hiera_bplus": (69_392_240, None),
    "hiera_l": (213_091_600, None),
    "hiera_h": (671_627_664, None),
    "hiera_t_image": (27_910_216, None),
    "hiera_s_image": (35_008_072, None),
    "hiera_b_image": (51_524_968, None),
    "hiera_bplus_image": (69_896_616, None),
    "hiera_l_image": (213_739_912, None),
    "hiera_h_image": (672_779_752, None),
    "hiera_b_mae": (79_367_104, None),
    "hiera_bplus_mae": (98_320_352, None),
    "hiera_l_mae": (243_621_760, None),
    "hiera_h_mae": (710_861_568, None),
    "hiera_t_image_mae": (55_020_896, None),
    "hiera_s_image_mae": (62_118_752, None),
    "hiera_b_image_mae": (78_635_648, None),
    "hiera_bplus_image_mae": (97_584_064, None),
    "hiera_l_image_mae": (242_875_808, None),
    "hiera_h_image_mae": (710_081_792, None),
}


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_image_classifier_equals_transformers():
    golden = recipe.load("hiera")
    c, (image,) = golden.config, golden.inputs
    model = Hiera(tuple(c["depths"]), c["D"], c["H"][0], images=True, num_classes=c["classes"], image_size=c["S"])
    variables = from_state_dict(model, golden.weights, strict=True)
    video = jnp.moveaxis(jnp.asarray(image), 1, -1)[:, None]
    logits, grid = jax.jit(lambda v: (model.apply(variables, v), model.apply(variables, v, method="encode")))(video)
    close(logits, golden.outputs["output0"])
    close(grid.reshape(2, -1, grid.shape[-1]), golden.outputs["output1"])  # one token of each unit


def test_video_classifier_equals_the_original():
    golden = recipe.load("hiera_video")
    c, (video,) = golden.config, golden.inputs
    model = Hiera(tuple(c["stages"]), c["D"], 1, num_classes=c["classes"], num_frames=c["T"], image_size=c["S"])
    variables = from_state_dict(model, golden.weights, strict=True)
    close(jax.jit(model.apply)(variables, jnp.moveaxis(jnp.asarray(video), 1, -1)), golden.outputs["output0"])


def outputs_of(model: Pretraining, variables: dict, video, kept) -> SimpleNamespace:
    """Predicted patches, all and those of hidden units, the targets of the latter, which they are, and the loss."""
    t, h, w = (side // unit for side, unit in zip(video.shape[1:4], unit_size(model), strict=True))
    cells = unit_size(model)[1] // model.patch_side
    hidden = hidden_patches(kept, (t, h, w), (t, cells * h, cells * w))
    predicted = jax.jit(model.apply)(variables, video, kept)
    target = first_frame_targets(video, model.patch_side, unit_size(model)[0])
    loss = reconstruction_loss(predicted, target, hidden).mean()
    where = np.asarray(hidden, bool)
    return SimpleNamespace(
        everywhere=predicted, predicted=predicted[where], target=target[where], hidden=where, loss=loss
    )


def test_masked_autoencoder_of_images_equals_transformers():
    golden = recipe.load("hiera_pretrain")
    c, (image, noise) = golden.config, golden.inputs
    model = Pretraining(
        tuple(c["depths"]), c["D"], c["H"][0], images=True, poolings=3, decoder_width=c["dD"], decoder_depth=c["dL"],
        decoder_heads=c["dH"], num_frames=1, image_size=c["S"],
    )  # fmt: skip
    variables = from_state_dict(model, golden.weights, strict=True)
    shown = golden.outputs["output2"].astype(bool)
    kept = jnp.asarray([np.flatnonzero(row) for row in shown])
    np.testing.assert_array_equal(kept, np.sort(noise.argsort(axis=1)[:, : kept.shape[1]], axis=1))
    ours = outputs_of(model, variables, jnp.moveaxis(jnp.asarray(image), 1, -1)[:, None], kept)
    np.testing.assert_array_equal(~ours.hidden, shown)
    # The recorded values are in the order `(channel row column)`, every 48th of them.
    in_order = np.moveaxis(np.asarray(ours.everywhere).reshape(2, 4, -1, 3), -1, 2).reshape(2, 4, -1)
    close(in_order[..., ::48], golden.outputs["output0"])
    np.testing.assert_allclose(ours.loss, golden.outputs["output1"], rtol=1e-5)


def test_masked_autoencoder_of_videos_equals_the_original():
    golden = recipe.load("hiera_video_mae")
    c, (video, kept) = golden.config, golden.inputs
    model = Pretraining(
        tuple(c["stages"]), c["D"], 1, poolings=c["q_pool"], decoder_width=c["dD"], decoder_depth=c["dL"],
        decoder_heads=c["dH"], num_frames=c["T"], image_size=c["S"],
    )  # fmt: skip
    variables = from_state_dict(model, golden.weights, strict=True)
    ours = outputs_of(model, variables, jnp.moveaxis(jnp.asarray(video), 1, -1), jnp.asarray(kept))
    close(ours.predicted[:, ::8], golden.outputs["predicted"])
    close(ours.target[:, ::8], golden.outputs["target"])
    np.testing.assert_allclose(ours.loss, golden.outputs["loss"], rtol=1e-5)


@pytest.mark.parametrize("kind", ["HieraForImageClassification", "HieraForPreTraining"])
def test_directories_of_transformers_load(kind, tmp_path):
    transformers = peers.transformers()
    import torch

    config = transformers.HieraConfig(
        embed_dim=16, image_size=[64, 64], depths=[1, 2, 3, 1], num_heads=[2, 4, 8, 16], num_query_pool=2, num_labels=5,
        decoder_hidden_size=32, decoder_depth=2, decoder_num_heads=4,
    )  # fmt: skip
    peer = getattr(transformers, kind)(config).eval()
    peers.perturb(peer)
    peer.save_pretrained(tmp_path)
    model, variables = load_pretrained(tmp_path, strict=True, verbose=False)
    image, noise = recipe.floats("image", (2, 64, 64, 3)), recipe.floats("noise", (2, 4))
    pixels = torch.from_numpy(image).permute(0, 3, 1, 2)
    with torch.no_grad():
        if kind == "HieraForImageClassification":
            close(jax.jit(model.apply)(variables, jnp.asarray(image)[:, None]), peer(pixels).logits.numpy())
        else:
            expected = peer(pixels, noise=torch.from_numpy(noise))
            kept = jnp.asarray(noise.argsort(axis=1)[:, :1])  # 40 % of the four units
            loss = outputs_of(model, variables, jnp.asarray(image)[:, None], kept).loss
            np.testing.assert_allclose(loss, expected.loss.numpy(), rtol=1e-5)


def test_rolling_restores_the_map_and_pooling_merges_neighbours():
    maps = jnp.asarray(recipe.floats("map", (2, 3, 8, 16, 5)))
    units = unroll(maps, 3)
    assert units.shape == (2, 3, 1, 2, 64, 5)
    np.testing.assert_array_equal(roll(units), maps)
    flat = units.reshape(2, -1, 64, 5)
    pooled = roll(pool_cells(pool_cells(flat, 4), 4).reshape(2, 3, 1, 2, 4, 5))
    np.testing.assert_array_equal(pooled, maps.reshape(2, 3, 2, 4, 4, 4, 5).max(axis=(3, 5)))


def test_hidden_pixels_do_not_matter_and_visible_ones_do():
    model = vidjax.create_model("hiera_tiny_mae")
    variables = jax.tree.map(jnp.asarray, perturbed(model))
    video, kept = jnp.asarray(recipe.floats("video", (1, 4, 64, 64, 3))), jnp.asarray([[0, 7]])
    run = jax.jit(model.apply)
    before = run(variables, video, kept)
    np.testing.assert_array_equal(run(variables, video.at[:, 2:, :32].set(9.0), kept), before)
    assert not np.allclose(run(variables, video.at[:, 2:, 32:, 32:].set(9.0), kept), before, atol=1e-2)


def test_stages_shrink_and_the_last_is_encoded():
    model = vidjax.create_model("hiera_tiny")
    variables = jax.tree.map(jnp.asarray, perturbed(model))
    video = jnp.asarray(recipe.floats("video", (1, 4, 64, 64, 3)))
    stages, encoded = jax.jit(lambda v: tuple(model.apply(variables, v, method=m) for m in ("stages", "encode")))(video)
    assert [stage.shape[1:] for stage in stages] == [(2, 16 // 2**i, 16 // 2**i, 16 * 2**i) for i in range(4)]
    np.testing.assert_array_equal(stages[-1], encoded)


def test_an_image_model_classifies_each_frame():
    model = vidjax.create_model("hiera_tiny_image", num_classes=5)
    variables = jax.tree.map(jnp.asarray, perturbed(model))
    video = jnp.asarray(recipe.floats("video", (2, 3, 64, 64, 3)))
    run = jax.jit(model.apply)
    frames = np.stack([run(variables, video[:, i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(run(variables, video), frames.mean(axis=0), atol=1e-5)


def test_gradients_reach_every_parameter_with_scan_and_remat():
    model = vidjax.create_model("hiera_tiny_mae", depths=(1, 1, 3, 1))
    variables = jax.tree.map(jnp.asarray, perturbed(model))
    video, kept = jnp.asarray(recipe.floats("video", (1, 4, 64, 64, 3))), jnp.asarray([[0, 7]])

    def gradient(**fields):
        return jax.jit(jax.grad(lambda v: jnp.square(model.clone(**fields).apply(v, video, kept)).sum()))(variables)

    plain = gradient()
    assert not [path for path, leaf in flatten_dict(plain["params"], sep="/").items() if not leaf.any()]
    largest = max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(plain))
    for one, other in zip(*map(jax.tree.leaves, (plain, gradient(scan=True, remat="blocks"))), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5 * largest)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 3}, "width 16 cannot be split into 3 heads"),
        ({"poolings": 4}, "poolings is 4: it must be below the number of stages, 4"),
    ],
)
def test_bad_fields_are_one_line(fields, message):
    model = vidjax.create_model("hiera_tiny", **fields)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 4, 64, 64, 3)))
