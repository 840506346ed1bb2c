"""Sharding of batches and state over a mesh of all devices with the axes `data`, `fsdp` and `sequence`.

A batch is split over `data` and `fsdp`. Parameters and optimiser state are replicated or, with `fsdp` above one, split
over that axis, and XLA gathers them where they are used. With `sequence` above one each clip is split over that many
devices: its frames and, with ring attention (`kernels.ring_attention`), its tokens. The same code runs on one device,
on several, and on several hosts.
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
    """Joins the processes of a cluster (`jax.distributed`); must be called before any other use of JAX.

    Slurm, Open MPI, Kubernetes and Cloud TPUs are detected. Elsewhere each process reads the environment variables
    JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID.

    Raises:
      UserError: these variables are invalid, or they are missing and no cluster is detected.
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
            f"JAX_PROCESS_ID is {numbers['process_id']} of {numbers['num_processes']} processes: it is counted from 0"
        )
    try:
        jax.distributed.initialize(**numbers)
    except ValueError as error:  # "coordinator_address should be defined"
        raise UserError(
            f"no cluster was detected ({error}): start the processes by Slurm or on a Cloud TPU, set "
            "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID, or omit --distributed"
        ) from error


def make_mesh(fsdp: int = 1, sequence: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over the devices, by default all devices of all processes.

    Args:
      fsdp: devices over which each copy of the parameters is sharded.
      sequence: devices over which each clip is sharded.

    Raises:
      UserError: the devices cannot be divided into such groups, or a clip would be split over several processes.
    """
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    for name, size in (("fsdp", fsdp), ("sequence", sequence)):
        if size < 1 or count % size:
            divisors = [d for d in range(1, count + 1) if count % d == 0]
            raise UserError(f"{name} {size} does not divide the {count} devices: choose one of {divisors}")
    if count % (fsdp * sequence):
        raise UserError(f"fsdp {fsdp} times sequence {sequence} does not divide the {count} devices: make it a divisor")
    if jax.process_count() > 1 and jax.local_device_count() % sequence:  # each process reads its own clips
        raise UserError(
            f"sequence {sequence} does not divide the {jax.local_device_count()} devices of a process: "
            "make it a divisor"
        )
    # jax.make_mesh creates explicit axes by default, which would require sharding annotations in all Linen modules.
    shape = (count // (fsdp * sequence), fsdp, sequence)
    return jax.make_mesh(shape, ("data", "fsdp", "sequence"), axis_types=(AxisType.Auto,) * 3, devices=devices)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Splits the leading axis over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def array_sharding(mesh: Mesh, name: str, shape: tuple[int, ...]) -> NamedSharding:
    """`batch_sharding` of one array; the frames of `video` are also split over `sequence` if it divides them."""
    parts = mesh.shape["sequence"]
    if name == "video" and len(shape) == 5 and parts > 1 and shape[1] % parts == 0:
        return NamedSharding(mesh, PartitionSpec(("data", "fsdp"), "sequence"))
    return batch_sharding(mesh)


def replicated(mesh: Mesh) -> NamedSharding:
    """A full copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def state_sharding(mesh: Mesh, state: PyTree[Any]) -> PyTree[NamedSharding]:
    """The sharding of each leaf: the longest axis that `fsdp` divides is split, small leaves are replicated.

    Args:
      state: arrays, or their shapes as returned by `jax.eval_shape`. Optimiser moments are sharded like their
        parameters, which have the same shape.
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
    """Global device arrays from this process's part of a batch, with the sharding of `array_sharding`.

    Raises:
      UserError: the clips cannot be split over the devices.
    """
    parts = max(mesh.shape["data"] * mesh.shape["fsdp"] // jax.process_count(), 1)
    clips = len(next(iter(batch.values())))
    if clips % parts:
        raise UserError(f"a batch of {clips} cannot be split over {parts} devices: make it a multiple of {parts}")
    return {
        name: jax.make_array_from_process_local_data(array_sharding(mesh, name, array.shape), array)
        for name, array in batch.items()
    }


def is_main_process() -> bool:
    """Whether this is process 0, which prints and writes the logs."""
    return jax.process_index() == 0


def this_process() -> dict[str, int]:
    """The arguments of the pipeline for this process's part of each batch."""
    return {"process_index": jax.process_index(), "process_count": jax.process_count()}


def compiler_options(mesh: Mesh) -> dict[str, int]:
    """Options with which XLA compiles for CPUs in 0.81 to 0.96 of the time; programs run as fast (JAX 0.10 to 0.12).

    An optimisation level in `XLA_FLAGS` takes precedence. Other platforms keep XLA's defaults. Functions jitted with
    options can only be called outside of `jit`, `grad` and other transformations.
    """
    given = "xla_backend_optimization_level" in os.environ.get("XLA_FLAGS", "")
    return {} if given or mesh.devices.flat[0].platform != "cpu" else {"xla_backend_optimization_level": 1}


def jit_into(
    sharding: PyTree[NamedSharding], function: Callable[..., Any], mesh: Mesh, **settings: Any
) -> Callable[..., Any]:
    """Jits a function, such as one that creates variables, whose outputs get this sharding."""
    return jax.jit(function, out_shardings=sharding, compiler_options=compiler_options(mesh), **settings)


def jit_on_mesh(function: Callable[..., Any], mesh: Mesh) -> Callable[..., Any]:
    """Jits a function with replicated outputs and the mesh as the context mesh."""

    @wraps(function)
    def on_mesh(*args: Any) -> Any:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return function(*args)

    return jit_into(replicated(mesh), on_mesh, mesh)


def jit_step(step: Callable[..., tuple[Any, Any]], sharding: PyTree[NamedSharding], mesh: Mesh) -> Callable[..., Any]:
    """Jits `(state, batch) -> (state, metrics)`: the state has this sharding and is donated, metrics are replicated.

    The batch is a dict of arrays. The mesh is set as the context mesh, which ring attention needs.
    """

    def on_mesh(state: Any, batch: Mapping[str, jax.Array]) -> tuple[Any, Any]:
        batch = {
            name: jax.lax.with_sharding_constraint(array, array_sharding(mesh, name, array.shape))
            for name, array in batch.items()
        }
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return step(state, batch)

    # The shardings of the batch are determined by the constraints above.
    shardings = {"in_shardings": (sharding, None), "out_shardings": (sharding, replicated(mesh))}
    return jax.jit(on_mesh, donate_argnums=0, compiler_options=compiler_options(mesh), **shardings)


def check_batch_size(batch_size: int, accumulation: int = 1, repeats: int = 1, sequence: int = 1) -> None:
    """Checks that a batch can be split over devices and micro-batches, and each process's part into whole videos.

    Args:
      sequence: devices over which each clip is sharded (see `make_mesh`).

    Raises:
      UserError: it cannot.
    """
    devices = jax.device_count() // sequence
    if batch_size < 1 or batch_size % (devices * accumulation):
        parts = f"{devices} devices" if sequence == 1 else f"{devices} groups of {sequence} devices"
        parts += f" times {accumulation} micro-batches" if accumulation > 1 else ""
        multiple = devices * accumulation
        raise UserError(f"a batch of {batch_size} cannot be split over {parts}: make it a multiple of {multiple}")
    if batch_size // jax.process_count() % repeats:
        raise UserError(
            f"the part of each process in a batch of {batch_size} clips does not consist of whole videos with "
            f"{repeats} repeats: make it a multiple of {repeats}"
        )
