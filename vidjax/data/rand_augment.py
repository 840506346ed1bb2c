"""RandAugment (Cubuk et al. 2020) for clips: operations are drawn once per clip and applied equally to all frames.

Operations and magnitudes follow timm's `rand-m{M}-n{N}-mstd0.5-inc1`, with which VideoMAE and UniFormer are fine-tuned.
Histograms (autocontrast, equalize) and the mean in contrast are computed over the whole clip, since per-frame
statistics would make it flicker. The operations take float32 videos (t, h, w, 3) with values from 0 to 255.
"""

import tensorflow as tf

PROBABILITY = 0.5  # that a drawn operation is applied
FILL = (124.0, 116.0, 104.0)  # ImageNet's mean colour, for areas outside of a transformed image


def rand_augment(video: tf.Tensor, operations: int, magnitude: float, seed: tf.Tensor) -> tf.Tensor:
    """Applies `operations` random operations, each with probability 1/2.

    Args:
      video: uint8 (t, h, w, 3).
      operations: number of operations, drawn with replacement.
      magnitude: from 0 to 10; each operation draws its own from a normal distribution around it with std 0.5.
      seed: (2,) integers.
    """
    video = tf.cast(video, tf.float32)
    for operation_seed in tf.unstack(tf.random.split(seed, operations), num=operations):
        use_seed, which_seed, level_seed, sign_seed = tf.unstack(tf.random.split(operation_seed, 4), num=4)
        level = tf.clip_by_value(tf.random.stateless_normal((), level_seed, magnitude, 0.5), 0.0, 10.0) / 10
        sign = tf.where(tf.random.stateless_uniform((), sign_seed) < 0.5, -1.0, 1.0)
        which = tf.random.stateless_uniform((), which_seed, 0, len(OPERATIONS), tf.int32)
        branches = [lambda operation=op, v=video, s=sign, x=level: operation(v, x, s) for op in OPERATIONS.values()]
        used = tf.random.stateless_uniform((), use_seed) < PROBABILITY
        video = tf.cond(used, lambda b=branches, w=which: tf.switch_case(w, b), lambda v=video: v)
    return tf.cast(video, tf.uint8)


def grey(video: tf.Tensor) -> tf.Tensor:
    """Luma in all channels (ITU-R 601, as in PIL)."""
    return tf.repeat(tf.round(tf.tensordot(video, tf.constant([0.299, 0.587, 0.114]), 1))[..., None], 3, axis=-1)


def blend(video: tf.Tensor, other: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Interpolates from `other` (factor 0) to `video` (factor 1) and extrapolates above 1; integers from 0 to 255."""
    return tf.floor(tf.clip_by_value(other + factor * (video - other), 0.0, 255.0))


def brightness(video: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Scales brightness: darker below factor 1, brighter above."""
    return blend(video, tf.zeros_like(video), factor)


def contrast(video: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Scales contrast around the mean luma of the clip."""
    mean = tf.floor(tf.reduce_mean(grey(video)) + 0.5)
    return blend(video, tf.fill(tf.shape(video), mean), factor)


def saturation(video: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    """Scales saturation: grey at factor 0."""
    return blend(video, grey(video), factor)


def _sharpness(video: tf.Tensor, factor: tf.Tensor) -> tf.Tensor:
    kernel = tf.constant([[1.0, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    kernel = tf.tile(kernel[:, :, None, None], (1, 1, 3, 1))
    smooth = tf.nn.depthwise_conv2d(video, kernel, (1, 1, 1, 1), "VALID")
    smooth = tf.pad(tf.floor(smooth + 0.5), ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-1.0)
    return blend(video, tf.where(smooth < 0, video, smooth), factor)  # borders are unchanged, as in PIL


def _autocontrast(video: tf.Tensor) -> tf.Tensor:
    low, high = tf.reduce_min(video, (0, 1, 2)), tf.reduce_max(video, (0, 1, 2))
    scale = 255.0 / tf.maximum(high - low, 1.0)
    return tf.where(high > low, tf.floor(tf.clip_by_value((video - low) * scale + 1e-3, 0.0, 255.0)), video)


def _equalize(video: tf.Tensor) -> tf.Tensor:
    def channel(values: tf.Tensor) -> tf.Tensor:
        counts = tf.math.bincount(values, minlength=256, maxlength=256)
        last = counts[tf.reduce_max(tf.where(counts > 0))]
        step = (tf.reduce_sum(counts) - last) // 255
        table = (tf.cumsum(counts, exclusive=True) + step // 2) // tf.maximum(step, 1)
        table = tf.where(step > 0, tf.clip_by_value(table, 0, 255), tf.range(256))
        return tf.gather(table, values)

    whole = tf.cast(video, tf.int32)
    return tf.cast(tf.stack([channel(whole[..., c]) for c in range(3)], axis=-1), tf.float32)


def _posterize(video: tf.Tensor, bits: tf.Tensor) -> tf.Tensor:
    step = 2.0 ** (8.0 - bits)
    return tf.where(bits >= 8, video, tf.floor(video / step) * step)


def _solarize(video: tf.Tensor, threshold: tf.Tensor) -> tf.Tensor:
    return tf.where(video < threshold, video, 255.0 - video)


def _solarize_add(video: tf.Tensor, addition: tf.Tensor) -> tf.Tensor:
    return tf.where(video < 128.0, tf.minimum(video + addition, 255.0), video)


def _move(video: tf.Tensor, matrix: tuple) -> tf.Tensor:
    """Affine transform: pixel (x, y) is sampled bilinearly at (a x + b y + c, d x + e y + f)."""
    a, b, c, d, e, f = (tf.cast(value, tf.float32) for value in matrix)
    # The TensorFlow operation has the origin at the centre of the first pixel; here it is the corner of the image.
    c, f = c + (a + b - 1) / 2, f + (d + e - 1) / 2
    transform = tf.stack([a, b, c, d, e, f, tf.constant(0.0), tf.constant(0.0)])[None]
    fill = tf.constant(FILL)
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=video - fill,
        transforms=transform,
        output_shape=tf.shape(video)[1:3],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    )
    return tf.round(tf.clip_by_value(tf.ensure_shape(moved, video.shape) + fill, 0.0, 255.0))


def _rotate(video: tf.Tensor, degrees: tf.Tensor) -> tf.Tensor:
    angle = degrees * 3.141592653589793 / 180
    cos, sin = tf.cos(angle), tf.sin(angle)
    height, width = (tf.cast(side, tf.float32) / 2 for side in tf.unstack(tf.shape(video)[1:3], num=2))
    return _move(video, (cos, -sin, width - cos * width + sin * height, sin, cos, height - sin * width - cos * height))


def _width(video: tf.Tensor) -> tf.Tensor:
    return tf.cast(tf.shape(video)[2], tf.float32)


# Name to a function of (video, level from 0 to 1, random sign) -> video, in timm's order.
OPERATIONS = {
    "autocontrast": lambda v, x, s: _autocontrast(v),
    "equalize": lambda v, x, s: _equalize(v),
    "invert": lambda v, x, s: 255.0 - v,
    "rotate": lambda v, x, s: _rotate(v, s * x * 30),
    "posterize": lambda v, x, s: _posterize(v, 4.0 - tf.floor(x * 4)),
    "solarize": lambda v, x, s: _solarize(v, 256.0 - tf.floor(x * 256)),
    "solarize_add": lambda v, x, s: _solarize_add(v, tf.floor(x * 110)),
    "color": lambda v, x, s: saturation(v, tf.maximum(0.1, 1 + s * x * 0.9)),
    "contrast": lambda v, x, s: contrast(v, tf.maximum(0.1, 1 + s * x * 0.9)),
    "brightness": lambda v, x, s: brightness(v, tf.maximum(0.1, 1 + s * x * 0.9)),
    "sharpness": lambda v, x, s: _sharpness(v, tf.maximum(0.1, 1 + s * x * 0.9)),
    "shear_x": lambda v, x, s: _move(v, (1, s * x * 0.3, 0, 0, 1, 0)),
    "shear_y": lambda v, x, s: _move(v, (1, 0, 0, s * x * 0.3, 1, 0)),
    "translate_x": lambda v, x, s: _move(v, (1, 0, s * x * 0.45 * _width(v), 0, 1, 0)),
    "translate_y": lambda v, x, s: _move(v, (1, 0, 0, 0, 1, s * x * 0.45 * _width(v))),
}
