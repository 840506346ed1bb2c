"""What a training run prints: what it is about to do, and how it went."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax

from vidjax.data.config import ClipConfig, core_count
from vidjax.errors import UserError
from vidjax.runs.computing import computing_type
from vidjax.training.cost import peak_flops

if TYPE_CHECKING:  # TensorFlow takes seconds, which --help and wrong input need not
    from vidjax.data.sources import Source
    from vidjax.training.loop import FitResult


def print_notes(*sources: "Source | None") -> None:
    """Prints what was left out or is not used when the sources were opened, each line once."""
    for note in dict.fromkeys(note for source in sources if source is not None for note in source.notes):
        print(f"note: {note}", flush=True)


def describe_run(config: Any, source: "Source", shapes: Any, macs: int, steps: int, more: Mapping[str, str]) -> str:
    """Devices, data, model, batch, rate and length of a training run, a line each.

    Args:
      config: of a script; `data`, `model`, `batch_size`, `accumulation`, `dtype`, `fsdp`, `sequence`, `optim` and
        `workdir` are read.
      shapes: of the parameters.
      macs: multiply-accumulates of one clip forward.
      steps: in all.
      more: further lines by their first word.
    """
    data, devices = config.data, jax.devices()
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    groups = len(devices) // config.sequence
    per_epoch = len(source) * data.repeats / config.batch_size
    rate, peak = config.optim.learning_rate, config.optim.learning_rate * config.batch_size / 256
    lines = {
        "devices": f"{len(devices)} x {devices[0].device_kind}, {jax.process_count()} process(es), "
        f"mesh data={groups // config.fsdp} fsdp={config.fsdp}"
        + (f" sequence={config.sequence}" if config.sequence > 1 else ""),
        "data": f"{source.name}: {len(source):,} videos; clips of {data.frames} frames, {data.size} pixels, "
        f"{describe_span(data, source)}",
        "model": f"{config.model}: {parameters:,} parameters, {macs / 1e9:.3g} GMACs a clip forward, "
        f"{computing_type(config.dtype).name}",
        **more,
        "batch": f"{config.batch_size} clips in {config.accumulation} micro-batch(es), "
        f"{config.batch_size // groups} " + ("a device" if config.sequence == 1 else f"for {config.sequence} devices"),
        "rate": f"{rate:g} x {config.batch_size}/256 = {peak:.3g} at its peak",
        "length": f"{steps:,} steps, {per_epoch:,.1f} an epoch: {steps / per_epoch:,.1f} epochs",
        "work in": config.workdir,
    }
    return "\n".join(f"{name:<9} {line}" for name, line in lines.items())


def describe_span(clips: ClipConfig, source: "Source") -> str:
    """Seconds that a clip covers, by the first video that can be read.

    Raises:
      UserError: none of the first ten can.
    """
    from vidjax.data.sampling import seconds_covered

    for index in range(min(len(source), 10)):
        with contextlib.suppress(ValueError):
            info = source.read(index, (), None).info
            seconds = seconds_covered(clips, info.num_frames, info.rate)
            return f"{seconds:.2f} s of the first video's {info.duration:.2f} s ({clips.sampling})"
    raise UserError(f"none of the first videos of {source.name} can be read: look with experiments/check_data.py")


def describe_losses(entries: Sequence[dict[str, Any]]) -> tuple[str, dict[str, float]]:
    """The loss at first and at last, as a line and as numbers; not a number where every logged one was not finite.

    Args:
      entries: of `read_metrics`.
    """
    losses = [entry["loss"] for entry in entries if entry.get("loss") is not None]
    if not losses:
        return "no logged step had a finite one", {"first_loss": math.nan, "last_loss": math.nan}
    first, last, count = losses[0], sum(losses[-5:]) / len(losses[-5:]), len(losses[-5:])
    line = f"{first:.4f} at first, {last:.4f} at last (mean of the last {count} logged)"
    return line, {"first_loss": first, "last_loss": last}


def describe_speed(result: "FitResult", macs: int) -> str:
    """Clips a second, waiting for data, the fraction of the devices' peak (MFU); a second line where data were late.

    Args:
      result: of `fit`.
      macs: multiply-accumulates of one clip forward.
    """
    speed = f"{result.clips_per_second:.1f} clips/s, waiting for data {result.data_wait_fraction:.0%}"
    if peak := peak_flops(jax.devices()[0].device_kind):
        # 2 FLOPs a MAC, once forward and twice that backward.
        speed += f", MFU {6 * macs * result.clips_per_second / peak / jax.device_count():.1%}"
    return f"{speed}\n{'starved':<9} {result.advice}" if result.advice else speed


def describe_starvation(source: str, workers: int, wanted: float, made: float) -> str:
    """What would feed a device that waits for data: so many cores, or another format.

    Args:
      source: the name of the data source. Video files are worth writing as TFRecords; other sources hold images.
      workers: clips made at the same time, 0 for one a core.
      wanted: clips a second that the devices of a process could take.
      made: clips a second that the process makes.
    """
    cores = core_count()
    busy = min(workers or cores, cores)
    # Clips that come in bursts starve a device too, though enough of them are made on the whole.
    needed = max(math.ceil(busy * wanted / made - 0.1), busy + 1)
    remedy = f"--data.workers {needed} (there are {cores} cores)" if needed <= cores else f"about {needed} cores"
    if not source.startswith(("tfrecord:", "tfds:", "synthetic:")):
        remedy += ", or TFRecords (experiments/write_tfrecords.py; about 4 times as many clips a core)"
    return f"the device could take {wanted:.3g} clips/s, {busy} core{'s' * (busy > 1)} made {made:.3g}: {remedy}"
