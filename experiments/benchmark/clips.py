"""The longest clip whose training step fits into memory, by compiling only."""

import dataclasses
import itertools
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np

import vidjax
from benchmark.ours import describe_devices, make_program
from benchmark.settings import Job
from vidjax.cli import check_files
from vidjax.errors import UserError
from vidjax.fields import check_values
from vidjax.layers.attention import Implementation
from vidjax.training.memory import compile_counted, program_memory
from vidjax.training.sharding import make_mesh


@dataclasses.dataclass(frozen=True)
class Clips:
    """Memory of the training step of one clip by its number of frames, and the most frames that fit.

    Without an accelerator, devices are simulated and memory is that of a CPU program, which keeps in float32 much of
    what accelerators keep in bfloat16.
    """

    model: str = "videomae_base"
    """A classifier with the field `implementation`."""
    frames: tuple[int, ...] = (16, 32, 64, 128, 256)
    """Clip lengths to compile, three or more; lengths in between are interpolated by a parabola."""
    size: int = 224
    """Height and width in pixels."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Compute type; parameters and AdamW's moments are float32."""
    implementations: tuple[Implementation, ...] = ("xla", "chunked", "ring")
    """Attention implementations to compare."""
    remat: tuple[Literal["none", "dots", "blocks"], ...] = ("none", "blocks")
    """What the backward pass recomputes; if not `none`, blocks run in one scan."""
    devices: int = 8
    """Devices over which `ring` splits a clip; the other implementations run on one."""
    budgets_gb: tuple[float, ...] = (16, 24, 80, 141)
    """Memory of a device in GB (1e9 bytes)."""
    json: str | None = None
    """Write the numbers to this file."""

    def __post_init__(self) -> None:
        check_values(self)
        if len(set(self.frames)) < 3 or min(self.frames) < 1:
            raise UserError(f"frames is {self.frames}: give three or more, each 1 or more")
        if self.size < 1 or self.devices < 1:
            raise UserError(f"size is {self.size} and devices {self.devices}: both must be 1 or more")
        for name in ("implementations", "remat"):
            if not getattr(self, name):
                raise UserError(f"{name} is empty: name one or more to compare")
        check_files(json=self.json)


def most_frames(needs: Mapping[int, int], budget: float, multiple: int) -> int:
    """The most frames within the range of `needs` that fit into the budget; 0 if the fewest do not fit.

    Args:
      needs: increasing bytes by number of frames; interpolated by a parabola through the three nearest.
      budget: in bytes.
      multiple: frames per patch.
    """
    frames, known = (np.array(list(side), float) for side in (needs.keys(), needs.values()))
    start = min(max(int(np.searchsorted(known, budget)) - 2, 0), len(frames) - 3)
    curve = np.polyfit(frames[start : start + 3], known[start : start + 3], 2)
    lengths = np.arange(min(needs), max(needs) + 1, multiple)
    fits = np.polyval(curve, lengths) <= budget * (1 + 1e-9)
    count = len(lengths) if fits.all() else int(np.argmin(fits))
    return int(lengths[count - 1]) if count else 0


def measure_clips(config: Clips) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Measures every implementation and policy.

    Returns:
      The devices, and the rows: `bytes` is the memory per device by frames, `fits` the most frames by budget in GB.

    Raises:
      UserError: there are too few devices.
    """
    try:
        jax.config.update("jax_num_cpu_devices", config.devices)
    except RuntimeError:
        warnings.warn("JAX has already started, so that devices cannot be simulated: use a new process", stacklevel=2)
    if "ring" in config.implementations and jax.device_count() < config.devices:
        raise UserError(
            f"ring over {config.devices} devices on {jax.device_count()}: simulate them by the environment variable "
            "JAX_PLATFORMS=cpu, or choose other implementations"
        )
    rows = []
    for implementation, remat in itertools.product(config.implementations, config.remat):
        count = config.devices if implementation == "ring" else 1
        mesh = make_mesh(sequence=count, devices=jax.devices()[:count])
        overrides = (("implementation", implementation), ("remat", remat), ("scan", remat != "none"))
        needs = {}
        for frames in sorted(set(config.frames)):
            job = Job(config.model, True, frames, config.size, 1, config.dtype, None, 1, overrides)
            with jax.set_mesh(mesh):
                program, create, batch = make_program(job, mesh)
                compiled = compile_counted(program.lower(jax.eval_shape(create), batch))
            needs[frames] = program_memory(compiled).total
        tubelet = vidjax.create_model(config.model).patch_size[0]
        fits = {f"{budget:g}": most_frames(needs, 1e9 * budget, tubelet) for budget in config.budgets_gb}
        rows.append({"implementation": implementation, "remat": remat, "devices": count, "bytes": needs, "fits": fits})
    return describe_devices() | {"versions": {"jax": jax.__version__}}, rows
