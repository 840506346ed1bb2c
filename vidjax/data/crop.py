"""Crops of clips: where they lie, at random or at fixed places, and cutting them out of decoded frames (NumPy).

A crop is int32 (7,): top, left, height and width of the box in the frame, height and width of the frame, and 1 if the
clip is mirrored. Training cuts and resizes in tf.data (`augment.cut`); the two give the same pixels to rounding.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Num, Shaped
from PIL import Image

from vidjax.data import stateless
from vidjax.data.config import AugmentConfig, Protocol
from vidjax.data.stateless import Seed
from vidjax.errors import UserError

SCALES = (1.0, 0.875, 0.75, 0.66)  # for multi-scale cropping (TSN, VideoMAE)
ANTIALIASED_FROM = 1.5
"""Factor of downscaling above which resizing is antialiased: it takes several times as long, and is not visible
below."""

Box = tuple[int, int, int, int]
"""Top, left, height and width."""
Crop = Int[np.ndarray, "7"]


def center_box(height: int, width: int, ratio: float = 7 / 8) -> Box:
    """The central square whose side is `ratio` times the shorter side."""
    side = int(np.round(np.float32(min(height, width)) * np.float32(ratio)))
    return (height - side) // 2, (width - side) // 2, side, side


def random_crop(
    height: int, width: int, config: AugmentConfig, size: int, seed: Seed, center_ratio: float = 7 / 8
) -> Crop:
    """Draws the box and the flip of a clip, which apply to all of its frames and streams.

    Args:
      height: height of the frames.
      width: width of the frames.
      config: kind of crop, and whether clips are mirrored.
      size: height and width of the model's input.
      seed: the crop is a function of it.
      center_ratio: fraction of the shorter side that is kept if `config.crop` is "center".
    """
    crop_seed, flip_seed = stateless.split(seed, 6)[:2]  # the other four are for `augment.change_pixels`
    if config.crop == "center":
        box = center_box(height, width, center_ratio)
    else:
        box = (multi_scale_box if config.crop == "multi_scale" else random_resized_box)(height, width, size, crop_seed)
    mirrored = config.flip and stateless.uniform(flip_seed, 1)[0] < 0.5
    return np.array([*box, height, width, mirrored], np.int32)


def multi_scale_box(height: int, width: int, size: int, seed: Seed) -> Box:
    """Multi-scale corner crop (TSN, Wang et al. 2016; GroupMultiScaleCrop in the code of TSN and VideoMAE).

    Height and width are the shorter side times entries of `SCALES` at most one step apart; the position is one of 13.
    """
    scale_seed, position_seed = stateless.split(seed, 2)
    sides = (np.float32(min(height, width)) * np.float32(SCALES)).astype(int).tolist()
    sides = [size if abs(side - size) < 3 else side for side in sides]
    steps = range(len(SCALES))
    pairs = [(h, w) for h in steps for w in steps if abs(h - w) <= 1]
    positions = [(y, x) for y in range(5) for x in range(5) if (y % 2, x % 2) in ((0, 0), (1, 1))]
    h, w = pairs[stateless.below(scale_seed, len(pairs))]
    y, x = positions[stateless.below(position_seed, len(positions))]
    crop_height, crop_width = min(sides[h], height), min(sides[w], width)
    return (height - crop_height) // 4 * y, (width - crop_width) // 4 * x, crop_height, crop_width


def random_resized_box(height: int, width: int, size: int, seed: Seed) -> Box:
    """Random resized crop (Szegedy et al. 2015): area 0.08 to 1 of the frame, aspect 3/4 to 4/3 (log-uniform).

    Uses the first of ten draws that fits into the frame, as torchvision does, and otherwise the largest central square
    (where torchvision uses a rectangle). `size` has no influence.
    """
    area_seed, aspect_seed, y_seed, x_seed = stateless.split(seed, 4)
    areas = stateless.uniform(area_seed, 10, 0.08, 1.0) * np.float32(height) * np.float32(width)
    aspects = np.exp(stateless.uniform(aspect_seed, 10, math.log(3 / 4), math.log(4 / 3)))
    heights, widths = (np.round(np.sqrt(each)).astype(int).tolist() for each in (areas / aspects, areas * aspects))
    for crop_height, crop_width in zip(heights, widths, strict=True):
        if 0 < crop_height <= height and 0 < crop_width <= width:
            y, x = (stateless.uniform(each, 1)[0] for each in (y_seed, x_seed))
            top, left = y * np.float32(height - crop_height + 1), x * np.float32(width - crop_width + 1)
            return int(top), int(left), crop_height, crop_width
    side = min(height, width)
    return (height - side + 1) // 2, (width - side + 1) // 2, side, side


def view_crops(
    height: int, width: int, count: int, ratio: float = 7 / 8, protocol: Protocol = "vidjax"
) -> Int[np.ndarray, "v 7"]:
    """Test-time crops, evenly spaced along the longer side from one end to the other; a single one is central.

    Protocols differ by a pixel: places are rounded up (SlowFast, PyTorchVideo), or down, or three crops are equally far
    apart, so that the last may not reach the end (mmaction2, Video Swin). Ten crops of these two are the corners and
    the centre, each also mirrored. ViCLIP's only crop is the whole frame, which `cut` squeezes to a square.

    Args:
      height: height of the frames.
      width: width of the frames.
      count: number of crops.
      ratio: side of a crop as a fraction of the shorter side.
      protocol: whose rules hold.

    Raises:
      UserError: several crops of the whole frame.
    """
    if protocol == "viclip":
        if count > 1:
            raise UserError(
                f"data.protocol viclip squeezes the whole frame, which has one view in space, not {count}: give "
                "--views 1x1, or another --data.protocol"
            )
        return np.array([[0, 0, height, width, height, width, 0]], np.int32)
    top, left, side, _ = center_box(height, width, ratio)
    down, right = height - side, width - side
    if protocol in ("slowfast", "slowfast_offset", "pytorchvideo"):
        top, left = -(-down // 2), -(-right // 2)
    if protocol in ("mmaction2", "video_swin") and count == 10:
        y, x = down // 4, right // 4
        places = [(0, 0), (0, 4 * x), (4 * y, 0), (4 * y, 4 * x), (2 * y, 2 * x)]
        rows = [(*place, side, side, height, width, mirrored) for place in places for mirrored in (0, 1)]
        return np.array(rows, np.int32)
    tops, lefts = [top] * count, [left] * count
    if count > 1:
        free = max(down, right)
        if protocol in ("slowfast", "slowfast_offset", "pytorchvideo"):
            places = [-(-free * i // (count - 1)) for i in range(count)]
        elif protocol in ("mmaction2", "video_swin"):
            places = [free // (count - 1) * i for i in range(count)]
        else:
            places = [free * i // (count - 1) for i in range(count)]
        tops, lefts = (places, lefts) if height > width else (tops, places)
    rows = [(top, left, side, side, height, width, 0) for top, left in zip(tops, lefts, strict=True)]
    return np.array(rows, np.int32)


def scaled_box(crop: Crop, height: int, width: int) -> Box:
    """The box of a crop in frames of another size, such as those of a second stream."""
    top, left, crop_height, crop_width, from_height, from_width, _ = crop.tolist()
    if (from_height, from_width) == (height, width):
        return top, left, crop_height, crop_width
    y, x = height / from_height, width / from_width
    crop_height, crop_width = max(round(crop_height * y), 1), max(round(crop_width * x), 1)
    return min(round(top * y), height - crop_height), min(round(left * x), width - crop_width), crop_height, crop_width


def cut_region(video: Any, crops: Int[np.ndarray, "k 7"]) -> tuple[Num[np.ndarray, "t h w c"], Int[np.ndarray, "k 7"]]:
    """The part of some frames that contains all of their crops, and the crops in this part.

    Args:
      video: frames `t h w c`, as an array or still encoded (`images.EncodedFrames`): only this part is decoded. If
        their size differs from the one in the crops, the boxes are scaled to it.
      crops: see the module.
    """
    boxes = np.array([scaled_box(crop, *video.shape[1:3]) for crop in crops])
    top, left = boxes[:, :2].min(axis=0).tolist()
    bottom, right = (boxes[:, :2] + boxes[:, 2:]).max(axis=0).tolist()
    sides = np.broadcast_to([bottom - top, right - left], (len(crops), 2))
    moved = np.concatenate([boxes - [top, left, 0, 0], sides, crops[:, 6:]], axis=1).astype(np.int32)
    return video[:, top:bottom, left:right], moved


def cut(
    video: Num[np.ndarray, "t h w c"], crop: Crop, size: int, mirrored: Sequence[int] = ()
) -> Num[np.ndarray, "t s s c"]:
    """Crops frames, resizes them to a square of `size` pixels, and mirrors them if the crop is mirrored.

    Args:
      video: decoded frames. If their size differs from the one in the crop, the box is scaled to it.
      crop: see the module.
      size: height and width of the output in pixels.
      mirrored: channels to invert (255 - v, or -v in float16) when mirroring, such as horizontal optical flow.
    """
    top, left, height, width = scaled_box(crop, *video.shape[1:3])
    frames = resize(video[:, top : top + height, left : left + width], size)
    if not crop[6]:
        return frames
    frames = frames[:, :, ::-1].copy()
    for channel in mirrored:
        frames[..., channel] = (255 if frames.dtype == np.uint8 else 0) - frames[..., channel]
    return frames


def center_crop(
    video: Num[np.ndarray, "t h w c"], size: int, ratio: float = 7 / 8, protocol: Protocol = "vidjax"
) -> Num[np.ndarray, "t s s c"]:
    """The central view of `view_crops`, resized to `size` pixels."""
    return cut(video, view_crops(*video.shape[1:3], 1, ratio, protocol)[0], size)


def cut_views(
    video: Num[np.ndarray, "n h w c"],
    crops: Int[np.ndarray, "k 7"],
    frames: int,
    size: int,
    mirrored: Sequence[int] = (),
) -> Num[np.ndarray, "v t s s c"]:
    """Applies each crop to each clip.

    Args:
      video: the clips in sequence, each of `frames` frames.
      crops: see the module.
      frames: frames per clip.
      size: height and width of the output in pixels.
      mirrored: see `cut`.

    Returns:
      The views, with the crops of a clip adjacent.
    """
    cuts = [cut(video, crop, size, mirrored) for crop in crops]
    views = np.stack([each.reshape(-1, frames, *each.shape[1:]) for each in cuts], axis=1)
    return views.reshape(-1, *views.shape[2:])


def resize(video: Num[np.ndarray, "t h w c"], size: int) -> Num[np.ndarray, "t s s c"]:
    """Resizes frames to a square of `size` pixels, bilinearly, as `tf.image.resize` does; uint8 is rounded."""
    height, width = video.shape[1:3]
    if (height, width) == (size, size):
        return video
    frames = np.empty((len(video), size, size, video.shape[3]), video.dtype)
    is_rounded = video.dtype == np.uint8
    if max(height, width) > round(ANTIALIASED_FROM * size):
        for frame, output in zip(video, frames, strict=True):
            for channel in range(frame.shape[-1]):
                plane = Image.fromarray(frame[..., channel].astype(np.float32))  # bytes are rounded twice
                pixels = np.asarray(plane.resize((size, size), Image.Resampling.BILINEAR))
                output[..., channel] = np.rint(pixels) if is_rounded else pixels
        return frames
    rows, columns = _neighbours(height, size), _neighbours(width, size)
    for frame, output in zip(video, frames, strict=True):  # one at a time, which stays in the cache
        pixels = _interpolate(_interpolate(frame, columns, 1), rows, 0)
        output[:] = np.rint(pixels, out=pixels) if is_rounded else pixels
    return frames


def _neighbours(count: int, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Indices of the two pixels around the centre of each new one, and its distance from the first."""
    at = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(count / size) - np.float32(0.5)
    lower = np.floor(at)
    return np.maximum(lower, 0).astype(int), np.minimum(np.ceil(at), count - 1).astype(int), at - lower


def _interpolate(
    frame: Shaped[np.ndarray, "h w c"], neighbours: tuple[np.ndarray, np.ndarray, np.ndarray], axis: int
) -> Float[np.ndarray, "..."]:
    """Linear interpolation along one axis, between pixel centres."""
    low, high, fraction = neighbours
    first = frame.take(low, axis).astype(np.float32, copy=False)
    change = frame.take(high, axis).astype(np.float32, copy=False)
    change -= first
    change *= fraction.reshape(-1, *(1,) * (2 - axis))
    change += first
    return change
