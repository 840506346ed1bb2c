"""Attention over any leading axes. It knows neither time nor space.

Who sees whom is decided by a rearrangement around it, or by a mask.
"""

from typing import Literal

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from vidjax.errors import UserError
from vidjax.layers.sequence import LOWEST, over_queries, ring_attention, scores_of, weigh

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

    Gradients of the scores are float32 off cuDNN, so on GPUs too under a mask: what that costs there was not measured.

    Args:
      query, key, value: any number of leading axes, equal in all three.
      implementation: `xla` holds the scores of all pairs; `cudnn`, for bfloat16 or float16 on an NVIDIA GPU, holds
        none; `chunked` those of some queries at a time, on any device; `auto` is `cudnn` where that fits, else `xla`
        for few tokens and `chunked` for many. `ring` splits the tokens over devices (`sequence.ring_attention`).
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
    """What `attend` weighs the values by: for each head and query, shares of all keys, in float32 or finer."""
    query, key = (jnp.swapaxes(x, -2, -3) for x in (query, key))
    scores = scores_of(query, key)
    if mask is not None:
        scores = jnp.where(mask[..., None, :, :], scores, LOWEST)
    return jax.nn.softmax(scores)


class DotProduct(nn.Module):
    """`attend` as a module without parameters, through which attention can be looked at.

    Where the collection "intermediates" is mutable, the weights (`*b k q n`) are computed and sown there as "weights":
    `logits, state = model.apply(variables, video, mutable=["intermediates"])`. Any other call computes none.
    """

    implementation: Implementation = "auto"

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "*b q k d"],
        key: Float[Array, "*b n k d"],
        value: Float[Array, "*b n k d"],
        mask: Bool[Array, "*#b #q n"] | None = None,
    ) -> Float[Array, "*b q k d"]:
        """See `attend`."""
        if self.is_mutable_collection("intermediates"):
            self.sow("intermediates", "weights", attention_weights(query, key, mask))
        return attend(query, key, value, self.implementation, mask)


class Attention(nn.Module):
    """Multi-head attention of `query` to `context` (to itself when there is none).

    Attributes:
      heads: number of heads; must divide the width.
      qkv_bias: biases in the three input projections.
      key_bias: set False for a key without bias (BEiT and VideoMAE: it cancels in the softmax).
      out_init: of the output projection, where it starts otherwise than the others.
      dtype: type of computation; parameters are float32.
    """

    heads: int
    qkv_bias: bool = True
    key_bias: bool = True
    implementation: Implementation = "auto"
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
    out_init: nn.initializers.Initializer | None = None
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "*b q d"],
        context: Float[Array, "*b n d"] | None = None,
        mask: Bool[Array, "*#b #q n"] | None = None,
    ) -> Float[Array, "*b q d"]:
        """Same shape as `query`; `mask` is True where a query may see the context's token."""
        context = query if context is None else context
        width = query.shape[-1]
        if width % self.heads:
            raise UserError(f"width {width} cannot be shared by {self.heads} heads: it must be a multiple of them")

        def project(x: Array, name: str, use_bias: bool) -> Array:
            x = nn.Dense(width, use_bias=use_bias, kernel_init=self.kernel_init, dtype=self.dtype, name=name)(x)
            return einops.rearrange(x, "... n (k d) -> ... n k d", k=self.heads)

        x = DotProduct(self.implementation, name="dot_product")(
            project(query, "query", self.qkv_bias),
            project(context, "key", self.qkv_bias and self.key_bias),
            project(context, "value", self.qkv_bias),
            mask,
        )
        x = einops.rearrange(x, "... n k d -> ... n (k d)")
        return nn.Dense(width, kernel_init=self.out_init or self.kernel_init, dtype=self.dtype, name="out")(x)
