"""DynamicViT against recorded outputs of its released code, and on models of videos."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import recipe
from small_models import perturbed

import vidjax
from vidjax.convert import from_state_dict, layouts
from vidjax.convert.export import entries
from vidjax.models.dynamicvit import DynamicViT
from vidjax.models.vit import ViT
from vidjax.objectives.pruning import pruning_loss

COUNTS = {  # SYSTEMS-2.md, 3.8: parameters counted in the released code, cost of its README; the rest is counted here
    "dynamicvit_256_16": (10_304_942, 1.375),  # README: 1.3
    "dynamicvit_small_16": (22_774_414, 2.981),  # README: 2.9
    "dynamicvit_base_16": (89_452_846, 11.4),
    "dynamicvit_videomae_base": (89_419_990, None),
    "dynamicvit_timesformer_base": (88_997_590, None),
    "dynamicvit_tiny": (640_686, None),
    "dynamicvit_tiny_8": (344_950, None),
}
STAGES = 3


@pytest.fixture(scope="module")
def run():
    golden = recipe.load("dynamicvit")
    c = golden.config
    vit = ViT(c["D"], c["L"], c["H"], patch_size=(1, c["P"], c["P"]), num_classes=c["classes"], image_size=c["S"])
    model = DynamicViT(vit, locations=tuple(c["pruning_loc"]), keep=c["token_ratio"][0])
    variables = from_state_dict(model, golden.weights, strict=True)
    video = jnp.moveaxis(jnp.asarray(golden.inputs[0]), 1, -1)[:, None]
    return golden.outputs, model, variables, video, golden.weights


def test_dropping_and_masking_equal_the_original(run):
    outputs, model, variables, video, _ = run
    logits, masked = jax.jit(lambda v: (model.apply(v, video), model.apply(v, video, method="masked")))(variables)
    np.testing.assert_allclose(logits, outputs["output0"], atol=1e-5)
    np.testing.assert_allclose(masked.logits, outputs["output10"], atol=1e-5)
    np.testing.assert_allclose(masked.logits, logits, atol=1e-5)
    np.testing.assert_allclose(masked.tokens, outputs["output11"], atol=1e-5 * np.abs(outputs["output11"]).max())
    left = np.tile(np.arange(16), (2, 1))
    for stage in range(STAGES):
        scores, places = (outputs[f"output{1 + 3 * stage + part}"] for part in (0, 2))
        # The original scores the tokens that are left, in the order of their scores before; here all are scored.
        ours = np.take_along_axis(np.asarray(masked.log_probabilities[stage]), left[..., None], axis=1)
        np.testing.assert_allclose(ours, scores, atol=1e-5)
        left = places
        kept = np.zeros((2, 16))
        np.put_along_axis(kept, places, 1.0, axis=1)
        np.testing.assert_array_equal(masked.kept[stage], kept)


def test_weights_return_to_the_published_names(run):
    _, model, variables, _, weights = run
    exported = entries(layouts(model)[0], model, variables)
    assert exported.keys() == weights.keys()
    for name, value in weights.items():
        np.testing.assert_array_equal(exported[name], value)


@pytest.mark.parametrize("name", ["videomae_tiny", pytest.param("timesformer_tiny_joint", marks=pytest.mark.long)])
def test_models_of_videos_are_pruned_as_they_are_masked_with_their_own_parameters(name):
    inner = vidjax.create_model(name, num_classes=5, depth=3, num_frames=4, image_size=32)
    model = DynamicViT(inner, locations=(1, 2), keep=0.6, class_token=name.startswith("time"))
    variables = jax.tree.map(jnp.asarray, perturbed(model))
    plain = perturbed(inner)["params"]
    assert set(variables["params"]) == {*plain, "predictor_0", "predictor_1"}
    video = jnp.asarray(recipe.floats("video", (2, 4, 32, 32, 3)))
    pruned, masked, all_tokens = jax.jit(
        lambda v: (
            model.apply(v, video),
            model.apply(v, video, method="masked"),
            inner.apply({"params": {name: v["params"][name] for name in plain}}, video),
        )
    )(variables)
    np.testing.assert_allclose(pruned, masked.logits, atol=1e-5)
    assert np.abs(pruned - all_tokens).max() > 1e-3
    tokens = masked.kept[0].shape[1]
    assert [each.sum(axis=1).tolist() for each in masked.kept] == [[int(tokens * 0.6)] * 2, [int(tokens * 0.36)] * 2]
    assert (masked.kept[1] <= masked.kept[0]).all()  # what is dropped stays so


def test_training_draws_decisions_and_its_loss_reaches_the_predictors(run):
    _, model, variables, video, _ = run
    targets = jax.nn.one_hot(jnp.array([1, 4]), 7)

    def loss(params):
        output = model.apply(
            {"params": params}, video, train=True, method="masked", rngs={"pruning": jax.random.key(3)}
        )
        teacher = model.model.apply({"params": {k: v for k, v in params.items() if "predictor" not in k}}, video)
        terms = pruning_loss(*output[:3], targets, model.shares, teacher, jnp.zeros_like(output.tokens))
        return terms.total().mean(), (terms, output)

    gradient, (terms, output) = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    for stage in range(STAGES):
        assert set(np.unique(output.kept[stage])) <= {0.0, 1.0}
        assert jnp.abs(gradient[f"predictor_{stage}"]["fc3"]["kernel"]).max() > 0
    np.testing.assert_allclose(
        terms.classification, optax.losses.softmax_cross_entropy(output.logits, targets), rtol=1e-6
    )
    shares = np.array([0.7, 0.49, 0.343])
    kept = np.stack([each.mean(axis=1) for each in output.kept], axis=1)
    np.testing.assert_allclose(terms.share, ((kept - shares) ** 2).mean(axis=1), rtol=1e-5)
    last = np.asarray(output.kept[-1])
    squares = (np.asarray(output.tokens) ** 2).mean(axis=-1)
    np.testing.assert_allclose(terms.teacher_tokens, (squares * last).sum(1) / np.maximum(last.sum(1), 1), rtol=1e-5)
    assert (terms.teacher_logits > 0).all()


@pytest.mark.parametrize(("name", "class_token"), [("videomae_tiny", False), ("vit_tiny", True)])
def test_the_loss_is_finite_when_a_draw_drops_every_token_of_a_clip(name, class_token):
    fields = {"width": 24, "heads": 2, "num_classes": 5, "depth": 3, "image_size": 32}
    inner = vidjax.create_model(name, **fields, num_frames=4)
    model = DynamicViT(inner, locations=(1, 2), keep=0.6, class_token=class_token)
    variables = jax.tree.map(jnp.asarray, perturbed(model))
    fc3 = variables["params"]["predictor_0"]["fc3"]
    fc3["bias"] = jnp.array([-1000.0, 1000.0])  # of the first place: nothing is kept
    teacher = jax.tree.map(jnp.zeros_like, variables)
    video = jnp.asarray(recipe.floats("video", (2, model.num_frames, 32, 32, 3)))

    def loss(params):
        apply = partial(model.apply, video=video, method="masked")
        output = apply({"params": params}, train=True, rngs={"pruning": jax.random.key(0)})
        seen = apply(teacher)
        terms = pruning_loss(*output[:3], jnp.eye(5)[:2], model.shares, seen.logits, seen.tokens)
        return terms.total().mean(), output

    (value, output), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
    assert not any(each.any() for each in output.kept) and np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    # As if all were kept for the mean of the tokens, so that the head sees something.
    assert np.abs(gradient["patch_embedding"]["kernel"]).max() > 0
    assert output.kept[0].shape[0] == (2 * model.num_frames if class_token else 2)  # an image model's are of a frame


def test_tokens_to_distil_are_normalised_where_the_model_normalises_only_their_mean():
    """A teacher and a student whose residual streams differ by a factor have the same tokens."""
    inner = vidjax.create_model("videomae_tiny", width=24, heads=2, num_classes=5, depth=1, image_size=32)
    model = DynamicViT(inner, locations=(), class_token=False)
    variables = perturbed(model)
    video = jnp.asarray(recipe.floats("video", (1, 16, 32, 32, 3)))
    tokens = model.apply(variables, video, method="masked").tokens
    raw = np.asarray(inner.apply(variables, video, method="tokens"), np.float64)
    norm = variables["params"]["head_norm"]
    expected = (raw - raw.mean(-1, keepdims=True)) / np.sqrt(raw.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(tokens, expected * norm["scale"] + norm["bias"], atol=1e-4)


def test_scanned_blocks_are_refused():
    model = vidjax.create_model("dynamicvit_tiny", scan=True)
    with pytest.raises(ValueError, match="blocks that are scanned or recomputed: omit scan and remat"):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 16, 64, 64, 3)))
