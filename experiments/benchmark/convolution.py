"""Time of the 3-D convolutions of models, each by itself: vidjax's, XLA's plain one, and PyTorch's.

Only convolutions over time and space are measured; spatial and temporal ones are 2-D here. The forward pass and each
gradient are separate programs. Each side runs in a process of its own; a time is the median over the steps.
"""

import dataclasses
import importlib.util
import statistics
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import vidjax
from benchmark.measure import in_process, measure, set_environment
from benchmark.ours import describe_devices
from benchmark.process import keep_to, timed
from vidjax.cli import check_files
from vidjax.errors import UserError
from vidjax.fields import check_values
from vidjax.kernels.convolution import conv3d
from vidjax.layers.convolution import Conv3D

Triple = tuple[int, int, int]
PARTS = ("forward", "input's gradient", "kernel's gradient")


@dataclasses.dataclass(frozen=True)
class Convolution:
    """The 3-D convolutions of models."""

    models: tuple[str, ...] = ("r3d_18",)
    """Names of vidjax.list_models()."""
    frames: int | None = None
    """Frames per clip; None for each model's default."""
    size: int | None = None
    """Height and width in pixels; None for each model's default."""
    batch_size: int = 1
    """Clips."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of all arrays."""
    threads: int | None = None
    """CPU cores that each side may use; None for all."""
    steps: int = 5
    """Timed calls, after warm-up."""
    json: str | None = None
    """Write the numbers to this file."""

    def __post_init__(self) -> None:
        """Rejects invalid values."""
        check_values(self)
        for name in ("frames", "size", "batch_size", "threads", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}: it must be 1 or more")
        if not self.models:
            raise UserError("models is (): name one or more")
        check_files(json=self.json)


@dataclasses.dataclass(frozen=True)
class Shapes:
    """A convolution of an input `b t h w c`, padded by half of its kernel."""

    input: tuple[int, int, int, int, int]
    features: int
    size: Triple
    strides: Triple

    @property
    def name(self) -> str:
        """Channels, frames, height and width of the input, kernel, strides and channels of the output."""
        _, t, h, w, c = self.input
        kernel = f"{'x'.join(map(str, self.size))} / {','.join(map(str, self.strides))}"
        return f"{c} x {t} x {h} x {w}, {kernel} to {self.features}"

    @property
    def padding(self) -> Triple:
        """Cells on both sides of each axis."""
        return tuple(cells // 2 for cells in self.size)


def convolutions_of(name: str, config: Convolution) -> list[Shapes]:
    """The distinct 3-D convolutions of a model in the order of its layers, by tracing only.

    Raises:
      UserError: the model has none, or cannot be created with these sizes.
    """
    model = vidjax.create_model(name)
    frames, size = config.frames or model.num_frames, config.size or model.image_size
    model = vidjax.create_model(name, num_frames=frames, image_size=size)
    found: dict[Shapes, None] = {}  # in order

    def collect(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        layer = context.module
        size = layer.kernel_size if isinstance(layer, Conv3D) and context.method_name == "__call__" else (1, 1, 1)
        if size[0] > 1 and max(size[1:]) > 1:
            found[Shapes(args[0].shape, layer.features, size, layer.strides)] = None
        return call(*args, **kwargs)

    video = jax.ShapeDtypeStruct((config.batch_size, frames, size, size, model.channels), jnp.float32)
    with nn.intercept_methods(collect):
        jax.eval_shape(model.init, jax.random.key(0), video)
    if not found:
        raise UserError(f"{name} has no convolution over time and space: choose another model")
    return list(found)


def draw(shapes: Shapes) -> list[np.ndarray]:
    """An input `b t h w c`, a kernel `kt kh kw c d`, and a gradient of the output; all sides get the same."""
    rng = np.random.default_rng(0)
    padding = [(cells, cells) for cells in shapes.padding]
    kernel = (*shapes.size, shapes.input[-1], shapes.features)
    sides = [
        (side + sum(cells) - size) // stride + 1
        for side, cells, size, stride in zip(shapes.input[1:4], padding, shapes.size, shapes.strides, strict=True)
    ]
    output = (shapes.input[0], *sides, shapes.features)
    return [rng.standard_normal(shape, np.float32) for shape in (shapes.input, kernel, output)]


def in_jax(shapes: Shapes, dtype: str, plain: bool) -> dict[str, Callable[[], jax.Array]]:
    """A function for each of `PARTS`, by vidjax or by XLA's plain convolution."""
    x, kernel, dy = (jnp.asarray(array, dtype) for array in draw(shapes))
    padding = tuple((cells, cells) for cells in shapes.padding)
    convolve = partial(conv3d, strides=shapes.strides, padding=padding)
    if plain:
        dimensions = ("NTHWC", "THWIO", "NTHWC")
        convolve = partial(
            lax.conv_general_dilated, window_strides=shapes.strides, padding=padding, dimension_numbers=dimensions
        )
    functions = (
        lambda x, kernel, dy: convolve(x, kernel),
        lambda x, kernel, dy: jax.vjp(lambda x: convolve(x, kernel), x)[1](dy)[0],
        lambda x, kernel, dy: jax.vjp(lambda kernel: convolve(x, kernel), kernel)[1](dy)[0],
    )
    return {part: partial(jax.jit(each), x, kernel, dy) for part, each in zip(PARTS, functions, strict=True)}


def in_pytorch(shapes: Shapes, dtype: str) -> dict[str, Callable[[], Any]]:
    """The same on the first CUDA device or the CPU, with an input `b c t h w` and a kernel `d c kt kh kw`."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, kernel, dy = (torch.from_numpy(array).to(device, getattr(torch, dtype)) for array in draw(shapes))
    x, dy = (array.permute(0, 4, 1, 2, 3).contiguous() for array in (x, dy))
    kernel = kernel.permute(4, 3, 0, 1, 2).contiguous()
    how = [shapes.strides, shapes.padding, (1, 1, 1), False, (0, 0, 0), 1]

    def backward(*wanted: bool) -> Callable[[], Any]:
        return lambda: torch.ops.aten.convolution_backward(dy, x, kernel, None, *how, [*wanted, False])

    functions = (
        lambda: torch.ops.aten.convolution(x, kernel, None, *how),
        backward(True, False),
        backward(False, True),
    )
    return dict(zip(PARTS, functions, strict=True))


def measure_side(side: str, listed: list[Shapes], config: Convolution) -> dict[str, Any]:
    """The median seconds of each part of each convolution, measured in this process."""
    threads, wait = keep_to(config.threads), jax.block_until_ready
    make = partial(in_jax, dtype=config.dtype, plain=side == "XLA")
    if side == "PyTorch":
        import torch

        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = True  # as in `pytorch.measure_pytorch`
        make, wait = partial(in_pytorch, dtype=config.dtype), lambda _: _synchronize()
    seconds = []
    for shapes in listed:
        parts = make(shapes)
        seconds.append({part: statistics.median(timed(run, wait, config.steps)) for part, run in parts.items()})
    return {"seconds": seconds}


def _synchronize() -> None:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure_convolution(
    config: Convolution, report: Callable[[str], Any]
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The devices, and a row for each convolution and side: seconds of each part, or the reason why there are none.

    Args:
      report: called with one line before each process.

    Raises:
      UserError: a model has no 3-D convolution, or cannot be created with these sizes.
    """
    found = {name: convolutions_of(name, config) for name in config.models}
    set_environment()
    sides = ("vidjax", "XLA", "PyTorch") if importlib.util.find_spec("torch") else ("vidjax", "XLA")
    rows: list[dict[str, Any]] = []
    for name, listed in found.items():
        for side in sides:
            report(f"{name} {side}")
            measured = measure(measure_side, side, listed, config)
            for i, shapes in enumerate(listed):
                row = {"model": name, "convolution": shapes.name, "side": side, "batch_size": config.batch_size}
                failed = {"failed": measured["failed"]} if "failed" in measured else measured["seconds"][i]
                rows.append(row | failed)
    versions = {library: version(library) for library in ("jax", "torch") if importlib.util.find_spec(library)}
    return in_process(describe_devices) | {"versions": versions}, rows
