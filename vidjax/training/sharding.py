"""Where arrays live: a mesh of all devices with the axes `data` and `fsdp`.

A batch is split over both axes. Parameters and optimiser state are whole on every device, or, with `fsdp` above one,
split over that axis; XLA gathers each where it is used. The same code runs on one device, on many, and on many hosts.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

FSDP_SMALLEST = 2**14  # values; below this, gathering costs more than the memory saved


def join_processes() -> None:
    """Joins the processes of a cluster (`jax.distributed`), before anything else touches JAX.

    Slurm, Open MPI, Kubernetes and Cloud TPUs say by themselves who is who. Elsewhere each process is told by
    JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID.
    """
    told = {key: os.environ.get(f"JAX_{key.upper()}") for key in ("num_processes", "process_id")}
    jax.distributed.initialize(**{key: int(value) for key, value in told.items() if value is not None})


def make_mesh(fsdp: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over the devices, by default all of all processes; `fsdp` of them share one copy of the parameters.

    Raises:
      ValueError: the devices cannot be divided into groups of `fsdp`.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    if fsdp < 1 or count % fsdp:
        divisors = [d for d in range(1, count + 1) if count % d == 0]
        raise ValueError(f"fsdp {fsdp} does not divide the {count} devices: choose one of {divisors}")
    # jax.make_mesh makes explicit axes by default, which would ask every Linen module for sharding annotations.
    axes = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((count // fsdp, fsdp), ("data", "fsdp"), axis_types=axes, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis over all devices."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(mesh: Mesh, state: PyTree[Any]) -> PyTree[NamedSharding]:
    """A sharding for every leaf: its longest axis that `fsdp` divides is split, small leaves stay whole.

    Args:
      state: arrays, or shapes of them as `jax.eval_shape` gives. Moments follow their parameters, being of equal shape.
    """
    parts = mesh.shape["fsdp"]

    def shard(leaf: Any) -> NamedSharding:
        shape = leaf.shape
        axes = [axis for axis in range(len(shape)) if shape[axis] % parts == 0]
        if parts == 1 or not axes or np.prod(shape) < FSDP_SMALLEST:
            return replicated(mesh)
        longest = max(axes, key=lambda axis: shape[axis])
        return NamedSharding(mesh, PartitionSpec(*("fsdp" if axis == longest else None for axis in range(len(shape)))))

    return jax.tree.map(shard, state)


def put_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Global device arrays from this process's share of a batch."""
    sharding = batch_sharding(mesh)
    return {name: jax.make_array_from_process_local_data(sharding, array) for name, array in batch.items()}


def this_process() -> dict[str, int]:
    """Which share of every batch this process reads, as the pipeline's arguments."""
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}


def jit_step(step: Callable[..., tuple[Any, Any]], sharding: PyTree[NamedSharding], mesh: Mesh) -> Callable[..., Any]:
    """`(state, batch) -> (state, metrics)` compiled: the state, of this sharding, is donated, the metrics are whole."""
    shardings = {"in_shardings": (sharding, batch_sharding(mesh)), "out_shardings": (sharding, replicated(mesh))}
    return jax.jit(step, donate_argnums=0, **shardings)


def check_batch_size(batch_size: int, accumulation: int = 1, repeats: int = 1) -> None:
    """Raises ValueError unless the batch can be split over the devices and micro-batches, and holds whole videos."""
    devices = jax.device_count()
    if batch_size < 1 or batch_size % (devices * accumulation):
        parts = f"{devices} devices" + (f" times {accumulation} micro-batches" if accumulation > 1 else "")
        multiple = devices * accumulation
        raise ValueError(f"a batch of {batch_size} cannot be shared by {parts}: make it a multiple of {multiple}")
    if batch_size // jax.process_count() % repeats:
        raise ValueError(f"a process's share of a batch of {batch_size} clips is not whole videos of {repeats} repeats")
