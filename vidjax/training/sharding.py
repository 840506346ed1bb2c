"""Where arrays live: a mesh of all devices with the axes `data`, `fsdp` and `sequence`.

A batch is split over `data` and `fsdp`. Parameters and optimiser state are whole on every device, or, with `fsdp` above
one, split over that axis; XLA gathers each where it is used. With `sequence` above one so many devices share each clip:
its frames, and under ring attention (`kernels.ring_attention`) its tokens. The same code runs on one device, on many,
and on many hosts.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from vidjax.errors import UserError

FSDP_SMALLEST = 2**14  # values; below this, gathering costs more than the memory saved


def join_processes() -> None:
    """Joins the processes of a cluster (`jax.distributed`), before anything else touches JAX.

    Slurm, Open MPI, Kubernetes and Cloud TPUs say by themselves who is who. Elsewhere each process reads
    JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Raises:
      UserError: these say something else, or nobody says who is who.
    """
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address is not None and not re.fullmatch(r".+:\d+", address):
        raise UserError(f"JAX_COORDINATOR_ADDRESS is {address}: give HOST:PORT of process 0")
    given = {name: os.environ[name] for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID") if name in os.environ}
    for name, value in given.items():
        if not value.isdecimal():
            raise UserError(f"{name} is '{value}': give a number")
    numbers = {name.removeprefix("JAX_").lower(): int(value) for name, value in given.items()}
    if len(numbers) == 2 and numbers["process_id"] >= numbers["num_processes"]:
        raise UserError(
            f"JAX_PROCESS_ID is {numbers['process_id']} of {numbers['num_processes']} processes: set it to one from 0"
        )
    try:
        jax.distributed.initialize(**numbers)
    except ValueError as error:  # "coordinator_address should be defined"
        raise UserError(
            f"this process does not know the others ({error}): start it by Slurm or on a Cloud TPU, set "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or leave out --distributed"
        ) from error


def make_mesh(fsdp: int = 1, sequence: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over the devices, by default all of all processes.

    Args:
      fsdp: devices that share one copy of the parameters.
      sequence: devices that share each clip.

    Raises:
      UserError: the devices cannot be divided into such groups, or a clip would be shared by several processes.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    for name, size in (("fsdp", fsdp), ("sequence", sequence)):
        if size < 1 or count % size:
            divisors = [d for d in range(1, count + 1) if count % d == 0]
            raise UserError(f"{name} {size} does not divide the {count} devices: choose one of {divisors}")
    if count % (fsdp * sequence):
        raise UserError(f"fsdp {fsdp} times sequence {sequence} does not divide the {count} devices: make it a divisor")
    if jax.process_count() > 1 and jax.local_device_count() % sequence:  # each process reads clips of its own
        raise UserError(
            f"sequence {sequence} does not divide the {jax.local_device_count()} devices of a process: "
            "make it a divisor"
        )
    # jax.make_mesh makes explicit axes by default, which would ask every Linen module for sharding annotations.
    shape = (count // (fsdp * sequence), fsdp, sequence)
    return jax.make_mesh(shape, ("data", "fsdp", "sequence"), axis_types=(AxisType.Auto,) * 3, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def array_sharding(mesh: Mesh, name: str, shape: tuple[int, ...]) -> NamedSharding:
    """Of one array of a batch: `batch_sharding`, and a `video`'s frames over `sequence` where that divides them."""
    parts = mesh.shape["sequence"]
    if name == "video" and len(shape) == 5 and parts > 1 and shape[1] % parts == 0:
        return NamedSharding(mesh, PartitionSpec(("data", "fsdp"), "sequence"))
    return batch_sharding(mesh)


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
    """Global device arrays from this process's part of a batch; the frames of `video` split over `sequence`."""
    return {
        name: jax.make_array_from_process_local_data(array_sharding(mesh, name, array.shape), array)
        for name, array in batch.items()
    }


def is_main_process() -> bool:
    """Whether this is the one process that prints and writes for all."""
    return jax.process_index() == 0


def this_process() -> dict[str, int]:
    """Which part of every batch this process reads, as the pipeline's arguments."""
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}


def jit_on_mesh(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """`function` compiled; what it returns is whole on every device, and the mesh is in context inside."""

    @wraps(function)
    def on_mesh(*args: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return jax.jit(on_mesh, out_shardings=replicated(mesh))


def jit_step(step: Callable[..., tuple[Any, Any]], sharding: PyTree[NamedSharding], mesh: Mesh) -> Callable[..., Any]:
    """`(state, batch) -> (state, metrics)` compiled: the state, of this sharding, is donated, the metrics are whole.

    The batch is a dict of arrays; the mesh is in context inside, as ring attention wants it.
    """

    def on_mesh(state: Any, batch: Mapping[str, jax.Array]) -> tuple[Any, Any]:
        batch = {
            name: jax.lax.with_sharding_constraint(array, array_sharding(mesh, name, array.shape))
            for name, array in batch.items()
        }
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return step(state, batch)

    # The batch's shardings follow from what is asked of it inside.
    shardings = {"in_shardings": (sharding, None), "out_shardings": (sharding, replicated(mesh))}
    return jax.jit(on_mesh, donate_argnums=0, **shardings)


def check_batch_size(batch_size: int, accumulation: int = 1, repeats: int = 1, sequence: int = 1) -> None:
    """Raises ValueError unless the batch can be split over the devices and micro-batches, and holds whole videos.

    Args:
      sequence: devices that share each clip (see `make_mesh`).
    """
    devices = jax.device_count() // sequence
    if batch_size < 1 or batch_size % (devices * accumulation):
        parts = f"{devices} devices" if sequence == 1 else f"{devices} groups of {sequence} devices"
        parts += f" times {accumulation} micro-batches" if accumulation > 1 else ""
        multiple = devices * accumulation
        raise UserError(f"a batch of {batch_size} cannot be shared by {parts}: make it a multiple of {multiple}")
    if batch_size // jax.process_count() % repeats:
        raise UserError(
            f"a process's part of a batch of {batch_size} clips is not whole videos of {repeats} repeats: "
            "make it a multiple"
        )
