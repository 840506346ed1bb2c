"""3-D convolution by the fastest algorithm for the kernel size and device.

XLA's 3-D convolutions are several times slower than PyTorch's on CPUs, and their gradients even more so. A purely
spatial or temporal convolution is therefore computed as a 2-D one over folded axes, a 3 x 3 one by `kernels.winograd`,
and the gradients of the kernels by matrix products. On GPUs the gradients of what remains 3-D are those of
`kernels.gpu_convolution`.
These gradients support reverse mode only: `jax.jvp` and everything built on it (`jax.jacfwd`, `jax.hessian`) fails.
With several CPU devices, including simulated ones, XLA's gradients are used, as on TPUs: those for one CPU loop over
the clips, and each device would have to fetch the clips of all others.
"""

from collections.abc import Sequence
from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from vidjax.kernels import winograd
from vidjax.kernels.gpu_convolution import gpu_conv3d
from vidjax.kernels.winograd import Pairs


def conv3d(
    x: Float[Array, "b t h w c"], kernel: Float[Array, "kt kh kw c d"], strides: Sequence[int], padding: Pairs
) -> Float[Array, "b _ _ _ d"]:
    """3-D convolution; `padding` gives the cells before and after each axis.

    Equals `lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NTHWC", "THWIO", "NTHWC"))`.
    """
    convolve = _cpu_conv3d if winograd.on_one_cpu() else _xla_conv3d
    return convolve(x, kernel, tuple(strides), tuple(padding))


def _xla_conv3d(x: Array, kernel: Array, strides: Sequence[int], padding: Pairs) -> Array:
    (b, t, h, w, _), (kt, kh, kw, c, d) = x.shape, kernel.shape
    if winograd.is_faster(x, kernel, strides, padding):
        return winograd.winograd_convolution(x, kernel, padding)
    if kt == 1 and padding[0] == (0, 0):
        x = x[:, :: strides[0]]
        y = _conv2d(x.reshape(-1, h, w, c), kernel[0], strides[1:], padding[1:])
        return y.reshape(b, -1, *y.shape[1:])
    if kh == kw == 1 and padding[1:] == ((0, 0), (0, 0)):
        x = x[:, :, :: strides[1], :: strides[2]]
        y = _conv2d(x.reshape(b, t, -1, c), kernel[:, :, 0], (strides[0], 1), (padding[0], (0, 0)))
        return y.reshape(b, -1, *x.shape[2:4], d)
    if jax.default_backend() == "cpu":
        return _sum_over_taps(x, kernel, strides, padding)
    if jax.default_backend() == "gpu":
        return gpu_conv3d(x, kernel, strides, padding)
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NTHWC", "THWIO", "NTHWC"))


def _conv2d(x: Array, kernel: Array, strides: Sequence[int], padding: Pairs) -> Array:
    convolve = partial(lax.conv_general_dilated, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    (_, h, w, _), (kh, kw, c, d), ((top, bottom), columns) = x.shape, kernel.shape, padding
    cpu = jax.default_backend() == "cpu"
    if cpu and kh == kw == 1 and c >= 16 and not any(map(any, padding)):
        return x[:, :: strides[0], :: strides[1]] @ kernel[0, 0]  # takes up to a fifth less time
    if cpu and c == 3 and 16 < d % 48 <= 32:
        return _with_fourth_input(x, kernel, tuple(strides), tuple(padding))
    if cpu and tuple(strides) == (1, 1) and kh * kw > 1 and w <= 256 and d <= 64 and c > 16:
        # XLA has two implementations. The one that parallelises over columns and channels leaves all threads but one
        # idle if there are few of both. The other, which XLA selects if the result is larger than the input, was 1.3
        # times as fast on two cores (0.76 by CPU time, so slower on one); the extra rows below make it select that one.
        rows = h + top + bottom - kh + 1
        more = max(0, h + 1 - rows)
        return convolve(x, kernel, strides, ((top, bottom + more), columns))[:, :rows]
    return convolve(x, kernel, strides, padding)


@partial(jax.jit, static_argnums=(2, 3))  # so that training.cost finds it by name
def _with_fourth_input(x: Array, kernel: Array, strides: Sequence[int], padding: Pairs) -> Array:
    """2-D convolution of three inputs with a fourth of zeros: some numbers of outputs then take a fifth of the time."""
    x, kernel = jnp.pad(x, ((0, 0),) * 3 + ((0, 1),)), jnp.pad(kernel, ((0, 0), (0, 0), (0, 1), (0, 0)))
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@partial(jax.jit, static_argnums=(2, 3))  # so that training.cost finds it by name
def _sum_over_taps(x: Array, kernel: Array, strides: Sequence[int], padding: Pairs) -> Array:
    """The sum of one 2-D convolution per frame of the kernel, over the frames of `x` that it covers, without padding.

    With few channels there is one convolution: its outputs are those of all frames of the kernel, if these are few, or
    else its inputs are all frames that contribute to an output.
    """
    (b, t, h, w, c), (kt, kh, kw, _, d), (before, after), stride = x.shape, kernel.shape, padding[0], strides[0]
    frames = (t + before + after - kt) // stride + 1
    if c <= 8 and kt * d <= 64:
        y = _conv2d(x.reshape(-1, h, w, c), jnp.moveaxis(kernel, 0, 3).reshape(kh, kw, c, -1), strides[1:], padding[1:])
        y = winograd.pad_or_cut(y.reshape(b, t, *y.shape[1:]), ((before, after), (0, 0), (0, 0)))
        y = y.reshape(*y.shape[:-1], kt, d)
        return sum(y[:, tap : tap + (frames - 1) * stride + 1 : stride, :, :, tap] for tap in range(kt))
    if c <= 8:
        x = winograd.pad_or_cut(x, ((before, after), (0, 0), (0, 0)))
        x = jnp.concatenate([x[:, tap : tap + (frames - 1) * stride + 1 : stride] for tap in range(kt)], axis=-1)
        kernel = jnp.moveaxis(kernel, 0, 2).reshape(kh, kw, kt * c, d)
        y = _conv2d(x.reshape(-1, h, w, kt * c), kernel, strides[1:], padding[1:])
        return y.reshape(b, frames, *y.shape[1:])
    total = 0.0
    for tap in range(kt):
        covered = [i for i in range(frames) if 0 <= i * stride + tap - before < t]
        if covered:
            first = covered[0] * stride + tap - before
            tap_frames = x[:, first : first + (len(covered) - 1) * stride + 1 : stride].reshape(-1, h, w, c)
            y = _conv2d(tap_frames, kernel[tap], strides[1:], padding[1:])
            y = y.reshape(b, len(covered), *y.shape[1:])
            total += jnp.pad(y, ((0, 0), (covered[0], frames - 1 - covered[-1]), *[(0, 0)] * 3))
    return total


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _cpu_conv3d(x: Array, kernel: Array, strides: Sequence[int], padding: Pairs) -> Array:
    return _xla_conv3d(x, kernel, strides, padding)


def _cpu_gradients(
    strides: Sequence[int], padding: Pairs, saved: tuple[Array, Array], dy: Array
) -> tuple[Array, Array]:
    """The input's gradient by a convolution; the kernel's, which is slow in XLA, by matrix products."""
    x, kernel = saved
    size, c, d = kernel.shape[:3], *kernel.shape[3:]
    if any(stride > 1 for stride in strides):
        dx = jax.linear_transpose(lambda x: _xla_conv3d(x, kernel, strides, padding), x)(dy)[0]
        return dx, _kernel_gradient(x, dy, size, strides, padding)
    low = [k - 1 - before for k, (before, _) in zip(size, padding, strict=True)]
    high = [i + k - 1 - b - o for i, k, b, o in zip(x.shape[1:4], size, low, dy.shape[1:4], strict=True)]
    flipped_padding = tuple(zip(low, high, strict=True))
    dx = _xla_conv3d(dy, jnp.swapaxes(kernel[::-1, ::-1, ::-1], 3, 4), strides, flipped_padding)
    if winograd.is_faster(x, kernel, strides, padding):
        return dx, winograd.winograd_kernel_gradient(x, dy, size[0], padding)
    if _copies(size, d, c) < _copies(size, c, d):
        dkernel = _kernel_gradient(dy, x, size, strides, flipped_padding)[::-1, ::-1, ::-1]
        return dx, jnp.swapaxes(dkernel, 3, 4)
    return dx, _kernel_gradient(x, dy, size, strides, padding)


_cpu_conv3d.defvjp(lambda x, kernel, *how: (_cpu_conv3d(x, kernel, *how), (x, kernel)), _cpu_gradients)


def _copies(size: Sequence[int], shifted: int, fixed: int) -> int:
    """Values per position that `_correlate` copies."""
    frames, places = size[0], size[1] * size[2]
    return shifted * places * (places > 1) + fixed * frames * (frames > 1)


def _kernel_gradient(x: Array, dy: Array, size: Sequence[int], strides: Sequence[int], padding: Pairs) -> Array:
    (kt, kh, kw), stride, before, frames = size, strides[0], padding[0][0], dy.shape[1]
    # Crops where the padding is negative: the transpose of a convolution padded by more than its window.
    x = winograd.pad_or_cut(x, ((0, 0), *padding[1:]))
    gradient = jnp.zeros((kt, kh, kw, x.shape[-1], dy.shape[-1]), dy.dtype)
    for phase in range(min(stride, x.shape[1])):  # frames of the same phase are covered by the same taps
        phase_frames = x[:, phase::stride]
        offsets = {tap: (phase + before - tap) // stride for tap in range(kt) if (phase + before - tap) % stride == 0}
        covered = [tap for tap, offset in offsets.items() if -phase_frames.shape[1] < offset < frames]
        if covered:
            products = _correlate(phase_frames, dy, [offsets[tap] for tap in covered], (kh, kw), strides[1:])
            gradient = gradient.at[np.asarray(covered)].set(products)
    return gradient


def _correlate(
    shifted: Array, fixed: Array, offsets: Sequence[int], size: Sequence[int], strides: Sequence[int]
) -> Array:
    """Products summed over clips, frames and positions: `(offsets, kh, kw, c, d)`.

    Frame i of `shifted`, at each shift of a kernel of this `size`, is multiplied by frame i + offset of `fixed`, if it
    exists. The shifts of each position are copied only once for all offsets.
    """
    (b, t, _, wide, c), (_, others, height, width, d), (kh, kw), (sh, sw) = shifted.shape, fixed.shape, size, strides
    early = max(0, -min(offsets))
    fixed = jnp.pad(fixed, ((0, 0), (early, max(0, t + max(offsets) - others)), *[(0, 0)] * 3))
    starts = [early + offset for offset in offsets]
    swapped = len(offsets) * d > kh * kw * c  # a product is up to 1.8 times as fast with the narrower side transposed

    def products(shifted: Array, fixed: list[Array]) -> Array:
        down, across = (fixed[0].shape[-3] - 1) * sh + 1, (width - 1) * sw + 1
        if kh * kw > 9:  # columns first: 14 slices of a 7 x 7 kernel compile three times as fast as 49, and run as fast
            shifted = jnp.concatenate([shifted[..., j : j + across : sw, :] for j in range(kw)], axis=-1)
            taps = [shifted[..., i : i + down : sh, :, :] for i in range(kh)]
        else:
            taps = [shifted[..., i : i + down : sh, j : j + across : sw, :] for i, j in product(range(kh), range(kw))]
        left, right = (jnp.concatenate([a.reshape(-1, a.shape[-1]) for a in side], axis=1) for side in (fixed, taps))
        return right.T @ left if swapped else left.T @ right

    if b * t * height * width <= 2048:
        total = products(shifted, [fixed[:, start : start + t] for start in starts])
    else:  # a few rows at a time, so that the operands stay in the cache
        most = 2**19 // (width * kh * kw * c)
        rows = max(r for r in range(1, height + 1) if height % r == 0 and (r == 1 or r <= most))

        def add_rows(total: Array, place: Array) -> tuple[Array, None]:
            clip, frame, row = place
            window = (1, 1, (rows - 1) * sh + kh, wide, c)
            shifted_rows = lax.dynamic_slice(shifted, (clip, frame, row * sh, 0, 0), window)
            size = (1, 1, rows, width, d)
            fixed_rows = [lax.dynamic_slice(fixed, (clip, frame + start, row, 0, 0), size) for start in starts]
            return total + products(shifted_rows, fixed_rows), None

        places = [(clip, frame, row) for clip in range(b) for frame in range(t) for row in range(0, height, rows)]
        zeros = jnp.zeros((len(offsets) * d, kh * kw * c), fixed.dtype)
        total, _ = lax.scan(add_rows, zeros.T if swapped else zeros, jnp.asarray(places))
    total = lax.optimization_barrier(total).T if swapped else total  # else XLA transposes the operands instead
    return jnp.moveaxis(total.reshape(len(offsets), d, kh, kw, c), 1, -1)
