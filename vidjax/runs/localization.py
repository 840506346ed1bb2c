"""Temporal localisation in untrimmed videos, on features or end to end: batches, found segments, their evaluation."""

import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from vidjax.data.config import core_count
from vidjax.data.feature_files import read_description
from vidjax.data.segments import SegmentConfig, SegmentSource, Untrimmed
from vidjax.evaluation.localization import Instances, localization
from vidjax.evaluation.segments import Clock, Selection, select
from vidjax.runs.untrimmed import KEPT, Track, resized, shuffled_batches
from vidjax.training.sharding import is_main_process, jit_on_mesh, put_batch, this_process
from vidjax.training.state import TrainState

TRIALS = 200
"""Random crops that are tried until one contains enough of a segment."""

SHOWN, LEAST_SHOWN = 6, 0.2
"""Videos in the picture of timelines, and the least score of the segments in it."""

Localize = Callable[..., tuple[list[jax.Array], list[jax.Array]]]


def read(source: SegmentSource, index: int, length: int, resize: bool) -> Track:
    """The features of a video in the type in which they are stored, memory-mapped unless they are stretched.

    Args:
      length: to which they are stretched, if `resize`.
    """
    video = source.videos[index]
    track = Track(source.read(index), Clock(video.fps, video.stride, video.frames, video.duration))
    return resized(track, length) if resize else track


def crop(
    random: np.random.Generator,
    steps: int,
    segments: Float[np.ndarray, "m 2"],
    length: int,
    data: SegmentConfig,
    reach: float,
) -> tuple[int, int]:
    """Begin and end of a random part of a training video that contains enough of at least one segment.

    Args:
      steps: of the features.
      segments: in steps.
      length: longer videos are cropped to it, others to a random part of their length.
      reach: steps beyond the crop that its first and last feature cover.
    """
    size = length
    if steps <= length:
        low, high = (round(bound * steps) for bound in data.crop)
        size = int(random.integers(max(low, 1), max(high, 1), endpoint=True))
    if size >= steps:
        return 0, steps
    for _ in range(TRIALS):
        begin = int(random.integers(0, steps - size, endpoint=True))
        if not len(segments) or (_part_inside(segments, begin - reach, begin + size + reach) >= data.least_part).any():
            break
    return begin, begin + size


def _part_inside(segments: Float[np.ndarray, "m 2"], begin: float, end: float) -> Float[np.ndarray, "m"]:
    inside = np.minimum(segments[:, 1], end) - np.maximum(segments[:, 0], begin)
    return np.maximum(inside, 0) / np.maximum(segments[:, 1] - segments[:, 0], 1e-9)


def example_arrays(model: nn.Module, source: SegmentSource) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shapes and types of the arrays of a training example; see `train_batches`."""
    inputs, _ = model.example_inputs()
    return {
        "inputs": (inputs.shape[1:], inputs.dtype),
        "length": ((), jnp.int32),
        "segments": ((source.most, 2), jnp.float32),
        "labels": ((source.most,), jnp.int32),
        "annotated": ((source.most,), bool),
    }


def train_example(
    source: SegmentSource, index: int, random: np.random.Generator, model: nn.Module, data: SegmentConfig
) -> dict[str, np.ndarray]:
    """Features (or frames) and their length, segments in steps, and labels; padded, `annotated` where they are not."""
    features, clock = read(source, index, model.max_length, data.resize)
    video = source.videos[index]
    # As in the original, a feature covers its frames: segments reach beyond the middles of the first and last one.
    segments, reach = clock.steps(video.segments), clock.frames / 2 / clock.stride
    begin, end = crop(random, len(features), segments, model.max_length, data, reach)
    kept = _part_inside(segments, -reach, len(features) + reach) >= data.least_part  # some features end too early
    if end - begin < len(features):
        kept &= _part_inside(segments, begin - reach, end + reach) >= data.least_part
        segments = np.maximum(segments, begin - reach)
    segments, labels = np.minimum(segments[kept], end + reach) - begin, video.labels[kept]
    arrays = {name: np.zeros(shape, dtype) for name, (shape, dtype) in example_arrays(model, source).items()}
    part = features[begin:end]
    arrays["inputs"][: len(part)] = part
    arrays["length"][...] = end - begin
    arrays["segments"][: len(segments)], arrays["labels"][: len(labels)] = segments, labels
    arrays["annotated"][: len(labels)] = True
    return arrays | {"valid": np.ones((), bool)}


def train_batches(
    source: SegmentSource, model: nn.Module, data: SegmentConfig, *, batch_size: int, seed: int, first: int
) -> Iterator[dict[str, np.ndarray]]:
    """Batches of `train_example`, without end, from number `first` on; see `untrimmed.shuffled_batches`."""

    def example(index: int, random: np.random.Generator) -> dict[str, np.ndarray]:
        return train_example(source, index, random, model, data)

    workers = data.workers or core_count()
    return shuffled_batches(len(source), example, batch_size=batch_size, seed=seed, first=first, workers=workers)


def make_localize(model: nn.Module, mesh: Mesh) -> Localize:
    """`(variables, batch) -> probabilities, offsets` of the points of each level, on all processes."""

    @partial(jit_on_mesh, mesh=mesh)
    def localize(variables: dict[str, Any], batch: dict[str, jax.Array]) -> tuple[list[jax.Array], list[jax.Array]]:
        logits, offsets = model.apply(variables, batch["inputs"], batch["length"])
        masks = level_masks(model, logits[0].shape[1], batch["length"])
        probabilities = [
            jax.nn.sigmoid(each.astype(jnp.float32)) * mask[..., None] for each, mask in zip(logits, masks, strict=True)
        ]
        return probabilities, [each.astype(jnp.float32) for each in offsets]

    return localize


def level_masks(model: nn.Module, length: int, lengths: jax.Array) -> list[jax.Array]:
    """Which points of each level are not beyond the end of their video (b t)."""
    valid = jnp.arange(length) < lengths[:, None]
    return [valid[:, ::stride] for stride in model.strides]


def padded_length(steps: int, length: int) -> int:
    """The model's length, in training that of all videos, doubled until the steps fit."""
    while length < steps:
        length *= 2
    return length


def find_segments(
    sequences: Sequence[Callable[[], Track]],
    lengths: Sequence[int],
    model: nn.Module,
    variables: dict[str, Any],
    selection: Selection,
    mesh: Mesh,
    batch_size: int,
    localize: Localize | None = None,
) -> Instances:
    """The segments of whole videos, numbered in their order.

    Args:
      sequences: read the features (or frames) of each video.
      lengths: steps of each video. Longer ones than the model's length are padded to few lengths, one for a device.
      selection: of the segments.
      batch_size: videos per batch, over all devices.
      localize: from `make_localize`, if there was one already.
    """
    localize = localize or make_localize(model, mesh)
    fitting = np.array([padded_length(steps, model.max_length) for steps in lengths])
    place, count = this_process()["process_index"], this_process()["process_count"]
    found: list[Instances] = []
    for length in np.unique(fitting):
        rows = batch_size if length == model.max_length else mesh.shape["data"] * mesh.shape["fsdp"]
        videos = np.flatnonzero(fitting == length)
        for chosen in np.split(videos, np.arange(rows, len(videos), rows)):
            read_now = {int(video): sequences[video]() for video in chosen}
            inputs = np.zeros((rows, *model.input_shape(length)), model.example_inputs()[0].dtype)
            batch = {"inputs": inputs, "length": np.zeros(rows, np.int32)}
            for row, (features, _) in enumerate(read_now.values()):
                part = features[:]  # of a video, its frames
                inputs[row, : len(part)], batch["length"][row] = part, len(features)
            mine = slice(place * rows // count, (place + 1) * rows // count)
            outputs = localize(variables, put_batch({name: each[mine] for name, each in batch.items()}, mesh))
            probabilities, offsets = jax.device_get(outputs)
            for row, (video, (_, clock)) in enumerate(read_now.items()):
                levels = ([each[row] for each in kind] for kind in (probabilities, offsets))
                segments, scores, labels = select(*levels, model.strides, selection, clock)
                found.append(Instances(np.full(len(scores), video), segments, labels, scores))
    fields = zip(*((each.video, each.segment, each.label, each.score) for each in found), strict=True)
    return Instances(*map(np.concatenate, fields))


def annotated(videos: Sequence[Untrimmed]) -> Instances:
    """The annotated segments of videos, numbered in their order."""
    numbers = np.repeat(np.arange(len(videos)), [len(video.labels) for video in videos])
    return Instances(
        numbers, np.concatenate([each.segments for each in videos]), np.concatenate([each.labels for each in videos])
    )


def segment_validator(
    source: SegmentSource,
    model: nn.Module,
    data: SegmentConfig,
    selection: Selection,
    thresholds: Float[np.ndarray, "t"],
    mesh: Mesh,
    batch_size: int,
    dialect: Any = "opentad",
) -> Callable[[TrainState, int], dict[str, float]]:
    """mAP on all videos of a source, of the moving average of the parameters if there is one.

    `chance_map` is the mean with the segments that were found in the next video, `recall_1x` and `recall_5x` the means
    of `Localization.recall`.
    """
    localize, truth = make_localize(model, mesh), annotated(source.videos)
    sequences = [partial(read, source, index, model.max_length, data.resize) for index in range(len(source))]
    lengths = [model.max_length if data.resize else len(source.read(index)) for index in range(len(source))]

    def validate(state: TrainState, step: int) -> dict[str, float]:
        variables = {"params": state.evaluated_params, **state.model_state}
        found = find_segments(sequences, lengths, model, variables, selection, mesh, batch_size, localize)
        result = localization(truth, found, thresholds, dialect)
        others = Instances((found.video + 1) % len(source), found.segment, found.label, found.score)
        chance = localization(truth, others, thresholds, dialect)
        by_threshold = {f"map_{100 * t:.0f}": float(value) for t, value in zip(thresholds, result.map, strict=True)}
        recalls = {f"recall_{k}x": float(values.mean()) for k, values in result.recall.items()}
        return {**by_threshold, "average_map": result.average_map, "chance_map": chance.average_map, **recalls}

    return validate


def save_examples(run: Any, source: SegmentSource, state: TrainState) -> None:
    """Draws the timelines of the first videos of a source, with what the trained model finds in them.

    All processes call it, as each computes its part.
    """
    from vidjax.visualize.timeline import Bar, save_timelines  # imports Matplotlib

    config, videos = run.config, source.videos[:SHOWN]
    tracks = [partial(read, source, index, run.model.max_length, config.data.resize) for index in range(len(videos))]
    lengths = [len(track().features) for track in tracks]
    variables = {"params": state.evaluated_params, **state.model_state}
    found = find_segments(tracks, lengths, run.model, variables, config.selection, run.mesh, config.batch_size)
    rows = {}
    for number, video in enumerate(videos):
        of_video = found[found.video == number]
        best = of_video[of_video.score >= LEAST_SHOWN]
        bars = [
            Bar(*segment, label, score)
            for segment, label, score in zip(best.segment, best.label, best.score, strict=True)
        ]
        truth = [Bar(*segment, label) for segment, label in zip(video.segments, video.labels, strict=True)]
        rows[video.name] = (video.duration, truth, bars)
    if is_main_process():
        save_timelines(run.workdir / "timelines.png", rows, source.class_names)


def keep_description(folder: str | None, workdir: Path) -> None:
    """Copies what embed.py wrote about the features into the work directory, for `localize_predict.py`."""
    if is_main_process() and folder and (described := read_description(folder)):
        (workdir / KEPT).write_text(json.dumps(described, indent=1) + "\n")


def describe_map(evaluations: dict[int, dict[str, float]]) -> tuple[list[str], dict[str, float]]:
    """Lines with the mAP by tIoU of the best evaluation, and its numbers; empty without evaluations."""
    if not evaluations:
        return [], {}
    step, best = max(evaluations.items(), key=lambda entry: entry[1]["average_map"])
    columns = {name.removeprefix("map_"): value for name, value in best.items() if name.startswith("map_")}
    heads = "".join(f"{int(name) / 100:8.2f}" for name in columns) + "    mean   by chance"
    values = "".join(f"{value:8.1%}" for value in columns.values())
    line = f"{values}{best['average_map']:8.1%}{best['chance_map']:12.1%}"
    lines = [f"tIoU      {heads}", f"mAP       {line} (step {step})"]
    recalls = [f"{value:.1%} by {name.removeprefix('recall_')}" for name, value in best.items() if "recall" in name]
    if recalls:  # evaluations of earlier versions have none
        lines.append(f"recall    {', '.join(recalls)} as many predictions as annotations, mean over tIoU")
    return lines, best
