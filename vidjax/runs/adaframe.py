"""AdaFrame beside frozen networks: what its LSTM learns from their features, and what its choice costs and loses.

The features of all frames are computed once (in the paper too), so that searching them is fast enough for policy
gradients. Accuracy is that of what the LSTM sees in these features; times are of videos, whose chosen frames alone pass
the large network.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, UInt8

from vidjax.errors import UserError
from vidjax.models.adaframe import AdaFrame, Episode, frame_at, steps_until_end
from vidjax.models.tsn import SegmentNetwork
from vidjax.objectives.adaptive import adaframe_loss
from vidjax.runs.adaptive import measure_times
from vidjax.training.cost import count_macs

EPISODES = 256  # in a step, and in a batch of the evaluation


class Seen(NamedTuple):
    """What the LSTM sees of videos, and their classes.

    Attributes:
      features, memory: as `AdaFrame.see` returns them; of a cache on disk, only the rows of a batch are read.
      rows: of the videos that are used.
      labels: of these.
    """

    features: Float[np.ndarray, "m t d"]
    memory: Float[np.ndarray, "m t e"]
    rows: Int[np.ndarray, "n"]
    labels: Int[np.ndarray, "n"]

    def take(self, chosen: Int[np.ndarray, "b"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features, memory and labels of some of the videos."""
        rows = self.rows[chosen]
        return self.features[rows], self.memory[rows], self.labels[chosen]

    def parts(self) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """The same of all of them, in batches."""
        count = len(self.rows)
        return [self.take(np.arange(start, min(start + EPISODES, count))) for start in range(0, count, EPISODES)]


def require_single_frames(name: str, model: nn.Module, classes: Sequence[str]) -> None:
    """Raises UserError unless the model classifies single frames into these classes.

    Args:
      name: of the model, for error messages.
    """
    if not isinstance(model, SegmentNetwork) or model.shift != "none" or model.stack > 1 or model.temporal_pool:
        raise UserError(f"{name} does not see each frame by itself, as AdaFrame needs: give a TSN, such as tsn_50")
    if model.card.class_names != tuple(classes) or model.head is not None:
        raise UserError(f"{name} has other classes than the data: fine-tune it on these before")


def join(
    network: tuple[SegmentNetwork, dict], glance: tuple[SegmentNetwork, dict], size: int, **fields: Any
) -> tuple[AdaFrame, dict]:
    """An AdaFrame of two networks with their variables, and its variables without those of the LSTM.

    Args:
      network: of the chosen frames, with `size` pixels a side.
      glance: of all frames, with its `image_size`.

    Raises:
      UserError: they differ in normalisation, or one size is no multiple of the other.
    """
    (model, own), (light, theirs) = network, glance
    if (model.card.mean, model.card.std) != (light.card.mean, light.card.std):
        raise UserError("glance normalises pixels in another way than run: train both from the same kind of weights")
    if size % light.image_size or size == light.image_size:
        raise UserError(
            f"glance sees {light.image_size} pixels and run {size}: the second must be a multiple of the first"
        )
    shrink = size // light.image_size
    model = AdaFrame(model, light, shrink=shrink, image_size=size, card=model.card, **fields)
    variables = {
        name: {**_without_head(own[name]), "memory_stem": _without_head(theirs[name])}
        for name in ("params", "batch_stats")
    }
    return model, variables


def _without_head(variables: dict) -> dict:
    return {name: value for name, value in variables.items() if name != "head"}


def fit(
    loss_of: Callable, variables: dict, batch_of: Callable[[jax.Array], tuple], steps: int, seed: int
) -> dict[str, Any]:
    """Minimises `loss_of(variables, key, *batch) -> loss, other collections`; returns the last variables.

    Args:
      batch_of: the batch of a step, from its key.
    """
    rate = optax.warmup_cosine_decay_schedule(0, 3e-3, min(50, steps // 2), steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate))

    @jax.jit
    def update(key: jax.Array, variables: dict, moments: optax.OptState, *batch: jax.Array) -> tuple:
        others = {name: value for name, value in variables.items() if name != "params"}
        gradient = jax.grad(lambda params: loss_of({"params": params, **others}, key, *batch), has_aux=True)
        gradients, others = gradient(variables["params"])
        updates, moments = optimizer.update(gradients, moments, variables["params"])
        return {"params": optax.apply_updates(variables["params"], updates), **others}, moments

    moments = optimizer.init(variables["params"])
    for number in range(steps):
        key = jax.random.fold_in(jax.random.key(seed), number)
        variables, moments = update(key, variables, moments, *batch_of(key))
    return variables


def learn_search(model: AdaFrame, variables: dict, seen: Seen, at_random: bool, steps: int, seed: int) -> dict:
    """Trains the LSTM on features of all frames, with places that it chooses or random ones."""

    def batch_of(key: jax.Array) -> tuple[np.ndarray, ...]:
        return seen.take(np.asarray(jax.random.randint(jax.random.split(key)[0], (EPISODES,), 0, len(seen.rows))))

    def loss_of(variables: dict, key: jax.Array, features: Array, memory: Array, labels: Array) -> tuple:
        _, key = jax.random.split(key)
        places = jax.random.uniform(key, (len(labels), model.steps)) if at_random else None
        episode = model.apply(variables, features, memory, True, places, method="search", rngs={"places": key})
        terms = adaframe_loss(episode.logits, episode.log_probabilities, episode.utilities, labels)
        return (terms.classification + terms.utility if at_random else terms.total()).mean(), {}

    return fit(loss_of, variables, batch_of, steps, seed)


def learn_both(model: AdaFrame, seen: Seen, steps: int, seed: int) -> dict[str, dict]:
    """Variables of the LSTM that has learned to choose, and of one that has learned with random places.

    Both start from one that has learned with random places: what a draw gains says little while nothing is recognised.
    """
    features, memory, _ = seen.take(np.arange(1))
    start = jax.jit(partial(model.init, method="search"))(jax.random.key(seed), features, memory)
    start = learn_search(model, start, seen, True, steps, seed)
    return {name: learn_search(model, start, seen, name == "random", steps, seed) for name in ("random", "chosen")}


def play(model: AdaFrame, variables: dict, seen: Seen, seed: int | None = None) -> Episode:
    """All steps of all videos.

    Args:
      seed: of random places; None for those that are chosen.
    """
    places = [None] * len(seen.rows)
    if seed is not None:
        places = jax.random.uniform(jax.random.key(seed), (len(seen.rows), model.steps))
    run, episodes = jax.jit(partial(model.apply, method="search")), []
    for number, (features, memory, _) in enumerate(seen.parts()):
        given = None if seed is None else places[number * EPISODES :][: len(features)]
        episodes.append(run(variables, features, memory, places=given))
    return jax.tree.map(lambda *parts: jnp.concatenate(parts), *episodes)


def at_places(
    model: AdaFrame, variables: dict, video: Float[Array, "b t h w c"], places: Float[Array, "b s"]
) -> Float[Array, "b classes"]:
    """Logits from the frames at these places, which alone pass the large network, at once."""
    frames = jnp.take_along_axis(video, frame_at(places, video.shape[1])[:, :, None, None, None], axis=1)
    features = model.apply(variables, frames, method="encode").mean(axis=(2, 3)).astype(jnp.float32)
    order = jnp.broadcast_to(jnp.linspace(0, 1, places.shape[1]), places.shape)  # all of these frames, one by one
    memory = model.apply(variables, video, method="memory")
    model = model.clone(steps=places.shape[1])
    return model.apply(variables, features, memory, False, order, method="search").logits[:, -1]


def measure(
    model: AdaFrame,
    network: SegmentNetwork,
    variables: Mapping[str, dict],
    video: UInt8[np.ndarray, "b t h w c"],
    episodes: Mapping[str, Episode],
    labels: Int[np.ndarray, "n"],
    top1: float,
    lags: Sequence[float],
) -> list[dict[str, Any]]:
    """A row for each way to compute: name, frames, accuracy, and cost and time per video; costs are shares.

    Args:
      network: that classifies all frames, for the first row.
      variables: of that network, `full`, and of the model: `chosen` and `random`.
      video: whose times are measured.
      episodes: of the videos of the labels, `chosen` and `random`.
      top1: accuracy of all frames.
      lags: of the utility behind its best at which a video ends.
    """
    clip = jax.ShapeDtypeStruct((1, *video.shape[1:]), jnp.float32)
    places = jnp.asarray(np.resize(episodes["random"].places, (len(video), model.steps)))
    shapes = jax.eval_shape(lambda: variables["chosen"])
    whole, counts = count_macs(network.apply, variables["full"], clip), range(1, model.steps + 1)
    costs = np.array([count_macs(_ending(model, count, np.inf).apply, shapes, clip) / whole for count in counts])
    correct = {name: each.logits.argmax(axis=-1) == labels[:, None] for name, each in episodes.items()}
    rows = [{"name": "full", "frames": float(video.shape[1]), "top1": top1, "macs": 1.0}]
    runs: list[Callable] = [lambda variables, video: network.apply(variables["full"], video)]

    def add(name: str, run: Callable, **numbers: Any) -> None:
        rows.append({"name": name} | {key: float(value) for key, value in numbers.items()})
        runs.append(run)

    def watch(model: AdaFrame) -> Callable:
        return lambda variables, video: model.apply(variables["chosen"], video)

    for count in counts:
        top1 = correct["chosen"][:, count - 1].mean()
        add("chosen", watch(_ending(model, count, np.inf)), frames=count, top1=top1, macs=costs[count - 1])
    for lag in lags:
        ends = np.asarray(steps_until_end(jnp.asarray(episodes["chosen"].utilities), lag, 1))
        top1, run = correct["chosen"][np.arange(len(ends)), ends - 1].mean(), watch(_ending(model, model.steps, lag))
        add("ended early", run, frames=ends.mean(), top1=top1, macs=costs[ends - 1].mean(), lag=lag)
    for count in counts:
        macs = count_macs(partial(at_places, model, places=places[:1, :count]), shapes, clip) / whole
        look = partial(at_places, model, places=places[:, :count])
        top1 = correct["random"][:, count - 1].mean()
        add("random", lambda variables, video, look=look: look(variables["random"], video),
            frames=count, top1=top1, macs=macs)  # fmt: skip

    def program(run: Callable) -> Callable:
        return jax.jit(lambda variables, batch, key: run(variables, model.card.preprocess(batch["video"])))

    programs, key = [program(run) for run in runs], jax.random.key(0)
    batch = {"video": jnp.asarray(video), "label": jnp.zeros(len(video))}
    jax.block_until_ready([each(variables, batch, key) for each in programs])  # they are compiled
    times = measure_times(programs, dict(variables), batch, key)
    return [row | {"seconds": seconds} for row, seconds in zip(rows, times, strict=True)]


def _ending(model: AdaFrame, steps: int, lag: float) -> AdaFrame:
    """The model with other rules of when a video ends."""
    return model.clone(steps=steps, lag=lag, patience=1)
