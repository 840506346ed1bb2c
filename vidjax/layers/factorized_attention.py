"""Blocks whose attention is over time at each position and over space in each frame: models 3 and 4 of ViViT.

Arnab et al. 2021, arXiv:2103.15691, sections 3.3.3 and 3.3.4. Tokens are in `(t h w)` order.
"""

from functools import partial

import einops
import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vidjax.errors import UserError
from vidjax.layers.activations import tanh_gelu
from vidjax.layers.adapters import Adapter, attention_branch, mlp_branch
from vidjax.layers.attention import Attention, DotProduct, Implementation
from vidjax.layers.normalization import LayerNorm
from vidjax.layers.transformer import DropPath, Mlp

XAVIER = nn.initializers.xavier_uniform()


class FactorizedSelfAttentionBlock(nn.Module):
    """ViViT's model 3: attention over time at each position, attention over space in each frame, MLP."""

    heads: int
    mlp_ratio: float = 4.0
    implementation: Implementation = "auto"
    adapter: Adapter | None = None
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], drop_path: float | Array = 0.0, train: bool = False, frames: int = 1
    ) -> Float[Array, "b n d"]:
        """The output has the shape of `x`."""
        norm = partial(LayerNorm, epsilon=1e-6, dtype=self.dtype)
        attention = partial(Attention, self.heads, implementation=self.implementation, dtype=self.dtype)
        temporal_norm, spatial_norm = norm(name="temporal_norm"), norm(name="spatial_norm")
        over_time, over_space = attention(name="temporal_attention"), attention(name="spatial_attention")
        mlp = Mlp(int(x.shape[-1] * self.mlp_ratio), tanh_gelu, dtype=self.dtype, name="mlp")
        branch = DropPath(name="drop_path")

        def drop(out: Array) -> Array:
            return branch(out, drop_path, train)

        x = einops.rearrange(x, "b (t n) d -> b n t d", t=frames)
        x = attention_branch(self.adapter, x, lambda x: over_time(temporal_norm(x)), drop, name="temporal")
        x = einops.rearrange(x, "b n t d -> b t n d")
        x = attention_branch(self.adapter, x, lambda x: over_space(spatial_norm(x)), drop, name="spatial")
        x = einops.rearrange(x, "b t n d -> b (t n) d")
        return mlp_branch(self.adapter, x, norm(name="norm2"), mlp, drop)


class FactorizedDotProduct(nn.Module):
    """Attention whose first half of heads attends over time at each position, the second half over each frame."""

    heads: int
    implementation: Implementation = "auto"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b n d"], frames: int) -> Float[Array, "b n d"]:
        """The output has the shape of `x`."""
        width = x.shape[-1]
        if self.heads % 2 or width % self.heads:
            raise UserError(
                f"{self.heads} heads cannot be halved or do not divide the width {width}: use an even divisor of it"
            )
        dense = partial(nn.Dense, width, kernel_init=XAVIER, dtype=self.dtype)
        halves = [
            einops.rearrange(dense(name=name)(x), "b (t n) (s k d) -> s b t n k d", t=frames, s=2, k=self.heads // 2)
            for name in ("query", "key", "value")
        ]
        in_time = (einops.rearrange(half[0], "b t n k d -> b n t k d") for half in halves)
        over_time = DotProduct(self.implementation, name="temporal_dot_product")(*in_time)
        over_space = DotProduct(self.implementation, name="spatial_dot_product")(*(half[1] for half in halves))
        x = jnp.stack([einops.rearrange(over_time, "b n t k d -> b t n k d"), over_space])
        return dense(name="out")(einops.rearrange(x, "s b t n k d -> b (t n) (s k d)"))


class FactorizedDotProductBlock(nn.Module):
    """ViViT's model 4: a standard block with the factorised dot product."""

    heads: int
    mlp_ratio: float = 4.0
    implementation: Implementation = "auto"
    adapter: Adapter | None = None
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], drop_path: float | Array = 0.0, train: bool = False, frames: int = 1
    ) -> Float[Array, "b n d"]:
        """The output has the shape of `x`."""
        norm = partial(LayerNorm, epsilon=1e-6, dtype=self.dtype)
        norm1, norm2 = norm(name="norm1"), norm(name="norm2")
        attention = FactorizedDotProduct(self.heads, self.implementation, self.dtype, name="attention")
        mlp = Mlp(int(x.shape[-1] * self.mlp_ratio), tanh_gelu, dtype=self.dtype, name="mlp")
        branch = DropPath(name="drop_path")

        def drop(out: Array) -> Array:
            return branch(out, drop_path, train)

        x = attention_branch(self.adapter, x, lambda x: attention(norm1(x), frames), drop)
        return mlp_branch(self.adapter, x, norm2, mlp, drop)
