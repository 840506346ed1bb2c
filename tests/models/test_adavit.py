"""AdaViT against recorded outputs of its released code; skipped computation against masked computation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe

import vidjax
from vidjax.convert import from_state_dict, layouts
from vidjax.convert.export import entries
from vidjax.models.adavit import AdaViT, Usage, add_of_used
from vidjax.models.vit import ViT
from vidjax.objectives.adaptive import adavit_loss
from vidjax.training.cost import count_macs

COUNTS = {  # parameters counted in the released code; the cost depends on the frame (README: 2.3 on average)
    "adavit_small_16": (22_089_164, None),
    "adavit_tiny": (124_390, None),
}


@pytest.fixture(scope="module")
def run():
    golden = recipe.load("adavit")
    c = golden.config
    for number in range(1, c["depth"]):  # as in the recording
        golden.weights[f"blocks.{number}.layer_select.mlp_head.bias"] += 1
    vit = ViT(
        c["embed_dim"], c["depth"], c["num_heads"], patch_size=(1, 8, 8), num_classes=c["num_classes"], image_size=32
    )
    model = AdaViT(vit)
    variables = from_state_dict(model, golden.weights, strict=True)
    video = jnp.moveaxis(jnp.asarray(golden.inputs[0]), 1, -1)[:, None]
    return golden, model, variables, video


def test_skipping_and_masking_equal_the_original(run):
    golden, model, variables, video = run
    clip = jnp.swapaxes(video, 0, 1)  # the images as frames, which choose for themselves
    pruned, masked, mean = jax.jit(
        lambda v: (
            model.apply(v, video, method="pruned"),
            model.apply(v, video, method="masked"),
            model.apply(v, clip, method="masked"),
        )
    )(variables)
    np.testing.assert_allclose(mean.logits[0], golden.outputs["logits"].mean(axis=0), atol=1e-5)
    for output in (pruned, masked):
        np.testing.assert_allclose(output.logits, golden.outputs["logits"], atol=1e-5)
        np.testing.assert_array_equal(output.usage.tokens, golden.outputs["tokens"])
        np.testing.assert_array_equal(output.usage.heads[:, 1:], golden.outputs["heads"])
        np.testing.assert_array_equal(output.usage.branches[:, 1:], golden.outputs["branches"])
        assert output.usage.heads[:, 0].all() and output.usage.branches[:, 0].all()


@pytest.mark.parametrize("count", [0, 1, 7, 11])
def test_only_what_is_used_is_computed_and_added(count):
    used = np.random.default_rng(count).permutation(11) < count
    values = np.where(used[:, None], np.arange(22.0).reshape(11, 2), np.nan)  # of the others nothing is seen
    rows = []

    def square(x):
        rows.append(len(x))  # of each program that is traced
        return x**2

    total = add_of_used(jnp.ones((11, 2)), jnp.asarray(used), square, jnp.asarray(values))
    np.testing.assert_allclose(total, np.where(used[:, None], 1 + values**2, 1.0), rtol=1e-6)
    assert rows == [3, 6, 9, 11]


def test_weights_return_to_the_published_names(run):
    golden, model, variables, _ = run
    exported = entries(layouts(model)[0], model, variables)
    assert exported.keys() == golden.weights.keys()
    for name, value in golden.weights.items():
        np.testing.assert_array_equal(exported[name], value)


def test_the_cost_of_using_everything_is_that_of_the_vit():
    vit = ViT(48, 3, 4, patch_size=(1, 8, 8), image_size=32)
    video = jnp.zeros((1, 1, 32, 32, 3))
    shapes = jax.eval_shape(vit.init, jax.random.key(0), video)
    everything = Usage(jnp.ones((1, 3, 17)), jnp.ones((1, 3, 4)), jnp.ones((1, 3, 2)))
    assert everything.macs(48).item() + 16 * 192 * 48 == count_macs(vit.apply, shapes, video)
    half = Usage(jnp.ones((1, 3, 17)), jnp.ones((1, 3, 4)).at[:, :, 2:].set(0), jnp.ones((1, 3, 2)).at[..., 1].set(0))
    assert half.macs(48).item() == 3 * (17 * 4 * 48 * 24 + 2 * 17**2 * 24)


def test_training_draws_decisions_and_its_loss_reaches_all_of_them(run):
    _, model, variables, video = run

    def loss(params):
        output = model.apply({"params": params}, video, train=True, method="masked", rngs={"usage": jax.random.key(3)})
        terms = adavit_loss(output.logits, *output.usage, jax.nn.one_hot(jnp.arange(6), 7), 0.3)
        return terms.total(), (terms, output.usage)

    gradient, (terms, usage) = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    for name in ("tokens", "heads", "branches"):
        assert set(np.unique(getattr(usage, name))) == {0.0, 1.0}
        assert jnp.abs(gradient["policy_2"][name]["kernel"]).max() > 0
    np.testing.assert_allclose(terms.tokens, (usage.tokens.mean() - 0.3) ** 2, rtol=1e-5)
    np.testing.assert_allclose(terms.branches, (usage.branches.mean() - 0.3) ** 2, rtol=1e-5)
    whole = jnp.repeat(usage.branches.max(axis=2, keepdims=True), 4, axis=2)  # heads of skipped blocks do not count
    np.testing.assert_allclose(terms.heads, ((usage.heads * whole).sum() / whole.sum() - 0.3) ** 2, rtol=1e-5)


def test_scanned_blocks_and_adapters_are_refused():
    with pytest.raises(ValueError, match="omit scan, remat and adapters"):
        jax.eval_shape(
            vidjax.create_model("adavit_tiny", scan=True).init, jax.random.key(0), jnp.zeros((1, 8, 32, 32, 3))
        )
