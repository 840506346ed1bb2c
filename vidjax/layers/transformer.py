"""The pre-norm transformer: Mlp, DropPath, Block, and an Encoder for blocks of any kind."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import groupby
from types import MappingProxyType
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from vidjax.errors import UserError
from vidjax.kernels.sharding import split_clips
from vidjax.layers.activations import exact_gelu
from vidjax.layers.adapters import Adapter, attention_branch, mlp_branch
from vidjax.layers.attention import Attention, Implementation, Place
from vidjax.layers.normalization import LayerNorm
from vidjax.layers.rotary import Rotation

Remat = Literal["none", "dots", "blocks"]
Between = Callable[[int, Array], Array]

VIT_SIZES = MappingProxyType(  # Dosovitskiy et al. 2021 and Zhai et al. 2022; "small" is DeiT's
    {
        "small": {"width": 384, "depth": 12, "heads": 6},
        "base": {"width": 768, "depth": 12, "heads": 12},
        "large": {"width": 1024, "depth": 24, "heads": 16},
        "huge": {"width": 1280, "depth": 32, "heads": 16},
        "giant": {"width": 1408, "depth": 40, "heads": 16, "mlp_ratio": 48 / 11},
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
      cap: of the attention's scores, see `attend`.
      adapter: trained beside frozen branches, see `layers.adapters`.
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
    cap: float | None = None
    adapter: Adapter | None = None
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b *n d"],
        drop_path: float | Array = 0.0,
        train: bool = False,
        mask: Bool[Array, "*#m #q k"] | None = None,
        rotation: Rotation | None = None,
        place: Place | None = None,
        frames: int = 1,
    ) -> Float[Array, "b *n d"]:
        """The output has the shape of `x`; `mask` is True where a token may attend to another.

        Args:
          rotation: positions of the tokens, see `layers.rotary`; None without rotary embeddings.
          place: of the first token, if a text is read in parts; see `Attention`.
          frames: of a clip, which adapters over time need; the first axis of `x` has those of all clips.
        """
        norm = partial(LayerNorm, epsilon=self.epsilon, dtype=self.dtype)
        norm1, norm2 = norm(name="norm1"), norm(name="norm2")
        attention = Attention(
            self.heads,
            self.qkv_bias,
            self.key_bias,
            self.implementation,
            kernel_init=self.kernel_init,
            out_init=self.out_init,
            cap=self.cap,
            dtype=self.dtype,
            name="attention",
        )
        hidden = int(x.shape[-1] * self.mlp_ratio)
        mlp = Mlp(hidden, self.activation, self.kernel_init, self.out_init, dtype=self.dtype, name="mlp")
        branch = DropPath(name="drop_path")

        def attend(x: Array) -> Array:
            return attention(norm1(x), mask=mask, rotation=rotation, place=place)

        def drop(out: Array) -> Array:
            return branch(out, drop_path, train)

        x = attention_branch(self.adapter, x, attend, drop, frames)
        return mlp_branch(self.adapter, x, norm2, mlp, drop, frames)


def run_block(block: nn.Module, x: Array, drop_path: float, train: bool, remat: Remat = "none", **context) -> Array:
    """Runs one block of a stack, for a stack whose blocks differ; see `Encoder`.

    Raises:
      UserError: an unknown value of `remat`.
    """
    policy = _policy(remat)

    def run(block: nn.Module, x: Array, rate: float) -> Array:
        return block(x, rate, train, **context)

    if remat != "none":
        run = nn.remat(run, policy=policy, static_argnums=(2,))
    return split_clips(run(block, x, drop_path))


def scans(stack: nn.Module) -> bool:
    """Whether a stack with a field `scan` runs its blocks in a loop: not to initialise them, to sow or with a cache."""
    changed = any(map(stack.is_mutable_collection, ("intermediates", "cache")))
    return stack.scan and not stack.is_initializing() and not changed


def scan_blocks(
    stack: nn.Module,
    blocks: Sequence[nn.Module],
    names: Sequence[str],
    x: Array,
    rates: Sequence[float] | np.ndarray,
    train: bool,
    remat: Remat = "none",
    **context: Any,
) -> Array:
    """Runs blocks of a stack in a loop over their stacked parameters; see `Encoder`.

    Args:
      stack: has the blocks' parameters and random keys.
      blocks: one block without a parent, or several that alternate.
      names: of all blocks in the stack.
      rates: of drop path, one for each name.

    Raises:
      UserError: an unknown value of `remat`, or a number of blocks that is not a multiple of those that alternate.
    """
    policy, period = _policy(remat), len(blocks)
    if len(names) % period:
        raise UserError(f"scan: {len(names)} blocks cannot be cut into groups of {period}: set scan to False")
    kinds = [kind for kind in ("params", "batch_stats") if names[0] in stack.variables.get(kind, {})]
    changed = [kind for kind in kinds if stack.is_mutable_collection(kind)]
    each = [{kind: stack.variables[kind][name] for kind in kinds} for name in names]
    stacked = [jax.tree.map(lambda *leaves: jnp.stack(leaves), *each[i::period]) for i in range(period)]
    random = [name for name in ("dropout", "drop_path") if train and stack.has_rng(name)]
    keys = {name: jax.random.split(stack.make_rng(name), len(names)) for name in random}
    ramp = np.asarray(rates, np.float32)

    def run(i: int, x: Array, variables: Any, rate: Array, keys: dict[str, Array]) -> tuple[Array, Any]:
        rate = rate if ramp.any() else 0.0  # a traced rate would need a PRNG key
        x, after = blocks[i].apply(variables, x, rate, train, rngs=keys, mutable=changed, **context)
        return split_clips(x), after

    if remat != "none":  # there are no common subexpressions across iterations
        run = jax.checkpoint(run, policy=policy, prevent_cse=False, static_argnums=0)

    def group(x: Array, layers: tuple) -> tuple[Array, list]:
        variables, rates, keys = layers
        after = []
        for i in range(period):
            x, each = run(i, x, variables[i], rates[i], jax.tree.map(lambda key, i=i: key[i], keys))
            after.append(each)
        return x, after

    rates, keys = jax.tree.map(lambda leaf: leaf.reshape(-1, period, *leaf.shape[1:]), (jnp.asarray(ramp), keys))
    x, after = jax.lax.scan(group, x, (stacked, rates, keys))
    for number, name in enumerate(names):
        for kind, leaves in after[number % period].items():
            stack.put_variable(kind, name, jax.tree.map(lambda leaf, row=number // period: leaf[row], leaves))
    return x


def equal_runs(
    stack: nn.Module, blocks: Sequence[nn.Module], widths: Sequence[int] | None = None
) -> list[tuple[int, int]]:
    """The numbers of the first and the last of the blocks that run together: each alone, or if `scan` equal ones.

    Args:
      widths: of the blocks' inputs, where equal blocks may have different ones and thus other parameters.
    """
    if not scans(stack):
        return [(i, i) for i in range(len(blocks))]
    alone = [block.clone(parent=None, name=None) for block in blocks]
    alone = list(zip(alone, widths or [None] * len(alone), strict=True))
    runs = (list(run) for _, run in groupby(range(len(alone)), alone.__getitem__))
    return [(run[0], run[-1]) for run in runs]


def run_equal(
    stack: nn.Module,
    blocks: Sequence[nn.Module],
    run: tuple[int, int],
    x: Array,
    rates: Sequence[float] | np.ndarray,
    train: bool,
    remat: Remat = "none",
    **context: Any,
) -> Array:
    """Runs one of `equal_runs`, in a loop if it has several blocks; `rates` are those of all blocks, see `Encoder`."""
    first, last = run
    if first == last:
        return run_block(blocks[last], x, float(rates[last]), train, remat, **context)
    names = [f"block_{i}" for i in range(first, last + 1)]
    block = blocks[first].clone(parent=None, name=None)
    return scan_blocks(stack, [block], names, x, rates[first : last + 1], train, remat, **context)


def _policy(remat: Remat) -> Callable | None:
    """What the backward pass does not recompute."""
    if remat not in ("none", "dots", "blocks"):
        raise UserError(f"remat is '{remat}': use none, dots or blocks")
    return jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None


class Encoder(nn.Module):
    """A stack of blocks, with rematerialisation and linearly increasing drop path rates.

    Attributes:
      block: creates one block, which is called as `block(name=...)(x, drop_path, train)`; or several that alternate.
      depth: number of blocks.
      drop_path: rate of the last block, with rates increasing linearly from zero; or the rates of all blocks.
      remat: what the backward pass recomputes to save memory: `none`; `dots`, everything but matrix products;
        `blocks`, everything inside a block.
      scan: traces and compiles one block for all (or one of each that alternate) and runs it in a loop. Costs a copy of
        the parameters; their names and storage do not change, nor do those of running statistics. If "intermediates" is
        mutable, the blocks are unrolled.
      returned: numbers of the blocks whose outputs are returned, as a tuple, without `scan`; None for that of the last.
      adapter: of the method `prompt`: adds trained tokens, which are not returned; the blocks are unrolled.
    """

    block: Callable[..., nn.Module] | tuple[Callable[..., nn.Module], ...]
    depth: int
    drop_path: float | Sequence[float] = 0.0
    remat: Remat = "none"
    scan: bool = False
    returned: tuple[int, ...] | None = None
    adapter: Adapter | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b *n d"], train: bool = False, between: Between | None = None, **context
    ) -> Float[Array, "b *m d"] | tuple[Float[Array, "b *m d"], ...]:
        """Outputs have the shape of `x`, or fewer tokens if some are dropped between blocks (`layers.selection`).

        `context` is passed to every block, such as a mask or the grid of tokens.

        Args:
          between: `(i, output of block i) -> input of the next block`, or the output of the encoder after the last one.
            It may call other modules. The blocks are unrolled.
        """
        ramp = np.linspace(0.0, self.drop_path, self.depth) if np.ndim(self.drop_path) == 0 else self.drop_path
        blocks = self.block if isinstance(self.block, tuple) else (self.block,)
        names, outputs = [f"block_{i}" for i in range(self.depth)], []
        prompted = self.adapter is not None and self.adapter.method == "prompt"
        prompt = None
        if between is None and not prompted and scans(self):
            alone = [block(parent=None) for block in blocks]
            return scan_blocks(self, alone, names, x, ramp, train, self.remat, **context)
        for i, rate in enumerate(ramp):
            if prompted and (i == 0 or self.adapter.everywhere):
                prompt = self._prompt(i, x)
            tokens = x if prompt is None else jnp.concatenate([x, prompt], axis=1)
            block = blocks[i % len(blocks)](name=names[i])
            tokens = run_block(block, tokens, float(rate), train, self.remat, **context)
            x, prompt = (tokens, None) if prompt is None else (tokens[:, : x.shape[1]], tokens[:, x.shape[1] :])
            x = x if between is None else between(i, x)
            outputs.append(x)
        return x if self.returned is None else tuple(outputs[i] for i in self.returned)

    def _prompt(self, number: int, x: Float[Array, "b n d"]) -> Float[Array, "b p d"]:
        """Trained tokens for a block, the same for all rows of `x`; initialised as VPT's for patches of `d` values."""
        bound = (3 / x.shape[-1]) ** 0.5
        shape = (self.adapter.width, x.shape[-1])
        tokens = self.param(f"prompt_{number}", lambda key: jax.random.uniform(key, shape, minval=-bound, maxval=bound))
        return jnp.broadcast_to(tokens.astype(x.dtype), (len(x), *shape))
