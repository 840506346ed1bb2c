"""Multi-head attention over any leading axes.

Attention over time or space is expressed by rearranging the tokens around it, or by a mask.
"""

import einops
import flax.linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from vidjax.errors import UserError
from vidjax.kernels.attention import Implementation, attend, attention_weights
from vidjax.kernels.grid_attention import attend_on_grid, grid_attention_weights
from vidjax.kernels.local_attention import attend_locally
from vidjax.layers.rotary import Rotation, rotate

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
    ) -> Float[Array, "*b q d"]:
        """The output has the shape of `query`.

        Args:
          context: of any width.
          mask: True where a query may attend to a token of the context.
          bias: added to the scores of each head.
          rotation: of queries and keys, in self-attention; see `layers.rotary`.
        """
        context = query if context is None else context
        width = query.shape[-1]
        if width % self.heads:
            raise UserError(f"width {width} cannot be split into {self.heads} heads: use a divisor of the width")

        def project(x: Array, name: str, use_bias: bool) -> Array:
            x = nn.Dense(width, use_bias=use_bias, kernel_init=self.kernel_init, dtype=self.dtype, name=name)(x)
            return einops.rearrange(x, "... n (k d) -> ... n k d", k=self.heads)

        queries = project(query, "query", self.qkv_bias)
        keys = project(context, "key", self.qkv_bias and self.key_bias)
        values = project(context, "value", self.qkv_bias)
        if rotation is not None:
            queries, keys = rotate(queries, rotation), rotate(keys, rotation)
        x = DotProduct(self.implementation, self.cap, name="dot_product")(queries, keys, values, mask, bias)
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
