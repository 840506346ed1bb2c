"""Attention within a band against dense attention with a mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidjax.kernels.attention import attend
from vidjax.kernels.local_attention import attend_locally


@pytest.mark.parametrize(("length", "reach"), [(5, 1), (32, 3), (71, 9), (70, 40), (6, 9)])
def test_equals_dense_attention_with_a_band(length, reach):
    keys = jax.random.split(jax.random.key(length), 4)
    query, key, value, out = (jax.random.normal(k, (2, length, 3, 4)) for k in keys)
    valid = jnp.arange(length) < jnp.array([[length], [max(length - 2, 1)]])
    places = jnp.arange(length)
    mask = (jnp.abs(places[:, None] - places) <= reach) & valid[:, None, :]

    def local(*args):
        return attend_locally(*args, valid, reach) * valid[..., None, None]

    def dense(*args):
        return attend(*args, implementation="xla", mask=mask) * valid[..., None, None]

    results = [jax.jit(lambda *args, f=f: jax.vjp(f, *args))(query, key, value) for f in (local, dense)]
    np.testing.assert_allclose(results[0][0], results[1][0], atol=2e-6)
    for ours, expected in zip(results[0][1](out), results[1][1](out), strict=True):
        np.testing.assert_allclose(ours, expected, atol=5e-6)


def test_memory_grows_linearly_with_the_length():
    def scratch(length):
        x = jax.ShapeDtypeStruct((1, length, 4, 16), jnp.float32)
        valid = jax.ShapeDtypeStruct((1, length), bool)
        compiled = jax.jit(lambda *args: attend_locally(*args, reach=9)).lower(x, x, x, valid).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    sizes = [scratch(length) for length in (2304, 9216)]
    assert sizes[1] < 4.5 * sizes[0]
