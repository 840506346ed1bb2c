"""BEVT (Wang et al. 2022, arXiv:2112.01529; xyzforever/BEVT): a Video Swin that predicts masked tokens in two streams.

A video stream and an image stream share the blocks of a Video Swin (`models.video_swin`) and predict the discrete
tokens (`models.dalle`) of masked places. A place is a cell of the stage before the last. That stage and the last one,
enlarged, are joined, and in the video stream enlarged in time: the tokens are those of frames, not of tubelets. Each
stream has its own patch embedding and its own layers after the stages; they share the mask token, the last norm and the
layer to the tokens.

Pitfalls: images use the biases of distance 0 in time; in the image stream, windows are shifted even if one covers the
map, as in the last stage at 224 pixels, in the video stream not; blocks of the image stream that are not shifted
separate tokens like those that are, which cuts the last windows of each axis in parts; there is no norm between the
stages and the layers that join them, and the classifier starts with the norm after these.
"""

from functools import partial
from types import MappingProxyType

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from vidjax.layers.attention import Implementation
from vidjax.layers.card import Card
from vidjax.layers.convolution import pytorch_bias, pytorch_kernel
from vidjax.layers.embedding import PatchEmbedding
from vidjax.layers.normalization import LayerNorm
from vidjax.layers.patches import check_video, grid, on_grid, patchify
from vidjax.layers.transformer import Remat
from vidjax.models import video_swin
from vidjax.models.video_swin import NORMAL, Size, VideoSwin

CARD = Card(stride=8, source="xyzforever/BEVT")


class Enlarging(nn.Module):
    """A transposed convolution whose kernel is as large as its stride: each cell becomes several.

    Attributes:
      factors: by which time, height and width grow.
    """

    factors: Size
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"]) -> Float[Array, "b _ _ _ c"]:
        """The enlarged map."""
        width = x.shape[-1]
        kernel = self.param("kernel", pytorch_kernel, (*self.factors, width, width))
        bias = self.param("bias", pytorch_bias(int(np.prod(self.factors)) * width), (width,))
        x, kernel, bias = nn.dtypes.promote_dtype(x, kernel, bias, dtype=self.dtype)
        cells = jnp.einsum("bthwc,ijkcd->bthwijkd", x, kernel)
        return einops.rearrange(cells, "b t h w i j k d -> b (t i) (h j) (w k) d") + bias


class Pretraining(nn.Module):
    """Prediction of the tokens of masked places in videos and images.

    Attributes:
      width, depths, heads, window, patch_size, drop_path: see `VideoSwin`.
      vocabulary: number of different tokens.
      num_frames, image_size: of the clips that the variant is meant for; other sizes also work.
      remat, scan: see `Encoder`.
    """

    width: int = 128
    depths: tuple[int, ...] = (2, 2, 18, 2)
    heads: tuple[int, ...] = (4, 8, 16, 32)
    window: Size = (8, 7, 7)
    patch_size: Size = (2, 4, 4)
    vocabulary: int = 8192
    drop_path: float = 0.3
    channels: int = 3
    num_frames: int = 16
    image_size: int = 224
    card: Card = CARD
    remat: Remat = "none"
    scan: bool = False
    implementation: Implementation = "auto"
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the encoder, and what each stream has before and after it."""
        self.encoder = VideoSwin(
            self.width, self.depths, self.heads, self.window, self.patch_size, drop_path=self.drop_path,
            channels=self.channels, num_frames=self.num_frames, image_size=self.image_size, remat=self.remat,
            scan=self.scan, implementation=self.implementation, dtype=self.dtype,
        )  # fmt: skip
        square = (1, *self.patch_size[1:])
        bias_init = pytorch_bias(self.channels * int(np.prod(square)))
        self.image_embedding = PatchEmbedding(self.width, square, pytorch_kernel, bias_init, self.dtype)
        self.image_embedding_norm = LayerNorm(epsilon=1e-5, dtype=self.dtype)
        self.mask_token = self.param("mask_token", NORMAL, (1, 1, self.width))
        dense = partial(nn.Dense, kernel_init=NORMAL, dtype=self.dtype)
        final = self.width * 2 ** (len(self.depths) - 1)
        space, time = (1, 2, 2), (self.patch_size[0], 1, 1)
        self.image_enlarging, self.video_enlarging = Enlarging(space, self.dtype), Enlarging(space, self.dtype)
        self.image_joining, self.video_joining = dense(final), dense(final)
        self.time_enlarging = Enlarging(time, self.dtype)
        self.token_head = dense(self.vocabulary)

    @property
    def cell_size(self) -> Size:
        """Frames, height and width in pixels of a place that a video mask hides; an image mask hides one frame."""
        t, *sides = self.patch_size
        return t, *(side * 2 ** (len(self.depths) - 2) for side in sides)

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """See `VideoSwin.encode`."""
        return self.encoder.encode(video, train)

    def _joined(
        self, patches: Float[Array, "b t y x d"], masked: Bool[Array, "b t h w"], train: bool, image: bool
    ) -> Float[Array, "b t h w e"]:
        """The last two stages of a stream, joined on the grid of the mask."""
        scale = 2 ** (len(self.depths) - 2)
        hidden = masked.repeat(scale, axis=2).repeat(scale, axis=3)[..., None]
        x = jnp.where(hidden, self.mask_token[0, 0].astype(patches.dtype), patches)
        *_, finer, last = self.encoder.maps(x, train, image)
        enlarged = (self.image_enlarging if image else self.video_enlarging)(last)
        joining = self.image_joining if image else self.video_joining
        return joining(jnp.concatenate([finer, enlarged], axis=-1))

    def predict_images(
        self, images: Float[Array, "b t h w c"], masked: Bool[Array, "b t _ _"], train: bool = False
    ) -> Float[Array, "b t _ _ v"]:
        """Logits of the tokens of each frame as an image.

        Args:
          masked: True for the hidden places, see `cell_size`.
        """
        check_video(images, self.channels)
        grid(images.shape[1:4], (1, *(2 * side for side in self.cell_size[1:])))
        square = self.image_embedding.patch_size
        patches = on_grid(self.image_embedding(patchify(images, square)), grid(images.shape[1:4], square))
        patches = einops.rearrange(self.image_embedding_norm(patches), "b t h w d -> (b t) 1 h w d")
        joined = self._joined(patches, einops.rearrange(masked, "b t h w -> (b t) 1 h w"), train, image=True)
        logits = self.token_head(self.encoder.norm(joined))
        return logits.reshape(*images.shape[:2], *logits.shape[2:])

    def predict_video(
        self, video: Float[Array, "b t h w c"], masked: Bool[Array, "b _ _ _"], train: bool = False
    ) -> Float[Array, "b t _ _ v"]:
        """Logits of the tokens of each frame.

        Args:
          masked: True for the hidden places, see `cell_size`.
        """
        check_video(video, self.channels)
        grid(video.shape[1:4], (self.patch_size[0], *(2 * side for side in self.cell_size[1:])))
        joined = self._joined(self.encoder.patches(video), masked, train, image=False)
        return self.token_head(self.encoder.norm(self.time_enlarging(joined)))

    def __call__(
        self,
        video: Float[Array, "b t h w c"],
        masked: Bool[Array, "b _ _ _"],
        images: Float[Array, "n f y x c"],
        images_masked: Bool[Array, "n f _ _"],
        train: bool = False,
    ) -> tuple[Float[Array, "b t _ _ v"], Float[Array, "n f _ _ v"]]:
        """Both streams; see `predict_video` and `predict_images`."""
        return self.predict_video(video, masked, train), self.predict_images(images, images_masked, train)

    def example_inputs(self, video: jax.ShapeDtypeStruct) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Shapes of the inputs for this video and an image of its size."""
        b, _, h, w, c = video.shape
        t, y, x = grid(video.shape[1:4], self.cell_size)
        masked, images_masked = (jax.ShapeDtypeStruct((b, frames, y, x), jnp.bool_) for frames in (t, 1))
        return video, masked, jax.ShapeDtypeStruct((b, 1, h, w, c), video.dtype), images_masked


def from_image_stream(params: dict) -> dict:
    """Parameters whose video stream starts as the image stream, after training that alone.

    As in the original, the patch embedding is that of images, repeated over the frames and divided by their number, and
    the biases of distance 0 in time are those of all distances; what joins the stages stays as it is.
    """
    encoder = dict(params["encoder"])
    kernel = params["image_embedding"]["kernel"]
    frames = encoder["patch_embedding"]["kernel"].shape[0]
    encoder["patch_embedding"] = params["image_embedding"] | {"kernel": jnp.repeat(kernel / frames, frames, axis=0)}
    encoder["patch_embedding_norm"] = params["image_embedding_norm"]

    def repeated(path: tuple, value: Array) -> Array:
        if path[-1].key != "relative_position":
            return value
        middle = value.shape[0] // 2
        return jnp.broadcast_to(value[middle : middle + 1], value.shape)

    return params | {"encoder": jax.tree.map_with_path(repeated, encoder)}


TINY = {name: value for name, value in video_swin.TINY.items() if name not in ("dropout", "card")}

VARIANTS = MappingProxyType(
    {
        "bevt_tiny": partial(Pretraining, **TINY, vocabulary=64),  # of video_swin_tiny
        "bevt_base": Pretraining,  # of video_swin_b
    }
)
