from functools import partial
from math import erf

import flax.linen as nn
import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from vidjax.layers.transformer import VIT_SIZES, Block, DropPath, Encoder, Mlp


@pytest.fixture(scope="module")
def dropped():
    """4000 samples of ones after drop path at rate 0.2."""
    return DropPath().apply({}, jnp.ones((4000, 2, 3)), 0.2, True, rngs={"drop_path": jax.random.key(0)})


def test_drop_path_drops_whole_samples_and_scales_the_others(dropped):
    flat = np.asarray(dropped).reshape(4000, -1)
    assert (flat == flat[:, :1]).all()
    np.testing.assert_allclose(np.unique(flat), [0.0, 1.25])


def test_drop_path_keeps_the_expectation(dropped):
    assert float(dropped.mean()) == pytest.approx(1.0, abs=0.04)  # five standard deviations


@pytest.mark.parametrize(("rate", "train"), [(0.2, False), (0.0, True), (0.0, False)])
def test_drop_path_is_the_identity_and_needs_no_key_otherwise(rate, train):
    x = jnp.ones((3, 2))
    assert DropPath().apply({}, x, rate, train) is x


def test_drop_path_takes_a_traced_rate():
    def run(rate):
        return DropPath().apply({}, jnp.ones((8, 2)), rate, True, rngs={"drop_path": jax.random.key(0)})

    np.testing.assert_array_equal(jax.jit(run)(0.5), run(0.5))


def noise(shapes: dict) -> dict:
    draw = np.random.default_rng(0).standard_normal
    return jax.tree.map(lambda leaf: jnp.asarray(draw(leaf.shape), leaf.dtype), shapes)


def test_mlp_is_two_linear_maps_around_the_exact_gelu():
    x = np.random.default_rng(1).standard_normal((2, 3, 4), np.float32)
    variables = noise(jax.eval_shape(Mlp(8).init, jax.random.key(0), jnp.asarray(x)))
    first, second = (jax.tree.map(np.asarray, variables["params"][name]) for name in ("fc1", "fc2"))
    hidden = x @ first["kernel"] + first["bias"]
    hidden = hidden * 0.5 * (1 + np.vectorize(erf)(hidden / np.sqrt(2)))
    expected = hidden @ second["kernel"] + second["bias"]
    np.testing.assert_allclose(jax.jit(Mlp(8).apply)(variables, jnp.asarray(x)), expected, atol=1e-4)


def test_block_is_pre_norm_with_two_residual_branches():
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 3, 8)), jnp.float32)
    run = jax.jit(Block(heads=2).apply)
    variables = noise(jax.eval_shape(Block(heads=2).init, jax.random.key(1), x))
    zeros = jax.tree.map(jnp.zeros_like, variables)  # both branches output zeros: only the residual is left
    np.testing.assert_array_equal(run(zeros, x), x)
    np.testing.assert_allclose(run(variables, x + 5.0) - 5.0, run(variables, x), atol=1e-3)  # norms ignore a shift


class RecordRate(nn.Module):
    """A block that records its drop path rate and adds its only parameter."""

    @nn.compact
    def __call__(self, x, drop_path, train):
        self.sow("intermediates", "rate", (drop_path, train))
        return x + self.param("one", nn.initializers.ones, ())


class Doubling(nn.Module):
    """A block whose residual branch is its only parameter."""

    @nn.compact
    def __call__(self, x, drop_path, train):
        one = self.param("one", nn.initializers.ones, ())
        return x + DropPath(name="drop_path")(jnp.full_like(x, one), drop_path, train)


@pytest.mark.parametrize("depth", [1, 4])
def test_drop_path_increases_linearly_from_zero_to_its_rate(depth):
    encoder, x = Encoder(RecordRate, depth, drop_path=0.3), jnp.zeros((1, 2, 3))
    variables = encoder.init(jax.random.key(0), x)
    out, state = encoder.apply({"params": variables["params"]}, x, True, mutable=["intermediates"])
    rates = [state["intermediates"][f"block_{i}"]["rate"][0] for i in range(depth)]
    np.testing.assert_allclose([rate for rate, _ in rates], [0.3 * i / max(depth - 1, 1) for i in range(depth)])
    assert all(train for _, train in rates) and float(out[0, 0, 0]) == depth


@pytest.mark.parametrize("remat", ["dots", "blocks"])
def test_parameters_have_the_same_names_under_any_remat(remat):
    x = jnp.zeros((1, 2, 8))
    plain = Encoder(partial(Block, 2), 2)
    shapes = [jax.eval_shape(encoder.init, jax.random.key(0), x) for encoder in (plain, plain.clone(remat=remat))]
    assert shapes[0] == shapes[1]


ALTERNATING = (partial(Block, 2), partial(Block, 4, qkv_bias=False))


@pytest.mark.parametrize(
    ("remat", "block", "depth"),
    [
        pytest.param("none", partial(Block, 2), 3, marks=pytest.mark.long),
        ("dots", partial(Block, 2), 3),
        ("blocks", ALTERNATING, 4),
    ],
    ids=["none", "dots", "blocks that alternate"],
)
def test_scanned_blocks_are_the_same_function_of_the_same_parameters(remat, block, depth):
    x = jnp.asarray(np.random.default_rng(1).standard_normal((2, 3, 8)), jnp.float32)
    loop = Encoder(block, depth, remat=remat)
    scan = loop.clone(scan=True)
    shapes = [jax.eval_shape(encoder.init, jax.random.key(0), x) for encoder in (loop, scan)]
    assert shapes[0] == shapes[1]
    params = jax.tree.map(lambda leaf: 0.3 * leaf, noise(shapes[0]))  # larger ones make rounding errors grow

    def value_and_gradients(encoder):
        return jax.jit(jax.value_and_grad(lambda params, x: jnp.sin(encoder.apply(params, x, True)).sum(), (0, 1)))

    expected, scanned = (value_and_gradients(encoder)(params, x) for encoder in (loop, scan))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), scanned, expected)
    text = [jax.jit(encoder.apply).lower(params, x).compile().as_text() for encoder in (loop, scan)]
    kinds = len(block) if isinstance(block, tuple) else 1  # each is there once, for any depth
    assert kinds * text[0].count(" dot(") == depth * text[1].count(" dot(") > 0


def test_each_scanned_block_has_its_own_drop_path_rate_and_key():
    x, rates = jnp.ones((2000, 1, 4)), (0.0, 0.5, 0.5)
    encoder = Encoder(Doubling, 3, rates, scan=True)
    out = encoder.apply({"params": {f"block_{i}": {"one": jnp.ones(())} for i in range(3)}}, x, True,
                        rngs={"drop_path": jax.random.key(0)})  # fmt: skip
    # The first block always adds one; the other two each add two or nothing.
    values, counts = np.unique(np.asarray(out)[:, 0, 0], return_counts=True)
    np.testing.assert_array_equal(values, [2, 4, 6])
    np.testing.assert_allclose(counts / 2000, [0.25, 0.5, 0.25], atol=0.05)


def test_scanned_blocks_sow_their_intermediates():
    x = jnp.zeros((1, 2, 8))
    encoder = Encoder(partial(Block, 2), 2, scan=True)
    variables = encoder.init(jax.random.key(0), x)
    _, sown = encoder.apply({"params": variables["params"]}, x, mutable=["intermediates"])
    assert set(sown["intermediates"]) == {"block_0", "block_1"}


def test_between_makes_the_input_of_the_next_block():
    encoder = Encoder(Doubling, 3, 1e-9, scan=True)  # which is unrolled
    variables = {"params": {f"block_{i}": {"one": jnp.ones(())} for i in range(3)}}
    out = encoder.apply(variables, jnp.zeros((1, 1, 1)), between=lambda i, x: 10 * x + i)
    assert out.item() == 10 * (10 * (10 * 1 + 0 + 1) + 1 + 1) + 2


def test_blocks_of_several_kinds_alternate():
    encoder, x = Encoder(ALTERNATING, 3), jnp.zeros((1, 2, 8))
    params = jax.eval_shape(encoder.init, jax.random.key(0), x)["params"]
    biased = [f"block_{i}" for i in range(3) if "bias" in params[f"block_{i}"]["attention"]["query"]]
    assert biased == ["block_0", "block_2"] and len(params) == 3
    with pytest.raises(ValueError, match="3 blocks cannot be cut into groups of 2: set scan to False"):
        jax.eval_shape(encoder.clone(scan=True).apply, {"params": params}, x)


def test_unknown_remat_is_rejected():
    jaxtyping.config.update("jaxtyping_disable", True)  # otherwise the tests' type check would raise first
    try:
        with pytest.raises(ValueError, match="remat is 'all': use none, dots or blocks"):
            Encoder(partial(Block, 2), 1, remat="all").init(jax.random.key(0), jnp.zeros((1, 2, 8)))
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def test_heads_divide_the_width_of_every_size():
    assert not [name for name, size in VIT_SIZES.items() if size["width"] % size["heads"]]
