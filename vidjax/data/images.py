"""Frames stored as images: encoding them, and decoding all of them or a part."""

import io
from collections.abc import Sequence
from contextlib import suppress

import av
import numpy as np
import tensorflow as tf
from jaxtyping import Float16, Num, UInt8
from PIL import Image, UnidentifiedImageError

from vidjax.data.container import DecodeError, blame_file
from vidjax.data.display import Resizer

tf.config.set_visible_devices([], "GPU")  # leaves the GPU to JAX


def encode_frames(frames: UInt8[np.ndarray, "t h w 3"], quality: int) -> list[bytes]:
    """Encodes frames as JPEG with a quality of 1 to 100."""
    return [tf.io.encode_jpeg(frame, quality=quality).numpy() for frame in frames]


def encode_stream(frames: UInt8[np.ndarray, "t h w c"] | Float16[np.ndarray, "t h w c"]) -> list[bytes]:
    """Encodes frames of 1 to 4 channels losslessly as PNG: uint8 with 8 bits, float16 as its 16.

    Compressed lightly: thoroughly takes four times as long, half as long as the flow itself, and saves a quarter.
    """
    frames = frames if frames.dtype == np.uint8 else frames.view(np.uint16)
    return [tf.io.encode_png(frame, compression=1).numpy() for frame in frames]


def channels(encoded: bytes, id: str) -> int:
    """Number of channels of an encoded image; raises DecodeError with `id` in the message."""
    with blame_file(id):
        return tf.io.decode_png(encoded).shape[-1]


class EncodedFrames:
    """Images of a video at some indices, decoded when they are sliced: `frames[:, top:bottom, left:right]`.

    The pixels are those of decoding whole images and slicing them. Of a JPEG only the slice is decoded, unless it is to
    be shrunk; of other images, everything.
    """

    def __init__(
        self,
        encoded: Sequence[bytes],
        indices: Sequence[int] | np.ndarray,
        short_side: int | None,
        id: str,
        channels: int = 3,
        dtype: str = "uint8",
    ):
        """Reads the images; the arguments are those of `decode_frames`."""
        self._id, self._channels, self._dtype = id, channels, dtype
        self._positions, self._order = np.unique(np.asarray(indices, np.int64), return_inverse=True)
        with blame_file(id):
            self._images = [encoded[position] for position in self._positions.tolist()]
        first = f"{id}: frame {self._positions[0]}" if self._images else id
        self._size = height, width = image_size(self._images[0], first) if self._images else (1, 1)
        if channels == 3 and dtype == "uint8" and short_side is not None and short_side < min(height, width):
            scale = short_side / min(height, width)
            height, width = round(height * scale), round(width * scale)
        self.shape = len(self._order), height, width, channels
        """(t, h, w, c)"""

    @property
    def jpegs(self) -> tuple[bytes, ...]:
        """The images if all are JPEG and keep their size, so that parts of them can be decoded; otherwise empty."""
        whole = self._channels != 3 or self._size != self.shape[1:3]
        return () if whole or any(image[:2] != b"\xff\xd8" for image in self._images) else tuple(self._images)

    def in_order(self, decoded: Num[np.ndarray, "n h w c"]) -> Num[np.ndarray, "t h w c"]:
        """Frames for the indices, which may repeat, of one frame per image."""
        return decoded if np.array_equal(self._order, np.arange(len(decoded))) else decoded[self._order]

    def __getitem__(self, part: tuple[slice, slice, slice]) -> Num[np.ndarray, "t h w c"]:
        """The pixels of all frames (`:`), or of a box in them; raises DecodeError with the id in the message."""
        if not self._images:
            return np.zeros((0, 1, 1, self._channels), self._dtype)
        if jpegs := self.jpegs:
            top, bottom, _ = part[1].indices(self.shape[1])
            left, right, _ = part[2].indices(self.shape[2])
            with suppress(tf.errors.InvalidArgumentError):  # below is said which image is damaged
                box = np.array([top, left, bottom - top, right - left], np.int32)
                return self.in_order(_decode_jpegs(jpegs, box, self.shape[2]).numpy())
        return self.in_order(self._decode_all()[:, part[1], part[2]])

    def _decode_all(self) -> Num[np.ndarray, "t h w c"]:
        images, resize = [], Resizer()
        for position, encoded in zip(self._positions, self._images, strict=True):
            try:
                if self._dtype == "float16":
                    if image_bits(encoded) != 16:
                        raise DecodeError(f"{self._id}: frame {position} is not stored as float16: write it again")
                    image = tf.io.decode_png(encoded, dtype=tf.uint16).numpy().view(np.float16)
                elif self._channels == 3:  # also decodes PNG
                    image = tf.io.decode_jpeg(encoded, channels=3, dct_method=DCT).numpy()
                else:
                    image = tf.io.decode_png(encoded).numpy()
            except tf.errors.InvalidArgumentError as error:
                raise DecodeError(f"{self._id}: frame {position} is not an image that can be decoded") from error
            if self._size != self.shape[1:3]:
                image = resize(av.VideoFrame.from_ndarray(image), *self.shape[1:3])
            images.append(image)
        with blame_file(self._id):  # the images may differ in size
            return np.stack(images)


DCT = "INTEGER_ACCURATE"
"""As libjpeg and Pillow decode JPEG; TensorFlow's default is 0.8 levels darker (TensorFlow 2.21)."""


def decode_box(image: tf.Tensor, box: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """The box (top, left, height, width) of a JPEG of a given width: the pixels of decoding everything."""
    top, left, box_height, box_width = tf.unstack(box, num=4)
    # Colours are interpolated between neighbours, which the outer columns of a part lack.
    first, last = tf.maximum(left - 2, 0), tf.minimum(left + box_width + 2, width)
    window = (top, first, box_height, last - first)
    part = tf.io.decode_and_crop_jpeg(image, window, channels=3, dct_method=DCT)
    return part[:, left - first : left - first + box_width]


@tf.function(
    autograph=False,
    input_signature=[tf.TensorSpec((None,), tf.string), tf.TensorSpec((4,), tf.int32), tf.TensorSpec((), tf.int32)],
)
def _decode_jpegs(images: tf.Tensor, box: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
    """The box of every image, without Python between the images."""
    parts = tf.TensorSpec((None, None, 3), tf.uint8)
    return tf.map_fn(lambda image: decode_box(image, box, width), images, fn_output_signature=parts)


def decode_frames(
    encoded: Sequence[bytes],
    indices: Sequence[int] | np.ndarray,
    short_side: int | None,
    id: str,
    channels: int = 3,
    dtype: str = "uint8",
) -> Num[np.ndarray, "t h w c"]:
    """Decodes the images at `indices`; raises DecodeError with `id` in the message.

    RGB images are shrunk to `short_side` unless smaller. Images with another number of channels, such as optical flow,
    must be PNG and keep their size; those of `dtype` float16 have its bits as 16-bit numbers.
    """
    return EncodedFrames(encoded, indices, short_side, id, channels, dtype)[:, :, :]


def image_bits(encoded: bytes) -> int:
    """Bits per channel of a PNG, which are in its header; 0 for other images."""
    return encoded[24] if encoded[:8] == b"\x89PNG\r\n\x1a\n" and len(encoded) > 24 else 0


def image_size(encoded: bytes, id: str) -> tuple[int, int]:
    """(height, width) of an encoded image; raises DecodeError that begins with `id`."""
    try:
        return Image.open(io.BytesIO(encoded)).size[::-1]  # reads only the header
    except UnidentifiedImageError as error:
        raise DecodeError(f"{id} is not an image that can be decoded") from error
