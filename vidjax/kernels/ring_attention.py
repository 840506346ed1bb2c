"""Ring attention (Liu et al. 2023, arXiv:2310.01889): the tokens of a clip are split over the mesh axis `sequence`.

Each device keeps only its part of the tokens. Queries stay in place, while keys and values are passed from device to
device until every query has attended to all of them.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec
from jaxtyping import Array, Float, PyTree

from vidjax.errors import UserError
from vidjax.kernels.chunked_attention import LOWEST, over_queries, scores_of, weigh
from vidjax.kernels.sharding import clip_axes


class Ring(NamedTuple):
    """How the tokens are sharded over the mesh.

    Attributes:
      batch: mesh axes over which the clips are split.
      keys: number of keys; those after them are padding on the last devices.
    """

    mesh: AbstractMesh
    batch: tuple[str, ...] | None
    keys: int

    @property
    def parts(self) -> int:
        """Number of devices over which the tokens of a clip are split."""
        return self.mesh.shape["sequence"]

    def run(self, function: Callable[..., Any], *arrays: Float[Array, "b _ k _"]) -> Any:
        """Runs `function` on each device's part of the tokens."""
        spec = PartitionSpec(self.batch, "sequence")
        # The map is not differentiated (`_ring` has a custom gradient), so the check is not needed.
        return jax.shard_map(function, mesh=self.mesh, in_specs=spec, out_specs=spec, check_vma=False)(*arrays)

    def send(self, arrays: PyTree[Array]) -> PyTree[Array]:
        """Sends to the next device and receives from the previous one."""
        pairs = [(i, (i + 1) % self.parts) for i in range(self.parts)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, "sequence", pairs), arrays)

    def hidden(self, count: int, step: Array | int) -> Array:
        """Which of the `count` keys on this device after `step` steps are padding."""
        owner = (jax.lax.axis_index("sequence") - step) % self.parts
        return owner * count + jnp.arange(count) >= self.keys

    def hide(self, scores: Float[Array, "b c n"], step: Array | int) -> Float[Array, "b c n"]:
        """Masks the scores of padding keys on this device."""
        filled = self.parts * scores.shape[-1] > self.keys
        return jnp.where(self.hidden(scores.shape[-1], step), LOWEST, scores) if filled else scores


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _ring(query: Array, key: Array, value: Array, ring: Ring) -> Array:
    return _ring_forward(query, key, value, ring)[0]


def _ring_forward(query: Array, key: Array, value: Array, ring: Ring) -> tuple[Array, tuple[Array, ...]]:
    """The output, and the residuals: the inputs, the output and the log-sum-exp of the scores."""

    def add(state: tuple[Array, ...], pair: tuple[Array, Array], step: Array | int, query: Array) -> tuple[Array, ...]:
        """Updates the online softmax with the keys on this device (Milakov and Gimelshein 2018, arXiv:1805.02867)."""

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
            return (ring.send(pair), add(state, pair, step, query)), None  # communication overlaps with computation

        one = jnp.zeros((*query.shape[:-1], 1), jnp.float32)
        carry = ((key, value), (jnp.zeros(query.shape, jnp.float32), one, one + LOWEST))
        (pair, state), _ = jax.lax.scan(turn, carry, jnp.arange(ring.parts - 1))
        attended, total, peak = add(state, pair, ring.parts - 1, query)
        return (attended / total).astype(query.dtype), peak + jnp.log(total)

    attended, logarithm = ring.run(local, query, key, value)
    return attended, (query, key, value, attended, logarithm)


def _ring_backward(ring: Ring, kept: tuple[Array, ...], gradient: Array) -> tuple[Array, Array, Array]:
    """Keys and values go round once more, together with their gradients, which end on their original device."""

    def local(
        query: Array, key: Array, value: Array, attended: Array, logarithm: Array, gradient: Array
    ) -> tuple[Array, ...]:
        def weigh_all(query: Array, key: Array, value: Array, step: Array | int) -> tuple[Array, Array]:
            """Weighted values and the sum of the weights, with the softmax denominator taken as a constant."""

            def some_queries(arrays: tuple[Array, Array], pair: tuple[Array, Array], _: None) -> tuple[Array, Array]:
                weights = jnp.exp(ring.hide(scores_of(arrays[0], pair[0]), step) - arrays[1])
                return weigh(weights, pair[1]), weights.sum(axis=-1, keepdims=True)

            return over_queries(some_queries, (query, logarithm), (key, value))

        # The gradient through the denominator: each weight's derivative minus their mean (Dao et al. 2022).
        mean = (gradient.astype(jnp.float32) * attended.astype(jnp.float32)).sum(axis=-1, keepdims=True)

        def add(gradients: tuple[Array, ...], pair: tuple[Array, Array], step: Array | int) -> tuple[Array, ...]:
            _, derive = jax.vjp(partial(weigh_all, step=step), query, *pair)
            return jax.tree.map(jnp.add, gradients, derive((gradient.astype(jnp.float32), -mean)))

        def turn(carry: tuple, step: Array) -> tuple[tuple, None]:
            pair, (query_gradient, *travelling) = carry
            query_gradient, *travelling = add((query_gradient, *travelling), pair, step)
            return (ring.send(pair), (query_gradient, *ring.send(travelling))), None

        zeros = tuple(jnp.zeros(x.shape, jnp.float32) for x in (query, key, value))
        (pair, gradients), _ = jax.lax.scan(turn, ((key, value), zeros), jnp.arange(ring.parts - 1))
        query_gradient, *travelling = add(gradients, pair, ring.parts - 1)
        gradients = (query_gradient, *ring.send(travelling))
        return tuple(x.astype(y.dtype) for x, y in zip(gradients, (query, key, value), strict=True))

    return ring.run(local, *kept, gradient)


_ring.defvjp(_ring_forward, _ring_backward)


def ring_attention(
    query: Float[Array, "*b q k d"], key: Float[Array, "*b n k d"], value: Float[Array, "*b n k d"]
) -> Float[Array, "*b q k d"]:
    """Softmax attention with tokens split over the axis `sequence` of the current mesh (`jax.set_mesh`).

    Equals `jax.nn.dot_product_attention(query, key, value)`.

    Clips are split over `data` and `fsdp` if these divide their number; otherwise every group of devices computes all
    clips. The number of tokens is arbitrary. Each device needs memory for its part of the tokens only. Forward-mode
    differentiation is not supported.

    Raises:
      UserError: no mesh is set, or it has no axis `sequence`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if "sequence" not in mesh.axis_names:
        raise UserError(
            "ring attention splits tokens over the mesh axis 'sequence': run it under "
            "`with jax.set_mesh(vidjax.training.sharding.make_mesh(sequence=...)):`, or use another implementation"
        )
    leading, queries = query.shape[:-3], query.shape[-3]
    query, key, value = (x.reshape(-1, *x.shape[-3:]) for x in (query, key, value))
    ring = Ring(mesh, clip_axes(mesh, mesh.axis_names, query.shape[0]), key.shape[1])

    def fill(x: Array) -> Array:
        missing = -x.shape[1] % ring.parts
        return jnp.pad(x, ((0, 0), (0, missing), (0, 0), (0, 0)))

    attended = _ring(fill(query), fill(key), fill(value), ring)[:, :queries]
    return attended.reshape(*leading, *attended.shape[1:])
