"""Attention of some queries at a time: the scores of all pairs need not be held at once, forwards or backwards.

`over_queries` runs head after head and chunk after chunk, on one device.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import einops
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree, Shaped

# Queries whose scores are held at once, of one head (and of all clips). On a CPU 64 to 1,024 took the same time forward
# and backward at 12,544 keys, 64 a tenth more at 1,568; memory grows with them, sevenfold from 128 to 1,024. An
# accelerator's step should be worth its launch; that number is reasoned, not measured.
CHUNK_CPU, CHUNK = 128, 1024

LOWEST = jnp.finfo(jnp.float32).min


def chunk_length(queries: int) -> int:
    """Queries of one chunk: near the measured length, in chunks as equal as can be."""
    chunks = -(-queries // (CHUNK_CPU if jax.default_backend() == "cpu" else CHUNK))
    return -(-queries // chunks)


def over_queries(
    function: Callable[..., Any],
    queries: PyTree[Float[Array, "*b q k _"]],
    keys: PyTree[Float[Array, "*b n k _"]],
    rows: PyTree[Shaped[Array, "*#m q _"]] = None,
) -> Any:
    """`function` of every head and some queries at a time; the backward pass computes each time again.

    Equals `function(queries, keys, rows)` with the heads moved before the tokens and back.

    Args:
      function: of one head and `c` queries: (queries `*b c _`, keys `*b n _`, rows `*#m c _`) to arrays `*b c _`.
      rows: what belongs to a query whatever the head, such as its row of a mask.

    Returns:
      What `function` gives, `*b q k _`.
    """
    dtypes = jax.tree.map(lambda x: x.dtype, keys)
    length = jax.tree.leaves(queries)[0].shape[-3]
    chunk = chunk_length(length)
    whole = length // chunk * chunk

    def one_head(arrays: tuple[PyTree, PyTree]) -> Any:
        queries, keys = arrays

        @jax.checkpoint
        def some_queries(arrays: tuple[PyTree, PyTree]) -> Any:
            # The gradients of the keys are sums over chunks: summed in what the keys are outside, float32 or finer.
            return function(arrays[0], jax.tree.map(lambda x, dtype: x.astype(dtype), keys, dtypes), arrays[1])

        split = partial(einops.rearrange, pattern="... (m c) d -> m ... c d", c=chunk)
        chunks = jax.tree.map(lambda x: split(x[..., :whole, :]), (queries, rows))
        mapped = jax.tree.map(
            partial(einops.rearrange, pattern="m ... c d -> ... (m c) d"), jax.lax.map(some_queries, chunks)
        )
        if whole == length:
            return mapped
        rest = some_queries(jax.tree.map(lambda x: x[..., whole:, :], (queries, rows)))
        return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=-2), mapped, rest)

    queries = jax.tree.map(lambda x: einops.rearrange(x, "... q k d -> k ... q d"), queries)
    keys = jax.tree.map(lambda x: einops.rearrange(x, "... n k d -> k ... n d").astype(_wide(x)), keys)
    # Heads are gone through, clips are not: a batch that is split over devices stays where it is.
    mapped = jax.lax.map(one_head, (queries, keys))
    return jax.tree.map(lambda x: einops.rearrange(x, "k ... q d -> ... q k d"), mapped)


def scores_of(query: Float[Array, "*b c d"], key: Float[Array, "*b n d"]) -> Float[Array, "*b c n"]:
    """Scaled dot products, in float32 or finer.

    Equals `jnp.einsum("...cd,...nd->...cn", query, key) / sqrt(d)`.
    """
    scores = jnp.einsum("...cd,...nd->...cn", query, key, preferred_element_type=_wide(query, key))
    return scores * query.shape[-1] ** -0.5


@jax.custom_jvp
def weigh(weights: Float[Array, "*b c n"], value: Float[Array, "*b n d"]) -> Float[Array, "*b c d"]:
    """Sums of values, weighed in their type, in float32 or finer.

    Equals `jnp.einsum("...cn,...nd->...cd", weights, value)`, but for how its gradients are rounded.
    """
    return _sum(weights.astype(value.dtype), value)


@weigh.defjvp
def _weigh_derivative(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    """Gradients of weights are not rounded: the softmax makes differences of them, of much that is alike."""
    weights, value = primals
    return weigh(weights, value), _sum(tangents[0], value) + _sum(weights.astype(value.dtype), tangents[1])


def _sum(weights: Array, value: Array) -> Array:
    return jnp.einsum("...cn,...nd->...cd", weights, value, preferred_element_type=_wide(weights, value))


def _wide(*arrays: Array) -> DTypeLike:
    return jnp.result_type(jnp.float32, *arrays)
