"""What a run says of itself before it begins, in units."""

import contextlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidjax.data.config import ClipConfig
from vidjax.training.cost import peak_flops

if TYPE_CHECKING:  # TensorFlow takes seconds, which --help and wrong input need not
    from vidjax.data.sources import Source


def describe_run(
    config: Any, model: nn.Module, source: "Source", shapes: Any, macs: int, steps: int, more: Mapping[str, str]
) -> str:
    """Devices, data, model, batch, rate and length of a training run, a line each.

    Args:
      config: of a script; `data`, `model`, `batch_size`, `accumulation`, `fsdp`, `optim` and `workdir` are read.
      shapes: of the parameters.
      macs: multiply-accumulates of one clip forward.
      steps: in all.
      more: further lines by their first word.
    """
    data, devices = config.data, jax.devices()
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    per_epoch = len(source) * data.repeats / config.batch_size
    rate, peak = config.optim.learning_rate, config.optim.learning_rate * config.batch_size / 256
    lines = {
        "devices": f"{len(devices)} x {devices[0].device_kind}, {jax.process_count()} process(es), "
        f"mesh data={len(devices) // config.fsdp} fsdp={config.fsdp}",
        "data": f"{source.name}: {len(source):,} videos; clips of {data.frames} frames, {data.size} pixels, "
        f"{describe_span(data, source)}",
        "model": f"{config.model}: {parameters:,} parameters, {macs / 1e9:.3g} GMACs a clip forward, "
        f"{jnp.dtype(model.dtype or jnp.float32).name}",
        **more,
        "batch": f"{config.batch_size} clips in {config.accumulation} micro-batch(es), "
        f"{config.batch_size // len(devices)} a device",
        "rate": f"{rate:g} x {config.batch_size}/256 = {peak:.3g} at its peak",
        "length": f"{steps:,} steps, {per_epoch:,.1f} an epoch: {steps / per_epoch:,.1f} epochs",
        "work in": config.workdir,
    }
    return "\n".join(f"{name:<9} {line}" for name, line in lines.items())


def describe_span(clips: ClipConfig, source: "Source") -> str:
    """Seconds that a clip covers, by the first video that can be read.

    Raises:
      ValueError: none of the first ten can.
    """
    import numpy as np

    from vidjax.data.sampling import seconds_covered

    for index in range(min(len(source), 10)):
        with contextlib.suppress(ValueError):
            info = source.read(index, lambda _: np.zeros(0, np.int64), None).info
            seconds = seconds_covered(clips, info.num_frames, info.rate)
            return f"{seconds:.2f} s of the first video's {info.duration:.2f} s ({clips.sampling})"
    raise ValueError(f"none of the first videos of {source.name} can be read: look with experiments/check_data.py")


def describe_speed(clips_per_second: float, data_wait_fraction: float, macs: int) -> str:
    """Clips a second, waiting for data, and the share of the devices' peak that was used."""
    speed = f"{clips_per_second:.1f} clips/s, waiting for data {data_wait_fraction:.0%}"
    peak = peak_flops(jax.devices()[0].device_kind)
    if not peak:
        return speed
    # 2 FLOPs a MAC, once forward and twice that backward.
    return f"{speed}, MFU {6 * macs * clips_per_second / peak / jax.device_count():.1%}"
