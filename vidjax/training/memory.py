"""Memory that a program or a whole training run needs on each device, known before anything is loaded.

What is counted: the state as it is sharded, the batches that the loop keeps on the device, and the working memory of
the compiled step. What is not: the runtime's own (a CUDA context and its libraries' workspaces are about a gigabyte,
outside of what JAX may allocate), and of a CPU's memory, which is the process's too, TensorFlow's pipeline, and a copy
of the state while a checkpoint is written.
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
"""Batches on the device under `training.loop.fit`: two wait, one is being put there, one is in use, and that of the
step before stays until its gradient is known to be finite."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes that a program needs on one device while it runs.

    Attributes:
      arguments: what it is given.
      outputs: what it gives.
      aliased: outputs that take the place of donated arguments.
      temporary: everything in between (activations, gradients).
    """

    arguments: int
    outputs: int
    aliased: int
    temporary: int

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.arguments + self.outputs - self.aliased + self.temporary


@dataclasses.dataclass(frozen=True)
class RunMemory:
    """Bytes that a training run holds on each device during a step.

    Attributes:
      parameters: with the model's running statistics and frozen parameters.
      optimizer: moments and counters.
      average: the moving average of the parameters.
      batches: see `BATCHES`.
      working: gradients, activations and whatever else lives within the step.
      compile_seconds: that the step took to compile.
    """

    parameters: int
    optimizer: int
    average: int
    batches: int
    working: int
    compile_seconds: float

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.parameters + self.optimizer + self.average + self.batches + self.working


def program_memory(compiled: jax.stages.Compiled) -> Memory:
    """What `jax.jit(f).lower(...).compile()` needs on each device, by the compiler's own account."""
    stats = compiled.memory_analysis()
    return Memory(
        arguments=stats.argument_size_in_bytes,
        outputs=stats.output_size_in_bytes,
        aliased=stats.alias_size_in_bytes,
        temporary=stats.temp_size_in_bytes,
    )


def available_memory() -> int | None:
    """Bytes that each device has to give: what JAX may allocate; on a CPU the machine's, shared by simulated devices.

    None where the device does not say.
    """
    device = jax.local_devices()[0]
    if device.platform != "cpu":
        return (device.memory_stats() or {}).get("bytes_limit")
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // jax.local_device_count()


def sharded_bytes(shapes: PyTree[Any], sharding: PyTree[Any]) -> int:
    """Bytes of one device's shards.

    Args:
      shapes: arrays, or shapes of them as `jax.eval_shape` gives.
      sharding: of each leaf.
    """
    sizes = jax.tree.map(lambda leaf, its: prod(its.shard_shape(leaf.shape)) * leaf.dtype.itemsize, shapes, sharding)
    return sum(jax.tree.leaves(sizes))


def run_memory(
    step: jax.stages.Wrapped,
    state: TrainState,
    sharding: TrainState,
    batch: dict[str, jax.ShapeDtypeStruct],
    mesh: Mesh,
) -> RunMemory:
    """What `training.loop.fit` will hold, from the compiled step and shapes alone; no array is made.

    Args:
      step: of `training.sharding.jit_step`.
      state: shapes.
      sharding: of the state.
      batch: shapes of a whole batch, over all devices.
    """
    batch = {
        name: jax.ShapeDtypeStruct(its.shape, its.dtype, sharding=array_sharding(mesh, name, its.shape))
        for name, its in batch.items()
    }
    begun = time.monotonic()
    program = program_memory(step.lower(state, batch).compile())
    seconds = time.monotonic() - begun
    kinds = {
        "parameters": ("params", "model_state", "frozen"),
        "optimizer": ("opt_state", "skipped", "step", "key"),
        "average": ("ema",),
    }
    needed = {
        kind: sum(sharded_bytes(getattr(state, name), getattr(sharding, name)) for name in names)
        for kind, names in kinds.items()
    }
    return RunMemory(
        **needed,
        batches=BATCHES * sharded_bytes(batch, jax.tree.map(lambda its: its.sharding, batch)),
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
    """Prints what a configuration needs on each device beside what there is; see `run_memory`.

    Args:
      config: of a script, see `describe_memory`.

    Returns:
      The bytes by kind, `total`, `available` (where the device says), `fits` (likewise) and `compile_seconds`.
    """
    needed, available = run_memory(step, state, sharding, batch, mesh), available_memory()
    if jax.process_index() == 0:
        print(describe_memory(config, needed, available, mesh), flush=True)
    numbers = {**dataclasses.asdict(needed), "total": needed.total}
    return numbers if available is None else {**numbers, "available": available, "fits": needed.total <= available}


def describe_memory(config: Any, needed: RunMemory, available: int | None, mesh: Mesh) -> str:
    """A table, and what to try where it does not fit.

    Args:
      config: `model`, `batch_size`, `accumulation`, `remat`, `fsdp` and `data` are read.
    """
    data, devices = config.data, jax.devices()
    rows = {
        "parameters": needed.parameters,
        "optimiser": needed.optimizer,
        "moving average": needed.average,
        "gradients and activations": needed.working,
        f"{BATCHES} batches": needed.batches,
        "in all": needed.total,
    }
    lines = [
        f"dry run of {config.model}: {config.batch_size} clips of {data.frames} x {data.size} x {data.size} a step on "
        f"{len(devices)} x {devices[0].device_kind}; nothing was loaded or written",
        "on each device",
        *(f"  {name:28}{size / 1e9:10.3f} GB" for name, size in rows.items() if size),
    ]
    if available is not None:
        lines.append(f"  {'there is':28}{available / 1e9:10.3f} GB")
        fits = needed.total <= available
        lines.append("fits" if fits else f"does not fit: try {' or '.join(_advise(config, needed, available, mesh))}")
    return "\n".join([*lines, f"the step was compiled in {needed.compile_seconds:.1f} s"])


def _advise(config: Any, needed: RunMemory, available: int, mesh: Mesh) -> list[str]:
    """Flags that need less."""
    # Gradients and updates are of the parameters' size whatever the batch; the rest grows with it. A guess, so not to
    # the brim.
    fixed = needed.parameters + needed.optimizer + needed.average + min(2 * needed.parameters, needed.working)
    fraction = (0.95 * available - fixed) / max(needed.total - fixed, 1)
    multiple = mesh.size // mesh.shape.get("sequence", 1) * config.accumulation * config.data.repeats
    smaller = int(fraction * config.batch_size) // multiple * multiple
    flags = [f"--batch_size {smaller}"] if smaller > 0 else []
    known = {field.name for field in dataclasses.fields(config)}
    flags += [f"--accumulation {2 * config.accumulation}"] if "accumulation" in known else []
    flags += ["--remat blocks"] if config.remat != "blocks" else []
    flags += [f"--fsdp {mesh.size}"] if mesh.size > config.fsdp else []
    return flags or ["a smaller model or clip"]
