"""Chooses videos from the web that a teacher agrees with, for joint training on them.

    python experiments/evaluate.py --run runs/teacher --data.source web.csv --out scores/web
    python experiments/filter_web.py web.csv --scores scores/web --threshold 0.3 --out chosen
    python experiments/finetune.py --data.train "mix:train.csv=0.5,chosen/train.csv=0.5"

The labels of web.csv are the classes by whose names the videos were searched. A video is kept if the teacher, trained
on clean labels, finds that class probable enough (OmniSource, arXiv:2003.13042); with `--by teacher`, it gets the most
probable class instead. Videos that show nearly the same as one of the test set should not be trained on:

    python experiments/embed.py --run runs/teacher --data.source web.csv --out web.npz
    python experiments/embed.py --run runs/teacher --data.source val.csv --out val.npz
    python experiments/filter_web.py web.csv --scores scores/web --out chosen --embeddings web.npz --held_out val.npz

OUT then contains train.csv and classes.json, a source of the kept videos; choices.csv, with every video, whether it is
kept and why not; and table.csv, with the numbers of each class.
"""

import zipfile
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from tyro.conf import Positional

from vidjax import cli
from vidjax.data.labels import find_classes
from vidjax.errors import UserError
from vidjax.fields import check_values
from vidjax.runs.results import read_scores, write_csv


@dataclass(frozen=True)
class Config:
    """Which videos, and how they are chosen."""

    source: Positional[str]
    """The videos: a folder or a list, labelled with the class that each was searched by."""
    scores: str
    """Output directory of evaluate.py for these videos and the teacher."""
    out: str
    """A new or empty folder for the lists."""
    threshold: float = 0.3
    """Least probability of the class that a video is kept with."""
    by: Literal["query", "teacher"] = "query"
    """That class: the one it was searched by, or the teacher's most probable one."""
    most: int | None = None
    """Keep at most so many videos of a class, the most probable ones."""
    embeddings: str | None = None
    """Features of these videos by embed.py (.npz), to be compared with those of held_out."""
    held_out: str | None = None
    """Features of the videos of the test set, by the same model."""
    similarity: float = 0.95
    """Leave out videos with at least this cosine similarity to a held-out one."""

    def __post_init__(self) -> None:
        check_values(self)
        if not 0 <= self.threshold <= 1:
            raise UserError(f"threshold is {self.threshold}: it is a probability, between 0 and 1")
        if not -1 <= self.similarity <= 1:
            raise UserError(f"similarity is {self.similarity}: it is a cosine, between -1 and 1")
        if self.most is not None and self.most < 1:
            raise UserError(f"most is {self.most}: it must be 1 or more, or omitted")
        if (self.embeddings is None) != (self.held_out is None):
            raise UserError("embeddings and held_out are compared with each other: give both")


def read_features(path: str) -> dict[str, np.ndarray]:
    """The mean feature of each video in a file of embed.py.

    Raises:
      UserError: it is none.
    """
    try:
        with np.load(path) as stored:
            ids, features = stored["ids"], stored["features"]
    except (OSError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} has no features: give an .npz file that embed.py wrote ({error})") from error
    if features.ndim != 2:
        raise UserError(f"{path} has features of shape {features.shape}: embed with the model's pooled feature")
    names, places = np.unique(ids, return_inverse=True)
    sums = np.zeros((len(names), features.shape[1]))
    np.add.at(sums, places, features)
    return dict(zip(names.tolist(), sums / np.bincount(places)[:, None], strict=True))


def near_duplicates(config: Config, videos: Collection[str]) -> dict[str, str]:
    """Why videos are left out that are nearly the same as a held-out one, or cannot be compared, by their ids.

    Raises:
      UserError: the files have no features, or none of these videos.
    """
    from vidjax.data.filtering import nearest

    if config.embeddings is None or config.held_out is None:
        return {}
    ours, others = read_features(config.embeddings), read_features(config.held_out)
    widths = [len(next(iter(each.values()))) for each in (ours, others)]
    if widths[0] != widths[1]:
        raise UserError(
            f"{config.embeddings} has features of {widths[0]} channels, {config.held_out} of {widths[1]}: embed both "
            "with the same model"
        )
    if not set(videos) & set(ours):
        raise UserError(f"{config.embeddings} has none of the videos of {config.source}: embed the same source")
    similar, which = nearest(np.stack(list(ours.values())), np.stack(list(others.values())))
    names = list(others)
    unknown = "no features to compare with those of the held-out videos"
    return {name: unknown for name in videos if name not in ours} | {
        name: f"nearly the same as the held-out {names[other]}, similarity {value:.3f}"
        for name, value, other in zip(ours, similar, which, strict=True)
        if value >= config.similarity
    }


def main(config: Config) -> dict[str, int]:
    """Chooses, writes the lists and prints the numbers, which it returns: how many are kept and dropped, and why."""
    from vidjax.data.filtering import Choice, choose
    from vidjax.data.merge import write_lists
    from vidjax.data.sources import list_files

    out = Path(config.out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out} is not an empty folder, and nothing is overwritten: give another --out")
    listing = list_files(config.source)
    if listing is None:
        raise UserError(f"{config.source} is not a folder or a list of video files: only these can be filtered")
    scores = read_scores(config.scores)
    names, videos = scores["class_names"], scores["videos"]
    rows = {row.id: row for row in listing.rows}
    if repeated := [video for video, times in Counter(row.id for row in listing.rows).items() if times > 1]:
        raise UserError(f"{config.source} has {repeated[0]} more than once: keep one line, with one class, per video")
    if not set(videos) & set(rows):
        raise UserError(f"{config.scores} has none of the videos of {config.source}: evaluate the same source")
    duplicates = near_duplicates(config, rows)
    place = {video: number for number, video in enumerate(videos)}
    scored = [video for video in rows if video in place]
    picked = np.array([place[video] for video in scored])
    probabilities, searched = scores["probabilities"][picked], scores["labels"][picked]
    left_out = {row: duplicates[video] for row, video in enumerate(scored) if video in duplicates}
    chosen = choose(probabilities, searched, names, config.threshold, config.by, config.most, left_out)
    unscored = Choice(-1, float("nan"), "the teacher has no score: unreadable, or without a class")
    choices = dict.fromkeys(rows, unscored) | dict(zip(scored, chosen, strict=True))
    kept = [replace(rows[video], label=choice.label) for video, choice in choices.items() if not choice.reason]
    if not kept:
        most = max(choice.score for choice in chosen)
        raise UserError(f"no video is left at the threshold {config.threshold:g}: the highest score is {most:.2f}")
    cli.make_folder(out, "--out")
    write_lists(out, names, {"train": kept})
    write_choices(out, rows, listing.class_names, names, choices)
    return report(out, names, list(choices.values()), len(left_out))


def write_choices(out: Path, rows: dict[str, Any], searched: Sequence[str], names: Sequence[str], choices: Any) -> None:
    """Writes choices.csv, with a line for each video, and table.csv, with one for each class."""
    lines = [
        {
            "video": video,
            "searched": searched[rows[video].label] if rows[video].label >= 0 else "",
            "kept_as": names[choice.label] if choice.label >= 0 else "",
            "score": "" if np.isnan(choice.score) else f"{choice.score:.4f}",
            "reason": choice.reason,
        }
        for video, choice in choices.items()
    ]
    write_csv(out / "choices.csv", lines)
    known = dict(zip(searched, find_classes(searched, names), strict=True))
    as_teacher = {name: name if place is None else names[place] for name, place in known.items()}
    found = Counter(as_teacher.get(line["searched"], "") for line in lines)
    kept = Counter(line["kept_as"] for line in lines)
    classes = dict.fromkeys([*names, *(name for name in found if name)])
    write_csv(out / "table.csv", [{"class": name, "found": found[name], "kept": kept[name]} for name in classes])


def report(out: Path, names: Sequence[str], choices: Sequence[Any], same: int) -> dict[str, int]:
    """Prints what was kept and dropped, and what other thresholds would keep."""
    kept = Counter(choice.label for choice in choices if not choice.reason)
    scores = np.array([choice.score for choice in choices])
    missing = int(np.isnan(scores).sum())
    numbers = {"videos": len(choices), "kept": kept.total(), "without_score": missing, "held_out": same}
    numbers["not_probable"] = len(choices) - kept.total() - missing - same
    print(
        f"{kept.total():,} of {len(choices):,} videos are kept; {missing:,} have no score, {same:,} are nearly "
        f"held-out ones or cannot be compared, {numbers['not_probable']:,} are not probable enough"
    )
    levels = (f"{level:.1f}: {(scores >= level).sum():,}" for level in np.arange(1, 10) / 10)
    print(f"scores of at least  {'  '.join(levels)}")
    if empty := [name for label, name in enumerate(names) if not kept[label]]:
        print(f"{len(empty)} classes have no video left: {', '.join(empty[:5])}{', ...' if len(empty) > 5 else ''}")
    print(f"written to {out}: train.csv and classes.json, choices.csv, table.csv")
    return numbers


if __name__ == "__main__":
    cli.run(main, Config)
