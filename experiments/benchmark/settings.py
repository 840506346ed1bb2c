"""Settings of the model benchmarks from the command line, and a job for each measurement."""

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any, Literal

import vidjax
from vidjax.cli import check_files
from vidjax.errors import UserError
from vidjax.fields import check_values
from vidjax.layers.attention import Implementation
from vidjax.models import vjepa
from vidjax.models.blip import Blip

OVERRIDES = ("remat", "implementation", "scan")
"""Model fields whose values can be compared."""


@dataclasses.dataclass(frozen=True)
class Models:
    """Models to measure, their input size, and the peers to compare with."""

    models: tuple[str, ...] = ("videomae_tiny_pretrain", "vivit_tiny_joint", "uniformer_tiny")
    """Names of vidjax.list_models(): classifiers, *_pretrain and BLIP, whose step has captions."""
    frames: int | None = 8
    """Frames per clip; None for each model's default."""
    size: int | None = 64
    """Height and width in pixels; None for each model's default."""
    batch_sizes: tuple[int, ...] = (4,)
    """Clips per step over all devices; of several, the fastest that fits is compared for each side."""
    dtypes: tuple[Literal["float32", "bfloat16"], ...] = ("float32",)
    """Compute types; parameters are float32, and PyTorch uses autocast."""
    peers: tuple[Literal["eager", "compile"], ...] = ("eager",)
    """PyTorch in eager mode, with torch.compile, or both; empty to measure vidjax only."""
    remat: tuple[Literal["none", "dots", "blocks"], ...] = ()
    """Rematerialisation policies of vidjax to compare; empty for the model's default."""
    implementation: tuple[Implementation, ...] = ()
    """Attention implementations to compare."""
    scan: tuple[bool, ...] = ()
    """Blocks unrolled (False) or in one loop (True), to compare."""
    threads: int | None = None
    """CPU cores that each side may use; None for all."""
    rounds: int = 2
    """Processes per side, which alternate."""
    steps: int = 5
    """Timed steps per process, after warm-up."""
    json: str | None = None
    """Write the numbers to this file."""
    chart: str | None = None
    """Write a chart of the numbers to this PNG."""

    def __post_init__(self) -> None:
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
    """Options that save memory in a training step, and their cost in time."""

    models: tuple[str, ...] = ("videomae_tiny_pretrain", "vivit_tiny_joint")
    """Names of vidjax.list_models(): classifiers and *_pretrain."""
    remat: tuple[Literal["none", "dots", "blocks"], ...] = ("none", "dots", "blocks")
    """What the backward pass recomputes."""
    rounds: int = 1
    """Processes per side, which alternate."""
    budget_gb: float | None = None
    """Only compile: find the largest batch whose step fits into this many GB (1e9 bytes) per device."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.budget_gb is not None and self.budget_gb <= 0:
            raise UserError(f"budget_gb is {self.budget_gb}: it must be above 0")


@dataclasses.dataclass(frozen=True)
class Job:
    """One measurement of one side. Frames and size that are None are the model's.

    Attributes:
      training: whether to measure a training step, or else a forward pass in evaluation.
      overrides: model fields that vidjax's side changes.
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
        """Name of vidjax's side in tables."""
        return " ".join(["vidjax", *(f"{name}={value}" for name, value in self.overrides)])


def jobs(settings: Models, model: str, dtype: str, batch_size: int) -> Iterator[Job]:
    """vidjax's measurements of one model: one per combination of the compared fields that the model has."""
    fields = vidjax.create_model(model).__dataclass_fields__
    wanted = {name: getattr(settings, name) for name in OVERRIDES if getattr(settings, name) and name in fields}
    for values in itertools.product(*wanted.values()):
        overrides = tuple(zip(wanted, values, strict=True))
        yield Job(
            model, not isinstance(settings, Infer), settings.frames, settings.size, batch_size, dtype,
            settings.threads, settings.steps, overrides,
        )  # fmt: skip


def check_models(settings: Models) -> list[str]:
    """Checks the models and the compared fields; returns remarks on fields that a model does not have.

    Raises:
      UserError: an unknown model or value, or a model that is neither a classifier nor a masked autoencoder.
    """
    remarks = []
    for name in settings.models:
        model = vidjax.create_model(name)
        fields = model.__dataclass_fields__
        trained = {"num_classes", "decoder_width"} & fields.keys() or isinstance(model, vjepa.Pretraining | Blip)
        if not trained and not (isinstance(settings, Infer) and hasattr(model, "num_classes")):
            raise UserError(f"{name} is neither a classifier nor a masked autoencoder: choose another model")
        for field in OVERRIDES:
            values = getattr(settings, field)
            if values and field not in fields:
                remarks.append(f"{name} has no field {field}: it is measured without it")
            for value in values if field in fields else ():
                vidjax.create_model(name, **{field: value})
    return remarks
