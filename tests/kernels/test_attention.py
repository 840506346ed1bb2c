"""Every implementation of attention equals the softmax formula."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidjax.kernels import chunked_attention
from vidjax.kernels.attention import attend, attention_weights
from vidjax.training.cost import count_macs


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape), jnp.float32)


def naive_attend(query, key, value, mask=True, bias=0.0) -> np.ndarray:
    """Softmax attention of `... tokens heads width` in float64; `mask` and `bias` have an axis for heads."""
    query, key, value = (np.moveaxis(np.asarray(x, np.float64), -2, -3) for x in (query, key, value))
    scores = query @ np.swapaxes(key, -1, -2) / np.sqrt(query.shape[-1])
    scores = np.where(mask, scores + bias, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.moveaxis(weights / weights.sum(-1, keepdims=True) @ value, -3, -2)


@pytest.mark.parametrize("leading", [(), (2, 3)])
def test_attend_is_softmax_attention_over_any_leading_axes(leading):
    query, key, value = normal(*leading, 5, 4, 6) * 3, normal(*leading, 7, 4, 6), normal(*leading, 7, 4, 6)[..., ::-1]
    np.testing.assert_allclose(jax.jit(attend)(query, key, value), naive_attend(query, key, value), atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 7), (2, 1, 7), (2, 3, 5, 7)])
def test_a_mask_hides_keys_from_queries_in_all_heads(shape):
    query, key, value = normal(2, 3, 5, 4, 6), normal(2, 3, 7, 4, 6), normal(2, 3, 7, 4, 6)[..., ::-1]
    if len(shape) == 3:  # another number of leading axes
        query, key, value = query[:, 0], key[:, 0], value[:, 0]
    mask = (normal(*shape) > 0).at[..., 0].set(True)
    out = jax.jit(lambda q, k, v, m: attend(q, k, v, mask=m))(query, key, value, mask)
    np.testing.assert_allclose(out, naive_attend(query, key, value, mask[..., None, :, :]), atol=1e-5)
    weights = attention_weights(query, key, mask)
    np.testing.assert_allclose(jnp.einsum("...kqn,...nkd->...qkd", weights, value), out, atol=1e-5)
    np.testing.assert_array_equal(weights > 0, jnp.broadcast_to(mask[..., None, :, :], weights.shape))


@pytest.mark.parametrize("implementation", ["xla", "chunked"])
def test_a_cap_bounds_the_scores_before_the_mask(implementation, monkeypatch):
    monkeypatch.setattr(chunked_attention, "CHUNK_CPU", 2)
    query, key, value = 9 * normal(2, 5, 4, 6), normal(2, 7, 4, 6), normal(2, 7, 4, 6)[..., ::-1]
    mask = (normal(5, 7) > 0).at[..., 0].set(True)
    scores = jnp.einsum("bqkd,bnkd->bkqn", query, key) / 6**0.5
    weights = jax.nn.softmax(jnp.where(mask, 2 * jnp.tanh(scores / 2), -jnp.inf))
    np.testing.assert_allclose(attention_weights(query, key, mask, cap=2.0), weights, atol=1e-5)
    out = jax.jit(lambda *x: attend(*x, implementation, mask, cap=2.0))(query, key, value)
    np.testing.assert_allclose(out, jnp.einsum("bkqn,bnkd->bqkd", weights, value), atol=1e-5)
    for other in ("ring", "cudnn"):
        with pytest.raises(ValueError, match=r"takes no .*cap: use the implementation 'chunked' or 'xla'"):
            attend(query, key, value, other, cap=2.0)


@pytest.mark.parametrize("implementation", ["xla", "chunked"])
def test_a_bias_is_added_to_the_scores_of_each_head_and_has_a_gradient(implementation, monkeypatch):
    monkeypatch.setattr(chunked_attention, "CHUNK_CPU", 2)
    query, key, value = normal(2, 3, 5, 4, 6), normal(2, 3, 7, 4, 6), normal(2, 3, 7, 4, 6)[..., ::-1]
    mask, bias = (normal(3, 5, 7) > 0).at[..., 0].set(True), 3 * normal(4, 5, 7)
    step = 1e-3 * normal(4, 5, 7)[:, ::-1]
    weights = attention_weights(query, key, mask, bias)

    def total(bias: jax.Array) -> jax.Array:
        return (attend(query, key, value, implementation, mask, bias) ** 2).sum()

    out = jax.jit(lambda bias: attend(query, key, value, implementation, mask, bias))(bias)
    np.testing.assert_allclose(out, naive_attend(query, key, value, mask[:, None], bias), atol=1e-5)
    np.testing.assert_allclose(jnp.einsum("...kqn,...nkd->...qkd", weights, value), out, atol=1e-5)
    forward, backward = (
        (naive_attend(query, key, value, mask[:, None], np.asarray(bias, np.float64) + by) ** 2).sum()
        for by in (np.asarray(step, np.float64), -np.asarray(step, np.float64))
    )
    np.testing.assert_allclose((jax.jit(jax.grad(total))(bias) * step).sum(), (forward - backward) / 2, rtol=1e-3)


@pytest.mark.parametrize("implementation", ["xla", "chunked"])
def test_a_fully_masked_query_attends_equally_to_all_keys_and_has_a_gradient(implementation):
    query, key, value, mask = normal(3, 2, 4), normal(5, 2, 4), normal(5, 2, 4)[::-1], jnp.zeros((3, 5), bool)
    out = attend(query, key, value, implementation, mask)
    np.testing.assert_allclose(out, jnp.broadcast_to(value.mean(axis=0), out.shape), atol=1e-5)
    np.testing.assert_allclose(attention_weights(query, key, mask), 1 / 5, rtol=1e-6)
    assert jnp.isfinite(jax.grad(lambda q: attend(q, key, value, implementation, mask).sum())(query)).all()


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_one_array_of_all_pairs_is_saved_for_the_backward_pass_in_the_dtype_of_the_values(dtype):
    query, key, value = (normal(2, n, 3, 4).astype(dtype) for n in (50, 60, 60))
    saved = jax.tree.leaves(jax.vjp(partial(attend, implementation="xla"), query, key, value)[1])
    pairs = [(leaf.shape, leaf.dtype) for leaf in saved if leaf.size >= 2 * 3 * 50 * 60]
    assert pairs == [((2, 3, 50, 60), dtype)]


def test_bfloat16_gradients_are_as_exact_as_their_inputs():
    """Half a unit in the last place of bfloat16 is 0.2 %."""
    exact = [normal(2, 60, 3, 8).astype(jnp.bfloat16).astype(jnp.float32) * scale for scale in (4, 1, 1)]
    expected, _ = attended_and_gradients("xla", *exact)
    actual, _ = attended_and_gradients("xla", *(x.astype(jnp.bfloat16) for x in exact))
    for one, other in zip(actual, expected, strict=True):
        assert jnp.linalg.norm(one.astype(jnp.float32) - other) < 0.005 * jnp.linalg.norm(other)


@pytest.mark.parametrize("implementation", ["xla", "chunked"])
def test_attention_of_float64_is_float64(implementation):
    with jax.enable_x64(True):
        draw = np.random.default_rng(0).standard_normal
        query, key, value = (jnp.asarray(draw((2, n, 3, 4))) for n in (5, 7, 7))
        out = attend(query, key, value, implementation)
        assert out.dtype == jnp.float64
        np.testing.assert_allclose(out, naive_attend(query, key, value), atol=1e-12)


@pytest.mark.parametrize("implementation", ["xla", "chunked"])
def test_softmax_is_float32_for_bfloat16_inputs(implementation):
    query = jnp.array([[2.0, 2.0, 0.0, 0.0]], jnp.bfloat16)[:, None]
    key = jnp.array([[300.0, 0.0, 0.0, 0.0], [300.0, 1.0, 0.0, 0.0]], jnp.bfloat16)[:, None]
    value = jnp.array([[0.0] * 4, [1.0] * 4], jnp.bfloat16)[:, None]
    out = attend(query, key, value, implementation)  # scores 300 and 301, which are equal in bfloat16
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.astype(jnp.float32), 1 / (1 + np.exp(-1)), atol=0.005)


def attended_and_gradients(implementation, query, key, value, mask=None):
    """The output of attention, and the gradients of a fixed weighted sum of it."""
    weights = normal(*query.shape)[..., ::-1]

    def loss(query, key, value):
        attended = attend(query, key, value, implementation, mask)
        return (attended * weights).sum(), attended

    return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(query, key, value)


@pytest.mark.parametrize(
    ("leading", "queries", "keys", "mask"),
    [
        ((), 1, 1, None),
        ((2, 3), 13, 5, (13, 5)),  # chunks of 4 and one of 1
        ((3,), 3, 9, (1, 9)),
        ((2, 3), 7, 9, (2, 1, 1, 9)),
    ],
)
def test_chunked_attention_has_the_same_outputs_and_gradients(monkeypatch, leading, queries, keys, mask):
    monkeypatch.setattr(chunked_attention, "CHUNK_CPU", 4)
    arrays = normal(*leading, queries, 2, 6), normal(*leading, keys, 2, 6), normal(*leading, keys, 2, 6)[..., ::-1]
    if mask is not None:
        mask = (normal(*mask) > 0).at[..., 0, :].set(False)  # the first query is fully masked
    expected = attended_and_gradients("xla", *arrays, mask)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5),
        attended_and_gradients("chunked", *arrays, mask),
        expected,
    )


def test_the_backward_pass_of_chunked_attention_repeats_no_maximum_and_no_sum_of_a_query():
    query, key, value = (normal(n, 2, 6) for n in (260, 50, 50))
    out, pull = jax.vjp(lambda *x: attend(*x, "chunked"), query, key, value)
    backward = jax.jit(pull).lower(out).compile().as_text()
    assert "exponential(" in backward and "maximum(" not in backward
    assert backward.count(" reduce(") == 1  # over the channels of an output and its gradient


def test_chunked_attention_supports_forward_mode():
    arrays = normal(260, 1, 4), normal(5, 1, 4), normal(5, 1, 4)[::-1]
    tangents = jax.tree.map(jnp.cos, arrays)
    chunked, plain = (jax.jvp(lambda *x, how=how: attend(*x, how), arrays, tangents)[1] for how in ("chunked", "xla"))
    np.testing.assert_allclose(chunked, plain, atol=1e-5)


def test_gradients_of_many_chunks_are_summed_in_float32(monkeypatch):
    monkeypatch.setattr(chunked_attention, "CHUNK_CPU", 8)
    exact = normal(512, 1, 8), normal(64, 1, 8), normal(64, 1, 8)[::-1]
    exact = [x.astype(jnp.bfloat16).astype(jnp.float32) for x in exact]
    (_, expected, _), _ = attended_and_gradients("xla", *exact)

    def error(implementation):
        (_, key, _), _ = attended_and_gradients(implementation, *(x.astype(jnp.bfloat16) for x in exact))
        return jnp.linalg.norm(key.astype(jnp.float32) - expected) / jnp.linalg.norm(expected)

    assert error("chunked") < 1.5 * error("xla")


@pytest.mark.parametrize("queries", [512, 513])
def test_chunked_attention_has_the_same_cost(queries):
    arrays = [jax.ShapeDtypeStruct((2, n, 3, 8), jnp.float32) for n in (queries, 300, 300)]
    macs = [count_macs(lambda *x, how=how: attend(*x, how), *arrays) for how in ("chunked", "xla")]
    assert macs == [2 * 2 * 3 * 8 * queries * 300] * 2


def test_attention_of_many_tokens_does_not_materialise_all_scores():
    def materialises_all(implementation, tokens):
        x = jax.ShapeDtypeStruct((1, tokens, 2, 8), jnp.float32)
        gradient = jax.grad(lambda *x: attend(*x, implementation).sum(), (0, 1, 2))
        compiled = jax.jit(gradient).lower(x, x, x).compile()
        # As one array, or in stacked chunks saved for the backward pass.
        at_once = bool(re.search(rf"\[(\d+,)*{tokens},{tokens}\]", compiled.as_text()))
        return at_once or compiled.memory_analysis().temp_size_in_bytes > 4 * tokens**2

    assert materialises_all("xla", 1280) and not materialises_all("chunked", 1280)
    assert materialises_all("auto", 160) and not materialises_all("auto", 1280)


def test_many_windows_of_few_tokens_do_not_materialise_all_scores():
    windows, clips = (jnp.broadcast_to(0.0, shape) for shape in ((256, 392, 3, 1), (2, 392, 6, 1)))
    assert "scan" in str(jax.make_jaxpr(attend)(*3 * [windows]))
    assert "scan" not in str(jax.make_jaxpr(attend)(*3 * [clips]))


def test_cudnn_never_falls_back_silently():
    x = jnp.zeros((1, 4, 2, 8))
    with pytest.raises(Exception, match=r"(?i)cudnn|flash|gpu|must be"):
        attend(x, x, x, "cudnn")
