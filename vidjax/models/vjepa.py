"""V-JEPA 2 (Assran et al. 2025, arXiv:2506.09985; facebookresearch/vjepa2).

A ViT over tubelets of 2x16x16 pixels with rotary positions. In pre-training, the encoder sees some of the tokens, and a
narrow predictor predicts, from these and from mask tokens, what a moving average of the encoder makes of the others
(`objectives.latent`). The classifier is a probe on the frozen encoder: three blocks, then a query that attends to all
tokens.

Pitfalls, all as in the original: a third of each head's channels is rotated by time, a third by row and a third by
column, each rounded down to an even number, and the rest are not; the frequencies of a third are `[f, f]` although
channels `2i` and `2i + 1` are a pair, so that it is not a rotation, but the weights were trained with it; ViT-g has 22
heads, but its probes have 16. The mask token is chosen by the length of the clip (`mask_index`): 0 in training with
clips of one length, always 1 in transformers. The predictor there sorts its tokens, which changes nothing. The layer
norms of the original's probes have epsilon 1e-5, those of transformers 1e-6.
"""

from functools import partial
from math import prod
from types import MappingProxyType

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int, PyTree

from vidjax.layers.attention import DotProduct, Implementation
from vidjax.layers.card import Card
from vidjax.layers.embedding import PatchEmbedding
from vidjax.layers.head import linear_unless_passed
from vidjax.layers.normalization import LayerNorm
from vidjax.layers.patches import check_video, grid, on_grid, patchify
from vidjax.layers.rotary import thirds
from vidjax.layers.transformer import VIT_SIZES, Block, Encoder, Mlp, Remat

CARD = Card(rate=4.0, crop_ratio=0.875, source="facebookresearch/vjepa2")  # four frames per second
NORMAL = nn.initializers.normal(0.02)


def initial(std: float | None, factor: float = 1.0) -> nn.initializers.Initializer:
    """Normal with this std times the factor; None is the root of one over the inputs, as 0.02 is too small for few."""
    scaled = nn.initializers.variance_scaling(factor**2, "fan_in", "normal")
    return scaled if std is None else nn.initializers.normal(std * factor)


def rescaled_block(*fields, name: str | None = None, init_std: float | None = 0.02, **linen) -> Block:
    """A block whose branches start smaller the later it comes, by the root of twice its number, as in the original.

    Args:
      name: ends in the number of the block; a block without a name, in `Encoder.scan`, initialises no parameters.
    """
    number = 1 if name is None else 1 + int(name.rpartition("_")[2])
    inits = {"kernel_init": initial(init_std), "out_init": initial(init_std, (2 * number) ** -0.5)}
    return Block(*fields, **inits, name=name, **linen)


class AttentivePooler(nn.Module):
    """Blocks over all tokens, then the attention of one learned query to them.

    Attributes:
      depth: number of blocks.
      epsilon: of all layer norms.
    """

    heads: int
    depth: int
    epsilon: float
    remat: Remat = "none"
    scan: bool = False
    implementation: Implementation = "auto"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, tokens: Float[Array, "b n d"], train: bool = False) -> Float[Array, "b d"]:
        """The query after its attention, which has no output projection, and an MLP; both are residual."""
        width = tokens.shape[-1]
        block = partial(
            rescaled_block, self.heads, epsilon=self.epsilon, implementation=self.implementation, dtype=self.dtype
        )
        tokens = Encoder(block, self.depth, remat=self.remat, scan=self.scan, name="transformer")(tokens, train)
        norm = partial(LayerNorm, epsilon=self.epsilon, dtype=self.dtype)

        def project(x: Array, name: str) -> Array:
            x = nn.Dense(width, kernel_init=NORMAL, dtype=self.dtype, name=name)(x)
            return x.reshape(*x.shape[:2], self.heads, -1)

        context = norm(name="norm1")(tokens)
        query = self.param("query", NORMAL, (1, 1, width)).astype(context.dtype)
        query = jnp.broadcast_to(query, (len(tokens), 1, width))  # not normalised
        attended = DotProduct(self.implementation, name="dot_product")(
            project(query, "query_projection"), project(context, "key"), project(context, "value")
        )
        query = query + attended.reshape(query.shape)
        last = nn.initializers.normal(0.02 * (2 * max(self.depth, 1)) ** -0.5)
        return (query + Mlp(4 * width, kernel_init=NORMAL, out_init=last, dtype=self.dtype, name="mlp")(
            norm(name="norm2")(query)
        ))[:, 0]  # fmt: skip


class VJEPA(nn.Module):
    """The encoder, and the classifier of its tokens.

    Attributes:
      num_classes: None returns the mean token.
      head: module applied to the pooled features `b d`; None for a linear layer to the classes, if any.
      pooler_depth: blocks of the attentive pooler, which only a model with a head has.
      pooler_heads: None for as many as in the encoder.
      pooler_epsilon: of the pooler's layer norms.
      pooled_blocks: numbers of the blocks whose normalised outputs the pooler sees side by side; None for the last.
      drop_path: rate of the last block.
      num_frames, image_size: of the clips that the variant is meant for; other multiples of the patch size also work.
      init_std: of the blocks' kernels, see `initial`.
      remat, scan: see `Encoder`; with `pooled_blocks`, the encoder's blocks are unrolled.
      implementation: of attention, see `attend`.
    """

    width: int
    depth: int
    heads: int
    mlp_ratio: float = 4.0
    patch_size: tuple[int, int, int] = (2, 16, 16)
    num_classes: int | None = None
    head: nn.Module | None = None
    pooler_depth: int = 3
    pooler_heads: int | None = None
    pooler_epsilon: float = 1e-6
    pooled_blocks: tuple[int, ...] | None = None
    drop_path: float = 0.0
    channels: int = 3
    num_frames: int = 64
    image_size: int = 256
    init_std: float | None = 0.02
    card: Card = CARD
    remat: Remat = "none"
    scan: bool = False
    implementation: Implementation = "auto"
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        zeros = nn.initializers.zeros_init()
        self.patch_embedding = PatchEmbedding(self.width, self.patch_size, NORMAL, zeros, self.dtype)
        computing = {"implementation": self.implementation, "dtype": self.dtype}
        block = partial(rescaled_block, self.heads, self.mlp_ratio, init_std=self.init_std, **computing)
        # The last block's output is the encoder's, whether the pooler sees it or not.
        returned = None if self.pooled_blocks is None else (*self.pooled_blocks, self.depth - 1)
        scan = self.scan and returned is None
        self.transformer = Encoder(block, self.depth, self.drop_path, self.remat, scan, returned)
        self.norm = LayerNorm(epsilon=1e-6, dtype=self.dtype)
        self.classifier = linear_unless_passed(self.head, self.num_classes, kernel_init=NORMAL, dtype=self.dtype)
        if self.classifier is not None:
            heads = self.pooler_heads or self.heads
            self.head_pooler = AttentivePooler(
                heads, self.pooler_depth, self.pooler_epsilon, self.remat, self.scan, **computing
            )

    def outputs(
        self,
        video: Float[Array, "b t h w c"],
        kept: Int[Array, "b m"] | None,
        valid: Bool[Array, "b m"] | None,
        train: bool,
    ) -> tuple[Float[Array, "b m d"], ...]:
        """`tokens`, preceded by the normalised outputs of `pooled_blocks` if there are any."""
        check_video(video, self.channels)
        clip = grid(video.shape[1:4], self.patch_size)
        patches = patchify(video, self.patch_size, self.dtype)
        indices = jnp.arange(prod(clip)) if kept is None else kept
        if kept is not None:  # the others are dropped before the embedding
            patches = jnp.take_along_axis(patches, kept[..., None], axis=1)
        positions = thirds(indices, clip, self.width // self.heads)
        mask = None if valid is None else valid[:, None]
        outputs = self.transformer(self.patch_embedding(patches), train, mask=mask, rotation=positions)
        return tuple(self.norm(each) for each in (outputs if isinstance(outputs, tuple) else (outputs,)))

    def tokens(
        self,
        video: Float[Array, "b t h w c"],
        kept: Int[Array, "b m"] | None = None,
        valid: Bool[Array, "b m"] | None = None,
        train: bool = False,
    ) -> Float[Array, "b m d"]:
        """Tokens of all patches in `(t h w)` order, or only of the patches at the indices `kept`.

        Args:
          valid: False for indices that only fill up the shape: no token attends to theirs.
        """
        return self.outputs(video, kept, valid, train)[-1]

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """Patch tokens on their grid."""
        return on_grid(self.tokens(video, train=train), grid(video.shape[1:4], self.patch_size))

    def embed(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b d"]:
        """Input of the head: the output of the attentive pooler; without a head, the mean token."""
        outputs = self.outputs(video, None, None, train)
        if self.classifier is None:
            return outputs[-1].mean(axis=1)
        pooled = outputs[-1] if self.pooled_blocks is None else jnp.concatenate(outputs[:-1], axis=1)
        return self.head_pooler(pooled, train)

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> PyTree[Float[Array, "b ..."]]:
        """Output of the head, by default logits `b classes`; without a head, the output of `embed`."""
        features = self.embed(video, train)
        return features if self.classifier is None else self.classifier(features)


class Predictor(nn.Module):
    """Predicts tokens at some places from the encoder's at others.

    Attributes:
      outputs: width of the predicted tokens.
      mask_tokens: number of learned mask tokens, see `mask_index`.
    """

    width: int
    depth: int
    heads: int
    outputs: int
    mask_tokens: int = 10
    init_std: float | None = 0.02
    remat: Remat = "none"
    scan: bool = False
    implementation: Implementation = "auto"
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(
        self,
        context: Float[Array, "b m e"],
        kept: Int[Array, "b m"],
        predicted: Int[Array, "b r"],
        clip: tuple[int, int, int],
        valid: Bool[Array, "b n"] | None = None,
        mask_index: int = 0,
        train: bool = False,
    ) -> Float[Array, "b r d"]:
        """The tokens at the indices `predicted`, from the encoder's tokens at `kept`.

        Args:
          clip: times, rows and columns of tokens in the clip.
          valid: of the indices `kept`, then of those `predicted`; see `VJEPA.tokens`.
          mask_index: number of the mask token.
        """
        dense = partial(nn.Dense, kernel_init=initial(self.init_std), dtype=self.dtype)
        context = dense(self.width, name="embedding")(context)
        tokens = self.param("mask_tokens", nn.initializers.zeros_init(), (self.mask_tokens, self.width))
        token = tokens[mask_index % self.mask_tokens].astype(context.dtype)
        masked = jnp.broadcast_to(token, (*predicted.shape, self.width))
        positions = thirds(jnp.concatenate([kept, predicted], axis=1), clip, self.width // self.heads)
        computing = {"implementation": self.implementation, "dtype": self.dtype}
        block = partial(rescaled_block, self.heads, init_std=self.init_std, **computing)
        x = jnp.concatenate([context, masked], axis=1)
        mask = None if valid is None else valid[:, None]
        x = Encoder(block, self.depth, remat=self.remat, scan=self.scan, name="transformer")(
            x, train, mask=mask, rotation=positions
        )
        x = LayerNorm(epsilon=1e-6, dtype=self.dtype, name="norm")(x[:, kept.shape[1] :])
        return dense(self.outputs, name="head")(x)


class Pretraining(nn.Module):
    """An encoder of the context and a predictor of the encoder's tokens elsewhere.

    Attributes:
      mask_tokens: number of learned mask tokens; 10 in the released weights.
      target_width: of the predicted tokens, if they are not this encoder's but a teacher's.
    """

    width: int
    depth: int
    heads: int
    predictor_width: int
    predictor_depth: int
    predictor_heads: int
    mlp_ratio: float = 4.0
    mask_tokens: int = 10
    target_width: int | None = None
    patch_size: tuple[int, int, int] = (2, 16, 16)
    drop_path: float = 0.0
    channels: int = 3
    num_frames: int = 16
    image_size: int = 256
    init_std: float | None = 0.02
    card: Card = CARD
    remat: Remat = "none"
    scan: bool = False
    implementation: Implementation = "auto"
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the encoder and the predictor."""
        computing = {name: getattr(self, name) for name in ("init_std", "remat", "scan", "implementation", "dtype")}
        self.encoder = VJEPA(
            self.width, self.depth, self.heads, self.mlp_ratio, self.patch_size, drop_path=self.drop_path,
            channels=self.channels, **computing,
        )  # fmt: skip
        outputs = self.target_width or self.width
        self.predictor = Predictor(
            self.predictor_width, self.predictor_depth, self.predictor_heads, outputs, self.mask_tokens, **computing
        )

    def tokens(
        self,
        video: Float[Array, "b t h w c"],
        kept: Int[Array, "b m"] | None = None,
        valid: Bool[Array, "b m"] | None = None,
        train: bool = False,
    ) -> Float[Array, "b m d"]:
        """Encoder tokens; see `VJEPA.tokens`."""
        return self.encoder.tokens(video, kept, valid, train)

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """Encoder tokens of all patches, on their grid."""
        return self.encoder.encode(video, train)

    def predict(
        self,
        context: Float[Array, "b m e"],
        kept: Int[Array, "b m"],
        predicted: Int[Array, "b r"],
        clip: tuple[int, int, int],
        valid: Bool[Array, "b n"] | None = None,
        mask_index: int = 0,
        train: bool = False,
    ) -> Float[Array, "b r d"]:
        """Predicted tokens, from encoder tokens; see `Predictor`."""
        return self.predictor(context, kept, predicted, clip, valid, mask_index, train)

    def __call__(
        self,
        video: Float[Array, "b t h w c"],
        kept: Int[Array, "b m"],
        predicted: Int[Array, "b r"],
        valid: Bool[Array, "b n"] | None = None,
        mask_index: int = 0,
        train: bool = False,
    ) -> Float[Array, "b r d"]:
        """Predicted tokens at the indices `predicted`, given the patches at `kept`.

        Args:
          valid: of the indices `kept`, then of those `predicted`: False for indices that only fill up the shape.
          mask_index: number of the mask token.
        """
        context = self.tokens(video, kept, None if valid is None else valid[:, : kept.shape[1]], train)
        return self.predict(context, kept, predicted, grid(video.shape[1:4], self.patch_size), valid, mask_index, train)

    def example_inputs(self, video: jax.ShapeDtypeStruct) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of the inputs for this video, with a quarter of its tokens as the context of the others."""
        tokens = prod(grid(video.shape[1:4], self.patch_size))
        kept, predicted = (jax.ShapeDtypeStruct((1, n), jnp.int32) for n in (tokens // 4, tokens - tokens // 4))
        return video, kept, predicted


TINY = {"width": 96, "depth": 4, "heads": 4, "num_frames": 16, "image_size": 64}
FRAMES = {**TINY, "patch_size": (1, 16, 16), "num_frames": 8, "image_size": 16, "init_std": None}
GIANT = {"width": 1408, "depth": 40, "heads": 22, "mlp_ratio": 48 / 11}
PREDICTOR = {"predictor_width": 384, "predictor_depth": 12, "predictor_heads": 12}


def probe(data: str, top1: float, views: str, stride: int, num_classes: int, **fields) -> dict:
    """Fields of a published probe, by its accuracy and the clips of its test."""
    card = Card(stride=stride, source=CARD.source, accuracy=f"{data} {top1}, {views} views", views=views)
    return {"pooler_heads": 16, "pooler_epsilon": 1e-5, "num_classes": num_classes, "card": card, **fields}


LARGE_SSV2 = probe("SSv2", 73.7, "2x3", 4, 174, num_frames=16)
GIANT_SSV2 = probe("SSv2", 77.3, "2x3", 2, 174, image_size=384)
LARGE_DIVING48 = probe("Diving48", 89.0, "4x3", 2, 48, num_frames=32, pooled_blocks=(17, 19, 21, 23))
GIANT_DIVING48 = probe("Diving48", 90.2, "4x3", 2, 48, num_frames=32, pooled_blocks=(24, 29, 34, 39), image_size=384)

VARIANTS = MappingProxyType(
    {
        "vjepa2_tiny": partial(VJEPA, **TINY),
        "vjepa2_tiny_frames": partial(VJEPA, **FRAMES),
        "vjepa2_large": partial(VJEPA, **VIT_SIZES["large"]),
        "vjepa2_huge": partial(VJEPA, **VIT_SIZES["huge"]),
        "vjepa2_giant": partial(VJEPA, **GIANT),
        "vjepa2_giant_384": partial(VJEPA, **GIANT, image_size=384),
        "vjepa2_large_ssv2": partial(VJEPA, **VIT_SIZES["large"], **LARGE_SSV2),
        "vjepa2_giant_384_ssv2": partial(VJEPA, **GIANT, **GIANT_SSV2),
        "vjepa2_large_diving48": partial(VJEPA, **VIT_SIZES["large"], **LARGE_DIVING48),
        "vjepa2_giant_384_diving48": partial(VJEPA, **GIANT, **GIANT_DIVING48),
        "vjepa2_tiny_pretrain": partial(Pretraining, **TINY, predictor_width=48, predictor_depth=2, predictor_heads=4),
        "vjepa2_tiny_frames_pretrain": partial(
            Pretraining, **FRAMES, predictor_width=96, predictor_depth=2, predictor_heads=4
        ),
        "vjepa2_large_pretrain": partial(Pretraining, **VIT_SIZES["large"], **PREDICTOR),
        "vjepa2_huge_pretrain": partial(Pretraining, **VIT_SIZES["huge"], **PREDICTOR),
        "vjepa2_giant_pretrain": partial(Pretraining, **GIANT, **PREDICTOR),
    }
)
