"""Brightness, contrast, saturation and greyscale of clips, with Pillow's numbers (NumPy).

A clip is treated as one image: the mean luma in contrast is that of all of its frames. Values are computed in float32
and rounded down, as Pillow does. One frame at a time is converted, as it stays in the processor's cache.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, UInt8

from vidjax.data import stateless
from vidjax.data.stateless import Seed

Video = UInt8[np.ndarray, "t h w 3"]
_LUMA = (19595, 38470, 7471)
"""ITU-R 601 in units of 2**-16, as in Pillow: sums of products with bytes are exact in float32."""


def _planes(frame: UInt8[np.ndarray, "h w 3"]) -> Float[np.ndarray, "3 h w"]:
    return np.moveaxis(frame, -1, 0).astype(np.float32, order="C")  # a long innermost axis is fast


def _luma(planes: Float[np.ndarray, "3 h w"]) -> Float[np.ndarray, "h w"]:
    """The luma of each pixel, rounded."""
    red, green, blue = (plane * np.float32(weight) for plane, weight in zip(planes, _LUMA, strict=True))
    red += green
    red += blue
    red += 2**15
    red *= 2**-16
    return np.floor(red, out=red)


def grey(video: Video) -> Video:
    """The luma in all channels."""
    return _by_frame(video, lambda frame: _luma(_planes(frame))[..., None])


def brightness(video: Video, factor: float) -> Video:
    """Scales brightness: darker below factor 1, brighter above."""
    return _by_frame(video, lambda frame: blend(0.0, frame.astype(np.float32), factor))


def contrast(video: Video, factor: float) -> Video:
    """Scales contrast around the mean luma of the clip."""
    mean = np.mean([_luma(_planes(frame)).mean(dtype=np.float64) for frame in video])
    middle = float(np.floor(mean + 0.5))
    return _by_frame(video, lambda frame: blend(middle, frame.astype(np.float32), factor))


def saturation(video: Video, factor: float) -> Video:
    """Scales saturation: grey at factor 0."""

    def change(frame: np.ndarray) -> np.ndarray:
        planes = _planes(frame)
        return np.moveaxis(blend(_luma(planes), planes, factor), 0, -1)

    return _by_frame(video, change)


def jitter(video: Video, strength: float, seed: Seed) -> Video:
    """Scales brightness, contrast and saturation, in this order, by factors drawn from 1 +- strength."""
    for change, change_seed in zip((brightness, contrast, saturation), stateless.split(seed, 3), strict=True):
        (factor,) = stateless.uniform(change_seed, 1, max(0.0, 1 - strength), 1 + strength).tolist()
        video = change(video, factor)
    return video


def blend(
    other: Float[np.ndarray, "..."] | float, image: Float[np.ndarray, "..."], factor: float
) -> Float[np.ndarray, "..."]:
    """Interpolates from `other` (factor 0) to `image` (factor 1) and extrapolates above 1, in the memory of `image`.

    The values are between 0 and 255, and Pillow's once they are converted to uint8, which rounds them down.
    """
    image -= other
    image *= np.float32(factor)
    image += other
    return np.clip(image, 0, 255, out=image)


def _by_frame(video: Video, change: Callable[[np.ndarray], np.ndarray]) -> Video:
    """Changes each frame; floats are rounded down."""
    changed = np.empty_like(video)
    for frame, output in zip(video, changed, strict=True):
        output[...] = change(frame)
    return changed
