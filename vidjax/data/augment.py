"""Cutting training clips out of frames, in TensorFlow (evaluation: `crop.cut`)."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from jaxtyping import Int, Num

from vidjax.data.crop import ANTIALIASED_FROM, scaled_box
from vidjax.data.images import EncodedFrames, decode_box


def cut(
    frames: Num[np.ndarray, "t h w c"] | EncodedFrames,
    crop: Int[np.ndarray, "7"],
    size: int,
    mirrored: Sequence[int] = (),
) -> Num[np.ndarray, "t s s c"]:
    """Crops frames, resizes them to a square of `size` pixels, and mirrors them if the crop is mirrored.

    Args:
      frames: decoded frames, or images of which only the crop is decoded. If their size differs from the one in the
        crop, the box is scaled to it.
      crop: see `crop`.
      size: height and width of the output in pixels.
      mirrored: channels to invert (255 - v, or -v in float16) when mirroring, such as horizontal optical flow.
    """
    top, left, height, width = box = scaled_box(crop, *frames.shape[1:3])
    inverted = tuple(channel in mirrored for channel in range(frames.shape[3]))
    smooth = max(height, width) > round(ANTIALIASED_FROM * size)
    how = _How(size, (height, width) != (size, size), smooth, bool(crop[6]), inverted)
    if isinstance(frames, EncodedFrames) and (jpegs := frames.jpegs):
        with suppress(tf.errors.InvalidArgumentError):  # below is said which image is damaged
            return frames.in_order(_as_array(_jpeg_cutter(how)(jpegs, np.array(box, np.int32), frames.shape[2])))
    region = frames[:, top : top + height, left : left + width]
    return _as_array(_frame_cutter(how, region.dtype.name)(region))


def _as_array(tensor: tf.Tensor) -> np.ndarray:
    """The tensor's own memory, which tf.data takes without a copy, unlike that of `tensor.numpy()`."""
    return np.asarray(memoryview(tensor))


class _How(NamedTuple):
    """What is done with a cropped frame; each combination is a TensorFlow function of its own, without branches."""

    size: int
    resized: bool
    smooth: bool
    mirrored: bool
    inverted: tuple[bool, ...]


# A frame at a time, which stays in the cache, and without Python between them.
@cache
def _jpeg_cutter(how: _How) -> Callable[..., tf.Tensor]:
    @tf.function(
        autograph=False,
        input_signature=[tf.TensorSpec((None,), tf.string), tf.TensorSpec((4,), tf.int32), tf.TensorSpec((), tf.int32)],
    )
    def cut_jpegs(images: tf.Tensor, box: tf.Tensor, width: tf.Tensor) -> tf.Tensor:
        return tf.map_fn(
            lambda image: _finish(decode_box(image, box, width), how), images, fn_output_signature=tf.uint8
        )

    return cut_jpegs


@cache
def _frame_cutter(how: _How, dtype: str) -> Callable[..., tf.Tensor]:
    @tf.function(autograph=False, input_signature=[tf.TensorSpec((None, None, None, None), dtype)])
    def cut_frames(video: tf.Tensor) -> tf.Tensor:
        return tf.map_fn(lambda frame: _finish(frame, how), video)

    return cut_frames


def _finish(frame: tf.Tensor, how: _How) -> tf.Tensor:
    """Resizes a cropped frame to a square, bilinearly, and mirrors it with some channels inverted."""
    if how.resized:
        # Floats give the same numbers as uint8 in two thirds of the time: only of these is it vectorised.
        pixels = tf.cast(frame, tf.float32)[None]
        pixels = tf.image.resize(pixels, (how.size, how.size), antialias=how.smooth)[0]
        frame = tf.cast(tf.round(pixels) if frame.dtype == tf.uint8 else pixels, frame.dtype)
    if how.mirrored:
        frame = tf.reverse(frame, [1])
        if any(how.inverted):
            frame = tf.where(how.inverted, 255 - frame if frame.dtype == tf.uint8 else -frame, frame)
    return frame
