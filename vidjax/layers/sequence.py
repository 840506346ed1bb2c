"""Attention over more tokens than the scores of all pairs have room for: in chunks of queries, and over many devices.

`over_queries` runs head after head and chunk after chunk, on one device. `ring_attention` (Liu et al. 2023,
arXiv:2310.01889) splits the tokens over the mesh axis `sequence`: queries stay where they are, keys and values travel
from device to device until every query has seen all of them, and each device holds its share only. `split_clips` keeps
clips where they are.
"""

from collections.abc import Callable, Sequence
from functools import partial
from math import prod
from typing import Any, NamedTuple

import einops
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree, Shaped

from vidjax.errors import UserError

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
    """Scaled dot products, in float32 or finer."""
    scores = jnp.einsum("...cd,...nd->...cn", query, key, preferred_element_type=_wide(query, key))
    return scores * query.shape[-1] ** -0.5


@jax.custom_jvp
def weigh(weights: Float[Array, "*b c n"], value: Float[Array, "*b n d"]) -> Float[Array, "*b c d"]:
    """Sums of values, weighed in their type, in float32 or finer."""
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


class Ring(NamedTuple):
    """How tokens lie on the mesh.

    Attributes:
      batch: mesh axes over which the clips are split.
      keys: number of keys; what lies behind them fills up the last devices' shares.
    """

    mesh: AbstractMesh
    batch: tuple[str, ...] | None
    keys: int

    @property
    def parts(self) -> int:
        """Devices that share the tokens of a clip."""
        return self.mesh.shape["sequence"]

    def run(self, function: Callable[..., Any], *arrays: Float[Array, "b _ k _"]) -> Any:
        """`function` on each device's share of tokens, in and out."""
        spec = PartitionSpec(self.batch, "sequence")
        # Nothing is derived through this map (`_ring` has its own rule), so nothing need be checked for that.
        return jax.shard_map(function, mesh=self.mesh, in_specs=spec, out_specs=spec, check_vma=False)(*arrays)

    def send(self, arrays: PyTree[Array]) -> PyTree[Array]:
        """To the next device, from the one before."""
        pairs = [(i, (i + 1) % self.parts) for i in range(self.parts)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, "sequence", pairs), arrays)

    def hidden(self, count: int, step: Array | int) -> Array:
        """Which of `count` keys that are here after so many steps are only fillers."""
        owner = (jax.lax.axis_index("sequence") - step) % self.parts
        return owner * count + jnp.arange(count) >= self.keys

    def hide(self, scores: Float[Array, "b c n"], step: Array | int) -> Float[Array, "b c n"]:
        """Scores of the keys that are here, fillers' so low that they weigh nothing."""
        filled = self.parts * scores.shape[-1] > self.keys
        return jnp.where(self.hidden(scores.shape[-1], step), LOWEST, scores) if filled else scores


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _ring(query: Array, key: Array, value: Array, ring: Ring) -> Array:
    return _ring_forward(query, key, value, ring)[0]


def _ring_forward(query: Array, key: Array, value: Array, ring: Ring) -> tuple[Array, tuple[Array, ...]]:
    """The attended values, and what the backward pass wants: these, the inputs, the logarithms of the softmax' sums."""

    def see(state: tuple[Array, ...], pair: tuple[Array, Array], step: Array | int, query: Array) -> tuple[Array, ...]:
        """The softmax so far, and the keys that are here now (Milakov and Gimelshein 2018, arXiv:1805.02867)."""

        def some_queries(arrays: tuple[Array, ...], pair: tuple[Array, Array], _: None) -> tuple[Array, ...]:
            query, attended, total, peak = arrays
            scores = ring.hide(scores_of(query, pair[0]), step)
            higher = jnp.maximum(peak, scores.max(axis=-1, keepdims=True))
            fade, weights = jnp.exp(peak - higher), jnp.exp(scores - higher)
            return attended * fade + weigh(weights, pair[1]), total * fade + weights.sum(axis=-1, keepdims=True), higher

        return over_queries(some_queries, (query, *state), pair)

    def local(query: Array, key: Array, value: Array) -> tuple[Array, Array]:
        def turn(carry: tuple, step: Array) -> tuple[tuple, None]:
            pair, state = carry
            return (ring.send(pair), see(state, pair, step, query)), None  # sending needs not wait for seeing

        one = jnp.zeros((*query.shape[:-1], 1), jnp.float32)
        carry = ((key, value), (jnp.zeros(query.shape, jnp.float32), one, one + LOWEST))
        (pair, state), _ = jax.lax.scan(turn, carry, jnp.arange(ring.parts - 1))
        attended, total, peak = see(state, pair, ring.parts - 1, query)
        return (attended / total).astype(query.dtype), peak + jnp.log(total)

    attended, logarithm = ring.run(local, query, key, value)
    return attended, (query, key, value, attended, logarithm)


def _ring_backward(ring: Ring, kept: tuple[Array, ...], gradient: Array) -> tuple[Array, Array, Array]:
    """Keys and values go round once more, and their gradients with them until they are home."""

    def local(
        query: Array, key: Array, value: Array, attended: Array, logarithm: Array, gradient: Array
    ) -> tuple[Array, ...]:
        def weigh_all(query: Array, key: Array, value: Array, step: Array | int) -> tuple[Array, Array]:
            """Values under the softmax' weights, and the sum of these, as if its denominator were given."""

            def some_queries(arrays: tuple[Array, Array], pair: tuple[Array, Array], _: None) -> tuple[Array, Array]:
                weights = jnp.exp(ring.hide(scores_of(arrays[0], pair[0]), step) - arrays[1])
                return weigh(weights, pair[1]), weights.sum(axis=-1, keepdims=True)

            return over_queries(some_queries, (query, logarithm), (key, value))

        # The denominator's part in the gradient: every weight's derivative less the mean of all (Dao et al. 2022).
        mean = (gradient.astype(jnp.float32) * attended.astype(jnp.float32)).sum(axis=-1, keepdims=True)

        def see(gradients: tuple[Array, ...], pair: tuple[Array, Array], step: Array | int) -> tuple[Array, ...]:
            _, derive = jax.vjp(partial(weigh_all, step=step), query, *pair)
            return jax.tree.map(jnp.add, gradients, derive((gradient.astype(jnp.float32), -mean)))

        def turn(carry: tuple, step: Array) -> tuple[tuple, None]:
            pair, (query_gradient, *travelling) = carry
            query_gradient, *travelling = see((query_gradient, *travelling), pair, step)
            return (ring.send(pair), (query_gradient, *ring.send(travelling))), None

        zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (query, key, value))
        (pair, gradients), _ = jax.lax.scan(turn, ((key, value), zeros), jnp.arange(ring.parts - 1))
        query_gradient, *travelling = see(gradients, pair, ring.parts - 1)
        gradients = (query_gradient, *ring.send(travelling))
        return tuple(x.astype(y.dtype) for x, y in zip(gradients, (query, key, value), strict=True))

    return ring.run(local, *kept, gradient)


_ring.defvjp(_ring_forward, _ring_backward)


def ring_attention(
    query: Float[Array, "*b q k d"], key: Float[Array, "*b n k d"], value: Float[Array, "*b n k d"]
) -> Float[Array, "*b q k d"]:
    """Softmax attention, the tokens split over the axis `sequence` of the mesh in context (`jax.set_mesh`).

    Clips are split over `data` and `fsdp` where these divide them, else every group of devices computes all. Tokens
    may have any number. A device needs memory for its share of tokens; forward-mode derivatives are not defined.

    Raises:
      UserError: there is no mesh in context, or it has no axis `sequence`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if "sequence" not in mesh.axis_names:
        raise UserError(
            "ring attention splits tokens over the mesh axis 'sequence': run it under "
            "`with jax.set_mesh(vidjax.training.sharding.make_mesh(sequence=...)):`, or choose another implementation"
        )
    leading, queries = query.shape[:-3], query.shape[-3]
    query, key, value = (x.reshape(-1, *x.shape[-3:]) for x in (query, key, value))
    ring = Ring(mesh, _clip_axes(mesh, mesh.axis_names, query.shape[0]), key.shape[1])

    def fill(x: Array) -> Array:
        missing = -x.shape[1] % ring.parts
        return jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0)))

    attended = _ring(fill(query), fill(key), fill(value), ring)[:, :queries]
    return attended.reshape(*leading, *attended.shape[1:])


def split_clips(x: Float[Array, "b ..."]) -> Float[Array, "b ..."]:
    """Keeps the leading axis split over `data` and `fsdp` of the mesh in context, if there is one; the gradient's too.

    For what blocks hand on: where they run in a loop XLA would split it as the parameters are split, and gather clips
    in place of weights (VideoMAE-B's pre-training step over eight devices sent 17 times as many bytes). Frames folded
    into that axis are not split over `sequence`. Outside of `jax.jit`, and for axes that are not Auto, it does nothing.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = _clip_axes(mesh, mesh.auto_axes, x.shape[0])
    if axes is None or not isinstance(x, jax.core.Tracer):
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes, *[PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)))


def _clip_axes(mesh: AbstractMesh, among: Sequence[str], rows: int) -> tuple[str, ...] | None:
    """Mesh axes that so many clips (or frames, one clip's after another's) are split over, if they divide them."""
    axes = tuple(axis for axis in ("data", "fsdp") if axis in among)
    groups = prod(mesh.shape[axis] for axis in axes)
    return axes if groups > 1 and rows % groups == 0 else None
