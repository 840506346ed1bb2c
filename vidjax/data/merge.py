"""Merges labelled data sets into one: their classes by name, without repeated videos and without validation videos.

Kinetics-400, 600 and 700 share classes and videos. UniFormerV2 (arXiv:2211.09552, appendix E) and VideoMAE V2
(arXiv:2303.16727) merge them to Kinetics-710: a class that has several names becomes one, and a video of several sets,
identified by its YouTube id, is used once, unless it is in a validation set.
"""

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from vidjax.data.labels import CLASSES_FILE, find_classes, plain
from vidjax.data.manifest import Listing, Row
from vidjax.errors import UserError

KINETICS = {
    "balloon blowing": "inflating balloons",
    "changing wheel": "changing wheel (not on bike)",
    "cooking sausages": "cooking sausages (not on barbeque)",
    "drinking": "sipping cup",
    "dying hair": "dyeing hair",
    "garbage collecting": "person collecting garbage",
    "hugging": "hugging (not baby)",
    "making bed": "making the bed",
    "opening bottle": "opening bottle (not wine)",
    "picking fruit": "picking apples",
    "skiing (not slalom or crosscountry)": "skiing mono",
    "sniffing": "smelling feet",
    "throwing ball (not baseball or American football)": "throwing ball",
    "tying tie": "tying necktie",
}
"""Names of Kinetics classes by their names in Kinetics-710, where the three editions differ in more than the case."""
Same = Literal["name", "file"]
_YOUTUBE = re.compile(r"([\w-]{11})_\d{1,6}_\d{1,6}", re.ASCII)
"""A trimmed Kinetics clip, `ID_000010_000020`."""


@dataclass(frozen=True)
class LabelledSet:
    """A labelled data set."""

    name: str
    train: Listing
    validation: Listing | None = None


@dataclass(frozen=True)
class MergedSet:
    """A data set under the merged names of its classes; labels are indices into these, which keep their order."""

    name: str
    class_names: tuple[str, ...]
    train: Sequence[Row]
    """Its training videos, except those of a validation set; it keeps those that earlier sets have too."""
    validation: Sequence[Row]
    counts: Mapping[str, int]
    """The row of the set in the table, see `COLUMNS`."""


@dataclass(frozen=True)
class Merged:
    """The result of `merge`."""

    class_names: tuple[str, ...]
    """The classes of the first set in their order, then those that each further set adds."""
    train: Sequence[Row]
    """Training videos of all sets; labels are indices into `class_names`."""
    sets: Sequence[MergedSet]
    dropped: Sequence[tuple[str, str, str]]
    """The training videos that are not used: set, id of the row, and reason."""


COLUMNS = {
    "classes": "classes",
    "new": "that no earlier set has",
    "videos": "training videos",
    "unlabelled": "without a label",
    "held out": "in a validation set",
    "repeated": "in an earlier set",
    "other class": "of these with another class there",
    "kept": "kept",
    "validation": "validation videos",
}
"""Headings of the columns of the table."""


def merge(sets: Sequence[LabelledSet], renamed: Mapping[str, str], same: Same = "name") -> Merged:
    """Merges data sets.

    A training video is left out if it has no label, if any set has it for validation, or if an earlier set has it. All
    clips of a YouTube video count as this video; a set may have several of them.

    Args:
      sets: the data sets. Of a video that several have, the first set's is kept, with its class.
      renamed: names of classes by other names of the same classes, such as `KINETICS`.
      same: videos are the same if their files have the same `name` (without suffix and, for clips of YouTube videos,
        without times), or only if they are the same `file`.

    Raises:
      UserError: a set has no class names, has classes for validation that it lacks for training, or has two classes
        that become one; or no training video is left.
    """
    class_names, positions = merge_class_names({each.name: _names(each) for each in sets}, renamed)
    validations = {each.name: _validation(each) for each in sets}
    listed = [(each.name, row) for each in reversed(sets) if each.validation for row in each.validation.rows]
    held_out = {video_key(row, same): name for name, row in listed}  # without labels too; the first set's name stays
    train, merged, dropped, known = [], [], [], set()
    first_of: dict[str, tuple[str, int]] = {}
    """The set that a video first occurs in, and its class, by key."""
    for each in sets:
        numbers, own, counts = positions[each.name], [], Counter()
        for row in each.train.rows:
            key = video_key(row, same)
            if row.label < 0:
                kind, reason = "unlabelled", "no label"
            elif key in held_out:
                kind, reason = "held out", f"in validation of {held_out[key]}"
            else:
                own.append(row)
                name, label = first_of.setdefault(key, (each.name, numbers[row.label]))
                kind, reason = ("kept", "") if name == each.name else ("repeated", f"in {name} as {class_names[label]}")
                counts["other class"] += kind == "repeated" and label != numbers[row.label]
            counts[kind] += 1
            if kind == "kept":
                train.append(replace(row, label=numbers[row.label]))
            else:
                dropped.append((each.name, row.id, reason))
        numbered = {"classes": len(numbers), "new": len(set(numbers) - known), "videos": len(each.train.rows)}
        numbered |= {"validation": len(validations[each.name]), **counts}
        known |= set(numbers)
        names = tuple(class_names[number] for number in numbers)
        numbered = {name: numbered.get(name, 0) for name in COLUMNS}
        merged.append(MergedSet(each.name, names, own, validations[each.name], numbered))
    if not train:
        raise UserError("no training video is left: all are in a validation set or have no label; correct the lists")
    return Merged(class_names, train, merged, dropped)


def merge_class_names(
    lists: Mapping[str, Sequence[str]], renamed: Mapping[str, str]
) -> tuple[tuple[str, ...], dict[str, list[int]]]:
    """Merges lists of class names. Names that differ only in case, quotes, spaces or underscores are the same.

    Args:
      lists: the names by the name of their set.
      renamed: see `merge`.

    Returns:
      The merged names, and for each list the positions of its classes in them.

    Raises:
      UserError: two classes of a list would become one.
    """
    new_names = {plain(old): new for old, new in renamed.items()}
    targets = {data_set: [new_names.get(plain(name), name) for name in names] for data_set, names in lists.items()}
    for data_set, names in targets.items():
        counts = Counter(map(plain, names))
        alike = [old for old, new in zip(lists[data_set], names, strict=True) if counts[plain(new)] > 1]
        if alike:
            raise UserError(
                f"{data_set} has classes that would become one, {', '.join(map(repr, alike[:4]))}"
                f"{', ...' if len(alike) > 4 else ''}: rename one of them, or omit its new name"
            )
    merged: dict[str, str] = {}
    for names in targets.values():
        for name in names:
            merged.setdefault(plain(name), name)
    places = {key: place for place, key in enumerate(merged)}
    positions = {data_set: [places[plain(name)] for name in names] for data_set, names in targets.items()}
    return tuple(merged.values()), positions


def video_key(row: Row, same: Same) -> str:
    """What the rows of a video have in common, see `merge`."""
    if same == "file":
        return row.path if "://" in row.path else os.path.realpath(row.path)
    stem = os.path.splitext(os.path.basename(row.path))[0]
    clip = _YOUTUBE.fullmatch(stem)
    return clip[1] if clip else stem


def _names(data_set: LabelledSet) -> tuple[str, ...]:
    """The class names of a set; raises UserError if it has none, or only numbers."""
    names = data_set.train.class_names
    if not names or all(name.isdecimal() for name in names):
        has = "class numbers but no names" if names else "no labels"
        raise UserError(
            f"{data_set.name} has {has}, and classes are merged by name: add a label column, or a {CLASSES_FILE} with "
            "the names next to its lists"
        )
    return names


def _validation(data_set: LabelledSet) -> list[Row]:
    """The labelled validation videos of a set, with labels that are indices into its training classes."""
    if data_set.validation is None:
        return []
    names = data_set.validation.class_names
    positions = find_classes(names, data_set.train.class_names)
    if unknown := [name for name, position in zip(names, positions, strict=True) if position is None]:
        raise UserError(
            f"{data_set.name} has {len(unknown)} classes for validation that it lacks for training, such as "
            f"'{unknown[0]}': put the same {CLASSES_FILE} next to both lists"
        )
    return [replace(row, label=positions[row.label]) for row in data_set.validation.rows if row.label >= 0]


def read_renamed(path: str, class_names: Iterable[str]) -> dict[str, str]:
    """Reads new names of classes: `kinetics` for those of Kinetics-710, or a JSON file {"old name": "new name"}.

    Args:
      class_names: the classes of all sets.

    Raises:
      UserError: the file cannot be read, has another form, or renames a class that no set has.
    """
    if path == "kinetics":
        return dict(KINETICS)
    try:
        renamed = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"renamed {path} cannot be read ({error}): give kinetics or a JSON file of old: new") from error
    if not isinstance(renamed, dict) or not all(isinstance(name, str) for name in renamed.values()):
        raise UserError(f"renamed {path} must be an object with the new name of each class by its old one")
    known = set(map(plain, class_names))
    if unknown := [name for name in renamed if plain(name) not in known]:
        raise UserError(f"renamed {path}: no data set has the class '{unknown[0]}': correct its name")
    return renamed


def table(merged: Merged) -> list[list[str | int]]:
    """What was kept and left out: a heading, a row for each set, and one with the sums."""
    rows = [["data set", *COLUMNS.values()], *([each.name, *each.counts.values()] for each in merged.sets)]
    sums = {name: sum(each.counts[name] for each in merged.sets) for name in COLUMNS}
    return [*rows, ["all", *(sums | {"classes": len(merged.class_names)}).values()]]


def write_merged(out: Path, merged: Merged) -> None:
    """Writes the merged lists into a new or empty folder.

    `train.csv` and `classes.json` are the merged data set; `NAME/train.csv`, `NAME/val.csv` and `NAME/classes.json` are
    each set under the merged names; `table.csv` has the numbers, and `dropped.csv` every video that was left out.
    """
    write_lists(out, merged.class_names, {"train": merged.train})
    for each in merged.sets:
        lists = {"train": each.train} | ({"val": each.validation} if each.validation else {})
        write_lists(out / each.name, each.class_names, lists)
    _write_csv(out / "table.csv", table(merged))
    _write_csv(out / "dropped.csv", [("data set", "path", "reason"), *merged.dropped])


def write_lists(folder: Path, class_names: Sequence[str], lists: Mapping[str, Sequence[Row]]) -> None:
    """Writes lists of videos by name, `NAME.csv`, and their classes, `classes.json`; overwrites nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CLASSES_FILE).write_text(json.dumps(class_names, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, rows in lists.items():
        cells = [(_absolute(row.path), class_names[row.label], row.start, row.end, row.reverse or None) for row in rows]
        _write_csv(folder / f"{name}.csv", [("path", "label", "start", "end", "reverse"), *cells])


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(path)


def _write_csv(path: Path, rows: Sequence[Sequence[object]]) -> None:
    with open(path, "x", newline="", encoding="utf-8", errors="surrogateescape") as file:
        csv.writer(file).writerows(rows)
