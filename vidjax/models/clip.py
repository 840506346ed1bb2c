"""CLIP (Radford et al. 2021, arXiv:2103.00020; openai/CLIP, Hugging Face's CLIPModel), applied to each frame.

The image tower is a ViT with an additional norm before its blocks, no bias in the patch embedding, QuickGELU, and a
projection of the class token into the joint embedding space. A clip's feature is the mean of its frames' features.

ActionCLIP's two visual prompts inside the tower (Wang et al. 2021, arXiv:2109.08472) are fields:
  joint: one sequence of all patches of the clip, with one class token and learned temporal positions. It follows the
    paper, because the released code does not run.
  shift: before each block, an eighth of the channels of the patch tokens comes from the next frame and an eighth from
    the previous one, with zeros at the ends (as in the released code; no parameters).

Pitfalls: the layer norms have epsilon 1e-5; the projection is stored as `x @ projection` by OpenAI and transposed by
Hugging Face; the class token has a separate position, which is not resized; OpenAI's kernels are in half precision.
"""

from collections.abc import Callable
from functools import partial
from types import MappingProxyType

import einops
import flax.linen as nn
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vidjax.errors import UserError
from vidjax.layers.activations import ACTIVATIONS, Activation
from vidjax.layers.adapters import METHODS, Adapter, require_method
from vidjax.layers.card import Card
from vidjax.layers.embedding import PatchEmbedding, PositionTable
from vidjax.layers.normalization import LayerNorm
from vidjax.layers.patches import check_video, grid, on_grid, patchify
from vidjax.layers.transformer import VIT_SIZES, Between, Block, Encoder, Remat, scaled_by_depth
from vidjax.models.text import TEXT_VARIANTS as TEXT
from vidjax.models.text import TextTower
from vidjax.models.video_text import VideoText


def shift(tokens: Float[Array, "b t m d"]) -> Float[Array, "b t m d"]:
    """Takes the first eighth of the channels from the next frame, the second from the previous; zeros at the ends."""
    fold = tokens.shape[-1] // 8
    from_next, from_previous, own = jnp.split(tokens, (fold, 2 * fold), axis=-1)
    from_next = jnp.pad(from_next[:, 1:], ((0, 0), (0, 1), (0, 0), (0, 0)))
    from_previous = jnp.pad(from_previous[:, :-1], ((0, 0), (1, 0), (0, 0), (0, 0)))
    return jnp.concatenate([from_next, from_previous, own], axis=-1)


class ShiftedBlock(nn.Module):
    """A block whose input is shifted in time; its parameters are those of the block."""

    make: partial

    def setup(self) -> None:
        """Shares the scope of the block, so that parameter names are those of an unshifted block."""
        self.block = self.make()
        nn.share_scope(self, self.block)

    def __call__(
        self, x: Float[Array, "bt n d"], drop_path: float | Array = 0.0, train: bool = False, frames: int = 1
    ) -> Float[Array, "bt n d"]:
        """The output has the shape of `x`: tokens of each frame, class token first; it is not shifted."""
        patches = shift(einops.rearrange(x[:, 1:], "(b t) m d -> b t m d", t=frames))
        patches = einops.rearrange(patches, "b t m d -> (b t) m d")
        return self.block(jnp.concatenate([x[:, :1], patches], axis=1), drop_path, train, frames=frames)


class ImageTower(nn.Module):
    """CLIP's image tower, applied to each frame.

    Attributes:
      features: width of the joint embedding space.
      patch_size: frames, height and width of a patch; one frame for images.
      joint, shift: ActionCLIP's prompts, see the module docstring; at most one of them.
      drop_path: rate of the last block.
      num_frames, image_size: of the clips that the variant is meant for; positions are resized for other sizes.
      epsilon: of the layer norms.
      remat, scan: see `Encoder`.
      adapter: trained beside frozen weights, see `layers.adapters`; AIM's adds positions of the `num_frames` in time.
    """

    width: int
    depth: int
    heads: int
    features: int
    mlp_ratio: float = 4.0
    patch_size: tuple[int, int, int] = (1, 16, 16)
    joint: bool = False
    shift: bool = False
    activation: Activation = "quick_gelu"
    drop_path: float = 0.0
    channels: int = 3
    num_frames: int = 1
    image_size: int = 224
    epsilon: float = 1e-5
    remat: Remat = "none"
    scan: bool = False
    adapter: Adapter | None = None
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        if self.joint and self.shift:
            raise UserError("joint and shift are both set: set only one of them, as one sequence cannot be shifted")
        normal = nn.initializers.normal(self.width**-0.5)
        self.patch_embedding = PatchEmbedding(
            self.width, self.patch_size, nn.initializers.normal(0.02), None, self.dtype
        )
        self.class_token = self.param("class_token", normal, (1, 1, self.width))
        self.class_position = self.param("class_position", normal, (1, 1, self.width))
        frames, *image = grid((self.num_frames, self.image_size, self.image_size), self.patch_size)
        self.position = PositionTable(tuple(image), self.width, "cubic", normal)
        if self.joint:
            self.time = PositionTable((frames,), self.width, "linear", normal)
        methods = ("adapter", "adaptformer", "prompt") if self.joint else METHODS
        require_method(self.adapter, self, *methods)
        if self.adapter is not None and self.adapter.method == "aim":
            self.adapter_time = PositionTable((frames,), self.width, "linear", nn.initializers.zeros_init())
        self.norm_pre = LayerNorm(epsilon=self.epsilon, dtype=self.dtype)
        block = partial(
            Block, self.heads, self.mlp_ratio, epsilon=self.epsilon, activation=ACTIVATIONS[self.activation],
            adapter=self.adapter, dtype=self.dtype, **scaled_by_depth(self.width, self.depth),
        )  # fmt: skip
        self.transformer = Encoder(
            partial(ShiftedBlock, block) if self.shift else block, self.depth, self.drop_path, self.remat, self.scan,
            adapter=self.adapter,
        )  # fmt: skip
        self.norm_post = LayerNorm(epsilon=self.epsilon, dtype=self.dtype)
        self.projection = nn.Dense(self.features, use_bias=False, kernel_init=normal, dtype=self.dtype)

    def tokens(
        self, video: Float[Array, "b t h w c"], train: bool = False, between: Between | None = None
    ) -> Float[Array, "b f m d"]:
        """Normalised tokens of each frame, class token first; with `joint` those of all frames, and `f` is one.

        `between` changes them between two blocks, see `Encoder`.
        """
        check_video(video, self.channels)
        frames, *image = grid(video.shape[1:4], self.patch_size)
        x = self.patch_embedding(patchify(video, self.patch_size, self.dtype))
        x = einops.rearrange(x, "b (t h w) d -> b t h w d", t=frames, h=image[0])
        x = x + self.position(tuple(image)).astype(x.dtype)
        if self.joint:
            # An image, as one frame, is at all times alike (ViCLIP).
            time = self.time((frames,)) if frames > 1 else self.time(self.time.grid).mean(axis=0, keepdims=True)
            x = x + time[:, None, None].astype(x.dtype)
        sequences = 1 if self.joint else frames
        x = einops.rearrange(x, "b (f t) h w d -> (b f) (t h w) d", f=sequences)
        token = (self.class_token + self.class_position).astype(x.dtype)
        x = jnp.concatenate([jnp.tile(token, (len(x), 1, 1)), x], axis=1)
        if self.adapter is not None and self.adapter.method == "aim":
            x = x + jnp.tile(self.adapter_time((frames,)), (len(video), 1))[:, None].astype(x.dtype)
        x = self.transformer(self.norm_pre(x), train, between, frames=frames)
        return einops.rearrange(self.norm_post(x), "(b f) m d -> b f m d", f=sequences)

    def layers(self, video: Float[Array, "b t h w c"], count: int) -> Float[Array, "k b n e"]:
        """Patch tokens `(t h w)` after each of the last blocks, normalised and projected like the class token.

        UMT's targets (OpenGVLab/unmasked_teacher) for a student's last layers, except for their unit length.
        """
        outputs: list[Array] = []
        self.tokens(video, between=lambda _, x: outputs.append(x) or x)
        features = self.projection(self.norm_post(jnp.stack(outputs[-count:])[:, :, 1:]))
        return einops.rearrange(features, "k (b f) m e -> k b (f m) e", b=len(video))

    def frames(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b f e"]:
        """The feature of each frame, not normalised; with `joint` one feature of all frames, `b 1 e`."""
        return self.projection(self.tokens(video, train)[:, :, 0])

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """Normalised patch tokens on their grid, without class tokens and before the projection."""
        tokens = einops.rearrange(self.tokens(video, train)[:, :, 1:], "b f m d -> b (f m) d")
        return on_grid(tokens, grid(video.shape[1:4], self.patch_size))

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b e"]:
        """The mean of the frames' features, not normalised."""
        return self.frames(video, train).mean(axis=1)


def clip(video: Callable[[], ImageTower], text: Callable[[], TextTower], card: Card) -> VideoText:
    """Creates a published pair of towers."""
    return VideoText(video(), text(), card)


def viclip(image: Callable[..., ImageTower], text: str, accuracy: str) -> VideoText:
    """ViCLIP (Wang et al. 2023, arXiv:2307.06942; OpenGVLab/InternVideo): CLIP's towers with a joint image tower.

    Tested on eight frames of the whole video, squeezed to squares and normalised with ImageNet's mean and std. Texts
    have 32 tokens.
    """
    card = Card(source="OpenGVLab/InternVideo", accuracy=accuracy, sampling="uniform", protocol="viclip")
    return VideoText(image(joint=True, num_frames=8), TEXT[text](context=32), card)


CARD = Card((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711), source="openai/CLIP")
TINY = {"width": 96, "depth": 4, "heads": 6, "patch_size": (1, 8, 8), "num_frames": 8, "image_size": 32}
base, large = (partial(ImageTower, **VIT_SIZES[size]) for size in ("base", "large"))

VARIANTS = MappingProxyType(
    {
        "clip_tiny": partial(clip, partial(ImageTower, **TINY, features=128), TEXT["text_tiny"], CARD),
        "clip_base_32": partial(clip, partial(base, patch_size=(1, 32, 32), features=512), TEXT["clip_base"], CARD),
        "clip_base_16": partial(clip, partial(base, features=512), TEXT["clip_base"], CARD),
        "clip_large_14": partial(clip, partial(large, patch_size=(1, 14, 14), features=768), TEXT["clip_large"], CARD),
        "clip_large_14_336": partial(
            clip, partial(large, patch_size=(1, 14, 14), features=768, image_size=336), TEXT["clip_large"], CARD
        ),
        "viclip_base_16": partial(viclip, partial(base, features=512), "clip_base", "K400 58.52, zero-shot"),
        "viclip_large_14": partial(
            viclip, partial(large, patch_size=(1, 14, 14), features=768), "clip_large", "K400 64.80, zero-shot"
        ),
    }
)
