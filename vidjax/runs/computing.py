"""Devices and compute types of the scripts."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import wraps
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vidjax.errors import UserError
from vidjax.models import create_model, towers
from vidjax.training.sharding import join_processes, make_mesh


def computing_type(dtype: Literal["auto", "float32", "bfloat16"]) -> Any:
    """The compute type that a script's `--dtype` selects: auto is bfloat16 on accelerators, float32 on a CPU."""
    auto = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(auto if dtype == "auto" else dtype)


def on_mesh(job: Callable[[Any, Mesh], Any]) -> Callable[..., Any]:
    """Decorator that turns `job(config, mesh)` into `main(config)`.

    The mesh follows from the config's `distributed`, `fsdp` and `sequence`; a second argument of `main` replaces it.
    With `sequence` above 1 the mesh is also set as JAX's context mesh, which ring attention needs.
    """

    @wraps(job)
    def main(config: Any, mesh: Mesh | None = None) -> Any:
        if config.distributed:
            join_processes()
        mesh = make_mesh(config.fsdp, config.sequence) if mesh is None else mesh
        with jax.set_mesh(mesh) if config.sequence > 1 else nullcontext():
            return job(config, mesh)

    return main


def computing_fields(config: Any, name: str) -> dict[str, Any]:
    """The model fields that a training script's `dtype`, `remat`, `scan` and `sequence` set.

    Args:
      name: name of the model; not all models support the last three.

    Raises:
      UserError: the model does not support one of them.
    """
    fields = {"dtype": computing_type(config.dtype)}
    fields |= {"remat": config.remat} if config.remat != "none" else {}
    fields |= {"scan": True} if config.scan else {}
    fields |= {"implementation": "ring"} if config.sequence > 1 else {}
    model = create_model(name)
    for flag, field in (("remat", "remat"), ("scan", "scan"), ("sequence", "implementation")):
        if field in fields and not _has_field(model, field):
            raise UserError(
                f"{flag} is {getattr(config, flag)}, but {name} has no transformer blocks for it: omit --{flag}"
            )
    return fields


def _has_field(model: nn.Module, field: str) -> bool:
    """Whether the model or one of its towers has this field."""
    return field in type(model).__dataclass_fields__ or any(_has_field(each, field) for each in towers(model).values())
