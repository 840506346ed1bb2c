"""Training steps compiled ahead of time for TPUs, of which none need be present.

Needs libtpu in the version that JAX pins (`pip install 'jax[tpu]'`). The step runs on one chip of the slice.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
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
from vidjax.training.memory import program_memory
from vidjax.training.sharding import make_mesh

HBM = {"TPU v5 lite": 15.75, "TPU v5": 95.74, "TPU v6 lite": 31.25, "TPU7x": 94.75}
"""Memory of a device in GiB that a program may use, as libtpu 0.0.42 names it when a program needs more. JAX's device
is a chip, of v7x half a chip."""


@dataclasses.dataclass(frozen=True)
class Tpu:
    """Memory, FLOPs, the largest batch and what is copied or padded, by compiling only."""

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
    json: str | None = None
    """Write the numbers to this file."""

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


def compile_for(device: jax.Device, settings: Train, name: str) -> dict[str, Any]:
    """The numbers of one model on one device, those of the program from the larger batch."""
    needs, mesh = [], make_mesh(devices=[device])
    for clips in sorted(settings.batch_sizes):
        (job,) = jobs(settings, name, settings.dtypes[0], clips)
        with traced_for_tpu():
            compiled, _, seconds = compile_program(job, mesh)
        needs.append((clips, program_memory(compiled).total))
    written = read_written(compiled.as_text())
    return {
        "batch_size": clips,
        "program_bytes": needs[-1][1],
        "largest": largest_batch(needs, HBM[device.device_kind] * 2**30),
        "written_bytes": written.total,
        "moved": written.moved / written.total,
        "padding": written.padding / written.total,
        "most_moved": written.most_moved,
        "most_padding": written.most_padding,
        "compile_seconds": seconds,
    }


def measure_tpu(config: Tpu, report: Callable[[str], Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The cost of each model by tracing, and the rows of all models on all slices; what fails has a reason instead.

    Args:
      report: called with one line before each model.

    Raises:
      UserError: an unknown model, libtpu is not installed, or does not know a slice.
    """
    settings = Train(
        config.models, config.frames, config.size, config.batch_sizes, (config.dtype,), (),
        remat=(config.remat,), scan=(config.scan,),
    )  # fmt: skip
    check_models(settings)
    devices = {topology: describe_slice(topology)[0] for topology in config.topologies}
    every: list[Job] = [job for name in config.models for job in jobs(settings, name, config.dtype, 1)]
    with traced_for_tpu():
        models = describe(every, ())["models"]
    rows = []
    for name in config.models:
        for topology, device in devices.items():
            report(f"{name} for {topology}")
            clips = max(config.batch_sizes)
            # As in `measure.summarize`; XLA's cost analysis counts the body of a loop once.
            row = {"model": name, "topology": topology, "batch_size": clips, "flops": 6 * models[name]["macs"] * clips}
            rows.append(row | attempt(compile_for, device, settings, name))
    versions = {library: version(library) for library in ("jax", "libtpu")}
    return {"models": models, "versions": versions}, rows
