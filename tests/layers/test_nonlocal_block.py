"""The non-local block against mmcv's recorded outputs, and the properties in which SlowFast's differs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipe

from vidjax.convert.bottlenecks import mmcv_nonlocal
from vidjax.convert.conversion import apply
from vidjax.convert.rules import Layout, Rule, Transform
from vidjax.errors import UserError
from vidjax.layers.nonlocal_block import NonLocal

GOLDENS = [
    "embedded_gaussian", "embedded_gaussian_pool", "embedded_gaussian_paper", "dot_product", "dot_product_pool",
    "gaussian", "gaussian_pool", "concatenation",
]  # fmt: skip


def loaded(block: NonLocal, weights: dict, x, pool: bool) -> dict:
    """The block's variables from mmcv's state dict, of which no entry may be left over."""
    pair = Rule("concat_project.conv.weight", "pair", Transform(lambda value: value.reshape(1, -1).T))
    layout = Layout("mmcv", marker="g.conv.weight", rules=(*mmcv_nonlocal("", "", pool), pair), optional=(), surplus=())
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), x, False))
    return apply(layout, weights, shapes, strict=True)[0]


@pytest.mark.parametrize("name", GOLDENS)
def test_equals_mmcv(name):
    golden = recipe.load(f"nonlocal_{name}")
    c = golden.config
    block = NonLocal(
        c["mode"], c["inner"], "after" if c["pool"] else None, c["use_scale"], norm=c["norm"] is not None,
        out_bias=c["norm"] is None,
    )  # fmt: skip
    x = jnp.moveaxis(jnp.asarray(golden.inputs[0]), 1, -1)
    apply_block = jax.jit(block.apply, static_argnums=2)
    ours = jnp.moveaxis(apply_block(loaded(block, golden.weights, x, c["pool"]), x, False), -1, 1)
    expected = golden.outputs["output0"]
    np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())


def drawn(block: NonLocal, x) -> dict:
    """Random variables of a block, none at its initial value."""
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), x, False))
    return jax.tree.map_with_path(
        lambda path, leaf: jnp.asarray(recipe.floats(jax.tree_util.keystr(path), leaf.shape)) ** 2, shapes
    )


@pytest.mark.parametrize("affinity", ["embedded_gaussian", "dot_product", "gaussian", "concatenation"])
@pytest.mark.parametrize("norm", [True, False])
def test_starts_as_the_identity(affinity, norm):
    x = jnp.asarray(recipe.floats("map", (1, 2, 4, 4, 6)))
    block = NonLocal(affinity, pool="before", norm=norm)
    np.testing.assert_array_equal(block.apply(block.init(jax.random.key(0), x, False), x, False), x)


def test_slowfast_pools_before_the_convolutions():
    """The two orders differ for a kernel of any sign, as the maximum is not linear."""
    x = jnp.asarray(recipe.floats("map", (1, 2, 4, 4, 6)))
    before, after = (NonLocal("dot_product", pool=pool) for pool in ("before", "after"))
    variables = drawn(before, x)
    params = variables["params"]
    params["g"]["kernel"] = -params["g"]["kernel"]
    assert not np.allclose(before.apply(variables, x, False), after.apply(variables, x, False), rtol=1e-2)
    # Keys and values by hand: the maximum of 2x2 places, then the convolutions.
    places = np.asarray(x).reshape(1, 2, 2, 2, 2, 2, 6).max(axis=(3, 5)).reshape(-1, 6)
    theta, phi, g = (
        one @ np.asarray(params[name]["kernel"])[0, 0, 0] + np.asarray(params[name]["bias"])
        for one, name in ((np.asarray(x).reshape(-1, 6), "theta"), (places, "phi"), (places, "g"))
    )
    y = theta @ phi.T / len(places) @ g @ np.asarray(params["out"]["kernel"])[0, 0, 0] + params["out"]["bias"]
    stats = variables["batch_stats"]["norm"]
    y = (y - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * params["norm"]["scale"] + params["norm"]["bias"]
    expected = x + y.reshape(x.shape)
    np.testing.assert_allclose(before.apply(variables, x, False), expected, atol=1e-5 * np.abs(expected).max())


def test_groups_are_blocks_of_consecutive_frames():
    x = jnp.asarray(recipe.floats("map", (2, 6, 2, 2, 4)))
    whole, grouped = NonLocal(pool="before"), NonLocal(pool="before", groups=2)
    variables = drawn(whole, x)
    halves = [whole.apply(variables, half, False) for half in (x[:, :3], x[:, 3:])]
    np.testing.assert_allclose(grouped.apply(variables, x, False), jnp.concatenate(halves, axis=1), rtol=1e-5)
    with pytest.raises(UserError, match="5 frames cannot be cut into 2 groups"):
        grouped.apply(variables, x[:, :5], False)


def test_an_unknown_affinity_is_an_error(unchecked):
    with pytest.raises(UserError, match="affinity is 'cosine': choose embedded_gaussian, gaussian"):
        NonLocal("cosine").init(jax.random.key(0), jnp.zeros((1, 1, 2, 2, 4)), False)
