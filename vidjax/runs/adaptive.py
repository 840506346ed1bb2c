"""Training models that choose what they compute, and what the choice costs and loses (`experiments/adaptive.py`)."""

import itertools
import json
import math
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int, Key, UInt8

from vidjax.errors import UserError
from vidjax.evaluation.features import collect_features
from vidjax.layers.normalization import valid_clips
from vidjax.layers.selection import ScorePredictor
from vidjax.models import ada3d, adavit, example_inputs, variable_shapes
from vidjax.models.dynamicvit import DynamicViT
from vidjax.models.stts import STTS
from vidjax.objectives.adaptive import USAGE_WEIGHT, ada3d_loss, ada3d_rewards, adavit_loss
from vidjax.objectives.pruning import pruning_loss
from vidjax.runs.run import Run
from vidjax.training.cost import count_macs
from vidjax.training.sharding import jit_on_mesh, put_batch

KEYS = ("pruning", "selection", "usage", "dropout", "drop_path")
WHOLE = 0.25
"""Share of clips whose frames are all kept, and of clips whose convolutions are all 3-D, while Ada3D is trained: the
network does not forget what it is without choices (as slimmable networks are trained, arXiv:1903.05134)."""
CALIBRATED = 256
"""Training clips, at least, on which logits are shifted to meet a budget."""
ROUNDS = 15
"""In which the ways to compute take turns when their times are measured."""


@contextmanager
def deciding(key: Key[Array, ""] | None = None, shift: float | Array = 0.0, frames: int = 1) -> Iterator[None]:
    """Context manager in which what a model decides is changed.

    Args:
      key: shuffles the scores of tokens, frames, regions, heads, branches or convolutions of each decision, so that as
        much is used as before, but at random.
      shift: added to the logits of AdaViT's and Ada3D's decisions; more is used if it is above 0.
      frames: of a clip, which AdaViT decides about one by one; with a key they also exchange their decisions.
    """
    calls = itertools.count()

    def exchange(logits: Array) -> Array:
        if key is None:
            return logits
        order = jnp.argsort(jax.random.uniform(key, (len(logits) // frames, frames)), axis=1)  # the same in all blocks
        clips = logits.reshape(-1, frames, logits.shape[1])
        return jnp.take_along_axis(clips, order[..., None], axis=1).reshape(logits.shape)

    def shuffle(scores: Array) -> Array:
        if key is None:
            return scores
        noise = jax.random.uniform(jax.random.fold_in(key, next(calls)), scores.shape[:2])
        order = jnp.argsort(noise, axis=1).reshape(*noise.shape, *(1,) * (scores.ndim - 2))
        return jnp.take_along_axis(scores, order, axis=1)

    def intercept(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        outputs, module, method = call(*args, **kwargs), context.module, context.method_name
        if isinstance(module, ScorePredictor) and method == "__call__":
            return shuffle(outputs)
        if isinstance(module, adavit.Policy) and method.startswith("of_"):
            return jax.tree.map(lambda logits: shuffle(exchange(logits) + shift), outputs)
        if isinstance(module, ada3d.Policy) and method == "__call__":
            return jax.tree.map(lambda logits: shuffle(logits + shift), outputs)
        return outputs

    with nn.intercept_methods(intercept):
        yield


def with_share(model: nn.Module, share: float) -> nn.Module:
    """A DynamicViT or STTS that keeps this share at each place, of tokens or of frames and of each frame's places."""
    if isinstance(model, DynamicViT):
        return model.clone(keep=share)
    frames, regions = (tuple((block, share) for block, _ in each) for each in (model.frames, model.regions))
    return model.clone(frames=frames, regions=regions)


def largest(fits: Callable[[float], bool], low: float, high: float, halvings: int) -> float:
    """The largest value up to `high` that fits, by bisection; `low` does."""
    for _ in range(halvings):
        middle = (low + high) / 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


class Cost:
    """Multiply-accumulates of a model for a clip.

    Attributes:
      full: of the network without choices.
      least: the smallest share of them that the model can be held to.
    """

    def __init__(self, model: nn.Module):
        """Counts what does not depend on the clip."""
        self.model, self.shapes, self.video = model, variable_shapes(model), example_inputs(model)[0]
        network, frames = model.model, self.video.shape[1]
        self.full, self._shares = count_macs(network.apply, variable_shapes(network), self.video), {}
        if isinstance(model, adavit.AdaViT):
            usage = jax.eval_shape(partial(model.apply, method="masked"), self.shapes, self.video).usage
            self._tokens = usage.tokens.shape[2]
            self._of_usage = lambda usage: usage.macs(network.width).reshape(-1, frames).sum(axis=1)
            self._fixed = self.full - float(self._of_usage(self._equal_usage(1.0))[0])
            self.least = self.of_share(0.0)
        elif isinstance(model, ada3d.Ada3D):
            layers, policy = ada3d.layers_of(network), partial(model.apply, method="decide")
            convolutions = sum(layer.frames > 1 for layer in layers)
            self._of_usage = lambda usage: usage.macs(layers)
            everything = ada3d.Usage(jnp.ones((1, frames)), jnp.ones((1, convolutions)))
            self._fixed = self.full - float(self._of_usage(everything)[0])
            self._fixed += count_macs(policy, self.shapes, self.video)
            least = ada3d.Usage(jnp.ones((1, 2 if network.pool else 1)), jnp.zeros((1, convolutions)))
            self.least = float(self.of_usage(least)[0])
        else:
            if isinstance(model, DynamicViT):
                kept = jax.eval_shape(partial(model.apply, method="masked"), self.shapes, self.video).kept
                self._tokens = kept[0].shape[1]
            self._least_share = (1 + bisect_left(range(1, 101), True, key=self._leaves_something)) / 100
            self.least = self.of_share(self._least_share)

    def _equal_usage(self, share: float) -> adavit.Usage:
        """What an AdaViT uses of a clip if it uses this share of patches, heads and branches."""
        vit, always = self.model.model, (jnp.arange(self.model.model.depth) < self.model.always)[:, None]
        patches = jnp.full((vit.depth, self._tokens), share).at[:, 0].set(1.0)
        heads, branches = (jnp.where(always, 1.0, jnp.full((vit.depth, n), share)) for n in (vit.heads, 2))
        return adavit.Usage(*(jnp.stack([each] * self.video.shape[1]) for each in (patches, heads, branches)))

    def _leaves_something(self, hundredths: int) -> bool:
        """Whether tokens, frames or places are left at each place of a DynamicViT or STTS that keeps this share."""
        model = with_share(self.model, hundredths / 100)
        if isinstance(model, DynamicViT):
            return int(self._tokens * model.shares[-1]) >= 1
        try:
            jax.eval_shape(model.apply, self.shapes, self.video)
        except UserError:
            return False
        return True

    def of_usage(self, usage: Any) -> Float[Array, "b"]:
        """Shares of the full network's, of clips of which an AdaViT or Ada3D uses this."""
        return (self._of_usage(usage) + self._fixed) / self.full

    def of_share(self, share: float) -> float:
        """The share of the full network's at this share of tokens, frames and places, patches, heads and branches."""
        if isinstance(self.model, adavit.AdaViT):
            return float(self.of_usage(self._equal_usage(share))[0])
        return count_macs(with_share(self.model, share).apply, self.shapes, self.video) / self.full

    def require(self, budget: float, name: str) -> None:
        """Raises UserError if the budget, a share of the full network's, is below the smallest."""
        if budget < self.least:
            raise UserError(
                f"budget is {budget}: {name} takes at least {self.least:.3f} of the full network's multiply-"
                f"accumulates for such clips, give --budget {np.ceil(self.least * 1000) / 1000:.3f} or more"
            )

    def share_for(self, budget: float) -> float:
        """The largest share whose cost is within the budget, for all but Ada3D."""
        if budget not in self._shares:  # a count takes a part of a second
            low = 0.0 if isinstance(self.model, adavit.AdaViT) else self._least_share
            self._shares[budget] = largest(lambda share: self.of_share(share) <= budget, low, 1.0, 8)
        return self._shares[budget]


def losses_of(
    model: nn.Module,
    variables: dict[str, Any],
    frozen: dict[str, Any],
    video: Float[Array, "b t h w c"],
    labels: Int[Array, "b"],
    valid: Array,
    share: float | None,
    progress: Float[Array, ""] | float,
    key: Key[Array, ""],
) -> tuple[Float[Array, "b"], dict, Float[Array, "b classes"]]:
    """The loss of each clip by the objective of the model's family, changed collections and logits.

    Args:
      frozen: variables of the full network, DynamicViT's teacher.
      share: that AdaViT should use; None for Ada3D.
      progress: of the training, from 0 to 1; STTS's noise vanishes with it.
    """
    targets = jax.nn.one_hot(labels, model.model.num_classes)
    rngs = dict(zip(KEYS, jax.random.split(key, len(KEYS)), strict=True))
    apply = partial(model.apply, variables, video, train=True, rngs=rngs)
    if isinstance(model, DynamicViT):
        output = apply(method="masked")
        teacher = model.clone(locations=()).apply(frozen, video, method="masked")
        terms = pruning_loss(*output[:3], targets, model.shares, teacher.logits, teacher.tokens)
        return terms.total(), {}, output.logits
    if isinstance(model, STTS):
        logits = apply(noise=1 - progress)
        return optax.losses.softmax_cross_entropy(logits.astype(jnp.float32), targets), {}, logits
    if isinstance(model, adavit.AdaViT):
        output = apply(method="masked")
        terms = adavit_loss(output.logits, *output.usage, targets, share)
        losses = optax.losses.softmax_cross_entropy(output.logits.astype(jnp.float32), targets)
        return losses + USAGE_WEIGHT * (terms.tokens + terms.heads + terms.branches), {}, output.logits
    whole = jax.random.bernoulli(rngs["selection"], WHOLE, (len(labels), 2))
    with valid_clips(valid):
        output, changed = apply(whole=whole, method="masked", mutable=["batch_stats"])
    greedy = model.apply(variables, video, whole=whole, method="masked")
    baseline = ada3d_rewards(greedy.logits, *greedy.usage, labels)
    decisions = (output.log_probabilities, output.entropies)
    terms = ada3d_loss(output.logits, *output.usage, *decisions, labels, baseline=baseline)
    return terms.total(), changed, output.logits


class Point(NamedTuple):
    """A way to compute: `run(variables, video, key) -> logits, shares of the full network's cost`."""

    name: str
    budget: float
    run: Callable


def points_of(run: Run, cost: Cost, budgets: Sequence[float], variables: dict) -> list[Point]:
    """The full network, and for each budget the model's own choice and a random one that uses as much.

    AdaViT's and Ada3D's logits are shifted so that the mean cost of the first training clips is the budget, those of a
    random choice by another shift: what it costs depends on which decisions meet.
    """
    model, key = run.model, jax.random.key(run.config.seed)

    def full(variables: dict, video: Array, key: Array) -> tuple[Array, Array]:
        return model.model.apply(variables["full"], video), jnp.ones(len(video))

    points = [Point("full", 1.0, full)]
    for budget in budgets:
        if isinstance(model, DynamicViT | STTS):
            share, shifts = cost.share_for(budget), (0.0, 0.0)
            apply = partial(_apply_equally, with_share(model, share), cost.of_share(share))
        else:
            count = math.ceil(CALIBRATED / run.config.batch_size)
            clips = [put_batch(each, run.mesh)["video"] for each in itertools.islice(run.labelled_batches(0), count)]
            shifts = [shift_for(model, cost, budget, variables["own"], clips, run.mesh, each) for each in (None, key)]
            apply = partial(_apply_by_clip, model, cost)
        for name, shift in zip(("chosen", "random"), shifts, strict=True):
            points.append(Point(name, budget, partial(_decide, apply, shift, name == "random", model.num_frames)))
    return points


def _apply_equally(model: nn.Module, share: float, variables: dict, video: Array) -> tuple[Array, Array]:
    """Logits and costs of a DynamicViT or STTS, which uses as much of each clip."""
    return model.apply(variables, video), jnp.full(len(video), share)


def _apply_by_clip(model: nn.Module, cost: Cost, variables: dict, video: Array) -> tuple[Array, Array]:
    """Logits and costs of an AdaViT or Ada3D."""
    output = model.apply(variables, video, method="pruned")
    return output.logits, cost.of_usage(output.usage)


def _decide(
    apply: Callable, shift: float, at_random: bool, frames: int, variables: dict, video: Array, key: Array
) -> tuple[Array, Array]:
    with deciding(key if at_random else None, shift, frames):
        return apply(variables["own"], video)


def shift_for(
    model: nn.Module,
    cost: Cost,
    budget: float,
    variables: dict,
    batches: list[UInt8[Array, "b t h w c"]],
    mesh: Mesh,
    key: Key[Array, ""] | None = None,
) -> float:
    """The largest shift of the logits at which the clips of these batches cost no more than the budget on average.

    Args:
      key: of random decisions, see `deciding`; None for the model's own.
    """

    @partial(jit_on_mesh, mesh=mesh)
    def mean_cost(variables: dict, clips: Array, shift: Array) -> Array:
        with deciding(key, shift, model.num_frames):
            output = model.apply(variables, model.card.preprocess(clips), method="masked")
        return cost.of_usage(output.usage).mean()

    def fits(shift: float) -> bool:
        return float(np.mean([mean_cost(variables, clips, jnp.float32(shift)) for clips in batches])) <= budget

    return largest(fits, -30.0, 30.0, 12)


def _program(run: Run, point: Point) -> Callable:
    """`(variables, batch, key) -> classes, shares of the full network's cost, labels, valid`."""
    card = run.model.card

    def classify(variables: dict, batch: dict[str, Array], key: Array) -> tuple[Array, ...]:
        logits, shares = point.run(variables, card.preprocess(batch["video"]), key)
        return logits.argmax(axis=-1), shares, batch["label"], batch["valid"]

    return jit_on_mesh(classify, run.mesh)


def measure(run: Run, cost: Cost, budgets: set[float], variables: dict) -> list[dict[str, Any]]:
    """A row for each way to compute: name, budget, accuracy, cost and time; budgets below the least are left out.

    Args:
      variables: `full`, those of the network, and `own`, those of the model.
    """
    from vidjax.data.batches import select

    batch, key = put_batch(next(run.labelled_batches(0)), run.mesh), jax.random.key(run.config.seed)
    points = points_of(run, cost, sorted(each for each in budgets if each >= cost.least), variables)
    programs = [_program(run, point) for point in points]

    def encode(batch: dict[str, Array]) -> tuple[np.ndarray, ...]:
        outputs = [jax.device_get(program(variables, batch, key)) for program in programs]
        columns = [output[column] for column in (0, 1) for output in outputs]
        return np.stack(columns, axis=1), *outputs[0][2:]

    batches = select(run.validation_batches(), "video", "label", "valid")
    columns, labels = collect_features(encode, (put_batch(each, run.mesh) for each in batches))
    rows = []
    for number, (point, seconds) in enumerate(zip(points, measure_times(programs, variables, batch, key), strict=True)):
        top1, macs = (columns[:, number] == labels).mean(), columns[:, len(points) + number].mean()
        row = {"name": point.name, "budget": point.budget, "top1": float(top1), "macs": float(macs)}
        rows.append(row | {"seconds": seconds})
    return rows


def measure_times(programs: list[Callable], variables: dict, batch: dict[str, Array], key: Array) -> list[float]:
    """Seconds per clip of programs that are compiled: medians over `ROUNDS` in which they take turns."""
    seconds: list[list[float]] = [[] for _ in programs]
    for _ in range(ROUNDS):
        for program, row in zip(programs, seconds, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(program(variables, batch, key))
            row.append((time.perf_counter() - start) / len(batch["label"]))
    return [float(np.median(row)) for row in seconds]


def table_of(rows: list[Mapping[str, Any]], setting: str = "budget", form: str = ".0%") -> list[str]:
    """Lines of a table in Markdown; `form` is that of the setting, which is the first column."""
    lines = [f"| {setting} | choice | MACs | time per clip | of full | top-1 |", "|---|---|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row[setting]:{form}} | {row['name']} | {row['macs']:.1%} | {1e3 * row['seconds']:.2f} ms "
            f"| {row['seconds'] / rows[0]['seconds']:.2f} | {row['top1']:.1%} |"
        )
    return lines


def part_of(variables: dict[str, Any], shapes: dict[str, Any]) -> dict[str, Any]:
    """Copies of the variables of the full network, among those of the model."""
    keys = jax.tree_util.tree_flatten_with_path(shapes)[0]
    flat = dict(jax.tree_util.tree_flatten_with_path(variables)[0])
    return jax.tree.unflatten(jax.tree.structure(shapes), [jnp.copy(flat[path]) for path, _ in keys])


def write(
    workdir: Path, rows: list[dict[str, Any]], title: str, setting: str = "budget", form: str = ".0%"
) -> list[str]:
    """Writes adaptive.json, adaptive.md and adaptive.png; returns the lines of the table, see `table_of`."""
    from vidjax.visualize.tradeoff import save_tradeoff  # imports Matplotlib

    table, names = table_of(rows, setting, form), dict.fromkeys(row["name"] for row in rows)
    (workdir / "adaptive.json").write_text(json.dumps(rows, indent=2) + "\n")
    (workdir / "adaptive.md").write_text("\n".join(table) + "\n")
    panels = {
        label: {name: [(scale * row[key], row["top1"]) for row in rows if row["name"] == name] for name in names}
        for label, key, scale in (("% of the multiply-accumulates", "macs", 100), ("ms per clip", "seconds", 1000))
    }
    save_tradeoff(workdir / "adaptive.png", panels, "top-1", title)
    return table
