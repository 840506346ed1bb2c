"""TimeSformer (Bertasius, Wang and Torresani 2021, arXiv:2102.05095; facebookresearch/TimeSformer).

A ViT over all patches of a clip, whose blocks attend within groups of tokens. *Divided* attention is over time at each
spatial position, then over space in each frame. *Joint* attends to all tokens at once; *space* to each frame
separately, with tokens averaged over the frames at the end. *Local-global* and *axial* follow the description in the
paper (section 3; no code is public). Local attention covers the quadrant of the image that contains the token, in all
frames. Sparse global attention covers tokens at even distances in time, height and width, so that each side of the grid
must be even. Axial attention is over time, then along rows, then along columns. Details that the paper leaves open are
as in divided attention: attention over time excludes the class token and ends in a projection initialised to zero; the
others add the class token to each group.

Pitfalls, all as in the original: the class token is copied to every group and its outputs are averaged; drop path acts
on attention over time per spatial position and on attention over space per frame, before that projection; the class
token has a spatial but no temporal position; position tables are resized by nearest neighbour. The original orders
tokens `(h w t)` instead of `(t h w)`, which does not affect the outputs.
"""

from functools import partial
from types import MappingProxyType
from typing import Literal, NamedTuple

import einops
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from vidjax.errors import UserError
from vidjax.layers.adapters import Adapter, attention_branch, mlp_branch, require_method
from vidjax.layers.attention import Attention, Implementation
from vidjax.layers.card import Card
from vidjax.layers.convolution import pytorch_bias, pytorch_kernel
from vidjax.layers.embedding import PatchEmbedding, PositionTable
from vidjax.layers.head import linear_unless_passed
from vidjax.layers.normalization import LayerNorm
from vidjax.layers.patches import check_video, grid, on_grid, patchify
from vidjax.layers.transformer import VIT_SIZES, Block, DropPath, Encoder, Mlp, Remat

NORMAL = nn.initializers.normal(0.02)
ZEROS = nn.initializers.zeros_init()


class Grouping(NamedTuple):
    """Which tokens attend to each other: einops patterns of all tokens, of the groups and of the tokens in a group.

    Attributes:
      halves: pairs of an axis of the grid and the letter for its two halves.
      over_time: excludes the class token, and ends in a projection initialised to zero.
    """

    tokens: str
    groups: str
    members: str
    halves: tuple[tuple[str, str], ...] = ()
    over_time: bool = False


TIME = Grouping("t h w", "h w", "t", over_time=True)
SPACE = Grouping("t h w", "t", "h w")
ROWS = Grouping("t h w", "t h", "w")
COLUMNS = Grouping("t h w", "t w", "h")
QUARTERS = Grouping("t i h j w", "i j", "t h w", (("h", "i"), ("w", "j")))
EVERY_SECOND = Grouping("t k h i w j", "k i j", "t h w", (("t", "k"), ("h", "i"), ("w", "j")))

SCHEMES = MappingProxyType(
    {
        "divided": {"time": TIME, "space": SPACE},
        "local_global": {"local": QUARTERS, "global": EVERY_SECOND},
        "axial": {"time": TIME, "width": ROWS, "height": COLUMNS},
    }
)


class GroupedAttention(nn.Module):
    """Residual branch with attention within each group of tokens."""

    heads: int
    grouping: Grouping
    implementation: Implementation = "auto"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n d"], drop_path: float | Array, train: bool, grid: tuple[int, int, int]
    ) -> Float[Array, "b n d"]:
        """The output has the shape of `x`: the class token, then the patch tokens of the grid."""
        tokens, groups, members, halves, over_time = self.grouping
        sizes = dict(zip("thw", grid, strict=True)) | {letter: 2 for _, letter in halves}
        for axis, _ in halves:
            if sizes[axis] % 2:
                raise UserError(f"the grid of patches {grid} cannot be halved: local-global attention needs even sides")
            sizes[axis] //= 2
        apart, together = f"b ({tokens}) d", f"b ({groups}) ({members}) d"

        patches = einops.rearrange(x[:, 1:], f"{apart} -> {together}", **sizes)
        copies = jnp.repeat(x[:, None, :1], patches.shape[1], axis=1)
        grouped = patches if over_time else jnp.concatenate([copies, patches], axis=2)
        out = grouped.reshape(-1, *grouped.shape[2:])
        out = LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(out)
        attention = partial(Attention, implementation=self.implementation, kernel_init=NORMAL, dtype=self.dtype)
        out = attention(self.heads, name="attention")(out)
        out = DropPath(name="drop_path")(out, drop_path, train).reshape(grouped.shape)
        patches = einops.rearrange(out if over_time else out[:, :, 1:], f"{together} -> {apart}", **sizes)
        if over_time:
            projection = nn.Dense(x.shape[-1], kernel_init=ZEROS, dtype=self.dtype, name="projection")
            patches, token = projection(patches), jnp.zeros_like(x[:, :1])
        else:
            token = out[:, :, 0].mean(axis=1, keepdims=True)
        return jnp.concatenate([token.astype(patches.dtype), patches], axis=1)


class GroupedBlock(nn.Module):
    """Attention with each grouping in turn, then the MLP."""

    heads: int
    groupings: dict[str, Grouping]
    mlp_ratio: float = 4.0
    implementation: Implementation = "auto"
    adapter: Adapter | None = None
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n d"],
        drop_path: float | Array = 0.0,
        train: bool = False,
        grid: tuple[int, int, int] = (1, 1, 1),
    ) -> Float[Array, "b n d"]:
        """The output has the shape of `x`."""
        for name, grouping in self.groupings.items():
            attention = GroupedAttention(self.heads, grouping, self.implementation, self.dtype, name=name)
            attend = partial(attention, drop_path=drop_path, train=train, grid=grid)
            x = attention_branch(self.adapter, x, attend, lambda out: out, name=name)
        norm2 = LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm2")
        mlp = Mlp(int(x.shape[-1] * self.mlp_ratio), kernel_init=NORMAL, dtype=self.dtype, name="mlp")
        branch = DropPath(name="drop_path")
        return mlp_branch(self.adapter, x, norm2, mlp, lambda out: branch(out, drop_path, train))


class TimeSformer(nn.Module):
    """The TimeSformer classifier.

    Attributes:
      attention: attention scheme, see the module docstring.
      num_classes: None returns the class token.
      head: module applied to the features `b d`; None for a linear layer to the classes, if any.
      dropout: rate on the class token, before the head.
      drop_path: rate of the last block.
      num_frames, image_size: of the clips that the position tables are made for; they are resized for other sizes.
      remat, scan: see `Encoder`.
      implementation: of attention, see `attend`; "ring" is meant for joint attention.
      adapter: trained beside frozen weights, see `layers.adapters`.
    """

    width: int
    depth: int
    heads: int
    attention: Literal["divided", "joint", "space", "local_global", "axial"] = "divided"
    mlp_ratio: float = 4.0
    patch_size: tuple[int, int, int] = (1, 16, 16)
    num_classes: int | None = None
    head: nn.Module | None = None
    dropout: float = 0.0
    drop_path: float = 0.1
    channels: int = 3
    num_frames: int = 8
    image_size: int = 224
    card: Card = Card()
    remat: Remat = "none"
    scan: bool = False
    implementation: Implementation = "auto"
    adapter: Adapter | None = None
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        frames, *image = grid((self.num_frames, self.image_size, self.image_size), self.patch_size)
        bias_init = pytorch_bias(self.channels * int(np.prod(self.patch_size)))
        self.patch_embedding = PatchEmbedding(self.width, self.patch_size, pytorch_kernel, bias_init, self.dtype)
        self.class_token = self.param("class_token", NORMAL, (1, 1, self.width))
        self.class_position = self.param("class_position", NORMAL, (1, 1, self.width))
        self.position = PositionTable(tuple(image), self.width, "nearest")
        if self.attention in SCHEMES:
            block = partial(GroupedBlock, self.heads, SCHEMES[self.attention])
        elif self.attention in ("joint", "space"):
            block = partial(Block, self.heads, kernel_init=NORMAL)
        else:
            raise UserError(f"attention is '{self.attention}': choose joint, space, {', '.join(SCHEMES)}")
        if self.attention != "space":
            self.time = PositionTable((frames,), self.width, "nearest", ZEROS)
        prompts = [] if self.attention in SCHEMES else ["prompt"]
        require_method(self.adapter, self, "adapter", "adaptformer", *prompts)
        block = partial(
            block, mlp_ratio=self.mlp_ratio, implementation=self.implementation, adapter=self.adapter, dtype=self.dtype
        )
        self.transformer = Encoder(block, self.depth, self.drop_path, self.remat, self.scan, adapter=self.adapter)
        self.norm = LayerNorm(epsilon=1e-6, dtype=self.dtype)
        self.head_dropout = nn.Dropout(self.dropout)
        self.classifier = linear_unless_passed(self.head, self.num_classes, kernel_init=NORMAL, dtype=self.dtype)

    def tokens(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b n d"]:
        """Normalised tokens, class token first; space-only attention averages them over the frames."""
        check_video(video, self.channels)
        t, h, w = grid(video.shape[1:4], self.patch_size)
        x = self.patch_embedding(patchify(video, self.patch_size, self.dtype))
        x = einops.rearrange(x, "b (t h w) d -> b t h w d", t=t, h=h) + self.position((h, w)).astype(x.dtype)
        token = (self.class_token + self.class_position).astype(x.dtype)
        if self.attention == "space":
            x = einops.rearrange(x, "b t h w d -> (b t) (h w) d")
            x = self.transformer(jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], axis=1), train)
            x = einops.reduce(x, "(b t) n d -> b n d", "mean", t=t)
        else:
            x = (x + self.time((t,))[:, None, None].astype(x.dtype)).reshape(len(x), -1, self.width)
            x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], axis=1)
            context = {"grid": (t, h, w)} if self.attention in SCHEMES else {}
            x = self.transformer(x, train, **context)
        return self.norm(x)

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """Normalised patch tokens on their grid; space-only attention averages them over time: `b 1 h w d`."""
        t, h, w = grid(video.shape[1:4], self.patch_size)
        return on_grid(self.tokens(video, train)[:, 1:], (1 if self.attention == "space" else t, h, w))

    def embed(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b d"]:
        """Input of the head: the class token."""
        return self.tokens(video, train)[:, 0]

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> PyTree[Float[Array, "b ..."]]:
        """Output of the head, by default logits `b classes`; without a head, the output of `embed`."""
        features = self.embed(video, train)
        if self.classifier is None:
            return features
        return self.classifier(self.head_dropout(features, deterministic=not train))


def kinetics(stride: int, accuracy: float | None = None) -> Card:
    """The card of a model trained on Kinetics-400."""
    reached = f"K400 {accuracy}, 1x3 views" if accuracy else ""
    tested = {"rate": 30.0, "protocol": "slowfast", "views": "1x3"}
    return Card((0.45,) * 3, (0.225,) * 3, stride, source="facebookresearch/TimeSformer", accuracy=reached, **tested)


TINY = {
    "width": 96, "depth": 4, "heads": 6, "patch_size": (1, 8, 8), "drop_path": 0.0,
    "num_frames": 8, "image_size": 32, "card": kinetics(4),
}  # fmt: skip
BASE = {**VIT_SIZES["base"], "num_classes": 400}

VARIANTS = MappingProxyType(
    {
        "timesformer_tiny_divided": partial(TimeSformer, **TINY),
        "timesformer_tiny_joint": partial(TimeSformer, **TINY, attention="joint"),
        "timesformer_tiny_space": partial(TimeSformer, **TINY, attention="space"),
        "timesformer_tiny_local_global": partial(TimeSformer, **TINY, attention="local_global"),
        "timesformer_tiny_axial": partial(TimeSformer, **TINY, attention="axial"),
        "timesformer_base_divided": partial(TimeSformer, **BASE, card=kinetics(32, 77.9)),
        "timesformer_base_joint": partial(TimeSformer, **BASE, attention="joint", card=kinetics(32)),
        "timesformer_base_space": partial(TimeSformer, **BASE, attention="space", card=kinetics(32)),
        "timesformer_base_local_global": partial(TimeSformer, **BASE, attention="local_global", card=kinetics(32)),
        "timesformer_base_axial": partial(TimeSformer, **BASE, attention="axial", card=kinetics(32)),
        "timesformer_hr_divided": partial(TimeSformer, **BASE, num_frames=16, image_size=448, card=kinetics(16, 79.6)),
        "timesformer_large_divided": partial(TimeSformer, **BASE, num_frames=96, card=kinetics(4, 80.6)),
    }
)
