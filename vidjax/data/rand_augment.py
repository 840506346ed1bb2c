"""RandAugment (Cubuk et al. 2020) for clips: operations are drawn once per clip and applied equally to all frames.

Operations and magnitudes follow timm's `rand-m{M}-n{N}-mstd0.5-inc1`, with which VideoMAE and UniFormer are fine-tuned,
and the pixels are those of Pillow, with which timm computes them. Histograms (autocontrast, equalize) and the mean in
contrast are computed over the whole clip, since per-frame statistics would make it flicker.
"""

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from vidjax.data import color, stateless
from vidjax.data.stateless import Seed

Video = UInt8[np.ndarray, "t h w 3"]
PROBABILITY = 0.5  # that a drawn operation is applied
FILL = (124, 116, 104)  # ImageNet's mean colour, for areas outside of a transformed image


def rand_augment(video: Video, operations: int, magnitude: float, seed: Seed) -> Video:
    """Applies `operations` random operations, each with probability 1/2.

    Args:
      video: RGB.
      operations: number of operations, drawn with replacement.
      magnitude: from 0 to 10; each operation draws its own from a normal distribution around it with std 0.5.
      seed: the result is a function of it.
    """
    for operation_seed in stateless.split(seed, operations):
        use_seed, which_seed, level_seed, sign_seed = stateless.split(operation_seed, 4)
        if stateless.uniform(use_seed, 1)[0] < PROBABILITY:
            level = np.clip(stateless.normal(level_seed, 1, magnitude, 0.5)[0], 0, 10) / np.float32(10)
            sign = -1 if stateless.uniform(sign_seed, 1)[0] < 0.5 else 1
            operation = list(OPERATIONS.values())[stateless.below(which_seed, len(OPERATIONS))]
            video = operation(video, float(level), sign)
    return video


def _as_image(video: Video) -> Image.Image:
    """The frames below one another."""
    return Image.fromarray(video.reshape(-1, *video.shape[2:]))


def _sharpness(video: Video, factor: float) -> Video:
    changed = video.copy()  # borders are unchanged, as in Pillow
    for frame, output in zip(video, changed, strict=True):
        pixels = frame.astype(np.float32)
        inner = pixels[1:-1, 1:-1]
        rows = pixels[:-2] + pixels[1:-1] + pixels[2:]
        smooth = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * inner
        smooth = np.floor(smooth / np.float32(13) + np.float32(0.5))
        output[1:-1, 1:-1] = color.blend(smooth, inner, factor)
    return changed


def _posterize(video: Video, bits: int) -> Video:
    """Keeps the upper bits of each value."""
    return video & np.uint8(256 - 2 ** (8 - bits) & 255)


def _solarize(video: Video, threshold: int) -> Video:
    return np.where(video < threshold, video, 255 - video)


def _solarize_add(video: Video, addition: int) -> Video:
    return np.where(video < 128, video + np.minimum(np.uint8(addition), 255 - video), video)


def _transform(video: Video, matrix: tuple[float, ...]) -> Video:
    """Affine transform: pixel (x, y) is sampled bilinearly at (a x + b y + c, d x + e y + f)."""
    size, how = video.shape[2:0:-1], (Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR)
    return np.stack([Image.fromarray(frame).transform(size, *how, fillcolor=FILL) for frame in video])


def _rotate(video: Video, degrees: float) -> Video:
    how = {"resample": Image.Resampling.BILINEAR, "fillcolor": FILL}
    return np.stack([Image.fromarray(frame).rotate(degrees, **how) for frame in video])


# Name to a function of (video, level from 0 to 1, random sign) -> video, in timm's order.
OPERATIONS = {
    "autocontrast": lambda v, x, s: np.asarray(ImageOps.autocontrast(_as_image(v))).reshape(v.shape),
    "equalize": lambda v, x, s: np.asarray(ImageOps.equalize(_as_image(v))).reshape(v.shape),
    "invert": lambda v, x, s: 255 - v,
    "rotate": lambda v, x, s: _rotate(v, s * x * 30),
    "posterize": lambda v, x, s: _posterize(v, 4 - int(x * 4)),
    "solarize": lambda v, x, s: _solarize(v, 256 - int(x * 256)),
    "solarize_add": lambda v, x, s: _solarize_add(v, int(x * 110)),
    "color": lambda v, x, s: color.saturation(v, max(0.1, 1 + s * x * 0.9)),
    "contrast": lambda v, x, s: color.contrast(v, max(0.1, 1 + s * x * 0.9)),
    "brightness": lambda v, x, s: color.brightness(v, max(0.1, 1 + s * x * 0.9)),
    "sharpness": lambda v, x, s: _sharpness(v, max(0.1, 1 + s * x * 0.9)),
    "shear_x": lambda v, x, s: _transform(v, (1, s * x * 0.3, 0, 0, 1, 0)),
    "shear_y": lambda v, x, s: _transform(v, (1, 0, 0, s * x * 0.3, 1, 0)),
    "translate_x": lambda v, x, s: _transform(v, (1, 0, s * x * 0.45 * v.shape[2], 0, 1, 0)),
    "translate_y": lambda v, x, s: _transform(v, (1, 0, 0, 0, 1, s * x * 0.45 * v.shape[1])),
}
