"""Time of an encoder on the visible tokens of a clip, by mask ratio: it should cost what these tokens cost.

The tokens are drawn at random, as many for each clip. Time is that of the forward pass and the gradients of the
parameters: median and range of all steps, with the ratios alternating. Work is counted in multiply-accumulates.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from math import prod
from typing import Any

import jax
import jax.numpy as jnp

import vidjax
from benchmark.ours import describe_devices
from vidjax.cli import check_files
from vidjax.errors import UserError
from vidjax.fields import check_values, require_positive
from vidjax.layers.patches import grid
from vidjax.models import videomae, vjepa
from vidjax.training.cost import count_macs


@dataclasses.dataclass(frozen=True)
class Visible:
    """The encoder of a model for pre-training on visible tokens, by mask ratio."""

    model: str = "vjepa2_tiny_pretrain"
    """A VideoMAE or a V-JEPA 2 for pre-training."""
    frames: int = 16
    """Frames per clip."""
    size: int = 128
    """Height and width in pixels."""
    batch_size: int = 4
    """Clips per step."""
    ratios: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 0.9)
    """Fractions of masked tokens."""
    steps: int = 3
    """Timed steps of each ratio per round."""
    rounds: int = 3
    """Rounds, in which the ratios alternate."""
    json: str | None = None
    """Write the numbers to this file."""
    chart: str | None = None
    """Write a chart of the numbers to this PNG."""

    def __post_init__(self) -> None:
        check_values(self)
        require_positive(self, "frames", "size", "batch_size", "steps", "rounds")
        if not self.ratios or min(self.ratios) < 0 or max(self.ratios) >= 1:
            raise UserError(f"ratios is {self.ratios}: give one or more, each from 0 and below 1")
        check_files(json=self.json, chart=self.chart)


def measure_visible(config: Visible, report: Callable[[str], Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The devices, and a row for each ratio; the first ratio's time and work are the unit of the others'.

    Args:
      report: called with one line before a program is compiled.

    Raises:
      UserError: the model has no visible tokens, or a ratio leaves none.
    """
    model = vidjax.create_model(config.model)
    if not isinstance(model, videomae.Pretraining | vjepa.Pretraining):
        raise UserError(f"{config.model} has no encoder of visible tokens: choose a VideoMAE or V-JEPA 2 *_pretrain")
    shape = (config.frames, config.size, config.size)
    tokens = prod(grid(shape, model.patch_size))
    counts = [tokens - int(ratio * tokens) for ratio in config.ratios]
    video = jax.random.normal(jax.random.key(0), (config.batch_size, *shape, model.channels))
    orders = jax.vmap(lambda key: jax.random.permutation(key, tokens))(
        jax.random.split(jax.random.key(1), config.batch_size)
    )
    inputs = [jnp.sort(orders[:, :count], axis=1) for count in counts]
    variables = jax.jit(lambda key: model.init(key, video[:1], inputs[0][:1], method="tokens"))(jax.random.key(2))

    def loss(variables: Any, kept: jax.Array) -> jax.Array:
        return jnp.square(model.apply(variables, video, kept, train=True, method="tokens")).mean()

    programs, work = [], []
    for ratio, kept in zip(config.ratios, inputs, strict=True):
        report(f"compiling for {ratio:.0%} masked")
        programs.append(jax.jit(jax.value_and_grad(loss)).lower(variables, kept).compile())
        work.append(count_macs(loss, variables, kept))
    times: list[list[float]] = [[] for _ in programs]
    for number in range(config.rounds * config.steps + 1):
        for program, kept, seconds in zip(programs, inputs, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(program(variables, kept))
            if number:  # the first warms up
                seconds.append(time.perf_counter() - start)
    medians = [statistics.median(each) for each in times]
    return describe_devices() | {"versions": {"jax": jax.__version__}}, [
        {
            "ratio": f"{ratio:.0%}",
            "tokens": count,
            "step_seconds": median,
            "least_seconds": min(seconds),
            "most_seconds": max(seconds),
            "time_share": median / medians[0],
            "work_share": macs / work[0],
        }
        for ratio, count, median, seconds, macs in zip(config.ratios, counts, medians, times, work, strict=True)
    ]
