"""Training steps compiled ahead of time for TPUs, of which none need be present.

Needs libtpu in the version that JAX pins (`pip install 'jax[tpu]'`). The step runs on one chip of the slice.
"""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from typing import Any, Literal
from unittest import mock

import jax

from benchmark.layouts import read_written
from benchmark.measure import attempt
from benchmark.ours import compile_program, describe
from benchmark.settings import Job, Train, check_models, jobs
from vidjax.cli import check_files
from vidjax.errors import UserError
from vidjax.fields import check_values
from vidjax.layers.attention import Implementation
from vidjax.training.memory import program_memory
from vidjax.training.sharding import make_mesh

HBM = {"TPU v5 lite": 15.75, "TPU v5": 95.74, "TPU v6 lite": 31.25, "TPU7x": 94.75}
"""Memory of a device in GiB that a program may use, as libtpu 0.0.42 names it when a program needs more. JAX's device
is a chip, of v7x half a chip."""


@dataclasses.dataclass(frozen=True)
class Tpu:
    """The largest batch that fits, its memory and FLOPs and what is copied or padded, by compiling only.

    Two small batches are compiled for the chip with the most memory; the largest batch of each chip lies on the line
    through their needs, and is compiled for the first chips.
    """

    models: tuple[str, ...] = ("videomae_base_pretrain",)
    """Names of vidjax.list_models(): classifiers and *_pretrain."""
    topologies: tuple[str, ...] = ("v5e:2x2", "v5p:2x2x1")
    """Slices that libtpu knows, such as v6e:2x2 or tpu7x:2x2x1."""
    frames: int | None = None
    """Frames per clip; None for each model's default."""
    size: int | None = None
    """Height and width in pixels; None for each model's default."""
    batch_sizes: tuple[int, ...] = (4, 8)
    """Two numbers of clips to compile for; the memory of others lies on the line through them."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Compute type; parameters and AdamW's moments are float32."""
    remat: Literal["none", "dots", "blocks"] = "none"
    """What the backward pass recomputes, in models with this field."""
    scan: bool = True
    """Whether the blocks run in one loop, in models with this field, which then compile several times as fast."""
    implementation: Implementation = "auto"
    """Of attention, in models with this field."""
    confirmed: int = 1
    """For how many of the slices the largest batch is compiled too, which also gives what it writes."""
    fast: bool = False
    """Let the compiler optimise less: a quarter of the time; VideoMAE-B's memory differs by 1 %."""
    json: str | None = None
    """Write the numbers to this file, after each row."""

    def __post_init__(self) -> None:
        check_values(self)
        if len(set(self.batch_sizes)) != 2 or min(self.batch_sizes) < 1:
            raise UserError(f"batch_sizes is {self.batch_sizes}: give two different numbers, each 1 or more")
        if not (self.models and self.topologies):
            raise UserError(f"models is {self.models} and topologies is {self.topologies}: name one or more of each")
        check_files(json=self.json)


def describe_slice(topology: str) -> Sequence[jax.Device]:
    """The devices of a TPU slice, to compile for.

    Raises:
      UserError: libtpu is not installed, or does not know the slice.
    """
    from jax.experimental import topologies

    jax.config.update("jax_platforms", "cpu")  # otherwise JAX searches for a TPU for minutes
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # there is no metadata server to query outside Google Cloud
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")  # else a lock refuses a second process that only compiles
    try:
        return topologies.get_topology_desc(topology, "tpu").devices
    except (RuntimeError, ValueError, NotImplementedError) as error:
        raise UserError(f"cannot compile for {topology} ({str(error).splitlines()[0]}): pip install libtpu") from None


@contextlib.contextmanager
def traced_for_tpu() -> Iterator[None]:
    """Lets the kernels choose as on a TPU: they ask for the platform while they are traced."""
    with mock.patch.object(jax, "default_backend", return_value="tpu"):
        yield


def largest_batch(needs: Sequence[tuple[int, int]], budget: float) -> int:
    """The largest batch in a budget of bytes, if its need grows linearly from the two given.

    Args:
      needs: two batch sizes with their bytes.
    """
    (a, at_a), (b, at_b) = sorted(needs)
    each = (at_b - at_a) / (b - a)
    return max(0, int((budget - at_a) / each + a))


def compile_for(device: jax.Device, job: Job) -> dict[str, Any]:
    """The numbers of one program for one device."""
    start = time.process_time()
    with traced_for_tpu():
        compiled, _, _ = compile_program(job, make_mesh(devices=[device]))
    seconds = time.process_time() - start
    written = read_written(compiled.as_text())
    return {
        "batch_size": job.batch_size,
        "program_bytes": program_memory(compiled).total,
        "written_bytes": written.total,
        "moved": written.moved / written.total,
        "padding": written.padding / written.total,
        "most_moved": written.most_moved,
        "most_padding": written.most_padding,
        "compile_seconds": seconds,
    }


def prepare_tpu(config: Tpu) -> tuple[dict[str, Any], dict[str, jax.Device]]:
    """Checks the models, and asks libtpu for a device of each slice.

    Returns:
      The versions and the cost of each model by tracing, and the devices by topology.

    Raises:
      UserError: an unknown model, libtpu is not installed, or does not know a slice.
    """
    settings = train_settings(config)
    check_models(settings)
    devices = {topology: describe_slice(topology)[0] for topology in config.topologies}
    if config.fast:
        jax.config.update("jax_exec_time_optimization_effort", -1.0)
        jax.config.update("jax_memory_fitting_effort", -1.0)
    every: list[Job] = [job for name in config.models for job in jobs(settings, name, config.dtype, 1)]
    with traced_for_tpu():
        models = describe(every, ())["models"]
    return {"models": models, "versions": {library: version(library) for library in ("jax", "libtpu")}}, devices


def train_settings(config: Tpu) -> Train:
    """The settings of the training steps."""
    return Train(
        config.models, config.frames, config.size, config.batch_sizes, (config.dtype,), (),
        remat=(config.remat,), implementation=(config.implementation,), scan=(config.scan,),
    )  # fmt: skip


def measure_tpu(
    config: Tpu, machine: Mapping[str, Any], devices: Mapping[str, jax.Device], report: Callable[[str], Any]
) -> Iterator[dict[str, Any]]:
    """Yields the row of each model on each slice, that of its largest batch; what fails has a reason instead.

    Args:
      machine, devices: the result of `prepare_tpu`.
      report: called with one line after each compilation.
    """
    settings = train_settings(config)
    largest_chip = max(devices.values(), key=lambda device: HBM[device.device_kind])

    def compiled(device: jax.Device, name: str, clips: int) -> dict[str, Any]:
        (job,) = jobs(settings, name, config.dtype, clips)
        row = {"batch_size": clips} | attempt(compile_for, device, job)
        outcome = row.get("failed") or f"{row['program_bytes'] / 1e9:.2f} GB"
        report(f"{name} on {device.device_kind}, {clips} clips: {outcome}")
        return row

    for name in config.models:
        small = [compiled(largest_chip, name, clips) for clips in sorted(config.batch_sizes)]
        for topology, device in devices.items():
            row = {"model": name, "topology": topology, "small": small}
            if failed := next((each for each in small if "failed" in each), None):
                yield row | failed
                continue
            (first, least), (second, most) = ((each["batch_size"], each["program_bytes"]) for each in small)
            each = (most - least) / (second - first)
            row |= {"clip_bytes": each, "fixed_bytes": least - first * each}
            row["batch_size"] = clips = largest_batch(((first, least), (second, most)), HBM[device.device_kind] * 2**30)
            # As in `measure.summarize`; XLA's cost analysis counts the body of a loop once.
            row["flops"] = 6 * machine["models"][name]["macs"]
            if not clips:
                row["failed"] = "one clip does not fit"
            confirm = clips and topology in config.topologies[: config.confirmed]
            yield row | (compiled(device, name, clips) if confirm else {})
