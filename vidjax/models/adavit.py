"""AdaViT (Meng et al. 2021, arXiv:2111.15668): an image ViT that chooses patches, heads and branches for each frame.

In each block, linear layers decide: from each normalised patch whether it takes part, and from the class token that
enters the block which heads are used, and whether attention and MLP are. A patch that does not take part keeps its
features. In training decisions are drawn, and everything is computed and masked. In evaluation what is not used is
skipped: each head and each MLP is computed for the tokens that use it, all of a batch at once. Shapes are static under
jit, so that there are programs for quarters of a batch (`STEPS`). Two things are not skipped: the attention of a frame
is between all of its tokens, and channels of heads that are not used are zeros in the MLP's first layer. Skipping gives
what masking gives (`method="masked"`).

Parameters keep the names of the ViT's, so that its weights load; those of the decisions are new.

Pitfalls of the original: heads and branches of the first block are always used; a patch takes part if its probability
is above 0.6, not 0.5; a head that is not used also hides its channels from the MLP's first layer; the bias of a branch
is added even if it has no heads; its code masks in evaluation too, and saves no time.
"""

from collections.abc import Callable
from functools import partial
from types import MappingProxyType, SimpleNamespace
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, PyTree

from vidjax.errors import UserError
from vidjax.layers.attention import Attention, DotProduct
from vidjax.layers.card import Card
from vidjax.layers.normalization import LayerNorm
from vidjax.layers.selection import NORMAL, attend_to_used
from vidjax.layers.transformer import VIT_SIZES, Block, Mlp
from vidjax.models.vit import ViT

How = Literal["pruned", "masked", "sampled"]
TAU = 5.0  # temperature of the drawn decisions in the released code
TOKEN_THRESHOLD, THRESHOLD = 0.6, 0.5  # probabilities
STEPS = (0.25, 0.5, 0.75, 1.0)
"""Shares of a batch's tokens or frames for which evaluation has a program; the smallest that suffices runs."""


class Usage(NamedTuple):
    """What is used of each block, 1 or 0; `n` are the frames of all clips.

    Attributes:
      tokens: the class token, which always takes part, and the patches.
      heads: of the attention.
      branches: attention and MLP.
    """

    tokens: Float[Array, "n blocks m"]
    heads: Float[Array, "n blocks k"]
    branches: Float[Array, "n blocks 2"]

    def macs(self, width: int, mlp_ratio: float = 4.0) -> Float[Array, "n"]:
        """Multiply-accumulates of the blocks for each frame, without the decisions' own, which are negligible."""
        tokens, heads = self.tokens.sum(axis=2), self.heads.sum(axis=2)
        size = width // self.heads.shape[2]
        attention = heads * (4 * tokens * width * size + 2 * tokens**2 * size)
        mlp = tokens * (heads * size + width) * int(width * mlp_ratio)
        return (attention * self.branches[..., 0] + mlp * self.branches[..., 1]).sum(axis=1)


class Adaptive(NamedTuple):
    """What is learned from in training; see `objectives.adaptive`."""

    logits: Float[Array, "b classes"]
    usage: Usage


class Policy(nn.Module):
    """Logits of the decisions of a block; without heads, of patches alone."""

    choices: int | None
    bias: float = 0.0
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the linear layers."""
        start = nn.initializers.constant(self.bias)
        dense = partial(nn.Dense, kernel_init=NORMAL, bias_init=start, dtype=self.dtype)
        self.tokens = dense(1)
        if self.choices is not None:
            self.heads, self.branches = dense(self.choices), dense(2)

    def of_patches(self, x: Float[Array, "n m d"]) -> Float[Array, "n p"]:
        """From what attention reads, the normalised tokens."""
        return self.tokens(x[:, 1:])[..., 0].astype(jnp.float32)

    def of_parts(self, x: Float[Array, "n m d"]) -> tuple[Float[Array, "n k"], Float[Array, "n 2"]]:
        """Heads and branches, from the tokens that enter the block."""
        return self.heads(x[:, 0]).astype(jnp.float32), self.branches(x[:, 0]).astype(jnp.float32)


class AdaViT(nn.Module):
    """A ViT whose patches, heads and branches are chosen.

    Attributes:
      model: the ViT, without `remat`, `scan` and adapters.
      always: number of blocks, from the first, whose heads and branches are always used.
      temperature: of the drawn decisions; with a lower one, gradients of uncertain decisions are larger.
      bias: initial bias of the decisions; well above 0, a trained ViT first uses everything, as it has learned to.
    """

    model: ViT
    always: int = 1
    temperature: float = TAU
    bias: float = 0.0
    card: Card = Card()
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the decisions' layers; all parameters are in one scope."""
        if self.model.scan or self.model.remat != "none" or self.model.adapter is not None:
            raise UserError("the blocks of AdaViT differ from frame to frame: omit scan, remat and adapters")
        nn.share_scope(self, self.model)
        choices = [None if i < self.always else self.model.heads for i in range(self.model.depth)]
        self.policy = [Policy(each, self.bias, self.dtype) for each in choices]

    @property
    def num_frames(self) -> int:
        """Frames of the clips that the model is meant for."""
        return self.model.num_frames

    @property
    def image_size(self) -> int:
        """Height and width of these clips."""
        return self.model.image_size

    @property
    def channels(self) -> int:
        """Channels of these clips."""
        return self.model.channels

    @property
    def num_classes(self) -> int | None:
        """Classes of the model's head."""
        return self.model.num_classes

    def _run(self, video: Array, train: bool, how: How, method: str = "__call__") -> tuple[Any, Usage]:
        """The output of a method of the model, and what was used."""
        state = SimpleNamespace(tokens=[], heads=[], branches=[])

        def choosing(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
            module, x = context.module, args[0] if args else None
            if context.method_name != "__call__" or not isinstance(module, (Block, DotProduct, Attention, Mlp)):
                return call(*args, **kwargs)
            if isinstance(module, Block):
                heads, branches = self._choose_parts(x, len(state.heads), how)
                state.heads.append(heads)
                state.branches.append(branches)
                if how == "masked" or train or self.is_initializing():
                    return call(*args, **kwargs)
                normalised = _norm(module, "norm1", x)
                state.tokens.append(self._choose_tokens(normalised, len(state.tokens), how))
                return skipping_block(module, x, state.tokens[-1], heads, branches)
            if isinstance(module, Attention):
                state.tokens.append(self._choose_tokens(x, len(state.tokens), how))
                return call(*args, **kwargs) * _weights(state.branches[-1][:, :1], state.tokens[-1], x.dtype)
            heads, tokens = state.heads[-1], state.tokens[-1]
            if isinstance(module, DotProduct):
                return attend_to_used(*args[:3], tokens) * heads[:, None, :, None].astype(x.dtype)
            channels = jnp.repeat(heads, x.shape[-1] // heads.shape[1], axis=1)[:, None].astype(x.dtype)
            return call(x * channels, *args[1:], **kwargs) * _weights(state.branches[-1][:, 1:], tokens, x.dtype)

        with nn.intercept_methods(choosing):
            outputs = getattr(self.model, method)(video, train=train)
        return outputs, Usage(*(jnp.stack(each, axis=1) for each in (state.tokens, state.heads, state.branches)))

    def _decide(self, logits: Array, threshold: float, how: How) -> Array:
        """1 where the probability is above the threshold, else 0; drawn in training."""
        if how != "sampled":
            return (nn.sigmoid(logits) > threshold).astype(jnp.float32)
        noise = jax.random.logistic(self.make_rng("usage"), logits.shape)  # the difference of two Gumbel's
        soft = nn.sigmoid((logits + noise) / self.temperature)
        return jax.lax.stop_gradient((soft > threshold) - soft) + soft  # straight through

    def _choose_tokens(self, x: Float[Array, "n m d"], number: int, how: How) -> Float[Array, "n m"]:
        """The class token, and the patches that take part."""
        chosen = self._decide(self.policy[number].of_patches(x), TOKEN_THRESHOLD, how)
        return jnp.concatenate([jnp.ones((len(x), 1)), chosen], axis=1)

    def _choose_parts(self, x: Float[Array, "n m d"], number: int, how: How) -> tuple[Array, Array]:
        """The heads and branches of a block that are used."""
        if number < self.always:
            return jnp.ones((len(x), self.model.heads)), jnp.ones((len(x), 2))
        heads, branches = self.policy[number].of_parts(x)
        return self._decide(heads, THRESHOLD, how), self._decide(branches, THRESHOLD, how)

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """Normalised patch tokens on their grid."""
        return self._run(video, train, "sampled" if train else "pruned", "encode")[0]

    def embed(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b d"]:
        """The mean of the frames' class tokens."""
        return self._run(video, train, "sampled" if train else "pruned", "embed")[0]

    def masked(self, video: Float[Array, "b t h w c"], train: bool = False) -> Adaptive:
        """The pass of training; without `train` with the decisions of evaluation instead of drawn ones."""
        return Adaptive(*self._run(video, train, "sampled" if train else "masked"))

    def pruned(self, video: Float[Array, "b t h w c"]) -> Adaptive:
        """The pass of evaluation, with what was used."""
        return Adaptive(*self._run(video, False, "pruned"))

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> PyTree[Float[Array, "b ..."]]:
        """What the ViT returns, by default logits `b classes`; training draws decisions by the PRNG key `usage`."""
        return self._run(video, train, "sampled" if train else "pruned")[0]


def _weights(branch: Float[Array, "n 1"], tokens: Float[Array, "n m"], dtype: DTypeLike) -> Float[Array, "n m 1"]:
    """Weights of a branch's outputs."""
    return (branch * tokens)[..., None].astype(dtype)


def _norm(block: Block, name: str, x: Float[Array, "*n d"]) -> Float[Array, "*n d"]:
    """A block's norm."""
    norm = LayerNorm(epsilon=block.epsilon, dtype=block.dtype)
    return norm.apply({"params": block.variables["params"][name]}, x)


def add_of_used(
    total: Float[Array, "n *s"],
    used: Bool[Array, "n"],
    run: Callable[..., Float[Array, "_ *s"]],
    *inputs: Float[Array, "n ..."],
) -> Float[Array, "n *s"]:
    """`total`, with `run(*inputs)` added where `used`; the others are not computed, but for `STEPS`."""
    order, count = jnp.argsort(~used), used.sum()  # those that are used come first
    capacities = sorted({int(len(used) * share + 0.999) for share in (0.0, *STEPS)})

    def of(capacity: int) -> Callable[[Array], Array]:
        def add(total: Array) -> Array:
            places, valid = order[:capacity], jnp.arange(capacity) < count
            outputs = run(*(each[places] for each in inputs))
            valid = valid.reshape(-1, *(1,) * (outputs.ndim - 1))
            return total.at[places].add(jnp.where(valid, outputs, 0), unique_indices=True)

        return add if capacity else lambda total: total

    return jax.lax.switch((count > jnp.asarray(capacities)).sum(), [of(each) for each in capacities], total)


def skipping_block(
    block: Block,
    x: Float[Array, "n m d"],
    tokens: Float[Array, "n m"],
    heads: Float[Array, "n k"],
    branches: Float[Array, "n 2"],
) -> Float[Array, "n m d"]:
    """The output of a block that computes only what is used, for all frames that use it at once."""
    dtype = x.dtype
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), block.variables["params"])
    branch = [_weights(branches[:, i : i + 1], tokens, dtype) for i in range(2)]
    x = x + branch[0] * _attend(block, params["attention"], x, tokens, heads * branches[:, :1])

    mlp, rows = params["mlp"], _norm(block, "norm2", x).reshape(-1, x.shape[2])
    channels = jnp.repeat(heads, x.shape[2] // block.heads, axis=1)
    channels = jnp.repeat(channels, x.shape[1], axis=0).astype(dtype)

    def transform(rows: Array, channels: Array) -> Array:
        hidden = block.activation((rows * channels) @ mlp["fc1"]["kernel"] + mlp["fc1"]["bias"])
        return hidden @ mlp["fc2"]["kernel"] + mlp["fc2"]["bias"]

    used = branch[1].reshape(-1) > 0
    return add_of_used(x.reshape(rows.shape), used, transform, rows, channels).reshape(x.shape)


def _attend(
    block: Block, params: dict, x: Float[Array, "n m d"], tokens: Float[Array, "n m"], heads: Float[Array, "n k"]
) -> Float[Array, "n m d"]:
    """The sum over the heads that are used, of tokens that are, and the bias."""
    size, rows = x.shape[2] // block.heads, _norm(block, "norm1", x).reshape(-1, x.shape[2])

    def add_head(total: Array, head: tuple[Array, Array]) -> tuple[Array, None]:
        start, frames = head
        used = ((frames[:, None] > 0) & (tokens > 0)).reshape(-1)

        def part(name: str, leaf: str, axis: int) -> Array:
            return jax.lax.dynamic_slice_in_dim(params[name][leaf], start, size, axis)

        def project(rows: Array) -> Array:
            names = ("query", "key", "value")
            projected = [rows @ part(name, "kernel", 1) for name in names]
            biased = zip(projected, names, strict=True)
            projected = [each + part(name, "bias", 0) if "bias" in params[name] else each for each, name in biased]
            return jnp.concatenate(projected, axis=1)

        def mix(projected: Array, tokens: Array) -> Array:
            return attend_to_used(*jnp.split(projected[..., None, :], 3, axis=-1), tokens)[..., 0, :]

        projected = add_of_used(jnp.zeros((len(rows), 3 * size), x.dtype), used, project, rows)
        projected = projected.reshape(*tokens.shape, -1)
        mixed = add_of_used(jnp.zeros((*tokens.shape, size), x.dtype), frames > 0, mix, projected, tokens)
        out = part("out", "kernel", 0)
        return add_of_used(total, used, lambda mixed: mixed @ out, mixed.reshape(-1, size)), None

    starts = jnp.arange(block.heads) * size
    total = jax.lax.scan(add_head, jnp.zeros_like(rows), (starts, heads.T))[0]
    return total.reshape(x.shape) + params["out"]["bias"]


def around(model: Callable[[], ViT], **fields: Any) -> AdaViT:
    """An AdaViT of this model."""
    return AdaViT(model(), **fields)


TINY = {"width": 48, "depth": 4, "heads": 4, "patch_size": (1, 8, 8), "num_frames": 8, "image_size": 32}
DEIT_S = Card(source="MengLcool/AdaViT", accuracy="ImageNet 77.3, 1x1 views", views="1x1")

VARIANTS = MappingProxyType(
    {
        "adavit_tiny": partial(around, partial(ViT, **TINY), temperature=1.0, bias=3.0),
        "adavit_small_16": partial(around, partial(ViT, **VIT_SIZES["small"], num_classes=1000), card=DEIT_S),
    }
)
