"""AdaFrame on videos in which most frames say nothing: does it learn where to look, and when to stop?

    python experiments/adaptive_frames.py

Videos are rendered. They have 16 frames, of which 14 show the background alone and two consecutive ones, anywhere, also
a circle, a square or a triangle, which is the class. First a network of full size and a light one at an eighth of the
resolution (4x4 pixels) learn single frames: a shape, or nothing. Both are frozen, as the features of all frames are
then computed once, and the LSTM learns to search: to choose places by policy gradient, to predict the utility, and to
classify. For comparison an equal LSTM learns with random places, and is measured with random ones. Both start from one
that has learned with random places: what a draw gains says little while nothing is recognised.

Writes to OUT: results.json, a table (adaptive_frames.md) and frames.png: chosen frames are framed, the last in orange.
Expected results: docs/results.md.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vidjax import cli
from vidjax.data import moving_shapes
from vidjax.fields import check_values, require_positive
from vidjax.models.adaframe import AdaFrame, frame_at, steps_until_end
from vidjax.models.tsn import SegmentNetwork
from vidjax.objectives.adaptive import adaframe_loss
from vidjax.runs.results import open_results
from vidjax.visualize.contact_sheet import save_contact_sheet

FRAMES, SHOWN, SIZE, SHRINK, BATCH, EPISODES = 16, 2, 32, 8, 64, 256
SHAPES = ("circle", "square", "triangle")
LAGS = (0.1, 0.2, 0.3)  # of the utility behind its best at which a clip ends; the picture takes the last
FULL, LIGHT = (SegmentNetwork(depths=(1, 1, 1, 1), width=width, dropout=0.0) for width in (8, 4))


@dataclass(frozen=True)
class Config:
    """How much is learned."""

    train_clips: int = 2048
    """Videos to learn from."""
    validation_clips: int = 512
    """Videos to measure on."""
    frame_steps: int = 300
    """Steps of each network of single frames."""
    steps: int = 1500
    """Steps of each search, and of the start of both, with random places."""
    looks: int = 4
    """The most frames that are chosen."""
    deviation: float = 0.2
    """Standard deviation of the places that are drawn in training; 1 is the length of the video."""
    seed: int = 0
    """Random seed of parameters, batches and places."""
    out: str = "runs/adaptive_frames"
    """Output directory, new or empty."""

    def __post_init__(self) -> None:
        check_values(self)
        require_positive(self, "train_clips", "validation_clips", "frame_steps", "steps", "looks", "deviation")


class Clips(NamedTuple):
    """Videos, the class of each, and the first of its frames that shows a shape."""

    pixels: np.ndarray
    labels: np.ndarray
    first: np.ndarray


def render(start: int, count: int) -> Clips:
    """Clips of so many numbers."""
    clips = []
    for index in range(start, start + count):
        draw = np.random.default_rng(index)
        scene = moving_shapes.scene_of(index)._replace(radius=draw.uniform(0.2, 0.28))
        shown = draw.integers(FRAMES - SHOWN + 1) + np.arange(SHOWN)
        background = np.round(moving_shapes.render_background(scene, SIZE)).astype(np.uint8)
        video = np.repeat(background[None], FRAMES, axis=0)
        video[shown] = moving_shapes.paint(scene, moving_shapes.centers_of(scene, shown), SIZE)
        clips.append((video, SHAPES.index(scene.shape), shown[0]))
    return Clips(*map(np.array, zip(*clips, strict=True)))


def fit(loss_of: Callable, variables: dict, data: tuple, steps: int, seed: int) -> dict:
    """Minimises `loss_of(variables, key, *data) -> loss, other collections`; returns the last variables."""
    rate = optax.warmup_cosine_decay_schedule(0, 3e-3, min(50, steps // 2), steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate))

    @jax.jit
    def update(number: int, variables: dict, moments: optax.OptState, *data: jax.Array) -> tuple:
        others = {name: value for name, value in variables.items() if name != "params"}
        key = jax.random.fold_in(jax.random.key(seed), number)
        gradient = jax.grad(lambda params: loss_of({"params": params, **others}, key, *data), has_aux=True)
        gradients, others = gradient(variables["params"])
        updates, moments = optimizer.update(gradients, moments, variables["params"])
        return {"params": optax.apply_updates(variables["params"], updates), **others}, moments

    moments = optimizer.init(variables["params"])
    for number in range(steps):
        variables, moments = update(number, variables, moments, *data)
    return variables


def learn_frames(network: nn.Module, shrink: int, clips: Clips, config: Config) -> Callable:
    """Trains a network on single frames, most of them with a shape; returns what computes features of all frames."""
    network = network.clone(num_classes=len(SHAPES) + 1)

    def inputs(pixels: jax.Array) -> jax.Array:
        return nn.avg_pool(pixels.astype(jnp.float32) / 127.5 - 1, *[(1, shrink, shrink)] * 2)

    def loss_of(variables: dict, key: jax.Array, pixels: jax.Array, labels: jax.Array, first: jax.Array) -> tuple:
        keys = jax.random.split(key, 3)
        chosen = jax.random.randint(keys[0], (BATCH,), 0, len(labels))
        anywhere = jax.random.randint(keys[1], chosen.shape, 0, FRAMES)
        with_shape = first[chosen] + jax.random.randint(keys[2], chosen.shape, 0, SHOWN)
        frames = jnp.where(jnp.arange(len(chosen)) % 4 == 0, anywhere, with_shape)
        shows = (frames >= first[chosen]) & (frames < first[chosen] + SHOWN)
        batch = inputs(pixels[chosen, frames][:, None])
        logits, changed = network.apply(variables, batch, train=True, mutable=["batch_stats"])
        targets = jnp.where(shows, labels[chosen], len(SHAPES))
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean(), changed

    variables = network.init(jax.random.key(config.seed), inputs(clips.pixels[:1]))
    variables = fit(loss_of, variables, tuple(map(jnp.asarray, clips)), config.frame_steps, config.seed)
    encode = jax.jit(lambda video: network.apply(variables, inputs(video), method="encode").mean(axis=(2, 3)))
    return lambda video: jnp.concatenate([encode(part) for part in np.split(video, range(64, len(video), 64))])


def learn_search(
    model: nn.Module, variables: dict, seen: tuple, labels: jax.Array, at_random: bool, config: Config
) -> dict:
    """Trains the LSTM on features of all frames, with places that it chooses or random ones."""

    def loss_of(variables: dict, key: jax.Array, labels: jax.Array, *seen: jax.Array) -> tuple:
        batch_key, place_key = jax.random.split(key)
        chosen = jax.random.randint(batch_key, (EPISODES,), 0, len(labels))
        places = jax.random.uniform(place_key, (len(chosen), config.looks)) if at_random else None
        inputs, rngs = [each[chosen] for each in seen], {"places": place_key}
        episode = model.apply(variables, *inputs, True, places, method="search", rngs=rngs)
        terms = adaframe_loss(episode.logits, episode.log_probabilities, episode.utilities, labels[chosen])
        return (terms.classification + terms.utility if at_random else terms.total()).mean(), {}

    return fit(loss_of, variables, (labels, *seen), config.steps, config.seed)


def draw(clips: Clips, frames: np.ndarray, ends: np.ndarray) -> list[np.ndarray]:
    """The first eight videos, with the frames that were looked at framed in white, the last in orange."""
    pictures = clips.pixels[:8].copy()
    for video, places, end in zip(pictures, frames, ends, strict=False):
        for place in places[:end]:
            color = (255, 140, 0) if place == places[end - 1] else (255, 255, 255)
            video[place, :2] = video[place, -2:] = video[place, :, :2] = video[place, :, -2:] = color
    return list(pictures)


def main(config: Config) -> dict[str, Any]:
    """Trains, prints and writes the results; returns the contents of results.json."""
    out = open_results(config.out, config.out, "adaptive_frames")
    train, test = render(0, config.train_clips), render(1_000_000, config.validation_clips)
    encoders = [learn_frames(FULL, 1, train, config), learn_frames(LIGHT, SHRINK, train, config)]
    seen, unseen = ([encode(clips.pixels) for encode in encoders] for clips in (train, test))
    settings = {"num_classes": len(SHAPES), "num_frames": FRAMES, "image_size": SIZE, "deviation": config.deviation}
    model = AdaFrame(FULL, LIGHT, shrink=SHRINK, steps=config.looks, units=64, **settings)
    results, lines = (
        {"config": cli.as_dict(config)},
        ["| places | frames | accuracy | a shape was seen |", "|---|---|---|---|"],
    )
    labels = jnp.asarray(train.labels)
    start = jax.jit(partial(model.init, method="search"))(jax.random.key(config.seed), *seen)
    start = learn_search(model, start, seen, labels, True, config)
    for name in ("random", "chosen"):
        variables = learn_search(model, start, seen, labels, name == "random", config)
        shape, key = (len(test.labels), config.looks), jax.random.key(config.seed + 1)
        places = jax.random.uniform(key, shape) if name == "random" else None
        episode = jax.jit(partial(model.apply, method="search"))(variables, *unseen, places=places)
        correct = np.asarray(episode.logits).argmax(axis=-1) == test.labels[:, None]
        frames = np.asarray(frame_at(episode.places, FRAMES))
        shown = (frames >= test.first[:, None]) & (frames < test.first[:, None] + SHOWN)
        found = np.logical_or.accumulate(shown, axis=1).mean(axis=0)
        results[name] = {"accuracy": correct.mean(axis=0).tolist(), "found": found.tolist()}
        for look, (accuracy, share) in enumerate(zip(*results[name].values(), strict=True), start=1):
            lines.append(f"| {name} | {look} | {accuracy:.1%} | {share:.1%} |")
    results["early_stop"] = []
    for lag in LAGS:
        ends = np.asarray(steps_until_end(episode.utilities, lag, 1))
        stopped = {"frames": float(ends.mean()), "accuracy": float(correct[np.arange(len(ends)), ends - 1].mean())}
        results["early_stop"].append({"lag": lag} | stopped)
        lines.append(f"| chosen, end at a lag of {lag} | {stopped['frames']:.2f} | {stopped['accuracy']:.1%} | |")
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    (out / "adaptive_frames.md").write_text("\n".join(lines) + "\n")
    guesses = np.asarray(episode.logits).argmax(axis=-1)[np.arange(len(ends)), ends - 1]
    shapes = [[SHAPES[number] for number in numbers[:8]] for numbers in (test.labels, guesses)]
    titles = [f"{label}: {guess} after {end} frames" for label, guess, end in zip(*shapes, ends[:8], strict=True)]
    save_contact_sheet(out / "frames.png", draw(test, frames, ends), titles, side=64)
    print(*lines, "", f"written to {out}", sep="\n")
    return results


if __name__ == "__main__":
    cli.run(main, Config)
