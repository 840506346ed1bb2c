"""What a model benchmark is to measure: settings from the command line, and one job for each measurement."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, Literal

import vidjax
from vidjax.cli import check_files
from vidjax.errors import UserError
from vidjax.fields import check_values
from vidjax.layers.attention import Implementation

OVERRIDES = ("remat", "implementation", "scan")
"""Fields of a model whose values can be compared."""


@dataclasses.dataclass(frozen=True)
class Models:
    """Which models, at which size, beside what."""

    models: tuple[str, ...] = ("videomae_tiny_pretrain", "vivit_tiny_joint", "uniformer_tiny")
    """Names of vidjax.list_models(): classifiers and *_pretrain."""
    frames: int | None = 8
    """Frames of a clip; None for what each model is meant for."""
    size: int | None = 64
    """Pixels of a side; None for what each model is meant for."""
    batch_sizes: tuple[int, ...] = (4,)
    """Clips of a step over all devices; of several, each side's best is compared, and what does not fit is left out."""
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32",)
    """Types of computation; parameters are float32, PyTorch computes by autocast."""
    peers: tuple[Literal["eager", "compile"], ...] = ("eager",)
    """PyTorch's side: as it is, by torch.compile, or both; none to leave it out."""
    remat: tuple[Literal["none", "dots", "blocks"], ...] = ()
    """Values of vidjax's field to compare; the model's own where there are none."""
    implementation: tuple[Implementation, ...] = ()
    """Implementations of attention to compare."""
    scan: tuple[bool, ...] = ()
    """Blocks one by one (False) or in one loop (True), to compare."""
    threads: int | None = None
    """Cores that each side may use; None for all."""
    rounds: int = 2
    """Processes of each side, which take turns."""
    steps: int = 5
    """Timed steps of a process, after those that warm it up."""
    json: str | None = None
    """Write the numbers to this file."""
    chart: str | None = None
    """Draw the numbers in this PNG."""

    def __post_init__(self) -> None:
        """Refuses what cannot be meant."""
        check_values(self)
        for name in ("frames", "size", "threads", "rounds", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}: it must be 1 or more")
        if not self.batch_sizes or min(self.batch_sizes) < 1:
            raise UserError(f"batch_sizes is {self.batch_sizes}: give one or more, each 1 or more")
        if not (self.models and self.dtypes):
            raise UserError(f"models is {self.models} and dtypes is {self.dtypes}: name one or more of each")
        check_files(json=self.json, chart=self.chart)


@dataclasses.dataclass(frozen=True)
class Train(Models):
    """Training steps: forward, backward, AdamW."""


@dataclasses.dataclass(frozen=True)
class Infer(Models):
    """Forward passes in evaluation."""


@dataclasses.dataclass(frozen=True)
class Memory(Models):
    """What saves memory in a training step, and what it costs in time."""

    models: tuple[str, ...] = ("videomae_tiny_pretrain", "vivit_tiny_joint")
    """Names of vidjax.list_models(): classifiers and *_pretrain."""
    remat: tuple[Literal["none", "dots", "blocks"], ...] = ("none", "dots", "blocks")
    """What the backward pass computes again."""
    rounds: int = 1
    """Processes of each side, which take turns."""
    budget_gb: float | None = None
    """Run nothing: say the largest batch whose step fits into so many GB (1e9 bytes) a device, by compiling alone."""

    def __post_init__(self) -> None:
        """Refuses what cannot be meant."""
        super().__post_init__()
        if self.budget_gb is not None and self.budget_gb <= 0:
            raise UserError(f"budget_gb is {self.budget_gb}: it must be above 0")


@dataclasses.dataclass(frozen=True)
class Job:
    """One measurement of one side. The clip's size is the model's own where None.

    Attributes:
      training: a whole step, or a forward pass in evaluation.
      overrides: of the model's fields, on vidjax's side.
    """

    model: str
    training: bool
    frames: int | None
    size: int | None
    batch_size: int
    dtype: str
    threads: int | None
    steps: int
    overrides: tuple[tuple[str, Any], ...] = ()

    @property
    def side(self) -> str:
        """How tables call vidjax's side of it."""
        return " ".join(["vidjax", *(f"{name}={value}" for name, value in self.overrides)])


def jobs(settings: Models, model: str, dtype: str, batch_size: int) -> Iterator[Job]:
    """vidjax's measurements of one model: one for each choice of the fields that are compared and that it has."""
    fields = vidjax.create_model(model).__dataclass_fields__
    wanted = {name: getattr(settings, name) for name in OVERRIDES if getattr(settings, name) and name in fields}
    for values in itertools.product(*wanted.values()):
        overrides = tuple(zip(wanted, values, strict=True))
        yield Job(
            model, not isinstance(settings, Infer), settings.frames, settings.size, batch_size, dtype,
            settings.threads, settings.steps, overrides,
        )  # fmt: skip


def check_models(settings: Models) -> list[str]:
    """Sentences on fields that a model lacks, which are left out for it.

    Raises:
      UserError: no such model, not one that is measured here, or no such value of a field.
    """
    remarks = []
    for name in settings.models:
        model = vidjax.create_model(name)
        fields = model.__dataclass_fields__
        if "num_classes" not in fields and "decoder_width" not in fields:
            raise UserError(f"{name} is neither a classifier nor a masked autoencoder: choose another model")
        for field in OVERRIDES:
            values = getattr(settings, field)
            if values and field not in fields:
                remarks.append(f"{name} has no field {field}: it is measured without")
            for value in values if field in fields else ():
                vidjax.create_model(name, **{field: value})
    return remarks
