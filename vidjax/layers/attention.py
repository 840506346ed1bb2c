"""Multi-head attention over any leading axes.

Attention over time or space is expressed by rearranging the tokens around it, or by a mask.
"""

from collections.abc import Callable

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int

from vidjax.errors import UserError
from vidjax.kernels.attention import Implementation, attend, attention_weights
from vidjax.kernels.grid_attention import attend_on_grid, grid_attention_weights
from vidjax.kernels.local_attention import attend_locally
from vidjax.layers.rotary import Rotation, rotate

Place = Int[Array, ""] | int
"""Number of tokens before the first query, when a text is read or written in parts."""
Pair = tuple[Float[Array, "*b _ k d"], Float[Array, "*b _ k d"]]

__all__ = ["Attention", "DotProduct", "GridDotProduct", "Implementation", "attend_locally", "attention_weights"]


class DotProduct(nn.Module):
    """`attend` as a module without parameters, which can sow the attention weights.

    If the collection "intermediates" is mutable, the weights (`*b k q n`) are computed and sown there as "weights":
    `logits, state = model.apply(variables, video, mutable=["intermediates"])`. Otherwise they are not computed.
    """

    implementation: Implementation = "auto"
    cap: float | None = None

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "*b q k d"],
        key: Float[Array, "*b n k d"],
        value: Float[Array, "*b n k d"],
        mask: Bool[Array, "*#b #q n"] | None = None,
        bias: Float[Array, "k q n"] | None = None,
    ) -> Float[Array, "*b q k d"]:
        """See `attend`."""
        if self.is_mutable_collection("intermediates"):
            self.sow("intermediates", "weights", attention_weights(query, key, mask, bias, self.cap))
        return attend(query, key, value, self.implementation, mask, bias, self.cap)


def causal_mask(queries: int, place: Place = 0, length: int | None = None) -> Bool[Array, "q n"]:
    """True where a token may attend to another: to itself and to those before it.

    Args:
      queries: number of tokens.
      place: that of the first of them.
      length: number of all tokens; by default there are no others.
    """
    return jnp.arange(length or queries) <= place + jnp.arange(queries)[:, None]


def within_text(ids: Int[Array, "b m"]) -> Bool[Array, "b m"]:
    """False for padding, the zeros at the end of each text; within a text 0 is a word, such as CLIP's "!"."""
    return jax.lax.cummax((ids != 0).astype(jnp.int32), axis=1, reverse=True) > 0


def remember(module: nn.Module, pair: Pair, place: Place, length: int) -> Pair:
    """Writes keys and values from `place` on into a module's collection "cache", and returns all in it.

    Args:
      module: an attention layer.
      length: number of tokens that the cache has room for; those not written yet must be masked.
    """
    stored = []
    for name, value in zip(("keys", "values"), pair, strict=True):
        entry = module.variable("cache", name, jnp.zeros, (len(value), length, *value.shape[2:]), value.dtype)
        entry.value = jax.lax.dynamic_update_slice_in_dim(entry.value, value, place, axis=1)
        stored.append(entry.value)
    return stored[0], stored[1]


def remember_context(module: nn.Module, project: Callable[[], Pair]) -> Pair:
    """Keys and values of a context, which are projected once and then read from the collection "context".

    They are kept with the heads before the tokens, as they are multiplied: XLA would move them there for every word.
    Beams of a text share them (see `with_beams`), so that they are not in the cache, whose rows move with the beams.
    """
    if not module.has_variable("context", "keys"):
        for name, value in zip(("keys", "values"), project(), strict=True):
            module.put_variable("context", name, jnp.swapaxes(value, -3, -2))
    keys, values = (module.get_variable("context", name) for name in ("keys", "values"))
    return jnp.swapaxes(keys, -3, -2), jnp.swapaxes(values, -3, -2)


def with_beams(
    attend: Callable[..., Array], query: Array, pair: Pair, mask: Array | None, bias: Array | None
) -> Float[Array, "*rows q k d"]:
    """`attend(query, *pair, mask, bias)`, in which rows of `query` next to one another may share keys and values.

    Their queries become those of one row, so that keys and values are read once for all beams of a text.
    """
    beams = len(query) // len(pair[0]) if query.ndim > 3 else 1  # without leading axes the first is that of the tokens
    if beams < 2:
        return attend(query, *pair, mask, bias)
    query, mask = (
        None if x is None else einops.rearrange(x, "(b r) q ... -> b (r q) ...", r=beams) for x in (query, mask)
    )
    return einops.rearrange(attend(query, *pair, mask, bias), "b (r q) k d -> (b r) q k d", r=beams)


class Attention(nn.Module):
    """Multi-head attention of `query` to `context`; self-attention without a context.

    Attributes:
      heads: number of heads; must divide the width.
      qkv_bias: whether the three input projections have biases.
      key_bias: False removes the bias of the keys, which cancels in the softmax (BEiT, VideoMAE).
      out_init: initializer of the output projection; `kernel_init` by default.
      cap: of the scores, see `attend`.
      dtype: type of the computation; parameters are float32.
    """

    heads: int
    qkv_bias: bool = True
    key_bias: bool = True
    implementation: Implementation = "auto"
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
    out_init: nn.initializers.Initializer | None = None
    cap: float | None = None
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "*b q d"],
        context: Float[Array, "*b n e"] | None = None,
        mask: Bool[Array, "*#b #q n"] | None = None,
        bias: Float[Array, "k q n"] | None = None,
        rotation: Rotation | None = None,
        place: Place | None = None,
    ) -> Float[Array, "*b q d"]:
        """The output has the shape of `query`.

        Args:
          context: of any width.
          mask: True where a query may attend to a token of the context.
          bias: added to the scores of each head.
          rotation: of queries and keys, in self-attention; see `layers.rotary`.
          place: of the first query, if the text is read in parts: keys and values are kept in the collection "cache",
            with as many tokens as the mask has, and those of a context in "context". Both collections are mutable in
            the first call, then only "cache".
        """
        width = query.shape[-1]
        if width % self.heads:
            raise UserError(f"width {width} cannot be split into {self.heads} heads: use a divisor of the width")

        def project(x: Array, name: str, use_bias: bool) -> Array:
            x = nn.Dense(width, use_bias=use_bias, kernel_init=self.kernel_init, dtype=self.dtype, name=name)(x)
            return einops.rearrange(x, "... n (k d) -> ... n k d", k=self.heads)

        queries = project(query, "query", self.qkv_bias)

        def pair_of(x: Array) -> Pair:
            return project(x, "key", self.qkv_bias and self.key_bias), project(x, "value", self.qkv_bias)

        if context is not None:
            keys, values = pair_of(context) if place is None else remember_context(self, lambda: pair_of(context))
        else:
            keys, values = pair_of(query)
            if rotation is not None:
                queries, keys = rotate(queries, rotation), rotate(keys, rotation)
            if place is not None:
                keys, values = remember(self, (keys, values), place, mask.shape[-1])
        x = with_beams(
            DotProduct(self.implementation, self.cap, name="dot_product"), queries, (keys, values), mask, bias
        )
        x = einops.rearrange(x, "... n k d -> ... n (k d)")
        return nn.Dense(width, kernel_init=self.out_init or self.kernel_init, dtype=self.dtype, name="out")(x)


class GridDotProduct(nn.Module):
    """`attend_on_grid` as a module without parameters, which can sow the attention weights like `DotProduct`."""

    @nn.compact
    def __call__(
        self,
        query: Float[Array, "*b q k d"],
        key: Float[Array, "*b n k d"],
        value: Float[Array, "*b n k d"],
        terms: tuple[Float[Array, "*b q k t"], Float[Array, "*b q k h"], Float[Array, "*b q k w"]],
    ) -> Float[Array, "*b q k d"]:
        """See `attend_on_grid`."""
        if self.is_mutable_collection("intermediates"):
            self.sow("intermediates", "weights", grid_attention_weights(query, key, terms))
        return attend_on_grid(query, key, value, terms)
