"""Moment retrieval and highlight detection: batches of queries, moments of whole videos, and their evaluation."""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from vidjax.data.feature_files import read_description
from vidjax.data.moments import CLIP, MomentSource, Query
from vidjax.evaluation import moments as evaluation
from vidjax.evaluation.average_precision import by_falling_score
from vidjax.evaluation.segments import Clock
from vidjax.objectives.moments import ends
from vidjax.runs.queries import QueryFeatures
from vidjax.runs.untrimmed import KEPT, Track, resized, shuffled_batches
from vidjax.training.sharding import is_main_process, jit_on_mesh, put_batch, this_process
from vidjax.training.state import TrainState

MOST = 5
"""Annotated moments of a query that are learned at once, drawn at random if there are more, as in the original."""
PAIRS = 2
"""Pairs of steps whose saliency is compared: best and worst rated, and inside and outside."""
SHOWN, LEAST_SHOWN = 6, 0.2
"""Queries in the picture of a run, each of another video, and the least score of the moments in it."""

Ground = Callable[..., tuple[jax.Array, jax.Array, jax.Array]]


class Found(NamedTuple):
    """What was found for a query.

    Attributes:
      windows: start and end in seconds of each moment, by falling score.
      scores: probability of each, 0 to 1.
      saliency: rating of each step.
      times: of the steps, in seconds.
    """

    windows: Float[np.ndarray, "q 2"]
    scores: Float[np.ndarray, "q"]
    saliency: Float[np.ndarray, "t"]
    times: Float[np.ndarray, "t"]


def read(source: MomentSource, video: str, length: int) -> Track:
    """The features of a video and their times; more than `length` are stretched to it."""
    file = source.files[video][0]
    clock = Clock(file.fps, file.stride, file.frames, file.duration)
    return fitting(Track(source.read(video), clock), length)


def fitting(track: Track, length: int) -> Track:
    """The features, stretched to `length` if there are more."""
    return resized(track, length) if len(track.features) > length else track


def inputs(
    track: Track, words: Float[np.ndarray, "m e"], length: int, most_words: int
) -> dict[str, Float[np.ndarray, "..."] | Int[np.ndarray, "..."]]:
    """The model's inputs: padded features, with start and end of each step as parts of the video, and padded words."""
    steps, said = len(track.features), min(len(words), most_words)
    edges = np.arange(steps + 1, dtype=np.float32) / steps
    video = np.zeros((length, track.features.shape[1] + 2), np.float32)
    video[:steps] = np.concatenate([track.features, edges[:-1, None], edges[1:, None]], axis=1)
    text = np.zeros((most_words, words.shape[1]), np.float32)
    text[:said] = words[:said]
    return {"video": video, "text": text, "steps": np.array(steps, np.int32), "words": np.array(said, np.int32)}


def fractions(seconds: Float[np.ndarray, "*n"], clock: Clock, steps: int) -> Float[np.ndarray, "*n"]:
    """Times as parts of the video, which its steps divide equally, each with its time in the middle."""
    return np.clip((clock.steps(seconds) + 0.5) / steps, 0, 1)


def example_arrays(model: nn.Module, length: int) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shapes and types of the arrays of a training example; see `train_example`."""
    return {
        "video": ((length, model.video_channels), jnp.float32),
        "text": ((model.words, model.text_channels), jnp.float32),
        "steps": ((), jnp.int32),
        "words": ((), jnp.int32),
        "spans": ((MOST, 2), jnp.float32),
        "annotated": ((MOST,), bool),
        "positive": ((PAIRS,), jnp.int32),
        "negative": ((PAIRS,), jnp.int32),
    }


def train_example(
    source: MomentSource, texts: QueryFeatures, model: nn.Module, length: int, index: int, random: np.random.Generator
) -> dict[str, np.ndarray]:
    """Inputs, spans (centre and width as parts of the video; `annotated` where they are not padding), and pairs."""
    query = source.queries[index]
    track = read(source, query.video, length)
    steps, windows = len(track.features), query.windows
    positive, negative = saliency_pairs(query, track.clock, steps, random)
    if len(windows) > MOST:
        windows = windows[np.sort(random.permutation(len(windows))[:MOST])]
    start, end = fractions(windows, track.clock, steps).T
    spans, annotated = np.full((MOST, 2), 0.5, np.float32), np.arange(MOST) < len(windows)
    spans[: len(windows)] = np.stack([(start + end) / 2, end - start], axis=1)
    return inputs(track, texts.read(query), length, model.words) | {
        "spans": spans,
        "annotated": annotated,
        "positive": positive,
        "negative": negative,
        "valid": np.ones((), bool),
    }


def saliency_pairs(
    query: Query, clock: Clock, steps: int, random: np.random.Generator
) -> tuple[Int[np.ndarray, "p"], Int[np.ndarray, "p"]]:
    """The steps of each pair: the first should be rated above the second.

    The first pair is the best and the worst rated step of the moments, if they are rated and differ; all others are a
    random step inside the moments and one outside. A query about all of its video has no other pair.
    """
    times = clock.seconds(np.arange(float(steps)))
    inside = steps_inside(query.windows, times)
    within, outside = np.flatnonzero(inside), np.flatnonzero(~inside)
    pairs = []
    if query.ratings is not None and len(query.ratings):
        clips = np.minimum((times[within] / CLIP).astype(int), len(query.ratings) - 1)
        ratings = query.ratings[clips].sum(axis=1)
        if ratings.max() > ratings.min():
            pairs.append((within[ratings.argmax()], within[ratings.argmin()]))
    while len(pairs) < PAIRS:
        if len(outside):
            pairs.append((random.choice(within), random.choice(outside)))
        else:
            pairs.append(pairs[0] if pairs else (within[0], within[0]))  # a pair of one step has no gradient
    positive, negative = np.array(pairs, np.int32).T
    return positive, negative


def steps_inside(windows: Float[np.ndarray, "m 2"], times: Float[np.ndarray, "t"]) -> Bool[np.ndarray, "t"]:
    """Which steps lie in a moment; of moments between two steps, the nearest one."""
    inside = ((times >= windows[:, :1]) & (times <= windows[:, 1:])).any(axis=0)
    nearest = np.abs(times - windows.mean(axis=1, keepdims=True)).argmin(axis=1)
    inside[nearest] = True
    return inside


def train_batches(
    source: MomentSource, texts: QueryFeatures, model: nn.Module, length: int, **order: int
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of `train_example`, without end; see `untrimmed.shuffled_batches` for `order`."""
    return shuffled_batches(len(source), partial(train_example, source, texts, model, length), **order)


def make_ground(model: nn.Module, mesh: Mesh) -> Ground:
    """`(variables, inputs) -> probabilities (b q), starts and ends as parts of the video (b q 2), saliency (b t)`."""

    @partial(jit_on_mesh, mesh=mesh)
    def ground(variables: dict[str, Any], batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        outputs = model.apply(variables, batch["video"], batch["text"], batch["steps"], batch["words"])
        probabilities = jax.nn.softmax(outputs.logits[-1].astype(jnp.float32))[..., 0]
        spans = jnp.clip(ends(outputs.spans[-1].astype(jnp.float32)), 0, 1)
        return probabilities, spans, outputs.saliency.astype(jnp.float32)

    return ground


def find_moments(
    asked: Sequence[Callable[[], tuple[Track, Float[np.ndarray, "m e"]]]],
    model: nn.Module,
    variables: dict[str, Any],
    length: int,
    rounded: bool,
    mesh: Mesh,
    batch_size: int,
    ground: Ground | None = None,
) -> list[Found]:
    """The moments of each query.

    Args:
      asked: read the features of the video and of the words of each query.
      length: steps to which videos are padded.
      rounded: round times to multiples of the features' stride.
      batch_size: queries per batch, over all devices.
      ground: from `make_ground`, if there was one already.
    """
    ground, found = ground or make_ground(model, mesh), []
    place, count = this_process()["process_index"], this_process()["process_count"]
    mine = slice(place * batch_size // count, (place + 1) * batch_size // count)
    for first in range(0, len(asked), batch_size):
        pairs = [each() for each in asked[first : first + batch_size]]
        rows = [inputs(fitting(track, length), words, length, model.words) for track, words in pairs]
        rows += rows[:1] * (batch_size - len(rows))
        batch = {name: np.stack([row[name] for row in rows[mine]]) for name in rows[0]}
        outputs = jax.device_get(ground(variables, put_batch(batch, mesh)))
        for (track, _), probability, span, saliency in zip(pairs, *outputs, strict=False):
            clock, steps = fitting(track, length).clock, min(len(track.features), length)
            order = by_falling_score(probability)
            windows = clock.seconds(span[order] * steps - 0.5)
            if rounded:
                step = clock.stride / clock.fps
                windows = np.clip(np.round(windows / step) * step, 0, clock.duration)
            found.append(Found(windows, probability[order], saliency[:steps], clock.seconds(np.arange(float(steps)))))
    return found


def clip_saliency(found: Found, clips: int) -> Float[np.ndarray, "clips"]:
    """The saliency of each clip of two seconds: the mean over its steps, or the nearest step's if there is none."""
    number = (found.times / CLIP).astype(int)
    count, total = (np.bincount(number, weights, clips)[:clips] for weights in (None, found.saliency))
    nearest = np.abs(found.times[:, None] - (np.arange(clips) + 0.5) * CLIP).argmin(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), found.saliency[nearest])


def questions(source: MomentSource, texts: QueryFeatures, length: int) -> list[Callable]:
    """What `find_moments` reads of each query of a source."""

    def ask(query: Query) -> tuple[Track, Float[np.ndarray, "m e"]]:
        return read(source, query.video, length), texts.read(query)

    return [partial(ask, query) for query in source.queries]


def moment_validator(
    source: MomentSource,
    texts: QueryFeatures,
    model: nn.Module,
    length: int,
    rounded: bool,
    mesh: Mesh,
    batch_size: int,
) -> Callable[[TrainState, int], dict[str, float]]:
    """R1 and mAP of moments, and HIT@1 and mAP of highlights if they are rated, of the evaluated parameters.

    `chance_r1_50` is that of the moments found for a query about another video.
    """
    ground, asked = make_ground(model, mesh), questions(source, texts, length)
    truth = [evaluation.Moments(query.windows) for query in source.queries]
    videos = [query.video for query in source.queries]
    around = (chain(range(i, len(videos)), range(i)) for i in range(len(videos)))
    others = [next((j for j in order if videos[j] != videos[i]), i) for i, order in enumerate(around)]
    percent = [round(100 * t) for t in evaluation.THRESHOLDS]

    def validate(state: TrainState, step: int) -> dict[str, float]:
        variables = {"params": state.evaluated_params}
        found = find_moments(asked, model, variables, length, rounded, mesh, batch_size, ground)
        predicted = [evaluation.Moments(each.windows, each.scores) for each in found]
        result = evaluation.moment_retrieval(truth, predicted)["full"]
        by_chance = evaluation.moment_retrieval(truth, [predicted[i] for i in others])["full"]
        numbers = {f"r1_{t}": float(result.r1[percent.index(t)]) for t in (50, 70)}
        numbers |= {f"map_{t}": float(result.map[percent.index(t)]) for t in (50, 75)}
        numbers |= {"average_map": result.average_map, "chance_r1_50": float(by_chance.r1[0])}
        rated = [i for i, query in enumerate(source.queries) if query.ratings is not None and query.ratings.size]
        if rated:
            ratings = [source.queries[i].ratings for i in rated]
            saliency = [clip_saliency(found[i], len(ratings[k])) for k, i in enumerate(rated)]
            best = evaluation.highlights(ratings, saliency)["very_good"]
            numbers |= {"hit1": best.hit1, "highlight_map": best.map}
        return numbers

    return validate


def save_examples(run: Any, source: MomentSource, texts: QueryFeatures, state: TrainState) -> None:
    """Draws what the trained model finds for the first query of each of the first videos of a source.

    All processes call it, as each computes its part.
    """
    from vidjax.visualize.moments import Answer, save_moments  # imports Matplotlib

    config, first = run.config, {}
    for number, query in enumerate(source.queries):
        first.setdefault(query.video, number)
    chosen = list(first.values())[:SHOWN]
    asked = questions(source, texts, config.max_length)
    settings = {"length": config.max_length, "rounded": config.rounded, "mesh": run.mesh}
    found = find_moments(
        [asked[i] for i in chosen],
        run.model,
        {"params": state.evaluated_params},
        batch_size=config.batch_size,
        **settings,
    )
    answers = []
    for i, each in zip(chosen, found, strict=True):
        query, shown = source.queries[i], each.scores >= LEAST_SHOWN
        title = f"{query.video}: {query.text}"
        moments = each.windows[shown], each.scores[shown], query.windows
        answers.append(Answer(title, source.files[query.video][0].duration, each.times, each.saliency, *moments))
    if is_main_process():
        save_moments(run.workdir / "moments.png", answers)


def keep_descriptions(folders: Sequence[str], workdir: Path) -> None:
    """Copies what embed.py wrote about each folder of features into the work directory, for `ground_predict.py`."""
    described = [read_description(folder) for folder in folders]
    if is_main_process() and all(described):
        (workdir / KEPT).write_text(json.dumps(described, indent=1) + "\n")


def describe_evaluations(evaluations: dict[int, dict[str, float]]) -> tuple[list[str], dict[str, float]]:
    """Lines with the numbers of the best evaluation, and these; empty without evaluations."""
    if not evaluations:
        return [], {}
    step, best = max(evaluations.items(), key=lambda entry: entry[1]["average_map"])
    names = {"r1_50": "R1@0.5", "r1_70": "R1@0.7", "map_50": "mAP@0.5", "map_75": "mAP@0.75", "average_map": "mAP"}
    names |= {"hit1": "HIT@1", "highlight_map": "mAP (clips)", "chance_r1_50": "R1@0.5 by chance"}
    shown = {title: best[name] for name, title in names.items() if name in best}
    heads = "".join(f"   {title}" for title in shown)
    values = "".join(f"{f'{value:.1%}':>{len(title) + 3}}" for title, value in shown.items())
    return [f"moments {heads}", f"        {values} (step {step})"], best
