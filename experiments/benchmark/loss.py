"""Memory and time of the contrastive losses and their gradients, computed whole and in chunks.

The batch is split over all devices. Memory is the temporary memory per device, without embeddings and gradients, by
XLA's memory analysis. Time is that of the loss and its gradients with respect to both embeddings and the scale: median
and range of all steps, with the forms alternating. `differs` is the largest difference of a gradient from that of the
whole form, relative to its largest value.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmark.ours import describe_devices
from vidjax.cli import check_files
from vidjax.errors import UserError
from vidjax.fields import check_values
from vidjax.objectives import contrastive
from vidjax.training.memory import program_memory
from vidjax.training.sharding import check_batch_size, make_mesh, put_batch

BIAS = -10.0
OBJECTIVES: dict[str, Callable] = {
    "info_nce": lambda batch, scale, chunk: contrastive.info_nce(batch["video"], batch["text"], scale, chunk=chunk),
    "sigmoid": lambda batch, scale, chunk: contrastive.sigmoid(batch["video"], batch["text"], scale, BIAS, chunk=chunk),
    "multi_positive_kl": lambda batch, scale, chunk: contrastive.multi_positive_kl(
        batch["video"], batch["text"], scale, batch["label"], chunk=chunk
    ),
}


@dataclasses.dataclass(frozen=True)
class Loss:
    """The contrastive losses and their gradients."""

    batch_size: int = 4096
    """Pairs of a video and a caption over all devices."""
    width: int = 512
    """Width of an embedding."""
    chunks: tuple[int, ...] = (512,)
    """Chunk sizes, in columns of the similarity matrix, to compare with the whole."""
    classes: int = 400
    """Number of classes for multi_positive_kl."""
    steps: int = 3
    """Timed steps of each form per round."""
    rounds: int = 3
    """Rounds, in which the forms alternate."""
    json: str | None = None
    """Write the numbers to this file."""
    chart: str | None = None
    """Write a chart of the numbers to this PNG."""

    def __post_init__(self) -> None:
        check_values(self)
        for name in ("batch_size", "width", "classes", "steps", "rounds"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}: it must be 1 or more")
        check_files(json=self.json, chart=self.chart)


def draw_pairs(config: Loss) -> dict[str, np.ndarray]:
    """Unit embeddings of correlated pairs, with random labels."""
    rng = np.random.default_rng(0)
    video = rng.standard_normal((config.batch_size, config.width), np.float32)
    text = video + 2 * rng.standard_normal(video.shape, np.float32)
    unit = {name: x / np.linalg.norm(x, axis=1, keepdims=True) for name, x in (("video", video), ("text", text))}
    return {**unit, "label": rng.integers(config.classes, size=config.batch_size)}


def measure_forms(config: Loss, objective: Callable, batch: dict[str, jax.Array]) -> dict[str, dict[str, Any]]:
    """Measurements of every form of one loss, by the name of the form."""
    embeddings, rest = {name: batch[name] for name in ("video", "text")}, {"label": batch["label"]}
    forms = {"whole": None, **{f"chunks of {size}": size for size in config.chunks}}
    programs, rows, gradients = {}, {}, {}
    for form, chunk in forms.items():

        def loss(embeddings: dict, scale: jax.Array, rest: dict, chunk: int | None = chunk) -> jax.Array:
            return objective({**embeddings, **rest}, scale, chunk)

        start = time.perf_counter()
        programs[form] = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(embeddings, jnp.float32(20), rest).compile()
        compile_seconds = time.perf_counter() - start
        gradients[form] = jax.device_get(programs[form](embeddings, jnp.float32(20), rest)[1])
        rows[form] = {
            "temporary_bytes": program_memory(programs[form]).temporary,
            "compile_seconds": compile_seconds,
        }
    times: dict[str, list[float]] = {form: [] for form in forms}
    for form in [*forms] * config.rounds:
        for _ in range(config.steps):
            start = time.perf_counter()
            jax.block_until_ready(programs[form](embeddings, jnp.float32(20), rest))
            times[form].append(time.perf_counter() - start)
    for form, row in rows.items():
        pairs = zip(*map(jax.tree.leaves, (gradients[form], gradients["whole"])), strict=True)
        row["differs"] = max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)
        row |= {
            "step_seconds": statistics.median(times[form]),
            "least_seconds": min(times[form]),
            "most_seconds": max(times[form]),
        }
    return rows


def measure_loss(config: Loss) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The devices, and a row for each form of each loss.

    Raises:
      UserError: the batch cannot be split over the devices, or a chunk size does not divide it.
    """
    check_batch_size(config.batch_size)
    batch = put_batch(draw_pairs(config), make_mesh())
    return describe_devices() | {"versions": {"jax": jax.__version__}}, [
        {"objective": name, "form": form, **row}
        for name, objective in OBJECTIVES.items()
        for form, row in measure_forms(config, objective, batch).items()
    ]
