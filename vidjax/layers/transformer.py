"""The pre-norm transformer: Mlp, DropPath, Block, and an Encoder for blocks of any kind."""

from collections.abc import Callable, Sequence
from functools import partial
from types import MappingProxyType
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from vidjax.errors import UserError
from vidjax.kernels.sharding import split_clips
from vidjax.layers.activations import exact_gelu
from vidjax.layers.attention import Attention, Implementation
from vidjax.layers.normalization import LayerNorm

Remat = Literal["none", "dots", "blocks"]

VIT_SIZES = MappingProxyType(  # Dosovitskiy et al. 2021 and Zhai et al. 2022; "small" is DeiT's
    {
        "small": {"width": 384, "depth": 12, "heads": 6},
        "base": {"width": 768, "depth": 12, "heads": 12},
        "large": {"width": 1024, "depth": 24, "heads": 16},
        "huge": {"width": 1280, "depth": 32, "heads": 16},
    }
)


def scaled_by_depth(width: int, depth: int) -> dict[str, nn.initializers.Initializer]:
    """CLIP's initialisation of blocks (openai/CLIP): normal, with output layers scaled down by the depth.

    Returns:
      `kernel_init` and `out_init` of a `Block`.
    """

    def kernel_init(key: Array, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> Array:
        square = shape[0] == shape[1]  # a projection of attention rather than the MLP's first layer
        return jax.random.normal(key, shape, dtype) * (width if square else 2 * width) ** -0.5

    return {"kernel_init": kernel_init, "out_init": nn.initializers.normal((2 * depth * width) ** -0.5)}


class DropPath(nn.Module):
    """Stochastic depth (Huang et al. 2016): drops a sample's residual branch and rescales the others.

    The rate is an argument of the call rather than a field, so that blocks with different rates are the same module and
    can be scanned over. Uses the PRNG key `drop_path`.
    """

    @nn.compact
    def __call__(self, x: Float[Array, "b *rest"], rate: float | Array, train: bool) -> Float[Array, "b *rest"]:
        """Drops each sample of `x` with probability `rate` in training; otherwise returns `x` itself."""
        if not train or (isinstance(rate, float) and rate == 0.0):
            return x
        keep = 1.0 - rate
        kept = jax.random.bernoulli(self.make_rng("drop_path"), keep, (x.shape[0],) + (1,) * (x.ndim - 1))
        return jnp.where(kept, x / jnp.asarray(keep, x.dtype), jnp.zeros((), x.dtype))


class Mlp(nn.Module):
    """Two linear layers with an activation between them; the output has the width of the input."""

    hidden: int
    activation: Callable[[Array], Array] = exact_gelu
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
    out_init: nn.initializers.Initializer | None = None
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "*b n d"]) -> Float[Array, "*b n d"]:
        """The output has the shape of `x`."""
        dense = partial(nn.Dense, dtype=self.dtype)
        hidden = self.activation(dense(self.hidden, kernel_init=self.kernel_init, name="fc1")(x))
        return dense(x.shape[-1], kernel_init=self.out_init or self.kernel_init, name="fc2")(hidden)


class Block(nn.Module):
    """Pre-norm transformer block: attention, then MLP, each on a residual branch with drop path.

    Attributes:
      key_bias: see `Attention`.
      epsilon: of the layer norms; 1e-6 in timm and its derivatives, 1e-5 in CLIP.
      implementation: of the attention, see `attend`.
      out_init: initializer of the last linear layer of each branch; `kernel_init` by default.
    """

    heads: int
    mlp_ratio: float = 4.0
    qkv_bias: bool = True
    key_bias: bool = True
    epsilon: float = 1e-6
    activation: Callable[[Array], Array] = exact_gelu
    kernel_init: nn.initializers.Initializer = nn.initializers.xavier_uniform()
    out_init: nn.initializers.Initializer | None = None
    implementation: Implementation = "auto"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b *n d"],
        drop_path: float | Array = 0.0,
        train: bool = False,
        mask: Bool[Array, "*#m #q k"] | None = None,
    ) -> Float[Array, "b *n d"]:
        """The output has the shape of `x`; `mask` is True where a token may attend to another."""
        norm = partial(LayerNorm, epsilon=self.epsilon, dtype=self.dtype)
        attention = Attention(
            self.heads,
            self.qkv_bias,
            self.key_bias,
            self.implementation,
            kernel_init=self.kernel_init,
            out_init=self.out_init,
            dtype=self.dtype,
            name="attention",
        )
        hidden = int(x.shape[-1] * self.mlp_ratio)
        mlp = Mlp(hidden, self.activation, self.kernel_init, self.out_init, dtype=self.dtype, name="mlp")
        branch = DropPath(name="drop_path")
        x = x + branch(attention(norm(name="norm1")(x), mask=mask), drop_path, train)
        return x + branch(mlp(norm(name="norm2")(x)), drop_path, train)


class Encoder(nn.Module):
    """A stack of blocks, with rematerialisation and linearly increasing drop path rates.

    Attributes:
      block: creates one block, which is called as `block(name=...)(x, drop_path, train)`.
      depth: number of blocks.
      drop_path: rate of the last block, with rates increasing linearly from zero; or the rates of all blocks.
      remat: what the backward pass recomputes to save memory: `none`; `dots`, everything but matrix products;
        `blocks`, everything inside a block.
      scan: traces and compiles one block for all and runs it in a loop. Costs a copy of the parameters; their names and
        storage do not change. Not for blocks with running statistics. If "intermediates" is mutable, the blocks are
        unrolled.
    """

    block: Callable[..., nn.Module]
    depth: int
    drop_path: float | Sequence[float] = 0.0
    remat: Remat = "none"
    scan: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b *n d"], train: bool = False, **context) -> Float[Array, "b *n d"]:
        """The output has the shape of `x`; `context` is passed to every block, such as a mask or the grid of tokens."""

        def run(block: nn.Module, x: Array, rate: float) -> Array:
            return block(x, rate, train, **context)

        if self.remat not in ("none", "dots", "blocks"):
            raise UserError(f"remat is '{self.remat}': use none, dots or blocks")
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if self.remat == "dots" else None
        ramp = np.linspace(0.0, self.drop_path, self.depth) if np.ndim(self.drop_path) == 0 else self.drop_path
        if self.scan and not self.is_initializing() and not self.is_mutable_collection("intermediates"):
            return self._scan(x, np.asarray(ramp, np.float32), train, context, policy)
        if self.remat != "none":
            run = nn.remat(run, policy=policy, static_argnums=(2,))
        for i, rate in enumerate(ramp):
            x = split_clips(run(self.block(name=f"block_{i}"), x, float(rate)))
        return x

    def _scan(self, x: Array, ramp: np.ndarray, train: bool, context: dict, policy: Callable | None) -> Array:
        block, keys = self.block(parent=None), {}
        layers = [self.variables["params"][f"block_{i}"] for i in range(self.depth)]
        layers = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
        if train:
            chosen = [name for name in ("dropout", "drop_path") if self.has_rng(name)]
            keys = {name: jax.random.split(self.make_rng(name), self.depth) for name in chosen}

        def run(x: Array, layer: tuple) -> tuple[Array, None]:
            params, rate, keys = layer
            rate = rate if ramp.any() else 0.0  # a traced rate would need a PRNG key
            return split_clips(block.apply({"params": params}, x, rate, train, rngs=keys, **context)), None

        if self.remat != "none":
            run = jax.checkpoint(run, policy=policy, prevent_cse=False)  # no common subexpressions across iterations
        return jax.lax.scan(run, x, (layers, jnp.asarray(ramp), keys))[0]
