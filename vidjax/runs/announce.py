"""The reports that a training run prints at its start and at its end."""

import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax

from vidjax.data.config import ClipConfig, core_count
from vidjax.errors import UserError
from vidjax.runs.computing import computing_type
from vidjax.training.cost import peak_flops

if TYPE_CHECKING:  # PyAV and the tokenizers are imported when they are needed
    from vidjax.data.sources import Source
    from vidjax.training.loop import FitResult


def print_notes(*sources: "Source | None") -> None:
    """Prints the notes of the sources, such as files that are ignored, each line once."""
    for note in dict.fromkeys(note for source in sources if source is not None for note in source.notes):
        print(f"note: {note}", flush=True)


def describe_run(config: Any, source: "Source", shapes: Any, macs: int, steps: int, more: Mapping[str, str]) -> str:
    """Devices, data, model, batch, learning rate and length of a training run, one line each.

    Args:
      config: config of a training script; `data`, `model`, `batch_size`, `accumulation`, `dtype`, `fsdp`, `sequence`,
        `optim` and `workdir` are read.
      shapes: shapes of the parameters.
      macs: multiply-accumulates of the forward pass of one clip.
      steps: total number of steps.
      more: additional lines by their first word; `data` replaces the description of the clips.
    """
    data, devices = config.data, jax.devices()
    parameters = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    groups = len(devices) // config.sequence
    per_epoch = len(source) * data.repeats / config.batch_size
    rate, peak = config.optim.learning_rate, config.optim.learning_rate * config.batch_size / 256
    more = dict(more)
    examples = more.pop("data", None) or (
        f"clips of {data.frames} frames, {data.size} pixels, {describe_span(data, source)}"
    )
    lines = {
        "devices": f"{len(devices)} x {devices[0].device_kind}, {jax.process_count()} process(es), "
        f"mesh data={groups // config.fsdp} fsdp={config.fsdp}"
        + (f" sequence={config.sequence}" if config.sequence > 1 else ""),
        "data": f"{source.name}: {len(source):,} {source.unit}; {examples}",
        **({"mix": describe_mix(source)} if source.parts else {}),
        "model": f"{config.model}: {parameters:,} parameters, {macs / 1e9:.3g} GMACs per clip (forward), "
        f"{computing_type(config.dtype).name}",
        **more,
        "batch": f"{config.batch_size} clips in {config.accumulation} micro-batch(es), "
        f"{config.batch_size // groups} per " + ("device" if config.sequence == 1 else f"{config.sequence} devices"),
        "rate": f"{rate:g} x {config.batch_size}/256 = {peak:.3g} at the peak",
        "length": f"{steps:,} steps, {per_epoch:,.1f} per epoch: {steps / per_epoch:,.1f} epochs",
        "workdir": config.workdir,
    }
    return "\n".join(f"{name:<9} {line}" for name, line in lines.items())


def describe_mix(source: "Source") -> str:
    """The fraction of the clips from each source of a mix, and how often its videos are seen in an epoch."""
    total = sum(part.weight for part in source.parts)
    return "; ".join(
        f"{part.weight / total:.3g} of the clips from {part.name}, {part.count:,} videos "
        f"({part.weight / total * len(source) / part.count:.3g} times an epoch)"
        for part in source.parts
    )


def describe_span(clips: ClipConfig, source: "Source") -> str:
    """How many seconds a clip covers, measured on the first readable video.

    Raises:
      UserError: none of the first ten videos can be read.
    """
    from vidjax.data.container import DecodeError
    from vidjax.data.sampling import seconds_covered

    for index in range(min(len(source), 10)):
        with contextlib.suppress(DecodeError):
            info = source.read(index, (), None).info
            seconds = seconds_covered(clips, info.num_frames, info.rate)
            return f"{seconds:.2f} s of the first video's {info.duration:.2f} s ({clips.sampling})"
    raise UserError(f"none of the first videos of {source.name} can be read: check it with experiments/check_data.py")


def require_length(clips: ClipConfig, source: "Source") -> None:
    """Checks that the first readable video has the frames of a clip, for objectives that should see no repeated frame.

    Raises:
      UserError: it is too short.
    """
    from vidjax.data.container import DecodeError
    from vidjax.data.sampling import frames_spanned

    for index in range(min(len(source), 10)):
        with contextlib.suppress(DecodeError):
            info = source.read(index, (), None).info
            needed = frames_spanned(clips, info.rate) if clips.sampling == "dense" else clips.frames
            if needed > info.num_frames:
                raise UserError(
                    f"a clip needs {needed} frames of a video, but the first of {source.name} has {info.num_frames}: "
                    "lower --data.frames or --data.stride, or raise --data.fps"
                )
            return


def describe_losses(entries: Sequence[dict[str, Any]]) -> tuple[str, dict[str, float]]:
    """The first and the last logged loss, as a line and as numbers; NaN if no logged loss was finite.

    Args:
      entries: the result of `read_metrics`.
    """
    losses = [entry["loss"] for entry in entries if entry.get("loss") is not None]
    if not losses:
        return "not finite at any logged step", {"first_loss": math.nan, "last_loss": math.nan}
    first, last, count = losses[0], sum(losses[-5:]) / len(losses[-5:]), len(losses[-5:])
    line = f"{first:.4f} at the start, {last:.4f} at the end (mean of the last {count} logged steps)"
    return line, {"first_loss": first, "last_loss": last}


def describe_speed(result: "FitResult", macs: int) -> str:
    """Clips per second, time spent waiting for data and MFU; a second line with advice if the input was too slow.

    Args:
      result: the result of `fit`.
      macs: multiply-accumulates of the forward pass of one clip.
    """
    speed = f"{result.clips_per_second:.1f} clips/s, waiting for data {result.data_wait_fraction:.0%}"
    if peak := peak_flops(jax.devices()[0].device_kind):
        # 2 FLOPs per MAC; the backward pass costs twice the forward pass.
        speed += f", MFU {6 * macs * result.clips_per_second / peak / jax.device_count():.1%}"
    return f"{speed}\n{'starved':<9} {result.advice}" if result.advice else speed


def describe_starvation(source: str, workers: int, wanted: float, made: float) -> str:
    """How to feed devices that wait for data: with how many cores, or from which format.

    Args:
      source: name of the data source. TFRecords are suggested for video files only; other sources contain images.
      workers: clips decoded in parallel; 0 means one per core.
      wanted: clips per second that the devices of a process could process.
      made: clips per second that the process decodes.
    """
    cores = core_count()
    busy = min(workers or cores, cores)
    # Even a sufficient average rate leaves the devices waiting if clips arrive in bursts: suggest at least one more.
    needed = max(math.ceil(busy * wanted / made - 0.1), busy + 1)
    remedy = f"use --data.workers {needed} (of {cores} cores)" if needed <= cores else f"use about {needed} cores"
    if any(
        not part.startswith(("tfrecord:", "tfds:", "synthetic:")) for part in source.removeprefix("mix:").split(",")
    ):
        remedy += ", or TFRecords (experiments/write_tfrecords.py; about 4 times as many clips per core)"
    received = f"{made:.3g} from {busy} core{'s' * (busy > 1)}"
    return f"the device could process {wanted:.3g} clips/s, but received {received}: {remedy}"
