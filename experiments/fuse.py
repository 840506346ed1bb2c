"""Fuses the scores of classifiers of the same videos: late fusion, as of a network of frames and one of flow.

    python experiments/evaluate.py --run runs/rgb --data.source VIDEOS --out scores/rgb
    python experiments/evaluate.py --run runs/flow --data.source RECORDS --out scores/flow
    python experiments/fuse.py scores/rgb scores/flow --weights 1 1.5

By the mean of the probabilities, by the sum of the logits (--combine logits, as two-stream I3D), or by linear SVMs on
the scores (Simonyan and Zisserman 2014), which are trained on evaluations of the training videos: --fit
scores/rgb_train scores/flow_train. Videos are matched by their names.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from tyro.conf import Positional

from vidjax import cli
from vidjax.errors import UserError
from vidjax.evaluation.fusion import add_logits, average, linear_svm, stack_scores
from vidjax.evaluation.recognition import recognition
from vidjax.fields import check_values
from vidjax.runs.results import describe_recognition, open_results, read_scores


@dataclass(frozen=True)
class Config:
    """Which evaluations, and how they are fused."""

    evaluations: Positional[tuple[str, ...]]
    """Output directories of evaluate.py, two or more."""
    weights: tuple[float, ...] = ()
    """Weight of each in the mean or the sum (default: equal, in the sum 1)."""
    combine: Literal["softmax", "logits"] = "softmax"
    """Take the mean of the probabilities, or the probabilities of the sum of the logits (two-stream I3D)."""
    fit: tuple[str, ...] = ()
    """Evaluations of the training videos, in the same order: fuse by linear SVMs that are trained on these."""
    cost: float = 1.0
    """Of the SVMs: weight of errors against that of a wide margin."""
    common: bool = False
    """Leave out videos that not all evaluations have, such as those without flow; otherwise they are an error."""
    out: str = "runs/fusion"
    """Output directory, new or empty."""

    def __post_init__(self) -> None:
        check_values(self)
        count = len(self.evaluations)
        if count < 2:
            raise UserError(f"{count} evaluations cannot be fused: give the directories of two or more")
        if self.weights and (len(self.weights) != count or min(self.weights) < 0 or not sum(self.weights)):
            raise UserError(f"weights are {self.weights}: give {count} of 0 or more, not all 0")
        if self.fit and len(self.fit) != count:
            raise UserError(f"fit has {len(self.fit)} evaluations: give {count}, in the order of the others")
        if self.fit and (self.weights or self.combine != "softmax"):
            raise UserError("weights and combine are of the mean or the sum, which --fit replaces: omit one of them")
        if self.cost <= 0:
            raise UserError(f"cost is {self.cost}: it must be above 0")


class Scores(NamedTuple):
    """What several classifiers say of the same labelled videos."""

    videos: list[str]
    labels: np.ndarray
    each: list[np.ndarray]
    """Probabilities or logits `n c` of each classifier."""
    class_names: tuple[str, ...]


def match_scores(folders: tuple[str, ...], common: bool, kind: str = "probabilities") -> Scores:
    """The labelled videos of all evaluations, with their probabilities or logits.

    Raises:
      UserError: classes or labels differ, or videos are not in all evaluations and `common` is false; or there are no
        logits.
    """
    read = [read_scores(folder) for folder in folders]
    first = read[0]
    for folder, scores in zip(folders, read, strict=True):
        if kind not in scores:
            raise UserError(f"{folder} was written by an earlier version, without logits: evaluate again")
        if scores["class_names"] != first["class_names"]:
            raise UserError(f"{folder} has other classes than {folders[0]}: fuse classifiers of the same classes")
    places = [{name: row for row, name in enumerate(scores["videos"])} for scores in read]
    everywhere = [name for name in first["videos"] if all(name in rows for rows in places)]
    lacking = len(set().union(*places)) - len(everywhere)
    if lacking and not (common and everywhere):
        raise UserError(
            f"{lacking} videos are not in all of {', '.join(folders)}: evaluate the same ones, or leave them out with "
            "--common"
        )
    rows = [np.array([place[name] for name in everywhere]) for place in places]
    labels = [scores["labels"][row] for scores, row in zip(read, rows, strict=True)]
    if any((each != labels[0]).any() for each in labels):
        raise UserError(f"videos have other labels in one of {', '.join(folders)}: evaluate the same list")
    each = [scores[kind][row] for scores, row in zip(read, rows, strict=True)]
    return Scores(everywhere, labels[0], each, first["class_names"])


def main(config: Config) -> dict[str, Any]:
    """Fuses, prints and writes the results; returns the contents of fusion.json."""
    kind = "probabilities" if config.combine == "softmax" else "logits"
    scores = match_scores(config.evaluations, config.common, kind)
    own = match_scores(config.evaluations, config.common).each  # by which evaluate.py counts, also over many views
    correct = [float((each.argmax(axis=1) == scores.labels).mean()) for each in own]
    alone = dict(zip(config.evaluations, correct, strict=True))
    if config.fit:
        known, classes = match_scores(config.fit, config.common), len(scores.class_names)
        if known.class_names != scores.class_names:
            raise UserError(f"{config.fit[0]} has other classes than {config.evaluations[0]}: evaluate the same runs")
        train, test = stack_scores(known.each), stack_scores(scores.each)
        margins = linear_svm(train, known.labels, test, classes, config.cost)
        fused = np.exp(margins - np.logaddexp.reduce(margins, axis=1, keepdims=True))
        how = f"linear SVMs, trained on {len(known.videos):,} videos"
    else:
        weights = config.weights or (1.0,) * len(scores.each)
        fused = (average if kind == "probabilities" else add_logits)(scores.each, weights)
        how = "mean of the probabilities" if kind == "probabilities" else "sum of the logits"
        how += f", weights {', '.join(f'{weight:g}' for weight in weights)}"
    result = recognition(fused, scores.labels)
    out = open_results(config.out, config.out, "fusions")
    lines = [f"{accuracy:.1%} {name} alone" for name, accuracy in alone.items()]
    text = "\n".join([how, *lines, "", describe_recognition(result, scores.class_names)])
    numbers = {"top1": result.top1, "top1_interval": result.top1_interval, "alone": alone, "videos": result.videos}
    (out / "fusion.json").write_text(json.dumps(numbers | {"config": cli.as_dict(config)}, indent=2) + "\n")
    (out / "fusion.txt").write_text(text + "\n", "utf-8", "backslashreplace")
    print(f"{text}\n\nwritten to {Path(out)}")
    return numbers


if __name__ == "__main__":
    cli.run(main, Config)
