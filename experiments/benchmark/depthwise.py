"""Time of the depthwise convolutions of models, each by itself, beside PyTorch's `conv3d` with as many groups.

A row is a distinct convolution, with the number of times that the model has it; the last row of a model is the sum over
all of them. Each side runs in processes of its own, which alternate; a time is the median of the rounds' medians, in
float32 and without bias. "gradients" are those of input and kernel, together with the output, as in a training step.
"""

import dataclasses
import importlib.util
import itertools
import statistics
from collections import Counter
from collections.abc import Callable
from functools import partial
from importlib.metadata import version
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

import vidjax
from benchmark.measure import in_process, set_environment
from benchmark.ours import describe_devices
from benchmark.process import keep_to, timed
from vidjax.cli import check_files
from vidjax.errors import UserError
from vidjax.fields import check_values
from vidjax.layers.convolution import DepthwiseConv3D

Triple = tuple[int, int, int]
PARTS = ("forward", "gradients")


@dataclasses.dataclass(frozen=True)
class Depthwise:
    """The depthwise convolutions of models."""

    models: tuple[str, ...] = ("x3d_m", "ircsn_50")
    """Names of vidjax.list_models()."""
    frames: int | None = None
    """Frames per clip; None for each model's default."""
    size: int | None = None
    """Height and width in pixels; None for each model's default."""
    batch_size: int = 1
    """Clips."""
    threads: int | None = None
    """CPU cores that each side may use; None for all."""
    rounds: int = 2
    """Processes per side, which alternate."""
    steps: int = 5
    """Timed calls per process, after warm-up."""
    json: str | None = None
    """Write the numbers to this file."""

    def __post_init__(self) -> None:
        """Rejects invalid values."""
        check_values(self)
        for name in ("frames", "size", "batch_size", "threads", "rounds", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}: it must be 1 or more")
        if not self.models:
            raise UserError("models is (): name one or more")
        check_files(json=self.json)


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A depthwise convolution of an input `b t h w c`."""

    shape: tuple[int, int, int, int, int]
    kernel: Triple
    strides: Triple
    padding: Triple

    @property
    def name(self) -> str:
        """Channels, frames, height and width of the input, kernel and strides."""
        _, t, h, w, c = self.shape
        return f"{c} x {t} x {h} x {w}, {'x'.join(map(str, self.kernel))} / {','.join(map(str, self.strides))}"


def convolutions_of(name: str, frames: int | None, size: int | None, batch_size: int) -> Counter[Convolution]:
    """The distinct depthwise convolutions of a model in the order of its layers, with their numbers, by tracing only.

    Raises:
      UserError: the model has none, or cannot be created with these sizes.
    """
    model = vidjax.create_model(name)
    frames, size = frames or model.num_frames, size or model.image_size
    model = vidjax.create_model(name, num_frames=frames, image_size=size)
    found: Counter[Convolution] = Counter()

    def collect(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        layer = context.module
        if isinstance(layer, DepthwiseConv3D) and context.method_name == "__call__":
            padding = layer.padding or tuple(cells // 2 for cells in layer.kernel_size)
            found[Convolution(args[0].shape, layer.kernel_size, layer.strides, padding)] += 1
        return call(*args, **kwargs)

    video = jax.ShapeDtypeStruct((batch_size, frames, size, size, model.channels), jnp.float32)
    with nn.intercept_methods(collect):
        jax.eval_shape(model.init, jax.random.key(0), video)
    if not found:
        raise UserError(f"{name} has no depthwise convolution: choose another model")
    return found


def draw(convolution: Convolution) -> tuple[np.ndarray, np.ndarray]:
    """An input `b t h w c` and a kernel `kt kh kw 1 c`; both sides get the same."""
    rng, kernel = np.random.default_rng(0), (*convolution.kernel, 1, convolution.shape[-1])
    return rng.standard_normal(convolution.shape, np.float32), rng.standard_normal(kernel, np.float32)


def ours(convolution: Convolution) -> dict[str, Callable[[], tuple[jax.Array, ...]]]:
    """A function for each of `PARTS`: the output, and the output with the gradients of input and kernel.

    The output also serves as its own gradient: a constant one could be folded.
    """
    layer = DepthwiseConv3D(convolution.kernel, False, convolution.strides, convolution.padding)
    x, kernel = map(jnp.asarray, draw(convolution))

    def forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array]:
        return (layer.apply({"params": {"kernel": kernel}}, x),)

    def both(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        (y,), backward = jax.vjp(forward, x, kernel)
        return y, *backward((y,))

    return {part: partial(jax.jit(function), x, kernel) for part, function in zip(PARTS, (forward, both), strict=True)}


def pytorch(convolution: Convolution) -> dict[str, Callable[[], tuple]]:
    """The same on the first CUDA device or the CPU, with an input `b c t h w` and a kernel `c 1 kt kh kw`."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    x, kernel = (torch.from_numpy(array).to(device) for array in draw(convolution))
    x, kernel = x.permute(0, 4, 1, 2, 3).contiguous(), kernel.permute(4, 3, 0, 1, 2).contiguous()
    x.requires_grad_(), kernel.requires_grad_()
    how = {"stride": convolution.strides, "padding": convolution.padding, "groups": convolution.shape[-1]}

    def forward() -> tuple:
        with torch.no_grad():
            return (torch.nn.functional.conv3d(x, kernel, **how),)

    def both() -> tuple:
        y = torch.nn.functional.conv3d(x, kernel, **how)
        return y.detach(), *torch.autograd.grad(y, (x, kernel), y.detach())

    return dict(zip(PARTS, (forward, both), strict=True))


def measure_side(side: str, convolutions: list[Convolution], config: Depthwise) -> list[dict[str, float]]:
    """The median seconds of each part of each convolution, measured in this process."""
    threads, make, wait = keep_to(config.threads), ours, jax.block_until_ready
    if side == "PyTorch":
        import torch

        torch.set_num_threads(threads)
        torch.backends.cudnn.benchmark = True  # as in `pytorch.measure_pytorch`
        make, wait = pytorch, lambda _: torch.cuda.synchronize() if torch.cuda.is_available() else None
    return [
        {part: statistics.median(timed(run, wait, config.steps)) for part, run in make(convolution).items()}
        for convolution in convolutions
    ]


def measure_depthwise(config: Depthwise, report: Callable[[str], Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The devices, and the rows of all models: seconds of each part, PyTorch's under `other_` and the part.

    Args:
      report: called with one line before each process.

    Raises:
      UserError: a model has no depthwise convolution, or cannot be created with these sizes.
    """
    counted = {name: convolutions_of(name, config.frames, config.size, config.batch_size) for name in config.models}
    set_environment()
    sides = {"vidjax": "", "PyTorch": "other_"} if importlib.util.find_spec("torch") else {"vidjax": ""}
    rows: list[dict[str, Any]] = []
    for name, counts in counted.items():
        measured: dict[str, list[list[dict[str, float]]]] = {side: [] for side in sides}
        for number in range(config.rounds):
            for side in sides:
                report(f"{name} {side}, round {number + 1} of {config.rounds}")
                measured[side].append(in_process(measure_side, side, list(counts), config))
        of_model = [{"model": name, "convolution": each.name, "count": count} for each, count in counts.items()]
        total = {"model": name, "convolution": "all", "count": counts.total()}
        for (side, prefix), part in itertools.product(sides.items(), PARTS):
            for i, row in enumerate(of_model):
                row[prefix + part] = statistics.median(times[i][part] for times in measured[side])
            total[prefix + part] = sum(row["count"] * row[prefix + part] for row in of_model)
        rows += [*of_model, total]
    versions = {library: version(library) for library in ("jax", "torch") if importlib.util.find_spec(library)}
    return in_process(describe_devices) | {"versions": versions}, rows
