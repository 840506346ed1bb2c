"""Training models that choose what they compute, and what the choice costs and loses (`experiments/adaptive.py`)."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Key

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
HALVINGS = 12
"""Of an interval in which a setting for a budget is searched."""


@contextmanager
def deciding(key: Key[Array, ""] | None = None, shift: float | Array = 0.0) -> Iterator[None]:
    """Context manager in which what a model decides is changed.

    Args:
      key: shuffles the scores of tokens, frames, regions, heads, branches or convolutions of each decision, so that as
        much is used as before, but at random.
      shift: added to the logits of AdaViT's and Ada3D's decisions; more is used if it is above 0.
    """
    calls = iter(range(1_000_000))

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
        chooses = isinstance(module, adavit.Policy) and method.startswith("of_")
        if chooses or (isinstance(module, ada3d.Policy) and method == "__call__"):
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
        self.full = count_macs(network.apply, variable_shapes(network), self.video)
        if isinstance(model, adavit.AdaViT):
            tokens = jax.eval_shape(partial(model.apply, method="masked"), self.shapes, self.video).usage.tokens.shape
            self._of_usage = lambda usage: usage.macs(network.width).reshape(-1, frames).sum(axis=1)
            everything = self.usage_of(1.0, tokens[2])
            self._fixed = self.full - float(self._of_usage(everything)[0])
            self._tokens = tokens[2]
            self.least = self.of_usage(self.usage_of(0.0, tokens[2]))[0]
        elif isinstance(model, ada3d.Ada3D):
            layers = ada3d.layers_of(network)
            self._of_usage = lambda usage: usage.macs(layers)
            convolutions = sum(layer.frames > 1 for layer in layers)
            policy = count_macs(partial(model.apply, method="decide"), self.shapes, self.video)
            everything = ada3d.Usage(jnp.ones((1, frames)), jnp.ones((1, convolutions)))
            self._fixed = self.full - float(self._of_usage(everything)[0]) + policy
            least = ada3d.Usage(jnp.ones((1, 2 if network.pool else 1)), jnp.zeros((1, convolutions)))
            self.least = self.of_usage(least)[0]
        else:
            self.least = self.of_share(self._least_share())

    def usage_of(self, share: float, tokens: int) -> adavit.Usage:
        """What an AdaViT uses of a clip if it uses this share of patches, heads and branches."""
        vit, always = self.model.model, (jnp.arange(self.model.model.depth) < self.model.always)[:, None]
        patches = jnp.full((vit.depth, tokens), share).at[:, 0].set(1.0)
        heads, branches = (jnp.where(always, 1.0, jnp.full((vit.depth, n), share)) for n in (vit.heads, 2))
        return adavit.Usage(*(jnp.stack([each] * self.video.shape[1]) for each in (patches, heads, branches)))

    def of_usage(self, usage: Any) -> Float[np.ndarray, "b"]:
        """Shares of the full network's, of clips of which an AdaViT or Ada3D uses this."""
        return (self._of_usage(usage) + self._fixed) / self.full

    def of_share(self, share: float) -> float:
        """The share of the full network's at this share of tokens, frames and places, patches, heads and branches."""
        if isinstance(self.model, adavit.AdaViT):
            return float(self.of_usage(self.usage_of(share, self._tokens))[0])
        return count_macs(with_share(self.model, share).apply, self.shapes, self.video) / self.full

    def _least_share(self) -> float:
        """The smallest at which something is left at each place."""
        shares = np.linspace(0.01, 1, 100)
        return next(share for share in shares if self._leaves_something(float(share)))

    def _leaves_something(self, share: float) -> bool:
        model = with_share(self.model, share)
        if isinstance(model, DynamicViT):
            kept = jax.eval_shape(partial(self.model.apply, method="masked"), self.shapes, self.video).kept
            return int(kept[0].shape[1] * model.shares[-1]) >= 1
        try:
            jax.eval_shape(model.apply, self.shapes, self.video)
        except UserError:
            return False
        return True

    def require(self, budget: float, name: str) -> None:
        """Raises UserError if the budget, a share of the full network's, is below the smallest."""
        if budget < self.least:
            raise UserError(
                f"budget is {budget}: {name} takes at least {self.least:.3f} of the full network's multiply-"
                f"accumulates for such clips, give --budget {np.ceil(self.least * 1000) / 1000:.3f} or more"
            )

    def share_for(self, budget: float) -> float:
        """The largest share whose cost is within the budget."""
        low, high = (0.0, 1.0) if isinstance(self.model, adavit.AdaViT) else (float(self._least_share()), 1.0)
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if self.of_share(middle) <= budget else (low, middle)
        return low


def losses_of(
    model: nn.Module,
    variables: dict[str, Any],
    frozen: dict[str, Any],
    video: Float[Array, "b t h w c"],
    labels: Int[Array, "b"],
    valid: Array,
    share: float,
    progress: Float[Array, ""] | float,
    key: Key[Array, ""],
) -> tuple[Float[Array, "b"], dict, Float[Array, "b classes"]]:
    """The loss of each clip by the objective of the model's family, changed collections and logits.

    Args:
      frozen: variables of the full network, DynamicViT's teacher.
      share: that AdaViT should use.
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
    with valid_clips(valid):
        output, changed = apply(method="masked", mutable=["batch_stats"])
    greedy = model.apply(variables, video, method="masked")
    baseline = ada3d_rewards(greedy.logits, *greedy.usage, labels)
    terms = ada3d_loss(output.logits, *output.usage, output.log_probabilities, labels, baseline=baseline)
    return terms.total(), changed, output.logits


class Point(NamedTuple):
    """A way to compute: `run(variables, video, key) -> logits, shares of the full network's cost`."""

    name: str
    budget: float
    run: Callable


def points_of(
    model: nn.Module, cost: Cost, budgets: tuple[float, ...], variables: dict, video: Float[Array, "b t h w c"]
) -> list[Point]:
    """The full network, and for each budget the model's own choice and a random one that uses as much.

    Args:
      video: training clips, by which logits of AdaViT and Ada3D are shifted so that the mean cost is the budget.
    """

    def full(variables: dict, video: Array, key: Array) -> tuple[Array, Array]:
        return model.model.apply(variables["full"], video), jnp.ones(len(video))

    points = [Point("full", 1.0, full)]
    for budget in budgets:
        if isinstance(model, DynamicViT | STTS):
            chosen, shift = with_share(model, cost.share_for(budget)), 0.0
        else:
            chosen, shift = model, shift_for(model, cost, budget, variables, video)
        for name in ("chosen", "random"):
            points.append(Point(name, budget, partial(_run, chosen, cost, shift, name == "random")))
    return points


def _run(
    model: nn.Module, cost: Cost, shift: float, at_random: bool, variables: dict, video: Array, key: Array
) -> tuple[Array, Array]:
    with deciding(key if at_random else None, shift):
        if isinstance(model, DynamicViT | STTS):
            share = count_macs(model.apply, cost.shapes, cost.video) / cost.full
            return model.apply(variables["own"], video), jnp.full(len(video), share)
        output = model.apply(variables["own"], video, method="pruned")
        return output.logits, cost.of_usage(output.usage)


def shift_for(model: nn.Module, cost: Cost, budget: float, variables: dict, video: Float[Array, "b t h w c"]) -> float:
    """The largest shift of the logits at which these clips cost no more than the budget on average."""

    @jax.jit
    def mean_cost(variables: dict, video: Array, shift: Array) -> Array:
        with deciding(shift=shift):
            return cost.of_usage(model.apply(variables, video, method="masked").usage).mean()

    low, high = -30.0, 30.0
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        fits = mean_cost(variables["own"], video, jnp.float32(middle)) <= budget
        low, high = (middle, high) if fits else (low, middle)
    return low


def measure_times(points: list[Point], variables: dict, video: Float[Array, "b t h w c"], rounds: int) -> list[float]:
    """Seconds per clip of each point: medians over rounds in which all of them take turns."""
    key, seconds = jax.random.key(0), [[] for _ in points]
    runs = [jax.jit(point.run) for point in points]
    for number in range(rounds + 1):
        for run, row in zip(runs, seconds, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(run(variables, video, key))
            if number:  # the first compiles
                row.append((time.perf_counter() - start) / len(video))
    return [float(np.median(row)) for row in seconds]


def table_of(rows: list[Mapping[str, Any]]) -> list[str]:
    """Lines of a table in Markdown."""
    lines = ["| budget | choice | MACs | time per clip | of full | top-1 |", "|---|---|---|---|---|---|"]
    for row in rows:
        lines.append(
            f"| {row['budget']:.0%} | {row['name']} | {row['macs']:.1%} | {1e3 * row['seconds']:.2f} ms "
            f"| {row['seconds'] / rows[0]['seconds']:.2f} | {row['top1']:.1%} |"
        )
    return lines


def part_of(variables: dict[str, Any], shapes: dict[str, Any]) -> dict[str, Any]:
    """Copies of the variables of the full network, among those of the model."""
    keys = jax.tree_util.tree_flatten_with_path(shapes)[0]
    flat = dict(jax.tree_util.tree_flatten_with_path(variables)[0])
    return jax.tree.unflatten(jax.tree.structure(shapes), [jnp.copy(flat[path]) for path, _ in keys])


def predict(run: Run, points: list[Point], variables: dict, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each validation clip the classes by all points, then the shares of the full network's cost; and the labels."""
    from vidjax.data.batches import select

    card = run.model.card

    @partial(jit_on_mesh, mesh=run.mesh)
    def encode(variables: dict, batch: dict[str, Array]) -> tuple[Array, Array, Array]:
        video, key = card.preprocess(batch["video"]), jax.random.key(seed)
        outputs = [point.run(variables, video, key) for point in points]
        classes = [logits.argmax(axis=-1).astype(jnp.float32) for logits, _ in outputs]
        return jnp.stack([*classes, *(share for _, share in outputs)], axis=1), batch["label"], batch["valid"]

    batches = select(run.validation_batches(), "video", "label", "valid")
    return collect_features(partial(encode, variables), (put_batch(batch, run.mesh) for batch in batches))


def measure(run: Run, cost: Cost, budgets: set[float], variables: dict) -> list[dict[str, Any]]:
    """A row for each way to compute: name, budget, accuracy, cost and time; budgets below the least are left out.

    Args:
      variables: `full`, those of the network, and `own`, those of the model.
    """
    model, clips = run.model, jnp.asarray(next(run.labelled_batches(0))["video"])
    video, fitting = model.card.preprocess(clips), tuple(sorted(each for each in budgets if each >= cost.least))
    points = points_of(model, cost, fitting, variables, video)
    columns, labels = predict(run, points, variables, run.config.seed)
    rows = []
    for number, (point, seconds) in enumerate(zip(points, measure_times(points, variables, video, 15), strict=True)):
        top1, macs = (columns[:, number] == labels).mean(), columns[:, len(points) + number].mean()
        row = {"name": point.name, "budget": point.budget, "top1": float(top1), "macs": float(macs)}
        rows.append(row | {"seconds": seconds})
    return rows


def write(workdir: Path, rows: list[dict[str, Any]], title: str) -> list[str]:
    """Writes adaptive.json, adaptive.md and adaptive.png; returns the lines of the table."""
    from vidjax.visualize.tradeoff import save_tradeoff  # imports Matplotlib

    table, names = table_of(rows), ("full", "chosen", "random")
    (workdir / "adaptive.json").write_text(json.dumps(rows, indent=2) + "\n")
    (workdir / "adaptive.md").write_text("\n".join(table) + "\n")
    panels = {
        label: {name: [(row[key], row["top1"]) for row in rows if row["name"] == name] for name in names}
        for label, key in (("multiply-accumulates, full = 1", "macs"), ("seconds per clip", "seconds"))
    }
    save_tradeoff(workdir / "adaptive.png", panels, "top-1", title)
    return table
