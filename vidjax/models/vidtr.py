"""VidTr (Zhang et al. 2021, arXiv:2104.11746; amazon-science/gluonmm, by the authors).

A ViT over all patches of a clip with separable attention: attention over time at each place, whose outputs are the
values of attention over the places of each frame, with the same queries and keys. The tokens are a table of frames and
places with one more row and one more column: a token for each place, a token for each frame, and in the corner the
class token. The compact form has one class token; some of its blocks drop the frames whose attention over time is
nearest to uniform, separately for each head and place, and the blocks after the last of these attend to all tokens.

What is from the code, as the paper leaves it open or differs: positions are added after the first norm of the first
block (of every block in VidTr-M) and so are not in the residual stream; the MLP has a ReLU; where frames are dropped,
the softmax is applied a second time to the attention weights that are left; in blocks with separable attention the
compact form's class token adds its own norm instead of attending. GFLOPs in the paper and the code's table (89, 179 and
351) leave out attention and its projections; ours do not. The code's dropout of 0.1 inside blocks is not used here.
"""

from functools import partial
from types import MappingProxyType

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PyTree

from vidjax.errors import UserError
from vidjax.layers import transformer
from vidjax.layers.attention import DotProduct, attention_weights
from vidjax.layers.card import Card
from vidjax.layers.embedding import PatchEmbedding
from vidjax.layers.head import linear_unless_passed
from vidjax.layers.normalization import LayerNorm
from vidjax.layers.patches import check_video, grid, patchify
from vidjax.layers.transformer import VIT_SIZES, DropPath, Mlp, Remat, equal_runs, run_equal

NORMAL = nn.initializers.normal(0.02)


def most_varied(weights: Float[Array, "*b t n"], count: int) -> Int[Array, "*b count"]:
    """The rows of attention weights with the largest standard deviations, in the order of time."""
    return jnp.sort(jax.lax.top_k(weights.std(axis=-1), count)[1])


def select_frames(x: Float[Array, "b n t k d"], kept: Int[Array, "b n k s"]) -> Float[Array, "b n s k d"]:
    """These frames of each place `n` and head `k`."""
    return jnp.take_along_axis(x, einops.rearrange(kept, "b n k s -> b n s k 1"), axis=2)


class FrameSelection(nn.Module):
    """Attention over time of the frames that are kept: those whose weights vary most, by place and head.

    If the collection "intermediates" is mutable, the weights (`b n k s t`) and which frames are kept are sown there.

    Attributes:
      dropped: number of frames that the output lacks.
    """

    dropped: int

    @nn.compact
    def __call__(
        self, query: Float[Array, "b n t k d"], key: Float[Array, "b n t k d"], value: Float[Array, "b n t k d"]
    ) -> tuple[Float[Array, "b n s k d"], Int[Array, "b n k s"]]:
        """The attended values, and the numbers of their frames."""
        weights = attention_weights(query, key)  # b n k t s
        kept = most_varied(weights, query.shape[2] - self.dropped)
        rows = jax.nn.softmax(jnp.take_along_axis(weights, kept[..., None], axis=-2))
        self.sow("intermediates", "weights", rows)
        self.sow("intermediates", "kept", kept)
        return jnp.einsum("bnkts,bnskd->bntkd", rows.astype(value.dtype), value), kept


class SeparableAttention(nn.Module):
    """Attention over time, then over space.

    Attributes:
      dropped: number of frames that the output lacks.
    """

    heads: int
    dropped: int = 0
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t n d"]) -> tuple[Float[Array, "b _ n d"], Int[Array, "b n k _"] | None]:
        """The attended tokens, and which frames they are of if some are dropped."""
        dense = partial(nn.Dense, x.shape[-1], kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype)
        query, key, value = (
            einops.rearrange(dense(name=name)(x), "b t n (k d) -> b n t k d", k=self.heads)
            for name in ("query", "key", "value")
        )
        kept = None
        if self.dropped:
            value, kept = FrameSelection(self.dropped, name="over_time")(query, key, value)
            query, key = select_frames(query, kept), select_frames(key, kept)
        else:
            value = DotProduct(name="over_time")(query, key, value)
        frames = (einops.rearrange(x, "b n t k d -> b t n k d") for x in (query, key, value))
        out = DotProduct(name="over_space")(*frames)
        return dense(name="out")(einops.rearrange(out, "b t n k d -> b t n (k d)")), kept


class Block(nn.Module):
    """Pre-norm block with separable attention over a table of `frames` rows.

    Attributes:
      positioned: whether `position` is added to what attends.
      class_token: whether the first token is not in the table and does not attend.
      dropped: number of rows that the output lacks.
    """

    heads: int
    frames: int
    positioned: bool = False
    class_token: bool = False
    dropped: int = 0
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b m d"],
        drop_path: float | Array = 0.0,
        train: bool = False,
        *,
        position: Float[Array, "p d"],
    ) -> Float[Array, "b _ d"]:
        """The tokens after the block."""
        norm = partial(LayerNorm, epsilon=1e-5, dtype=self.dtype)
        apart, branch = int(self.class_token), DropPath(name="drop_path")
        y = norm(name="norm1")(x)
        y = y + position.astype(y.dtype) if self.positioned else y
        attention = SeparableAttention(self.heads, self.dropped, self.dtype, name="attention")
        out, kept = attention(einops.rearrange(y[:, apart:], "b (t n) d -> b t n d", t=self.frames))
        if kept is not None:
            sizes = {"t": self.frames, "k": self.heads}
            table = einops.rearrange(x[:, apart:], "b (t n) (k d) -> b n t k d", **sizes)
            table = einops.rearrange(select_frames(table, kept), "b n t k d -> b (t n) (k d)")
            x = jnp.concatenate([x[:, :apart], table], axis=1)
        out = jnp.concatenate([y[:, :apart], out.reshape(len(x), -1, x.shape[-1])], axis=1)
        x, mlp = x + branch(out, drop_path, train), Mlp(4 * x.shape[-1], nn.relu, dtype=self.dtype, name="mlp")
        return x + branch(mlp(norm(name="norm2")(x)), drop_path, train)


class VidTr(nn.Module):
    """The VidTr classifier.

    Attributes:
      positions_in_every_block: as in VidTr-M, instead of in the first block alone.
      drops: empty, or in the compact form the number of frames that each of the first blocks drops; the blocks after
        these attend to all tokens.
      num_classes: None returns the class token.
      head: module applied to the features `b d`; None for a linear layer to the classes, if any.
      dropout: rate on the class token, before the head.
      drop_path: rate of the last block; the rates increase linearly over the blocks. The original has none.
      num_frames, image_size: of the clips; the model takes no others.
      remat, scan: see `layers.transformer.Encoder`; neighbouring blocks that are equal are scanned.
    """

    width: int = 768
    depth: int = 12
    heads: int = 12
    positions_in_every_block: bool = False
    drops: tuple[int, ...] = ()
    patch_size: tuple[int, int, int] = (1, 16, 16)
    num_classes: int | None = None
    head: nn.Module | None = None
    dropout: float = 0.5
    drop_path: float = 0.0
    channels: int = 3
    num_frames: int = 8
    image_size: int = 224
    card: Card = Card()
    remat: Remat = "none"
    scan: bool = False
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        if self.width % self.heads:
            raise UserError(f"width {self.width} cannot be split into {self.heads} heads: use a divisor of the width")
        t, h, w = grid((self.num_frames, self.image_size, self.image_size), self.patch_size)
        if t <= sum(self.drops) or self.depth < len(self.drops):
            raise UserError(
                f"drops is {self.drops}: a clip of {t} frames and {self.depth} blocks must keep a frame, use more "
                "frames or smaller drops"
            )
        self.patch_embedding = PatchEmbedding(self.width, self.patch_size, dtype=self.dtype)
        positioned = [i == 0 or self.positions_in_every_block for i in range(self.depth)]
        block = partial(Block, self.heads, dtype=self.dtype)
        if self.drops:
            self.class_token = self.param("class_token", NORMAL, (1, self.width))
            self.position = self.param("position", NORMAL, (1 + t * h * w, self.width))
            blocks, frames = [], t
            for added, dropped in zip(positioned, self.drops, strict=False):
                blocks.append(block(frames, added, class_token=True, dropped=dropped))
                frames -= dropped
            joint = partial(transformer.Block, self.heads, epsilon=1e-5, activation=nn.relu, dtype=self.dtype)
            self.block = [*blocks, *(joint() for _ in range(self.depth - len(blocks)))]
        else:
            self.place_token = self.param("place_token", NORMAL, (1 + h * w, self.width))
            self.frame_token = self.param("frame_token", NORMAL, (t, self.width))
            self.position = self.param("position", NORMAL, ((1 + t) * (1 + h * w), self.width))
            self.block = [block(1 + t, added) for added in positioned]
        self.norm = LayerNorm(epsilon=1e-5, dtype=self.dtype)
        self.head_dropout = nn.Dropout(self.dropout)
        self.classifier = linear_unless_passed(self.head, self.num_classes, dtype=self.dtype)

    def tokens(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b m d"]:
        """Normalised tokens, the class token first; of the table, or of the class and the patches that are left."""
        check_video(video, self.channels)
        frames = grid(video.shape[1:4], self.patch_size)[0]
        if video.shape[1:4] != (self.num_frames, self.image_size, self.image_size):
            raise UserError(
                f"the video has {video.shape[1]} frames of {video.shape[2]}x{video.shape[3]} pixels: the model takes "
                f"{self.num_frames} of {self.image_size}x{self.image_size}, its fields num_frames and image_size"
            )
        x = self.patch_embedding(patchify(video, self.patch_size, self.dtype))

        def repeat(token: Float[Array, "..."]) -> Float[Array, "b ..."]:
            return jnp.broadcast_to(token.astype(x.dtype), (len(x), *token.shape))

        if self.drops:
            x = jnp.concatenate([repeat(self.class_token), x], axis=1)
        else:
            table = einops.rearrange(x, "b (t n) d -> b t n d", t=frames)
            table = jnp.concatenate([repeat(self.frame_token[:, None]), table], axis=2)
            table = jnp.concatenate([repeat(self.place_token[None]), table], axis=1)
            x = table.reshape(len(x), -1, self.width)
        rates = np.linspace(0.0, self.drop_path, self.depth)
        for run in equal_runs(self, self.block):
            context = {"position": self.position} if isinstance(self.block[run[0]], Block) else {}
            x = run_equal(self, self.block, run, x, rates, train, self.remat, **context)
        return self.norm(x)

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """Normalised patch tokens on their grid; in the compact form of the frames that are left, in their order."""
        _, h, w = grid(video.shape[1:4], self.patch_size)
        x = self.tokens(video, train)
        if self.drops:
            return einops.rearrange(x[:, 1:], "b (t h w) d -> b t h w d", h=h, w=w)
        table = einops.rearrange(x, "b (t n) d -> b t n d", n=1 + h * w)
        return einops.rearrange(table[:, 1:, 1:], "b t (h w) d -> b t h w d", h=h)

    def embed(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b d"]:
        """Input of the head: the class token."""
        return self.tokens(video, train)[:, 0]

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> PyTree[Float[Array, "b ..."]]:
        """Output of the head, by default logits `b classes`; without a head, the output of `embed`."""
        features = self.embed(video, train)
        if self.classifier is None:
            return features
        return self.classifier(self.head_dropout(features, deterministic=not train))


def kinetics(stride: int, accuracy: float) -> Card:
    """The card of a model with published Kinetics-400 weights."""
    return Card(stride=stride, source="amazon-science/gluonmm", accuracy=f"K400 {accuracy}, 10x3 views")


TINY = {
    "width": 32, "depth": 3, "heads": 2, "patch_size": (1, 8, 8), "dropout": 0.0, "num_frames": 8, "image_size": 32,
    "card": Card(source="amazon-science/gluonmm"),
}  # fmt: skip
BASE = {**VIT_SIZES["base"], "num_classes": 400}

VARIANTS = MappingProxyType(
    {
        "vidtr_tiny": partial(VidTr, **TINY),
        "vidtr_tiny_compact": partial(VidTr, **TINY, drops=(0, 4)),
        "vidtr_s": partial(VidTr, **BASE, card=kinetics(8, 77.7)),
        "vidtr_m": partial(VidTr, **BASE, num_frames=16, positions_in_every_block=True, card=kinetics(4, 78.6)),
        "vidtr_l": partial(VidTr, **BASE, num_frames=32, card=kinetics(2, 79.1)),
        "vidtr_s_compact": partial(VidTr, **BASE, drops=(0, 2, 0, 2, 0, 2), card=kinetics(8, 75.7)),
        "vidtr_m_compact": partial(VidTr, **BASE, drops=(0, 8, 4, 0, 2), num_frames=16, card=kinetics(4, 76.7)),
    }
)
