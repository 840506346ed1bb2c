import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidjax.kernels.attention import attend
from vidjax.layers.attention import Attention, with_beams


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape), jnp.float32)


@pytest.fixture(scope="module")
def module():
    """Three heads over width 12, with noise on every parameter."""
    shapes = jax.eval_shape(Attention(heads=3).init, jax.random.key(0), jnp.zeros((1, 2, 12)))["params"]
    params = {name: {part: normal(*leaf.shape) / 3 for part, leaf in parts.items()} for name, parts in shapes.items()}
    run = jax.jit(Attention(heads=3).apply)
    return params, lambda *inputs: run({"params": params}, *inputs)


def test_attention_is_attend_between_four_projections(module):
    params, run = module

    def project(name, x):
        x = np.asarray(x) @ np.asarray(params[name]["kernel"]) + np.asarray(params[name]["bias"])
        return x.reshape(2, -1, 3, 4)

    x = normal(2, 5, 12)
    for context in (x, normal(2, 7, 12)):
        heads = jax.nn.dot_product_attention(project("query", x), project("key", context), project("value", context))
        expected = heads.reshape(2, 5, 12) @ np.asarray(params["out"]["kernel"]) + np.asarray(params["out"]["bias"])
        np.testing.assert_allclose(run(x, context), expected, atol=1e-4)
        mask = jnp.arange(context.shape[1])[None] < 3
        np.testing.assert_allclose(run(x, context, mask), run(x, context[:, :3]), atol=1e-5)
    np.testing.assert_array_equal(run(x), run(x, x))


def test_leading_axes_are_independent(module):
    _, run = module
    x = normal(2, 3, 5, 12)
    before, after = np.asarray(run(x)), np.asarray(run(x.at[1, 2].set(9.0)))
    np.testing.assert_array_equal(after.reshape(6, 5, 12)[:5], before.reshape(6, 5, 12)[:5])
    np.testing.assert_allclose(before[1], run(x[1]), atol=1e-5)


def test_without_leading_axes_the_first_is_that_of_the_tokens(module):
    _, run = module
    x, context = normal(1, 6, 12), normal(1, 3, 12)  # twice as many queries as tokens are no two beams
    np.testing.assert_allclose(run(x[0], context[0]), run(x, context)[0], atol=1e-5)
    np.testing.assert_allclose(run(x[0, :1], context[0]), run(x, context)[0, :1], atol=1e-5)


def test_beams_attend_to_the_keys_and_values_of_their_text():
    query, pair = normal(6, 1, 3, 4), (normal(2, 5, 3, 4), normal(2, 5, 3, 4) + 1)
    mask = jnp.asarray(np.random.default_rng(3).random((6, 1, 5)) < 0.6).at[..., 0].set(True)  # differs between beams
    repeated = [jnp.repeat(x, 3, axis=0) for x in pair]
    for each in (None, mask):
        expected = attend(query, *repeated, mask=each)
        shared = with_beams(lambda q, k, v, mask, bias: attend(q, k, v, mask=mask, bias=bias), query, pair, each, None)
        np.testing.assert_allclose(shared, expected, atol=1e-5)
        assert np.abs(shared[:3] - attend(query[:3], *[x[3:] for x in repeated], mask=None)).max() > 0.1


@pytest.mark.parametrize(
    ("fields", "biased"),
    [
        ({}, {"query", "key", "value", "out"}),
        ({"key_bias": False}, {"query", "value", "out"}),
        ({"qkv_bias": False}, {"out"}),
    ],
)
def test_fields_choose_which_projections_have_biases(fields, biased):
    shapes = jax.eval_shape(Attention(heads=2, **fields).init, jax.random.key(0), jnp.zeros((1, 3, 8)))["params"]
    assert {name for name in shapes if "bias" in shapes[name]} == biased


def test_heads_that_do_not_divide_the_width_are_rejected():
    with pytest.raises(ValueError, match="width 8 cannot be split into 3 heads"):
        Attention(heads=3).init(jax.random.key(0), jnp.zeros((1, 3, 8)))


def test_weights_are_sown_on_request_and_cost_nothing_otherwise():
    model, x = Attention(heads=3), normal(2, 2, 5, 12)
    variables = model.init(jax.random.key(0), x)
    assert set(variables) == {"params"} and set(variables["params"]) == {"query", "key", "value", "out"}
    out, state = model.apply(variables, x, mutable=["intermediates"])
    np.testing.assert_array_equal(out, model.apply(variables, x))
    (weights,) = state["intermediates"]["dot_product"]["weights"]
    assert weights.shape == (2, 2, 3, 5, 5) and weights.dtype == jnp.float32
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-5)
    value = (x @ variables["params"]["value"]["kernel"]).reshape(2, 2, 5, 3, 4)
    mixed = jnp.einsum("...kqn,...nkd->...qkd", weights, value).reshape(x.shape) @ variables["params"]["out"]["kernel"]
    np.testing.assert_allclose(mixed, out, atol=1e-5)

    def count_softmax(mutable):
        return str(jax.make_jaxpr(lambda v, x: model.apply(v, x, mutable=mutable))(variables, x)).count("= exp")

    assert count_softmax(["intermediates"]) == 2 * count_softmax(False) == 2 * count_softmax(["batch_stats"]) > 0
