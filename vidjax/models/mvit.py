"""MViT (Fan et al. 2021, arXiv:2104.11227) and MViTv2 (Li et al. 2022, arXiv:2112.01526); facebookresearch/SlowFast.

A transformer over all tokens of the clip whose grid shrinks and whose width grows: at the start of each scale but the
first, queries are pooled to half the height and width, and the width and the number of heads double. Keys and values
are pooled more, to the same grid at all scales. Pooling is a depthwise convolution, shared by the heads.

MViTv1 has separable absolute positions, and pools queries only where the grid shrinks. MViTv2 has relative positions,
decomposed into time, height and width, whose terms are added to the scores; it pools queries in every block, and adds
the pooled queries to the output of the attention.

Pitfalls, all as in the original: the class token is not pooled, but is normalised together with the pooled tokens, over
the width of a head. It has no relative positions, neither as a query nor as a key, and no residual query. The relative
terms use queries that are not scaled. Where the width changes, the shortcut is a linear map of the normalised input,
not of the input. In MViTv1 the width doubles in the MLP of the last block of a scale, in MViTv2 in the attention of the
first block of the next. Tables of relative positions have the size of a grid that is rounded down, but pooling rounds
up: at 312 pixels (MViTv2-L), tables of published models are interpolated. SlowFast's MViTv1-B 32x3 has 24 blocks and
kernels of one frame, PyTorchVideo's has 16 blocks and the kernels of 16x4. All biases of linear layers and layer norms
start at 0.02.
"""

from dataclasses import replace
from functools import partial
from types import MappingProxyType

import einops
import flax.linen as nn
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from vidjax.errors import UserError
from vidjax.layers.activations import exact_gelu
from vidjax.layers.attention import DotProduct, GridDotProduct
from vidjax.layers.card import IMAGENET_MEAN, IMAGENET_STD, Card
from vidjax.layers.convolution import Conv3D, DepthwiseConv3D, MaxPool
from vidjax.layers.embedding import PositionTable, resize_table
from vidjax.layers.head import linear_unless_passed
from vidjax.layers.normalization import LayerNorm
from vidjax.layers.patches import check_video, on_grid
from vidjax.layers.transformer import DropPath, Remat, equal_runs, run_equal

CARD = Card((0.45,) * 3, (0.225,) * 3, stride=4, source="facebookresearch/SlowFast")

Grid = tuple[int, int, int]

NORMAL = nn.initializers.normal(0.02)
LINEAR = {"kernel_init": NORMAL, "bias_init": nn.initializers.constant(0.02)}


def pooled(grid: Grid, stride: int) -> Grid:
    """The grid after pooling with this stride in height and width."""
    t, h, w = grid
    return t, -(-h // stride), -(-w // stride)


def distances(queries: int, keys: int) -> np.ndarray:
    """Row of the table of relative positions for each query and key along one axis; `2 * max(queries, keys) - 1` rows.

    Distances are counted in steps of the finer of the two grids and rounded down. They are computed in float32 and in
    the order of the original: at 312 pixels another rounding selects other rows.
    """
    query_step, key_step = np.float32(max(keys / queries, 1.0)), np.float32(max(queries / keys, 1.0))
    places = np.arange(queries, dtype=np.float32)[:, None] * query_step - np.arange(keys, dtype=np.float32) * key_step
    return (places + np.float32((keys - 1) * max(queries / keys, 1.0))).astype(np.int32)


class PoolingAttention(nn.Module):
    """Attention of pooled queries to pooled keys and values.

    Attributes:
      width: of the output.
      head_width: features of one head.
      stride, key_stride: of the pooling of queries, and of keys and values, in height and width.
      kernel: side of the pooling kernels, in time, height and width; None for `stride + 1` in height and width only,
        and no pooling if the stride is 1.
      tables: rows of the tables of relative positions in time, height and width; None for MViTv1.
    """

    width: int
    head_width: int
    stride: int
    key_stride: int
    kernel: int | None = 3
    tables: Grid | None = None
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"], grid: Grid) -> Float[Array, "b m d"]:
        """Tokens on the grid pooled by `stride`, after the class token."""
        query_grid, key_grid = pooled(grid, self.stride), pooled(grid, self.key_stride)
        pool_keys = self.key_stride > 1 or self.kernel is not None
        pool_query = self.stride > 1 or (self.kernel is not None and self.tables is not None)
        query = self._project(x, grid, "query", self.stride, pool_query)
        key, value = (self._project(x, grid, name, self.key_stride, pool_keys) for name in ("key", "value"))
        if self.tables is None:
            attended = DotProduct(name="dot_product")(query, key, value)
        else:
            terms = self._relative_terms(query, query_grid, key_grid)
            attended = GridDotProduct(name="dot_product")(query, key, value, terms)
            attended += jnp.pad(query[:, 1:], ((0, 0), (1, 0), (0, 0), (0, 0)))
        dense = nn.Dense(self.width, **LINEAR, dtype=self.dtype, name="out")
        return dense(einops.rearrange(attended, "b n k d -> b n (k d)"))

    def _project(self, x: Array, grid: Grid, name: str, stride: int, pool: bool) -> Float[Array, "b m k d"]:
        """Queries, keys or values."""
        dense = nn.Dense(self.width, **LINEAR, dtype=self.dtype, name=name)
        tokens = einops.rearrange(dense(x), "b n (k d) -> b n k d", d=self.head_width)
        if not pool:
            return tokens
        kernel = (1, stride + 1, stride + 1) if self.kernel is None else (self.kernel,) * 3
        if any(side % 2 == 0 for side in kernel):
            raise UserError(f"a pooling kernel of {kernel} cells has no centre: set kernel to an odd number, such as 3")
        convolution = DepthwiseConv3D(
            kernel,
            strides=(1, stride, stride),
            use_bias=False,
            kernel_init=NORMAL,
            dtype=self.dtype,
            name=f"pool_{name}",
        )
        maps = einops.rearrange(tokens[:, 1:], "b (t h w) k d -> (b k) t h w d", t=grid[0], h=grid[1])
        maps = einops.rearrange(convolution(maps), "(b k) t h w d -> b (t h w) k d", b=len(x))
        norm = LayerNorm(bias_init=LINEAR["bias_init"], dtype=self.dtype, name=f"norm_{name}")
        return norm(jnp.concatenate([tokens[:, :1], maps], axis=1))

    def _relative_terms(
        self, query: Float[Array, "b n k d"], query_grid: Grid, key_grid: Grid
    ) -> tuple[Float[Array, "b n k _"], ...]:
        """For each query, the terms of keys by their place in time, height and width; zero for the class token."""
        places, terms = on_grid(query[:, 1:].reshape(len(query), -1, self.width), query_grid), []
        places = einops.rearrange(places, "b t h w (k d) -> b t h w k d", d=self.head_width)
        for axis, name in enumerate(("time", "height", "width")):
            queries, keys = query_grid[axis], key_grid[axis]
            table = self.param(f"relative_{name}", NORMAL, (self.tables[axis], self.head_width))
            table = resize_table(table, (2 * max(queries, keys) - 1,), "half_pixel_linear")
            of_pairs = table[distances(queries, keys)].astype(query.dtype)
            term = jnp.einsum(f"bthwkd,{'thw'[axis]}sd->bthwks", places, of_pairs)
            term = term.reshape(len(query), -1, *term.shape[-2:])
            terms.append(jnp.pad(term, ((0, 0), (1, 0), (0, 0), (0, 0))))
        return tuple(terms)


class Block(nn.Module):
    """Pooling attention, then the MLP, each on a residual branch with drop path.

    Attributes:
      width: of the output.
      expand_in_attention: whether a new width comes with the attention (MViTv2) or with the MLP (MViTv1).
      head_width, stride, key_stride, kernel, tables: see `PoolingAttention`.
    """

    width: int
    head_width: int
    stride: int
    key_stride: int
    kernel: int | None = 3
    tables: Grid | None = None
    expand_in_attention: bool = True
    mlp_ratio: float = 4.0
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], drop_path: float | Array = 0.0, train: bool = False, *, grid: Grid
    ) -> Float[Array, "b m d"]:
        """Tokens on the grid pooled by `stride`, after the class token."""
        dense = partial(nn.Dense, **LINEAR, dtype=self.dtype)
        norm = partial(LayerNorm, bias_init=LINEAR["bias_init"], dtype=self.dtype)
        branch = DropPath(name="drop_path")
        expanded = self.width if self.expand_in_attention else x.shape[-1]
        attention = PoolingAttention(
            expanded, self.head_width, self.stride, self.key_stride, self.kernel, self.tables, self.dtype,
            name="attention",
        )  # fmt: skip
        y = norm(name="norm1")(x)
        if x.shape[-1] != expanded:
            x = dense(expanded, name="shortcut")(y)
        if self.stride > 1:
            side, pad = self.stride + 1, (self.stride + 1) // 2
            pool = MaxPool((1, side, side), (1, self.stride, self.stride), (0, pad, pad), name="shortcut_pool")
            maps = pool(on_grid(x[:, 1:], grid))
            x = jnp.concatenate([x[:, :1], maps.reshape(len(x), -1, x.shape[-1])], axis=1)
        x = x + branch(attention(y, grid), drop_path, train)
        y = norm(name="norm2")(x)
        hidden = exact_gelu(dense(int(self.mlp_ratio * expanded), name="fc1")(y))
        if self.width != expanded:
            x = dense(self.width, name="shortcut")(y)
        return x + branch(dense(self.width, name="fc2")(hidden), drop_path, train)


class MViT(nn.Module):
    """The MViT classifier.

    Attributes:
      depths: blocks of each scale.
      width, heads: of the first scale; both double from scale to scale.
      relative: MViTv2's relative positions, pooling of queries in every block, and residual queries; False for
        MViTv1's absolute positions.
      expand_in_attention: whether the width doubles in the attention of the first block of a scale (MViTv2) or in the
        MLP of the last block of the scale before (MViTv1, MaskFeat).
      key_stride: of the pooling of keys and values in the first scale, in height and width; halved from scale to scale.
      kernel: side of the pooling kernels, see `PoolingAttention`.
      num_classes: None returns the class token.
      head: module applied to the features `b d`; None for a linear layer to the classes, if any.
      dropout: rate on the class token, before the head.
      drop_path: rate of the last block; the rates increase linearly over the blocks of all scales.
      num_frames, image_size: of the clips that the position tables are meant for; for other clips they are
        interpolated.
      remat, scan: see `layers.transformer.Encoder`; neighbouring blocks that are equal are scanned.
    """

    depths: tuple[int, ...] = (1, 2, 11, 2)
    width: int = 96
    heads: int = 1
    relative: bool = True
    expand_in_attention: bool = True
    key_stride: int = 8
    kernel: int | None = 3
    mlp_ratio: float = 4.0
    num_classes: int | None = None
    head: nn.Module | None = None
    dropout: float = 0.5
    drop_path: float = 0.2
    channels: int = 3
    num_frames: int = 16
    image_size: int = 224
    card: Card = Card()
    remat: Remat = "none"
    scan: bool = False
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        if self.width % self.heads:
            raise UserError(f"width {self.width} cannot be split into {self.heads} heads: use a divisor of the width")
        self.patch_embedding = Conv3D(
            self.width, (3, 7, 7), (2, 4, 4), use_bias=True, kernel_init=NORMAL, dtype=self.dtype
        )
        self.class_token = self.param("class_token", NORMAL, (1, 1, self.width))
        frames, side = -(-self.num_frames // 2), -(-self.image_size // 4)
        if side < 2 ** (len(self.depths) - 1):
            raise UserError(
                f"image_size {self.image_size} is too small for {len(self.depths)} scales, each half of the one "
                f"before: use at least {4 * 2 ** (len(self.depths) - 1)}"
            )
        if not self.relative:
            self.class_position = self.param("class_position", NORMAL, (1, 1, self.width))
            self.temporal_position = PositionTable((frames,), self.width, "half_pixel_linear", NORMAL)
            self.spatial_position = PositionTable((side, side), self.width, "half_pixel_cubic", NORMAL)
        blocks = []
        for scale, depth in enumerate(self.depths):
            key_stride = max(self.key_stride // 2**scale, 1)
            for i in range(depth):
                stride = 2 if scale > 0 and i == 0 else 1
                early = not self.expand_in_attention and i == depth - 1 and scale < len(self.depths) - 1
                rows = 2 * max(side // stride, side // key_stride) - 1
                blocks.append(
                    Block(
                        self.width * 2 ** (scale + early), self.width // self.heads, stride, key_stride, self.kernel,
                        (2 * frames - 1, rows, rows) if self.relative else None, self.expand_in_attention,
                        self.mlp_ratio, self.dtype,
                    )
                )  # fmt: skip
                side //= stride
        self.block = blocks
        self.norm = LayerNorm(bias_init=LINEAR["bias_init"], dtype=self.dtype)
        self.head_dropout = nn.Dropout(self.dropout)
        self.classifier = linear_unless_passed(self.head, self.num_classes, **LINEAR, dtype=self.dtype)

    def _scales(self, video: Array, train: bool) -> list[tuple[Float[Array, "b n _"], Grid]]:
        """Tokens, class token first, and their grid at the end of each scale."""
        check_video(video, self.channels)
        x = self.patch_embedding(video)
        grid, token = x.shape[1:4], self.class_token
        if not self.relative:
            positions = self.temporal_position(grid[:1])[:, None, None] + self.spatial_position(grid[1:])
            x, token = x + positions.astype(x.dtype), token + self.class_position
        x = x.reshape(len(x), -1, self.width)
        x = jnp.concatenate([jnp.tile(token.astype(x.dtype), (len(x), 1, 1)), x], axis=1)
        scales, ends = [], np.cumsum(self.depths) - 1
        rates = np.linspace(0.0, self.drop_path, len(self.block))
        widths = [self.width, *(block.width for block in self.block[:-1])]
        for run in equal_runs(self, self.block, widths):
            x = run_equal(self, self.block, run, x, rates, train, self.remat, grid=grid)
            grid = pooled(grid, self.block[run[1]].stride)
            if run[1] in ends:
                scales.append((x, grid))
        return scales

    def stages(self, video: Float[Array, "b t h w c"], train: bool = False) -> tuple[Float[Array, "b _ _ _ _"], ...]:
        """Tokens on their grid at the end of each scale: 1/2 of the frames, 1/4 to 1/32 of the sides, rounded up.

        The last is normalised. In MViTv1 the others have the width of the next scale.
        """
        *others, (x, grid) = self._scales(video, train)
        return *(on_grid(tokens[:, 1:], grid) for tokens, grid in others), on_grid(self.norm(x[:, 1:]), grid)

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """The last of the `stages`: normalised tokens on the grid, without the class token."""
        return self.stages(video, train)[-1]

    def embed(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b d"]:
        """Input of the head: the normalised class token."""
        return self.norm(self._scales(video, train)[-1][0][:, 0])

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> PyTree[Float[Array, "b ..."]]:
        """Output of the head, by default logits `b classes`; without a head, the output of `embed`."""
        features = self.embed(video, train)
        if self.classifier is None:
            return features
        return self.classifier(self.head_dropout(features, deterministic=not train))


def kinetics(stride: int, accuracy: float, views: str = "5x1", **fields) -> Card:
    """The card of a model with published Kinetics-400 weights."""
    tested = {"crop_ratio": 224 / 256, "rate": 30.0, "protocol": "slowfast_offset", "views": views}
    fields = tested | {"accuracy": f"K400 {accuracy}, {views} views"} | fields
    return replace(CARD, stride=stride, **fields)


V1 = {"relative": False, "expand_in_attention": False}
TINY = {
    "depths": (1, 1, 1, 2), "width": 16, "key_stride": 4, "dropout": 0.0, "drop_path": 0.0, "num_frames": 8,
    "image_size": 64, "card": CARD,
}  # fmt: skip
BASE_24 = {"depths": (2, 3, 16, 3), "drop_path": 0.3, "num_frames": 32, "num_classes": 400}

VARIANTS = MappingProxyType(
    {
        "mvit_tiny": partial(MViT, **TINY, **V1),
        "mvit_tiny_32x3": partial(MViT, **TINY, **V1, kernel=None),
        "mvitv2_tiny": partial(MViT, **TINY),
        "mvitv2_tiny_maskfeat": partial(MViT, **TINY, expand_in_attention=False),
        "mvit_base_16x4": partial(MViT, **V1, num_classes=400, card=kinetics(4, 78.4)),
        "mvit_base_32x3": partial(MViT, **BASE_24, **V1, kernel=None, card=kinetics(3, 80.4)),
        "mvit_base_32x3_pytorchvideo": partial(MViT, **V1, num_frames=32, num_classes=400, card=kinetics(3, 80.3)),
        "mvitv2_small_16x4": partial(MViT, num_classes=400, card=kinetics(4, 81.0)),
        "mvitv2_small_16x4_maskfeat": partial(
            MViT, expand_in_attention=False, drop_path=0.1, dropout=0.0, num_classes=400,
            card=kinetics(4, 81.8, "10x1", source="open-mmlab/mmaction2", rate=None, protocol="mmaction2"),
        ),
        "mvitv2_base_32x3": partial(MViT, **BASE_24, card=kinetics(3, 82.9)),
        "mvitv2_large_40x3": partial(
            MViT, depths=(2, 6, 36, 4), width=144, heads=2, drop_path=0.75, num_frames=40, image_size=312,
            num_classes=400,
            card=kinetics(3, 86.1, "5x3", mean=IMAGENET_MEAN, std=IMAGENET_STD, crop_ratio=1.0),
        ),
    }
)  # fmt: skip
