"""On which devices, and with which numbers, a training script computes."""

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
    """The type of a script's `--dtype`: auto is bfloat16 on accelerators, float32 on a CPU."""
    auto = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    return jnp.dtype(auto if dtype == "auto" else dtype)


def on_mesh(job: Callable[[Any, Mesh], Any]) -> Callable[..., Any]:
    """`job(config, mesh)` as `main(config)`, on the devices that `distributed`, `fsdp` and `sequence` ask for.

    Where devices share a clip the mesh is in context too, as ring attention wants it. A mesh of other devices may be
    given as a second argument.
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
    """Fields of a model by a training script's `dtype`, `remat`, `scan` and `sequence`.

    Args:
      name: of the model; not all have the last three.

    Raises:
      UserError: the model has no blocks to run so, or no attention whose tokens devices could share.
    """
    fields = {"dtype": computing_type(config.dtype)}
    fields |= {"remat": config.remat} if config.remat != "none" else {}
    fields |= {"scan": True} if config.scan else {}
    fields |= {"implementation": "ring"} if config.sequence > 1 else {}
    model = create_model(name)
    for flag, field in (("remat", "remat"), ("scan", "scan"), ("sequence", "implementation")):
        if field in fields and not _has_field(model, field):
            raise UserError(
                f"{flag} is {getattr(config, flag)}, but {name} has no transformer blocks for it: leave it out"
            )
    return fields


def _has_field(model: nn.Module, field: str) -> bool:
    """Whether the model or a tower of it has it."""
    return field in type(model).__dataclass_fields__ or any(_has_field(each, field) for each in towers(model).values())
