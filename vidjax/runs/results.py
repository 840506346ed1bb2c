"""Results of an evaluation: the output directory, and tables of the accuracy of each class."""

import contextlib
import csv
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np

from vidjax.cli import make_folder
from vidjax.errors import UserError
from vidjax.evaluation.multi_label import MultiLabel
from vidjax.evaluation.recognition import Recognition
from vidjax.runs.workdir import is_run


def open_results(out: str | None, run: str, folder: str) -> Path:
    """Creates the output directory: `out`, or the next number in `folder` of the work directory (of runs/ if no run).

    Raises:
      UserError: it is not empty, or cannot be written.
    """
    if out is not None:
        path = Path(out)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{path} is not an empty directory, and nothing is overwritten: choose another --out")
        make_folder(path, "--out")
        return path
    results = (Path(run) if is_run(run) else Path("runs")) / folder
    make_folder(results, "--out")
    for number in itertools.count(1):
        with contextlib.suppress(FileExistsError):  # from an earlier or a concurrent evaluation
            (results / str(number)).mkdir()
            break
    return results / str(number)


def name_classes(model: nn.Module) -> tuple[str, ...]:
    """The names of the model's classes, `class 0`, `class 1`, ... if its card has none; empty without classes."""
    return model.card.class_names or tuple(f"class {i}" for i in range(getattr(model, "num_classes", None) or 0))


def describe_recognition(result: Recognition, class_names: Sequence[str]) -> str:
    """A text report of the metrics, with a table of the classes."""
    low, high = result.top1_interval
    lines = [
        f"top-1                 {result.top1:7.2%}   (95 % interval {low:.2%} to {high:.2%}, bootstrap over videos)",
        f"top-5                 {result.top5:7.2%}",
        f"mean class accuracy   {result.mean_class_accuracy:7.2%}",
        f"calibration error     {result.calibration_error:7.2%}   (expected, 15 bins)",
        "",
        f"{'class':30} {'videos':>7} {'correct':>7} {'accuracy':>9}   most often confused with",
    ]
    for row in per_class(result, class_names):
        taken = f"{row['taken_for']} ({row['times']})" if row["taken_for"] else ""
        accuracy = f"{row['accuracy']:9.1%}" if row["videos"] else f"{'-':>9}"
        lines.append(f"{row['class'][:30]:30} {row['videos']:7,} {row['correct']:7,} {accuracy}   {taken}".rstrip())
    return "\n".join(lines)


def per_class(result: Recognition, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """One row per class: videos, correct predictions, accuracy, and the most frequent wrong prediction."""
    rows = []
    for i, name in enumerate(class_names):
        counts = result.confusion[i]
        mistakes = np.where(np.arange(len(counts)) == i, 0, counts)
        taken, times = class_names[int(mistakes.argmax())], int(mistakes.max())
        accuracy = float(result.class_accuracy[i]) if counts.sum() else None
        row = {"class": name, "videos": int(counts.sum()), "correct": int(counts[i]), "accuracy": accuracy}
        rows.append(row | {"taken_for": taken if times else "", "times": times})
    return rows


def describe_hashtags(result: MultiLabel, class_names: Sequence[str]) -> str:
    """A text report of the metrics, with a table of the hashtags, the most frequent first."""
    lines = [
        f"mean average precision {result.mean_average_precision:7.2%}   (over the hashtags that occur)",
        f"top-1                  {result.top1:7.2%}   (the most probable is one of the video's)",
        f"top-5                  {result.top5:7.2%}   (one of the five most probable is)",
        "",
        f"{'hashtag':30} {'videos':>7} {'average precision':>18}",
    ]
    for row in sorted(per_hashtag(result, class_names), key=lambda row: -row["videos"]):
        precision = f"{row['average_precision']:18.1%}" if row["videos"] else f"{'-':>18}"
        lines.append(f"{'#' + row['class'][:29]:30} {row['videos']:7,} {precision}")
    return "\n".join(lines)


def per_hashtag(result: MultiLabel, class_names: Sequence[str]) -> list[dict[str, Any]]:
    """One row per hashtag: videos and average precision."""
    columns = zip(class_names, result.counts.tolist(), result.average_precision.tolist(), strict=True)
    return [
        {"class": name, "videos": count, "average_precision": precision if count else None}
        for name, count, precision in columns
    ]


def predictions(
    probabilities: np.ndarray,
    labels: np.ndarray,
    ids: Sequence[str],
    class_names: Sequence[str],
    label_names: Sequence[str] | None = None,
) -> list[dict[str, str]]:
    """One row per video: the predicted class, its probability, and the label (empty for -1).

    Args:
      labels: (n,), or (n k) of videos with several labels, padded by -1.
      label_names: what the labels are indices into, if not `class_names`, as for videos of unknown classes.
    """
    best, label_names = probabilities.argmax(axis=1), class_names if label_names is None else label_names
    labels = np.reshape(labels, (len(ids), -1))
    return [
        {
            "video": ids[row],
            "label": " ".join(label_names[label] for label in labels[row] if label >= 0),
            "predicted": class_names[best[row]],
            "probability": f"{probabilities[row, best[row]]:.6f}",
        }
        for row in range(len(ids))
    ]


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes rows with a header in UTF-8; other bytes of file names are escaped, as in `caf\\udce9.mp4`."""
    with path.open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


SCORES_FILE = "scores.npz"


def write_scores(
    out: Path,
    videos: Sequence[str],
    labels: np.ndarray,
    probabilities: np.ndarray,
    logits: np.ndarray,
    class_names: Sequence[str],
) -> None:
    """Writes the scores of labelled videos, for fusing them with those of other classifiers (`fuse.py`)."""
    names = {"videos": np.array(videos), "class_names": np.array(class_names)}
    np.savez_compressed(out / SCORES_FILE, labels=labels, probabilities=probabilities, logits=logits, **names)


def read_scores(folder: str) -> dict[str, Any]:
    """The arguments of `write_scores`, by name; files of earlier versions have no logits.

    Raises:
      UserError: the directory has no scores.
    """
    path = Path(folder) / SCORES_FILE
    if not path.is_file():
        raise UserError(f"{folder} has no {SCORES_FILE}: give an output directory of evaluate.py, or evaluate again")
    with np.load(path, allow_pickle=False) as stored:
        scores = dict(stored)
    return scores | {name: tuple(scores[name].tolist()) for name in ("videos", "class_names")}
