"""Memory that a program or a training run needs on each device, computed before anything is loaded.

This includes the sharded state, the batches that the loop keeps on the device, and the working memory of the compiled
step. It does not include the runtime (a CUDA context with the workspaces of its libraries takes about a gigabyte,
outside of what JAX may allocate) nor, on a CPU, TensorFlow's pipeline and the copy of the state that is made while
saving a checkpoint.
"""

import dataclasses
import os
import time
from math import prod
from typing import Any

import jax
from jax.sharding import Mesh
from jaxtyping import PyTree

from vidjax.training.sharding import array_sharding
from vidjax.training.state import TrainState

BATCHES = 5
"""Batches on the device during `training.loop.fit`: two waiting, one being transferred, one in use, and the previous
one, which is kept until its gradient is known to be finite."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes that a compiled program needs on one device.

    Attributes:
      arguments: size of its arguments.
      outputs: size of its outputs.
      aliased: size of outputs that reuse the memory of donated arguments.
      temporary: size of intermediate values (activations, gradients).
    """

    arguments: int
    outputs: int
    aliased: int
    temporary: int

    @property
    def total(self) -> int:
        """The total number of bytes."""
        return self.arguments + self.outputs - self.aliased + self.temporary


@dataclasses.dataclass(frozen=True)
class RunMemory:
    """Bytes that a training run needs on each device during a step.

    Attributes:
      parameters: parameters, running statistics and frozen parameters.
      optimizer: moments and counters.
      average: the moving average of the parameters.
      batches: see `BATCHES`.
      working: gradients, activations and other intermediate values of the step.
      compile_seconds: time it took to compile the step.
    """

    parameters: int
    optimizer: int
    average: int
    batches: int
    working: int
    compile_seconds: float

    @property
    def total(self) -> int:
        """The total number of bytes."""
        return self.parameters + self.optimizer + self.average + self.batches + self.working


def compile_counted(lowered: jax.stages.Lowered) -> jax.stages.Compiled:
    """Compiles a program so that `program_memory` counts all of its scratch memory; it may be slower than usual.

    On CPUs, XLA hands products and what follows them to YNNPACK, whose own memory it does not report: JAX 0.10.2 needs
    twice the scores of an attention, and reports none (`findings/xla_cpu_memory_without_ynnpack.sh`).
    """
    uncounted = {"xla_cpu_experimental_ynn_fusion_type": ""} if jax.default_backend() == "cpu" else None
    return lowered.compile(compiler_options=uncounted)


def program_memory(compiled: jax.stages.Compiled) -> Memory:
    """Memory of a compiled program (`jax.jit(f).lower(...).compile()`) on each device, as the compiler reports it."""
    stats = compiled.memory_analysis()
    return Memory(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        temporary=stats.temp_size_in_bytes,
    )


def available_memory() -> int | None:
    """Bytes that JAX may allocate on each device; on a CPU the machine's memory divided by the number of devices.

    None if the device does not report it.
    """
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // jax.local_device_count()


def sharded_bytes(shapes: PyTree[Any], sharding: PyTree[Any]) -> int:
    """Bytes of the shards on one device.

    Args:
      shapes: arrays, or their shapes as returned by `jax.eval_shape`.
      sharding: sharding of each leaf.
    """
    sizes = jax.tree.map(lambda leaf, s: prod(s.shard_shape(leaf.shape)) * leaf.dtype.itemsize, shapes, sharding)
    return sum(jax.tree.leaves(sizes))


def run_memory(
    step: jax.stages.Wrapped,
    state: TrainState,
    sharding: TrainState,
    batch: dict[str, jax.ShapeDtypeStruct],
    mesh: Mesh,
) -> RunMemory:
    """Memory of `training.loop.fit`, computed by compiling the step for shapes; no array is allocated.

    Args:
      step: the result of `training.sharding.jit_step`.
      state: shapes of the state.
      sharding: sharding of the state.
      batch: shapes of a global batch.
    """
    batch = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array_sharding(mesh, name, array.shape))
        for name, array in batch.items()
    }
    start = time.monotonic()
    program = program_memory(compile_counted(step.lower(state, batch)))
    seconds = time.monotonic() - start
    kinds = {
        "parameters": ("params", "model_state", "frozen"),
        "optimizer": ("opt_state", "skipped", "step", "key"),
        "average": ("ema",),
    }
    sizes = {
        kind: sum(sharded_bytes(getattr(state, name), getattr(sharding, name)) for name in names)
        for kind, names in kinds.items()
    }
    return RunMemory(
        **sizes,
        batches=BATCHES * sharded_bytes(batch, jax.tree.map(lambda array: array.sharding, batch)),
        working=program.temporary + program.outputs - program.aliased,
        compile_seconds=seconds,
    )


def dry_run(
    config: Any,
    step: jax.stages.Wrapped,
    state: TrainState,
    sharding: TrainState,
    batch: dict[str, jax.ShapeDtypeStruct],
    mesh: Mesh,
) -> dict[str, float]:
    """Prints the memory that a run needs on each device and the memory available; see `run_memory`.

    Args:
      config: config of a training script; see `describe_memory`.

    Returns:
      The fields of `RunMemory` and `total`; also `available` and `fits` if the device reports its memory.
    """
    needed, available = run_memory(step, state, sharding, batch, mesh), available_memory()
    if jax.process_index() == 0:
        print(describe_memory(config, needed, available, mesh, batch), flush=True)
    numbers = {**dataclasses.asdict(needed), "total": needed.total}
    return numbers if available is None else {**numbers, "available": available, "fits": needed.total <= available}


def describe_memory(
    config: Any, needed: RunMemory, available: int | None, mesh: Mesh, batch: dict[str, jax.ShapeDtypeStruct]
) -> str:
    """A table of the memory, and suggestions if it exceeds what is available.

    Args:
      batch: shapes of a batch; the first array with a time axis is described, or else the first one.
      config: `model`, `batch_size`, `accumulation`, `remat`, `fsdp` and `data` are read.
    """
    devices = jax.devices()
    shapes = [array.shape[1:-1] for array in batch.values() if len(array.shape) > 2]
    clip = " x ".join(map(str, shapes[0] if shapes else next(iter(batch.values())).shape[1:]))
    rows = {
        "parameters": needed.parameters,
        "optimiser": needed.optimizer,
        "moving average": needed.average,
        "gradients and activations": needed.working,
        f"{BATCHES} batches": needed.batches,
        "total": needed.total,
    }
    lines = [
        f"dry run of {config.model}: {config.batch_size} clips of {clip} per step "
        f"on {len(devices)} x {devices[0].device_kind}; nothing was loaded or written",
        "memory per device",
        *(f"  {name:28}{size / 1e9:10.3f} GB" for name, size in rows.items() if size),
    ]
    if available is not None:
        lines.append(f"  {'available':28}{available / 1e9:10.3f} GB")
        fits = needed.total <= available
        lines.append("fits" if fits else f"does not fit: try {' or '.join(_advise(config, needed, available, mesh))}")
    return "\n".join([*lines, f"the step was compiled in {needed.compile_seconds:.1f} s"])


def _advise(config: Any, needed: RunMemory, available: int, mesh: Mesh) -> list[str]:
    """Flags that reduce the memory."""
    # Gradients and updates have the size of the parameters for any batch; the rest is proportional to the batch. As
    # this is an estimate, the suggested batch leaves some memory free.
    fixed = needed.parameters + needed.optimizer + needed.average + min(2 * needed.parameters, needed.working)
    fraction = (0.95 * available - fixed) / max(needed.total - fixed, 1)
    multiple = mesh.size // mesh.shape.get("sequence", 1) * config.accumulation * config.data.repeats
    smaller = int(fraction * config.batch_size) // multiple * multiple
    flags = [f"--batch_size {smaller}"] if smaller > 0 else []
    names = {field.name for field in dataclasses.fields(config)}
    flags += [f"--accumulation {2 * config.accumulation}"] if "accumulation" in names else []
    flags += ["--remat blocks"] if config.remat != "blocks" else []
    flags += [f"--fsdp {mesh.size}"] if mesh.size > config.fsdp else []
    return flags or ["a smaller model or clip"]
