"""Multi-head attention over any leading axes.

Attention over time or space is expressed by rearranging the tokens around it, or by a mask.
"""

import einops
import flax.linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from vidjax.errors import UserError
from vidjax.kernels.attention import Implementation, attend, attention_weights

__all__ = ["Attention", "DotProduct", "Implementation"]


class DotProduct(nn.Module):
    """`attend` as a module without parameters, which can sow the attention weights.

    If the collection "intermediates" is mutable, the weights (`*b k q n`) are computed and sown there as "weights":
    `logits, state = model.apply(variables, video, mutable=["intermediates"])`. Otherwise they are not computed.
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
    """Multi-head attention of `query` to `context`; self-attention without a context.

    Attributes:
      heads: number of heads; must divide the width.
      qkv_bias: whether the three input projections have biases.
      key_bias: False removes the bias of the keys, which cancels in the softmax (BEiT, VideoMAE).
      out_init: initializer of the output projection; `kernel_init` by default.
      dtype: type of the computation; parameters are float32.
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
        """The output has the shape of `query`; `mask` is True where a query may attend to a token of the context."""
        context = query if context is None else context
        width = query.shape[-1]
        if width % self.heads:
            raise UserError(f"width {width} cannot be split into {self.heads} heads: use a divisor of the width")

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
