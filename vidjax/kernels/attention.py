"""Scaled dot-product attention over any leading axes, by one of several implementations."""

from typing import Literal

import einops
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vidjax.errors import UserError
from vidjax.kernels.chunked_attention import LOWEST, over_queries, scores_of, weigh
from vidjax.kernels.ring_attention import ring_attention

Implementation = Literal["auto", "xla", "cudnn", "chunked", "ring"]

# Pairs of query and key, of one head and clip, up to which `auto` holds all scores at once (off cuDNN). On a CPU,
# forward and backward in chunks took 1.0 to 1.26 of the time at 100 and 196 tokens, 0.83 to 1.01 at 392 (for more
# compilation), 0.7 to 0.8 at 784, 0.7 at 1,568 and 0.8 at 3,136, where they hold 33 MB instead of 482 (float32, 6 heads
# of 64). On an accelerator nothing was measured: there only where the scores of one head take more than 16 MB.
FEW_PAIRS_CPU, FEW_PAIRS = 2**18, 2**22


def _fits_cudnn(query: Array, key: Array) -> bool:
    """cuDNN's fused kernel raises rather than falls back, so what it takes is asked here."""
    width = query.shape[-1]
    return query.dtype in (jnp.bfloat16, jnp.float16) and query.dtype == key.dtype and width % 8 == 0 and width <= 128


def attend(
    query: Float[Array, "*b q k d"],
    key: Float[Array, "*b n k d"],
    value: Float[Array, "*b n k d"],
    implementation: Implementation = "auto",
    mask: Bool[Array, "*#b #q n"] | None = None,
) -> Float[Array, "*b q k d"]:
    """Scaled dot-product attention; `k` heads of width `d`; the softmax is computed in float32 or finer.

    Equals `jax.nn.dot_product_attention(query, key, value, mask=mask)`, of any leading axes.

    Gradients of the scores are float32 off cuDNN, so on GPUs too under a mask: what that costs there was not measured.

    Args:
      query, key, value: any number of leading axes, equal in all three.
      implementation: `xla` holds the scores of all pairs; `cudnn`, for bfloat16 or float16 on an NVIDIA GPU, holds
        none; `chunked` those of some queries at a time, on any device; `auto` is `cudnn` where that fits, else `xla`
        for few tokens and `chunked` for many. `ring` splits the tokens over devices (`kernels.ring_attention`).
      mask: True where the query may see the key, in all heads. A query that may see nothing sees all keys alike.

    Raises:
      UserError: `ring` is given a mask, or has no mesh to run on.
    """
    if implementation == "auto":
        # cuDNN's kernel has no gradient under a mask where a length is odd, as CLIP's 77 is.
        fits = jax.default_backend() == "gpu" and mask is None and _fits_cudnn(query, key)
        most = FEW_PAIRS_CPU if jax.default_backend() == "cpu" else FEW_PAIRS
        few = query.shape[-3] * key.shape[-3] <= most
        implementation = "cudnn" if fits else "xla" if few else "chunked"
    if implementation == "chunked":
        return _attend_in_chunks(query, key, value, mask)
    if implementation == "ring":
        if mask is not None:
            raise UserError("ring attention takes no mask: choose the implementation 'chunked' or 'xla'")
        return ring_attention(query, key, value)
    if implementation == "xla":
        query, *pair = (einops.rearrange(x, "... n k d -> ... k n d") for x in (query, key, value))
        attended = _attend_to_all(query, tuple(pair), None if mask is None else mask[..., None, :, :])
        return einops.rearrange(attended, "... k n d -> ... n k d")
    leading = query.shape[:-3]
    flat = (x.reshape(-1, *x.shape[-3:]) for x in (query, key, value))
    if mask is not None:
        mask = jnp.broadcast_to(mask, (*leading, query.shape[-3], key.shape[-3]))
        mask = mask.reshape(-1, 1, *mask.shape[-2:])  # one for all heads
    attended = jax.nn.dot_product_attention(*flat, mask=mask, implementation=implementation)
    return attended.reshape(*leading, *query.shape[-3:])


def _attend_to_all(query: Array, pair: tuple[Array, Array], mask: Array | None) -> Array:
    """Each query `*b q d` sees all keys `*b n d` that its row of the mask `*#b q n` lets it, all at once."""
    scores = scores_of(query, pair[0])
    if mask is not None:
        scores = jnp.where(mask, scores, LOWEST)
    weights = jnp.exp(scores - jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True)))
    attended = weigh(weights, pair[1])
    # Divided last, where there are `d` numbers and not `n`: so no second array of all pairs is kept in float32.
    return (attended / weights.sum(axis=-1, keepdims=True)).astype(pair[1].dtype)


@jax.checkpoint  # keeps the inputs as they are, not as float32
def _attend_in_chunks(query: Array, key: Array, value: Array, mask: Array | None) -> Array:
    """Exact: every query sees all keys at once, but few queries do at a time.

    On a TPU, too, this is the path: JAX's experimental kernels could not be tested. Within 10 % of the time of a rule
    of its own with FlashAttention's saved sums (in float32; in bfloat16 a fifth slower), and unlike that open to
    forward-mode derivatives.
    """

    one_row = mask is not None and mask.shape[-2] == 1  # the same for all queries

    def some_queries(query: Array, pair: tuple[Array, Array], rows: Array | None) -> Array:
        return _attend_to_all(query, pair, mask if one_row else rows)

    return over_queries(some_queries, query, (key, value), None if one_row else mask)


def attention_weights(
    query: Float[Array, "*b q k d"], key: Float[Array, "*b n k d"], mask: Bool[Array, "*#b #q n"] | None = None
) -> Float[Array, "*b k q n"]:
    """What `attend` weighs the values by: for each head and query, the weights of all keys, in float32 or finer.

    Equals `jax.nn.softmax(jnp.einsum("...qkd,...nkd->...kqn", query, key) / sqrt(d), where=mask)`.
    """
    query, key = (jnp.swapaxes(x, -2, -3) for x in (query, key))
    scores = scores_of(query, key)
    if mask is not None:
        scores = jnp.where(mask[..., None, :, :], scores, LOWEST)
    return jax.nn.softmax(scores)
