"""Spatio-temporal detection: weights to start from, scores of boxes in key frames, validation, and pictures of them."""

import csv
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from vidjax.convert.checkpoint import NAME, read_model
from vidjax.errors import UserError
from vidjax.evaluation.detection import Boxes, Dialect, detection
from vidjax.models.detector import Detector
from vidjax.runs.run import Run
from vidjax.runs.weights import start_from
from vidjax.training.sharding import is_main_process, jit_on_mesh, put_batch
from vidjax.training.state import TrainState

if TYPE_CHECKING:  # imports PyAV
    from vidjax.data.key_frames import KeyFrame, KeyFrames

Objective = Literal["sigmoid", "softmax"]
SHOWN = 8
"""Key frames in the picture of a run."""

Score = Callable[[dict[str, Any], dict[str, jax.Array]], tuple[jax.Array, jax.Array, jax.Array]]


def start_detector(source: str, model: Detector, variables: dict[str, Any], keep_head: bool) -> dict[str, Any]:
    """`start_from` for a detector: from another one, from SlowFast's on AVA, or from any model like its backbone.

    Args:
      variables: all variables of the detector.
      keep_head: load the head too, of another detector.

    Raises:
      UserError: as in `start_from`; or the head should be kept, but there is none with these classes.
    """
    new = () if keep_head else ("head/",)
    path = Path(source).expanduser()
    if (path / NAME).is_file() and not isinstance(read_model(path), Detector):
        if keep_head:
            raise UserError(f"keep_head: {source} is no detector and has no head for boxes: omit --keep_head")
        inner = {kind: tree["backbone"] for kind, tree in variables.items() if "backbone" in tree}
        inner, _ = start_from(source, model.backbone, inner, new=new)
        return {kind: tree | ({"backbone": inner[kind]} if kind in inner else {}) for kind, tree in variables.items()}
    started, report = start_from(source, model, variables, new=new)
    if keep_head and any(each.startswith("head/") for each in report.new):
        raise UserError(f"keep_head: the head in {source} does not have the {model.num_classes} classes: omit it")
    return started


def shown_boxes(boxes: Float[jax.Array, "*b 4"]) -> jax.Array:
    """Which boxes are not padding, and not outside the crop."""
    return (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])


def make_score(model: Detector, mesh: Mesh, objective: Objective) -> Score:
    """`(variables, batch of views) -> probabilities (b n classes), index, valid`, on all processes.

    A box is classified in the view that shows most of it; the probabilities of boxes in no view are 0.
    """
    activation = jax.nn.sigmoid if objective == "sigmoid" else jax.nn.softmax

    @partial(jit_on_mesh, mesh=mesh)
    def score(variables: dict[str, Any], batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
        def one_view(view: tuple[jax.Array, jax.Array]) -> jax.Array:
            logits = model.apply(variables, model.card.preprocess(view[0]), view[1])
            return activation(logits.astype(jnp.float32))

        boxes = jnp.swapaxes(batch["boxes"], 0, 1)  # v b n 4
        views = jax.lax.map(one_view, (jnp.swapaxes(batch["video"], 0, 1), boxes))
        area = jnp.where(shown_boxes(boxes), (boxes[..., 2:] - boxes[..., :2]).prod(axis=-1), 0)
        best = area.argmax(axis=0)[None, ..., None]
        chosen = jnp.take_along_axis(views, best, axis=0)[0]
        return chosen * (area.max(axis=0) > 0)[..., None], batch["index"], batch["valid"]

    return score


def score_frames(
    score: Score,
    variables: dict[str, Any],
    batches: Iterable[dict[str, np.ndarray]],
    frames: Sequence["KeyFrame"],
    mesh: Mesh,
) -> list[Float[np.ndarray, "n classes"] | None]:
    """The probabilities of the boxes of each key frame; None if it could not be read."""
    from vidjax.data.batches import select

    found: list[Any] = [None] * len(frames)
    for batch in select(batches, "video", "boxes", "index", "valid"):
        for scores, index, valid in zip(*jax.device_get(score(variables, put_batch(batch, mesh))), strict=True):
            if valid:
                found[index] = scores[: len(frames[index].boxes)]
    return found


def table_of(
    frames: Sequence["KeyFrame"],
    numbers: dict[tuple[str, float], int],
    scores: Sequence[np.ndarray | None] | None = None,
) -> Boxes:
    """The annotated actions of key frames, or with scores all pairs of box and class.

    Args:
      numbers: of the key frames, for the evaluation.
    """
    frame, box, label, score = [np.zeros(0, int)], [np.zeros((0, 4))], [np.zeros(0, int)], [np.zeros(0)]
    for row, each in enumerate(frames):
        if scores is None:
            pairs = [(n, action) for n, actions in enumerate(each.actions) for action in actions]
            rows, labels = np.array(pairs, int).reshape(-1, 2).T
        elif scores[row] is None:
            continue
        else:
            count, classes = scores[row].shape
            rows, labels = np.repeat(np.arange(count), classes), np.tile(np.arange(classes), count)
            score.append(scores[row].ravel())
        frame.append(np.full(len(rows), numbers[each.key]))
        box.append(each.boxes[rows])
        label.append(labels)
    joined = (np.concatenate(each) for each in (frame, box, label))
    return Boxes(*joined, None if scores is None else np.concatenate(score))


def frame_map(
    opened: "KeyFrames", scores: Sequence[np.ndarray | None], dialect: Dialect
) -> tuple[float, Float[np.ndarray, "c"]]:
    """The frame mAP of scored key frames, and the average precision of each class that counts."""
    keys = {each.key for each in (*opened.frames, *opened.truth)} | opened.excluded
    numbers: dict[Any, int] = {key: number for number, key in enumerate(sorted(keys))}
    excluded = np.array([numbers[key] for key in opened.excluded], int)
    truth, found = table_of(opened.truth, numbers), table_of(opened.frames, numbers, scores)
    result = detection(truth, found, np.array(opened.evaluated), excluded, dialect)
    return result.map, result.ap


def write_detections(
    path: Path | str, frames: Sequence["KeyFrame"], scores: Sequence[np.ndarray | None], ids: Sequence[str]
) -> None:
    """Writes all pairs of box and class in the form of AVA's results: video, time, box, id of the action, score."""
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        for frame, rows in zip(frames, scores, strict=True):
            for box, probabilities in zip(frame.boxes, () if rows is None else rows, strict=rows is not None):
                place = (frame.video, f"{frame.time:g}", *(f"{side:.4f}" for side in box))
                table.writerows((*place, number, f"{p:.5f}") for number, p in zip(ids, probabilities, strict=True))


def box_validator(
    run: Run, opened: "KeyFrames", objective: Objective, crops: int, dialect: Dialect
) -> Callable[[TrainState, int], dict[str, float]]:
    """Frame mAP on all validation key frames, of the moving average of the parameters if there is one.

    The detections are written to `detections.csv`, and the average precision of each class to `classes.csv`.
    """
    score = make_score(run.model, run.mesh, objective)

    def validate(state: TrainState, step: int) -> dict[str, float]:
        variables = {"params": state.evaluated_params, **state.model_state}
        batches = run.validation_batches(view_counts=(1, crops), fields=("boxes",))
        scores = score_frames(score, variables, batches, opened.frames, run.mesh)
        mean, ap = frame_map(opened, scores, dialect)
        if is_main_process():
            write_detections(run.workdir / "detections.csv", opened.frames, scores, opened.ids)
            with open(run.workdir / "classes.csv", "w", newline="", encoding="utf-8") as file:
                names = [opened.source.class_names[each] for each in opened.evaluated]
                csv.writer(file).writerows((("class", "average_precision"), *zip(names, ap.tolist(), strict=True)))
        return {"map_50": mean}

    return validate


def describe_boxes(run: Run) -> tuple[list[str], dict[str, float]]:
    """A line with the mAP of the best and of the last evaluation, and the numbers; empty without evaluations."""
    if not (evaluations := run.evaluations()):
        return [], {}
    step, best = max(evaluations.items(), key=lambda entry: entry[1]["map_50"])
    last = evaluations[max(evaluations)]["map_50"]
    line = f"boxes     frame mAP@0.5 {last:.1%} at the last step; best {best['map_50']:.1%} at step {step}"
    return [line], {"map_50": last, "best_map_50": best["map_50"]}


def save_examples(run: Run, opened: "KeyFrames", state: TrainState, objective: Objective, crops: int) -> None:
    """Draws some validation key frames, in their middle crop, with what the trained model says of their boxes.

    All processes call it, as each computes its part.
    """
    from vidjax.visualize.boxes import NEUTRAL, RIGHT, WRONG, draw_boxes, save_boxes  # imports Matplotlib

    count = min(SHOWN, len(opened.frames))
    indices = np.unique(np.linspace(0, len(opened.frames) - 1, count).astype(int))
    batches = list(run.validation_batches(view_counts=(1, crops), fields=("boxes",), indices=indices))
    variables = {"params": state.evaluated_params, **state.model_state}
    score = make_score(run.model, run.mesh, objective)
    scores = score_frames(score, variables, batches, opened.frames, run.mesh)
    names, annotated = opened.source.class_names, any(any(frame.actions) for frame in opened.frames)
    pictures = []
    for batch in batches:
        for row in np.flatnonzero(batch["valid"]):
            index, view = batch["index"][row], crops // 2
            boxes = batch["boxes"][row, view, : len(opened.frames[index].boxes)]
            seen = (boxes[:, 2:] > boxes[:, :2]).all(axis=1)
            best = [best_actions(each, names, 0.0, most=1)[0] for each in scores[index]]
            colors = [
                NEUTRAL if not annotated else RIGHT if names.index(action) in actions else WRONG
                for (action, _), actions in zip(best, opened.frames[index].actions, strict=True)
            ]
            texts = [[f"{action} {probability:.2f}"] for action, probability in best]
            pixels = batch["video"][row, view, run.config.data.frames // 2]
            kept = [[each for each, visible in zip(of, seen, strict=True) if visible] for of in (texts, colors)]
            pictures.append(draw_boxes(pixels, boxes[seen], *kept))
    if pictures and is_main_process():
        save_boxes(run.workdir / "detections.png", pictures)


def best_actions(
    probabilities: Float[np.ndarray, "classes"], names: Sequence[str], least: float, most: int = 3
) -> list[tuple[str, float]]:
    """The classes of a box with at least this probability, the likeliest first."""
    order: Int[np.ndarray, "_"] = np.argsort(-probabilities, kind="stable")[:most]
    return [(names[each], float(probabilities[each])) for each in order if probabilities[each] >= least]


def select_batches(batches: Iterable[dict[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
    """What the loss of a detector reads of training batches."""
    from vidjax.data.batches import select

    return select(batches, "video", "boxes", "actions", "valid")
