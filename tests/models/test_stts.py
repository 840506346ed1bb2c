"""STTS against recorded outputs of its released selection, and on MViT and VideoMAE."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe
from flax.traverse_util import unflatten_dict
from small_models import perturbed

import vidjax
from vidjax.convert.blocks import score_predictor
from vidjax.layers.selection import FrameSelection, RegionSelection, perturbed_top_k, regions
from vidjax.models.mvit import MViT
from vidjax.models.stts import STTS

COUNTS = {  # the cost is that of the released README; parameters are counted here
    "stts_mvit_base_t09_s09": (36_912_498, 56.4),
    "stts_mvit_base_t08_s09": (36_912_498, 47.2),
    "stts_mvit_base_t06_s09": (36_912_498, 38.1),
    # README: 23.3 and 12.1. The shares in the configurations do not give these; why is not known.
    "stts_mvit_base_t05_s07": (36_912_498, 26.86),
    "stts_mvit_base_t04_s06": (36_912_498, 18.39),
    "stts_tiny": (670_562, None),
    "stts_tiny_8": (358_210, None),
}


@pytest.fixture(scope="module")
def golden():
    return recipe.load("stts")


def variables_of(golden, prefix):
    rules = score_predictor(f"{prefix}score_network", "predictor")
    flat = {rule.target: rule.transform(golden.weights[rule.source]) for rule in rules}
    return {"params": unflatten_dict(flat, sep="/")}


def test_frames_and_regions_equal_the_original(golden):
    c, outputs = golden.config, golden.outputs
    x = jnp.asarray(golden.inputs[0]).reshape(2, c["T"], -1, c["C"])
    frames, variables = FrameSelection(), variables_of(golden, "")
    scores = frames.apply(variables, x, method="scores")
    np.testing.assert_allclose(scores, outputs["output2"], atol=1e-5)
    assert np.sort(np.argsort(scores)[:, -c["keep_frames"] :]).tolist() == outputs["output3"].tolist()
    kept = frames.apply(variables, x, c["keep_frames"])
    np.testing.assert_array_equal(kept.reshape(outputs["output0"].shape), outputs["output0"])
    space, variables = RegionSelection(), variables_of(golden, "space.")
    places = regions(c["hw"], c["keep_side"], c["stride"])
    scores = space.apply(variables, x, places, method="scores")
    np.testing.assert_allclose(scores.reshape(outputs["output4"].shape), outputs["output4"], atol=1e-5)
    assert scores.argmax(axis=-1).ravel().tolist() == outputs["output5"].ravel().tolist()
    kept = space.apply(variables, x, places)
    np.testing.assert_array_equal(kept.reshape(outputs["output1"].shape), outputs["output1"])


def test_perturbed_indicators_and_their_gradient_equal_the_original(golden):
    c, (_, noise, weight), outputs = golden.config, map(jnp.asarray, golden.inputs), golden.outputs
    scores = jnp.asarray(outputs["output2"])

    def weighted(scores, sigma):
        chosen = perturbed_top_k(scores, noise, sigma, c["keep_frames"])
        return (chosen * weight).sum(), chosen

    gradient, chosen = jax.jit(jax.grad(weighted, has_aux=True))(scores, c["sigma"])
    np.testing.assert_allclose(chosen, outputs["output6"], atol=1e-6)
    np.testing.assert_allclose(gradient, outputs["output7"], atol=1e-5)
    gradient, chosen = jax.grad(weighted, has_aux=True)(scores, 0.0)
    assert not gradient.any() and chosen.max(axis=-1).tolist() == [[1.0] * 3] * 2


def test_regions_are_those_of_the_published_mvit():
    """Of 14x14 places 0.863 are 13x13, in four regions."""
    places = regions(14, 13)
    assert places.shape == (4, 169) and places[0, :2].tolist() == [0, 1] and places[3, -1] == 195


SMALL = {"depths": (1, 1, 1), "width": 16, "key_stride": 4, "drop_path": 0.0, "num_frames": 8, "image_size": 64}
INNER = MViT(**SMALL, relative=False, expand_in_attention=False, dropout=0.0, num_classes=3)


def test_an_mvit_on_the_selected_frames_and_regions_is_one_on_a_smaller_grid():
    """With predictors that favour given frames, tokens of the others have no influence."""
    model = STTS(INNER, frames=((0, 0.5),), regions=((1, 0.6),), samples=8)
    variables = jax.tree.map(jnp.asarray, perturbed(model))
    assert set(variables["params"]) == {*perturbed(INNER)["params"], "time_0", "space_0"}
    video = jnp.asarray(recipe.floats("video", (2, 8, 64, 64, 3)))
    apply = jax.jit(lambda v, x: (model.apply(v, x), model.apply(v, x, method="encode")))
    logits, left = apply(variables, video)
    assert left.shape == (2, 2, 3, 3, 64)  # 2 of 4 frames; 12x12 of 16x16 places, halved twice
    training = jax.jit(lambda v, noise: model.apply(v, video, True, noise, rngs={"selection": jax.random.key(0)}))
    np.testing.assert_allclose(training(variables, 0.0), logits, atol=1e-4)
    assert np.abs(training(variables, 1.0) - logits).max() > 1e-4


def test_the_gradient_reaches_both_predictors():
    model = vidjax.create_model("stts_tiny", num_classes=3, depth=3, num_frames=4, image_size=32)
    variables = jax.tree.map(jnp.asarray, perturbed(model))
    video = jnp.asarray(recipe.floats("video", (2, 4, 32, 32, 3)))

    def loss(params):
        logits = model.apply({"params": params}, video, True, rngs={"selection": jax.random.key(1)})
        return jax.nn.logsumexp(logits, axis=-1).sum()

    gradient = jax.jit(jax.grad(loss))(variables["params"])
    for name in ("time_0", "space_0"):
        assert jnp.abs(gradient[name]["predictor"]["fc3"]["kernel"]).max() > 0


def test_shares_that_leave_nothing_are_one_line():
    model = STTS(INNER, frames=((0, 0.1),))
    with pytest.raises(ValueError, match="nothing is left: give larger shares"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 64, 64, 3)))
