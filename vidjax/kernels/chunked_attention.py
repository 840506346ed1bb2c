"""Attention over chunks of queries, so that neither pass needs the scores of all pairs in memory at once.

`over_queries` processes one head and one chunk at a time, on one device.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import einops
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree, Shaped

# Queries per chunk, for one head (and all clips). On two cores of a CPU (float32), 200 to 400 took 0.5 to 0.95 of the
# time of 128 forward and backward at 431 to 592 tokens (4 clips, 4 heads of 12 or 24) and 0.8 to 1.1 at 784 and 1,568
# (2 clips, 6 heads of 64), where 64 took 1.3 to 1.8 times as long; at 12,544 keys 64 to 1,024 took the same. Memory
# grows with the chunk. The value for accelerators is an estimate, large enough to amortise a kernel launch; it has not
# been measured.
CHUNK_CPU, CHUNK = 256, 1024

LOWEST = jnp.finfo(jnp.float32).min

# What the backward pass does not compute again: values of this name, one for each query.
SAVED = "one value of each query"
SAVE_ROWS = jax.checkpoint_policies.save_only_these_names(SAVED)


def chunk_length(queries: int) -> int:
    """Queries per chunk: at most the constant above, with chunks as equal as possible."""
    chunks = -(-queries // (CHUNK_CPU if jax.default_backend() == "cpu" else CHUNK))
    return -(-queries // chunks)


def over_queries(
    function: Callable[..., Any],
    queries: PyTree[Float[Array, "*#b q k _"]],
    keys: PyTree[Float[Array, "*b n k _"]],
    rows: PyTree[Shaped[Array, "*#m q _"]] = None,
) -> Any:
    """Maps `function` over heads and chunks of queries; the backward pass recomputes all but what is named `SAVED`.

    Equals `function(queries, keys, rows)` with the heads moved before the tokens and back.

    Args:
      function: for one head and `c` queries: (queries `*b c _`, keys `*b n _`, rows `*#m c _`) to arrays `*b c _`.
      rows: one entry per query, the same for all heads, such as the query's row of a mask.

    Returns:
      The outputs of `function`, `*b q k _`.
    """
    dtypes = jax.tree.map(lambda x: x.dtype, keys)
    length = jax.tree.leaves(queries)[0].shape[-3]
    chunk = chunk_length(length)
    whole = length // chunk * chunk

    def one_head(arrays: tuple[PyTree, PyTree]) -> Any:
        queries, keys = arrays

        @partial(jax.checkpoint, policy=SAVE_ROWS)
        def some_queries(arrays: tuple[PyTree, PyTree]) -> Any:
            # Gradients of the keys are summed over the chunks, in the keys' dtype outside: float32 or higher precision.
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
    # The loop is over heads and not over clips, so that a batch sharded over devices stays in place.
    mapped = jax.lax.map(one_head, (queries, keys))
    return jax.tree.map(lambda x: einops.rearrange(x, "k ... q d -> ... q k d"), mapped)


def scores_of(query: Float[Array, "*b c d"], key: Float[Array, "*b n d"]) -> Float[Array, "*b c n"]:
    """Scaled dot products, in float32 or higher precision.

    Equals `jnp.einsum("...cd,...nd->...cn", query, key) / sqrt(d)`.
    """
    scale = query.shape[-1] ** -0.5
    if query.dtype == _wide(query, key):  # rounds like the scores and is smaller; XLA on CPUs stored the factor of each
        return jnp.einsum("...cd,...dn->...cn", query * scale, _columns(key))
    return jnp.einsum("...cd,...dn->...cn", query, _columns(key), preferred_element_type=_wide(query, key)) * scale


@jax.custom_jvp
def weigh(weights: Float[Array, "*b c n"], value: Float[Array, "*b n d"]) -> Float[Array, "*b c d"]:
    """Weighted sums of the values, with the weights in the values' dtype; accumulated in float32 or higher precision.

    Equals `jnp.einsum("...cn,...nd->...cd", weights, value)`, except for the rounding of its gradients.
    """
    return _sum(weights.astype(value.dtype), value)


@weigh.defjvp
def _weigh_derivative(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    """Gradients of the weights are not rounded, because the softmax subtracts nearly equal ones."""
    weights, value = primals
    return weigh(weights, value), _sum(tangents[0], value) + _sum(weights.astype(value.dtype), tangents[1])


@jax.custom_jvp
def weigh_by_exp(
    scores: Float[Array, "*b c n"], value: Float[Array, "*b n d"]
) -> tuple[Float[Array, "*b c d"], Float[Array, "*b c 1"]]:
    """Sums of the values weighted by `exp(scores)`, and the sums of these weights; see `weigh`.

    Equals `(weigh(jnp.exp(scores), value), jnp.exp(scores).sum(-1, keepdims=True))`, but the only array of all pairs
    that is saved for the backward pass are the weights in the values' dtype: in bfloat16 half the size.
    """
    weights = jnp.exp(scores)
    return _sum(weights.astype(value.dtype), value), weights.sum(axis=-1, keepdims=True)


@weigh_by_exp.defjvp
def _weigh_by_exp_derivative(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[tuple, tuple]:
    """The gradients of the scores are multiplied by rounded weights after the softmax has subtracted."""
    (scores, value), (dscores, dvalue) = primals, tangents
    rounded = jnp.exp(scores).astype(value.dtype)

    @partial(jax.checkpoint, prevent_cse=False)  # so that `rounded` is saved as it is
    def derivative(rounded: Array, dscores: Array) -> Array:
        return rounded.astype(dscores.dtype) * dscores

    dweights = derivative(rounded, dscores)
    dtotal = dweights.sum(axis=-1, keepdims=True)
    return weigh_by_exp(scores, value), (_sum(dweights, value) + _sum(rounded, dvalue), dtotal)


def _sum(weights: Array, value: Array) -> Array:
    return jnp.einsum("...cn,...dn->...cd", weights, _columns(value), preferred_element_type=_wide(weights, value))


def _columns(rows: Float[Array, "*b n d"]) -> Float[Array, "*b d n"]:
    """Keys or values as columns; narrow ones on a CPU also in memory.

    XLA on CPUs computes their gradients as products with rows of `n` up to four times as fast as with rows of `d`: on
    two cores, attention forward and backward took 0.66 to 1.0 of the time at 143 to 1,568 tokens in heads of 12 to 24.
    In heads of 32 to 64 it took 0.78 to 1.14 of it, with no rule in sight (JAX 0.10.2).
    """
    columns = jnp.swapaxes(rows, -2, -1)
    narrow = jax.default_backend() == "cpu" and rows.shape[-1] < 32
    return jax.lax.optimization_barrier(columns) if narrow else columns


def _wide(*arrays: Array) -> DTypeLike:
    return jnp.result_type(jnp.float32, *arrays)
