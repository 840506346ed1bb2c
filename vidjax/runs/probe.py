"""Probes of a frozen encoder on its cached features: linear, nearest neighbours, and the attentive probe of V-JEPA 2.

Each tries several hyperparameters and reports the best by validation accuracy, with the accuracy of all. As in
published numbers, the best is chosen on the videos on which it is reported; the interval covers the draw of these
videos, not the choice.
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vidjax.errors import UserError
from vidjax.evaluation.knn import knn_predict
from vidjax.evaluation.linear_probe import linear_predict
from vidjax.evaluation.probe_grid import fit_grid, predict_grid
from vidjax.evaluation.recognition import wilson_interval
from vidjax.fields import check_values, require_not_negative, require_positive
from vidjax.models.vjepa import NORMAL, AttentivePooler
from vidjax.runs.features import Features
from vidjax.training.metrics import clock


@dataclasses.dataclass(frozen=True)
class AttentiveConfig:
    """The attentive probe, and the grid over which it is trained; the defaults are those of V-JEPA 2."""

    learning_rates: tuple[float, ...] = (5e-3, 3e-3, 1e-3, 3e-4, 1e-4)
    """Learning rates of AdamW, each with every weight decay; they fall to zero along a cosine."""
    weight_decays: tuple[float, ...] = (0.01, 0.1, 0.4, 0.8)
    """Weight decays, of all parameters."""
    depth: int = 3
    """Blocks over the tokens, before the attention of one query to them."""
    heads: int | None = None
    """Attention heads (default: the greatest common divisor of 16 and the width of the tokens)."""
    epochs: int = 20
    """Passes over the training videos; what does not fill a batch is left out."""
    batch_size: int = 256
    """Videos per step, at most all of them."""
    accumulation: int = 1
    """Micro-batches per step, to save memory: each holds tokens for all points of the grid."""

    def __post_init__(self) -> None:
        check_values(self, "attentive.")
        for name in ("learning_rates", "weight_decays"):
            require_points(f"attentive.{name}", getattr(self, name))
        if min(self.learning_rates) <= 0 or min(self.weight_decays) < 0:
            raise UserError("attentive.learning_rates must be above 0 and attentive.weight_decays not below")
        require_positive(self, "heads", "epochs", "batch_size", "accumulation")
        require_not_negative(self, "depth")


def require_points(name: str, values: Sequence[float]) -> None:
    """Raises UserError for an empty grid."""
    if not values:
        raise UserError(f"{name} is empty: give at least one value")


def best_by_validation(
    predicted: Int[np.ndarray, "g m"], labels: Int[np.ndarray, "m"], points: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Accuracies as JSON: of the best point (the first of several), with its 95 % interval, and of all points."""
    correct = (predicted == labels).sum(axis=1)
    best = int(correct.argmax())
    accuracies = [{**point, "top1": int(count) / len(labels)} for point, count in zip(points, correct, strict=True)]
    interval = wilson_interval(int(correct[best]), len(labels))
    numbers = {"top1": accuracies[best]["top1"], "top1_interval": interval, "best": dict(points[best])}
    return {**numbers, "grid": accuracies, "videos": len(labels)}


def probe_linear(
    train: Features, validation: Features, kind: str, classes: int, penalties: Sequence[float]
) -> dict[str, Any]:
    """Accuracy of logistic regression on features of a kind; see `evaluation.linear_probe`."""
    x, u = (pooled(each, kind) for each in (train, validation))
    predicted = linear_predict(x, train.labels, u, classes, penalties)
    return best_by_validation(predicted, validation.labels, [{"penalty": penalty} for penalty in penalties])


def probe_knn(
    train: Features, validation: Features, kind: str, classes: int, counts: Sequence[int], temperature: float
) -> dict[str, Any]:
    """Accuracy of the weighted votes of the nearest training videos; see `evaluation.knn`.

    Raises:
      UserError: there are fewer training videos than neighbours.
    """
    require_neighbours(counts, len(train.labels))
    x, u = (pooled(each, kind) for each in (train, validation))
    predicted = knn_predict(x, train.labels, u, classes, counts, temperature)
    return best_by_validation(predicted, validation.labels, [{"k": count} for count in counts])


def require_neighbours(counts: Sequence[int], videos: int) -> None:
    """Raises UserError for more neighbours than training videos."""
    if max(counts) > videos:
        raise UserError(f"k {max(counts)} is more than the {videos} training videos: give --k with smaller numbers")


def pooled(features: Features, kind: str) -> Float[np.ndarray, "n d"]:
    """The features of a kind in float32."""
    return np.asarray(features.arrays[kind][features.rows], np.float32)


def make_attentive(width: int, classes: int, config: AttentiveConfig, dtype: Any = None) -> nn.Module:
    """The attentive probe: V-JEPA 2's pooler and a linear layer.

    Raises:
      UserError: the heads do not divide the width.
    """
    heads = config.heads or math.gcd(width, 16)
    if width % heads:
        raise UserError(f"attentive.heads is {heads}: it must divide the {width} channels of the tokens, or be omitted")
    pooler = AttentivePooler(heads, config.depth, 1e-5, dtype=dtype)  # the original's epsilon
    return nn.Sequential([pooler, nn.Dense(classes, kernel_init=NORMAL, dtype=dtype)])


def probe_attentive(
    train: Features,
    validation: Features,
    classes: int,
    config: AttentiveConfig,
    seed: int,
    dtype: Any = None,
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, Any]:
    """Accuracy of attentive probes on all tokens, trained side by side over the grid; see `evaluation.probe_grid`.

    Args:
      seed: of the initial parameters and the order of the videos.
      dtype: compute type.
      devices: over which the grid is divided.
    """
    tokens, count = train.arrays["tokens"], len(train.rows)
    module = make_attentive(tokens.shape[-1], classes, config, dtype)

    def apply(params: dict, features: Float[Array, "b n d"]) -> Float[Array, "b classes"]:
        return module.apply(params, features.astype(dtype or jnp.float32))

    params = jax.jit(module.init)(jax.random.key(seed), jnp.zeros((1, *tokens.shape[1:])))
    rates, decays = zip(*itertools.product(config.learning_rates, config.weight_decays), strict=True)
    batch = min(config.batch_size, count)
    size = -(-batch // config.accumulation)
    accumulation = batch // size
    per_epoch = count // (size * accumulation)

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        start = reported = time.monotonic()
        for epoch in range(config.epochs):
            order = np.random.default_rng([seed, epoch]).permutation(count)
            for micro in range(per_epoch * accumulation):
                chosen = np.sort(order[micro * size : (micro + 1) * size])
                yield tokens[train.rows[chosen]], train.labels[chosen]
            if time.monotonic() - reported > 15:
                reported = time.monotonic()
                done = f"{epoch + 1} of {config.epochs} epochs, {clock(reported - start)} elapsed"
                print(f"attentive: {len(rates)} probes, {done}", flush=True)

    steps = config.epochs * per_epoch
    params, losses = fit_grid(apply, params, batches(), rates, decays, steps, accumulation, devices)
    rows = np.array_split(validation.rows, -(-len(validation.rows) // size))
    predicted = predict_grid(apply, params, (validation.arrays["tokens"][each] for each in rows), devices)
    last = np.nan_to_num(losses[-accumulation:].mean(axis=0), nan=np.inf).tolist()
    points = [
        {"learning_rate": rate, "weight_decay": decay, "loss": loss if math.isfinite(loss) else None}
        for rate, decay, loss in zip(rates, decays, last, strict=True)
    ]
    result = best_by_validation(predicted, validation.labels, points)
    del result["best"]["loss"]  # not a choice
    return {**result, "steps": steps, "heads": module.layers[0].heads}


def describe_probes(results: dict[str, dict[str, Any]], classes: int) -> str:
    """A table of the best of each probe."""
    lines = [f"{'probe':10} {'top-1':>7}   {'95 % interval':>17}   best of"]
    for name, result in results.items():
        low, high = result["top1_interval"]
        best = ", ".join(f"{field.replace('_', ' ')} {value:g}" for field, value in result["best"].items())
        interval = f"{low:.2%} to {high:.2%}"
        lines.append(f"{name:10} {result['top1']:7.2%}   {interval:>17}   {len(result['grid'])}: {best}")
    return "\n".join([*lines, f"{'chance':10} {1 / classes:7.2%}"])
