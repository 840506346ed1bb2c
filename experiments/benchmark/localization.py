"""Time and memory of a training step of ActionFormer by the length of the videos, beside the same model in PyTorch.

Each side runs in processes of its own, which alternate. Features are noise, in float32; videos fill half of their
length or all of it, and a tenth of the points is positive.
"""

import dataclasses
import importlib.util
import statistics
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from benchmark.measure import Row, measure, set_environment
from benchmark.ours import describe_devices
from benchmark.process import forget_peak, keep_to, resident, timed
from vidjax.cli import check_files
from vidjax.errors import UserError
from vidjax.fields import check_values
from vidjax.models.actionformer import LOCALIZERS
from vidjax.objectives import localization as objective
from vidjax.training.memory import program_memory
from vidjax.training.optimizer import OptimizerConfig, make_optimizer
from vidjax.training.state import Aux, TrainState, create_state
from vidjax.training.step import make_train_step

POSITIVES = 100.0


@dataclasses.dataclass(frozen=True)
class Localization:
    """A model of temporal localisation."""

    model: str = "actionformer_thumos_i3d"
    """A localiser with one window, no position table and no feature pyramid network."""
    lengths: tuple[int, ...] = (2304,)
    """Steps of features."""
    batch_size: int = 2
    """Videos."""
    peers: bool = True
    """Also measure PyTorch, if it is installed."""
    threads: int | None = None
    """CPU cores that each side may use; None for all."""
    rounds: int = 2
    """Processes per side, which alternate."""
    steps: int = 5
    """Timed steps per process, after warm-up."""
    json: str | None = None
    """Write the numbers to this file."""

    def __post_init__(self) -> None:
        """Rejects invalid values."""
        check_values(self)
        for name in ("batch_size", "threads", "rounds", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} is {value}: it must be 1 or more")
        model = LOCALIZERS[self.model]() if self.model in LOCALIZERS else None
        if model is None or model.position or model.neck != "identity" or not isinstance(model.window, int):
            raise UserError(f"model is '{self.model}': choose actionformer_thumos_i3d or actionformer_tiny")
        if wrong := [length for length in self.lengths if length < 1 or length % model.strides[-1]]:
            raise UserError(f"lengths has {wrong[0]}: give multiples of {model.strides[-1]}")
        check_files(json=self.json)


def draw(model: nn.Module, length: int, batch_size: int) -> dict[str, np.ndarray]:
    """Features `b t c`, lengths `b`, and the targets of all points; both sides get the same."""
    rng = np.random.default_rng(0)
    count = len(objective.points(length, model.strides).place)
    lengths = np.where(np.arange(batch_size) % 2, length // 2, length).astype(np.int32)
    features = rng.standard_normal((batch_size, length, model.channels), np.float32)
    classes = rng.random((batch_size, count, model.num_classes)) < 0.1 / model.num_classes
    return {
        "features": features * (np.arange(length) < lengths[:, None])[..., None],
        "lengths": lengths,
        "classes": classes.astype(np.float32),
        "offsets": rng.uniform(0.5, 4, (batch_size, count, 2)).astype(np.float32),
    }


def make_loss(model: nn.Module, length: int) -> Callable:
    """The losses of classes and offsets with given targets."""
    points = objective.points(length, model.strides)

    def loss_fn(params: Any, aux: Aux, batch: dict[str, jax.Array], key: jax.Array) -> tuple:
        keys = dict(zip(("dropout", "drop_path"), jax.random.split(key), strict=True))
        levels = model.apply({"params": params}, batch["features"], batch["lengths"], train=True, rngs=keys)
        logits, offsets = (jnp.concatenate(level, axis=1) for level in levels)
        targets = objective.Targets(batch["classes"], batch["offsets"])
        valid = points.place < batch["lengths"][:, None]
        classes, regression, _ = objective.localize(logits, offsets, targets, valid, jnp.asarray(POSITIVES))
        return classes + regression, (aux.model_state, {})

    return loss_fn


def ours(config: Localization, length: int) -> Row:
    """vidjax's step: seconds, the peak of resident memory during steps, and the program's by XLA's analysis."""
    keep_to(config.threads)
    jax.config.update("jax_enable_compilation_cache", False)
    model = LOCALIZERS[config.model]()
    batch = jax.tree.map(jnp.asarray, draw(model, length, config.batch_size))
    tx = make_optimizer(OptimizerConfig(), OptimizerConfig().schedule(config.batch_size, 1000, 10))

    def init() -> TrainState:
        variables = model.init(jax.random.key(0), batch["features"][:1], batch["lengths"][:1])
        return create_state(variables, tx, jax.random.key(1))

    step = jax.jit(make_train_step(make_loss(model, length), tx), donate_argnums=0)
    compiled = step.lower(jax.eval_shape(init), batch).compile()
    create = jax.jit(init).lower().compile()
    before = resident("now")
    states = [create()]

    def run() -> jax.Array:
        states[0], metrics = compiled(states[0], batch)
        return metrics["loss"]

    run().block_until_ready()
    forget_peak()
    seconds = timed(run, jax.block_until_ready, config.steps)
    return {
        "seconds": statistics.median(seconds),
        "memory": resident("peak") - before,
        "program": program_memory(compiled).total,
    }


def pytorch(config: Localization, length: int) -> Row:
    """PyTorch's step, on the CPU."""
    import torch

    from benchmark.torch_actionformer import ActionFormer, localize

    torch.set_num_threads(keep_to(config.threads))
    model = LOCALIZERS[config.model]()
    batch = {name: torch.from_numpy(value) for name, value in draw(model, length, config.batch_size).items()}
    before = resident("now")
    peer = ActionFormer(model).train()
    optimizer = torch.optim.AdamW(peer.parameters(), lr=1e-4, weight_decay=0.05, fused=True)

    def run() -> None:
        optimizer.zero_grad(set_to_none=True)
        outputs = peer(batch["features"], batch["lengths"])
        localize(*outputs, batch["classes"], batch["offsets"], POSITIVES).backward()
        optimizer.step()

    run()
    forget_peak()
    seconds = timed(run, lambda _: None, config.steps)
    return {"seconds": statistics.median(seconds), "memory": resident("peak") - before}


def measure_localization(config: Localization, report: Callable[[str], Any]) -> tuple[dict[str, Any], list[Row]]:
    """The devices, and a row for each length: PyTorch's numbers under `other_`.

    Args:
      report: called with one line before each process.
    """
    set_environment()
    sides = {"": ours}
    if config.peers and importlib.util.find_spec("torch"):
        sides["other_"] = pytorch
    rows = []
    for length in config.lengths:
        rounds: dict[str, list[Row]] = {prefix: [] for prefix in sides}
        for number in range(config.rounds):
            for prefix, side in sides.items():
                report(f"{length} steps, {side.__name__}, round {number + 1} of {config.rounds}")
                rounds[prefix].append(measure(side, config, length))
        row: Row = {"length": str(length), "batch_size": config.batch_size}
        for prefix, measured in rounds.items():
            if failed := [each["failed"] for each in measured if "failed" in each]:
                row["failed"] = f"{sides[prefix].__name__}: {failed[0]}"
                break
            row |= {prefix + name: statistics.median(each[name] for each in measured) for name in measured[0]}
        rows.append(row)
    versions = {library: version(library) for library in ("jax", "torch") if importlib.util.find_spec(library)}
    return measure(describe_devices) | {"versions": versions}, rows
