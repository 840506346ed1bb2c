"""AdaFrame: an LSTM learns which frame of a video to look at next, and when to stop.

On rendered videos in which most frames say nothing, minutes on a laptop: python experiments/adaptive_frames.py
On one's own, with two networks of single frames that finetune.py has trained on them, the second on small frames:
python experiments/adaptive_frames.py --run runs/tsn --glance runs/tsn_56 --data.train train.csv \
    --data.validation val.csv --data.sampling uniform --data.frames 32

Rendered videos have 16 frames, of which 14 show the background alone and two consecutive ones, anywhere, also a circle,
a square or a triangle, which is the class. First a network of full size and a light one at an eighth of the resolution
(4x4 pixels) learn single frames: a shape, or nothing.

Both networks are frozen, as the features of all frames are then computed once (in OUT/features), and the LSTM learns to
search: to choose places by policy gradient, to predict the utility, and to classify. For comparison an equal LSTM
learns with random places, and is measured with random ones.

Writes to OUT accuracy over multiply-accumulates and over time, of all frames, of so many chosen or random ones, and of
videos that end early (adaptive.md, .json and .png), frames.png, where chosen frames are framed, the last in orange, and
model, which evaluate.py and predict.py take. Expected results: docs/results.md.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

import vidjax
from vidjax import cli, runs
from vidjax.convert.checkpoint import require_empty
from vidjax.data import moving_shapes
from vidjax.data.config import LabelledSourceConfig
from vidjax.errors import UserError
from vidjax.fields import check_values, require_positive
from vidjax.layers import card
from vidjax.models.adaframe import AdaFrame, frame_at, steps_until_end
from vidjax.models.tsn import SegmentNetwork
from vidjax.runs import adaptive
from vidjax.runs.adaframe import Seen, fit, join, learn_both, measure, play, require_single_frames
from vidjax.runs.announce import print_notes
from vidjax.runs.features import cache_features, describe_features
from vidjax.runs.results import open_results
from vidjax.runs.sources import open_labelled
from vidjax.training.sharding import check_batch_size, make_mesh
from vidjax.visualize.contact_sheet import save_contact_sheet

FRAMES, SHOWN, SIZE, SHRINK, BATCH = 16, 2, 32, 8, 64
SHAPES = ("circle", "square", "triangle")
CARD = card.Card(mean=(0.5,) * 3, std=(0.5,) * 3, class_names=SHAPES, sampling="uniform")
FULL, LIGHT = (SegmentNetwork(depths=(1, 1, 1, 1), width=width, dropout=0.0, card=CARD) for width in (8, 4))


@dataclass(frozen=True)
class Config:
    """Which videos and networks, and how much is learned."""

    run: str | None = None
    """The network of the chosen frames: a TSN's run or checkpoint (default: videos are rendered)."""
    glance: str | None = None
    """The light network of all frames, trained on smaller ones, whose size divides that of the videos."""
    data: LabelledSourceConfig = LabelledSourceConfig()
    """The labelled videos; the defaults are those of --run."""
    batch_size: int = 16
    """Videos per batch of the networks, and whose time is measured."""
    train_clips: int = 2048
    """Rendered videos to learn from."""
    validation_clips: int = 512
    """Rendered videos to measure on."""
    frame_steps: int = 300
    """Steps of each network of single frames of rendered videos."""
    steps: int = 1500
    """Steps of each search, and of the start of both, with random places."""
    looks: int = 4
    """The most frames that are chosen."""
    units: int = 64
    """Width of the LSTM."""
    deviation: float = 0.2
    """Standard deviation of the places that are drawn in training; 1 is the length of the video."""
    lags: tuple[float, ...] = (0.05, 0.1, 0.2, 0.3)
    """Of the utility behind its best at which a video ends; the picture and the model take the last."""
    seed: int = 0
    """Random seed of parameters, batches and places."""
    out: str = "runs/adaptive_frames"
    """Output directory, new or empty, or for one's own videos that of a run that was interrupted."""

    def __post_init__(self) -> None:
        check_values(self)
        require_positive(self, "batch_size", "train_clips", "validation_clips", "frame_steps", "steps", "looks")
        require_positive(self, "units", "deviation")
        if not self.lags or min(self.lags) < 0:
            raise UserError(f"lags are {self.lags}: give one or more of 0 or above, such as 0.1 0.3")
        given = [name for name in ("run", "glance") if getattr(self, name)]
        if len(given) == 1 or (self.data != LabelledSourceConfig() and not given):
            raise UserError("one's own videos need both networks: give --run and --glance with --data")
        if given and self.data.validation is None:
            raise UserError("there are no videos to measure on: give --data.validation, of the classes of data.train")


class Videos(NamedTuple):
    """A model without its LSTM, what it sees of videos, and what classifies all of their frames."""

    model: AdaFrame
    frozen: dict
    network: SegmentNetwork
    variables: dict
    train: Seen
    validation: Seen
    top1: float
    pixels: np.ndarray


class Clips(NamedTuple):
    """Rendered videos, the class of each, and the first of its frames that shows a shape."""

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


def learn_frames(network: nn.Module, shrink: int, clips: Clips, config: Config) -> tuple[nn.Module, dict]:
    """Trains a network on single frames, most of them with a shape; returns it with a class for frames without one."""
    network = network.clone(num_classes=len(SHAPES) + 1, image_size=SIZE // shrink)

    def inputs(pixels: jax.Array) -> jax.Array:
        return nn.avg_pool(CARD.preprocess(pixels), *[(1, shrink, shrink)] * 2)

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

    variables, data = (
        network.init(jax.random.key(config.seed), inputs(clips.pixels[:1])),
        tuple(map(jnp.asarray, clips)),
    )
    return network, fit(loss_of, variables, lambda key: data, config.frame_steps, config.seed)


def fields_of(config: Config, frames: int, classes: int) -> dict[str, Any]:
    """Fields of the AdaFrame."""
    names = {"steps": config.looks, "units": config.units, "deviation": config.deviation}
    return names | {"num_frames": frames, "num_classes": classes, "lag": config.lags[-1], "patience": 1}


def frame_logits(variables: dict, features: jax.Array) -> jax.Array:
    """What a network's own classifier returns for features."""
    return features @ variables["params"]["head"]["kernel"] + variables["params"]["head"]["bias"]


def rendered(config: Config) -> Videos:
    """Rendered videos, and networks that have learned their single frames."""
    train, test = render(0, config.train_clips), render(1_000_000, config.validation_clips)
    network, glance = learn_frames(FULL, 1, train, config), learn_frames(LIGHT, SHRINK, train, config)
    model, frozen = join(network, glance, SIZE, **fields_of(config, FRAMES, len(SHAPES)))
    see = jax.jit(lambda pixels: model.apply(frozen, CARD.preprocess(pixels), method="see"))

    def seen(clips: Clips) -> Seen:
        parts = [see(part) for part in np.split(clips.pixels, range(64, len(clips.pixels), 64))]
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        return Seen(*columns, np.arange(len(clips.labels)), clips.labels)

    validation = seen(test)
    shapes = jax.nn.softmax(frame_logits(network[1], validation.features))[..., : len(SHAPES)]  # or nothing
    top1 = float((shapes.mean(axis=1).argmax(axis=1) == test.labels).mean())
    return Videos(model, frozen, *network, seen(train), validation, top1, test.pixels[: config.batch_size])


def given(config: Config) -> Videos:
    """The user's videos and networks."""
    check_batch_size(config.batch_size)
    data = dataclasses.replace(config.data, square_pixels=runs.square_pixels(config.run, config.data))
    sources = dict(zip(("train", "validation"), open_labelled(data, config.seed), strict=True))
    print_notes(*sources.values())
    names = sources["train"].class_names
    network, glance = (vidjax.load_pretrained(source) for source in (config.run, config.glance))
    for name, (model, _) in (("run", network), ("glance", glance)):
        require_single_frames(f"{name} {getattr(config, name)}", model, names)
    clips = runs.cut_clips(config.run, network[0], data)
    if clips.frames < config.looks:
        raise UserError(
            f"looks is {config.looks}, and videos have {clips.frames} frames: give --data.frames or --looks"
        )
    model, frozen = join(network, glance, clips.size, **fields_of(config, clips.frames, len(names)))
    model = model.clone(card=runs.trained_card(model.card, clips, names))
    cli.make_folder(Path(config.out), "--out")

    def encode(variables: dict, pixels: jax.Array) -> dict[str, jax.Array]:
        return dict(
            zip(Seen._fields, model.apply(variables, model.card.preprocess(pixels), method="see"), strict=False)
        )

    meta, mesh = describe_features(model, frozen, clips, jnp.float32, "float32"), make_mesh()
    seen = {}
    for name, source in sources.items():
        folder = Path(config.out) / "features" / name
        features = cache_features(folder, source, clips, encode, frozen, mesh, batch_size=config.batch_size, meta=meta)
        seen[name] = Seen(*(features.arrays[kind] for kind in Seen._fields[:2]), features.rows, features.labels)
    validation = seen["validation"]
    guesses = [frame_logits(network[1], part[0].mean(axis=1)).argmax(axis=1) for part in validation.parts()]
    top1 = float((np.concatenate(guesses) == validation.labels).mean())
    pixels = first_clips(sources["validation"], clips, validation.rows[: config.batch_size])
    return Videos(model, frozen, *network, seen["train"], validation, top1, pixels)


def first_clips(source: Any, clips: Any, rows: np.ndarray) -> np.ndarray:
    """The pixels of these videos."""
    from vidjax.data.batches import evaluation_batches

    return next(evaluation_batches(source, clips, batch_size=len(rows), indices=rows))["video"]


def draw(pixels: np.ndarray, frames: np.ndarray, ends: np.ndarray) -> list[np.ndarray]:
    """The videos, with the frames that were looked at framed in white, the last in orange."""
    pictures, width = pixels.copy(), pixels.shape[2] // 16
    for video, places, end in zip(pictures, frames, ends, strict=True):
        for place in places[:end]:
            color = (255, 140, 0) if place == places[end - 1] else (255, 255, 255)
            video[place, :width] = video[place, -width:] = color
            video[place, :, :width] = video[place, :, -width:] = color
    return list(pictures)


def main(config: Config) -> list[dict[str, Any]]:
    """Trains, prints and writes the results; returns the rows of adaptive.json."""
    out = Path(config.out) if config.run else open_results(config.out, config.out, "adaptive_frames")
    require_empty(out / "model")
    videos = given(config) if config.run else rendered(config)
    model, labels, variables = videos.model, videos.validation.labels, {"full": videos.variables}
    episodes = {}
    for name, own in learn_both(model, videos.train, config.steps, config.seed).items():
        episodes[name] = play(model, own, videos.validation, config.seed + 1 if name == "random" else None)
        params = {**videos.frozen["params"], **own["params"]}
        variables[name] = {"params": params, "batch_stats": videos.frozen["batch_stats"]}
    measured = videos.network, variables, videos.pixels, episodes, labels, videos.top1, config.lags
    rows = measure(model, *measured)
    if not config.run:  # where the shapes are is known
        first = render(1_000_000, config.validation_clips).first[:, None]
        for name, episode in episodes.items():
            frames = np.asarray(frame_at(episode.places, FRAMES))
            found = np.logical_or.accumulate((frames >= first) & (frames < first + SHOWN), axis=1).mean(axis=0)
            for row, share in zip([row for row in rows if row["name"] == name], found, strict=True):
                row["found"] = float(share)
    table = adaptive.write(out, rows, "AdaFrame", "frames", ".2f")
    (out / "config.json").write_text(json.dumps(cli.as_dict(config), indent=2) + "\n")
    chosen, count = episodes["chosen"], len(videos.pixels[:8])
    ends = np.asarray(steps_until_end(chosen.utilities, config.lags[-1], 1))
    guesses = chosen.logits.argmax(axis=-1)[np.arange(len(ends)), ends - 1]
    names = [[model.card.class_names[number] for number in numbers[:count]] for numbers in (labels, guesses)]
    titles = [f"{label}: {guess} after {end} frames" for label, guess, end in zip(*names, ends[:count], strict=True)]
    frames = np.asarray(frame_at(chosen.places[:count], model.num_frames))
    save_contact_sheet(out / "frames.png", draw(videos.pixels[:count], frames, ends[:count]), titles, side=64)
    vidjax.save_pretrained(out / "model", model, variables["chosen"])
    print(*table, "", f"written to {out}", sep="\n")
    return rows


if __name__ == "__main__":
    cli.run(main, Config)
