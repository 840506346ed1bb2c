"""Parsing of class labels in lists: names, integers (including 1.0, as written by pandas), and missing values.

Classes are numbered in the order of `classes.json` (a list of names) in the folder or next to the list; without this
file, in alphabetical order. Training and validation need the same file if one of them lacks a class.
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vidjax.errors import UserError

CLASSES_FILE = "classes.json"
MOST_CLASSES = 100_000
"""Largest number of classes from numeric labels; larger numbers are taken to be ids rather than class indices."""
MISSING = ("", "#N/A", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null")
"""Cells read as missing: those of the default `na_values` of read_csv in pandas 2.3 that are words."""


def is_missing(value: Any) -> bool:
    """Whether a cell is empty or a word for a missing value."""
    return value is None or value in MISSING or value != value  # the last condition is true for the NaN of JSON


def number_labels(path: Path, cells: Sequence[tuple[int, Any]]) -> tuple[tuple[str, ...], list[int], tuple[str, ...]]:
    """Returns the class names, the class index of each row (-1 for none), and notes for the user.

    Labels are class indices if all of them are integers, and names otherwise. A word in `MISSING` is a class if it is
    in classes.json.

    Args:
      path: path of the list, whose folder may contain a classes.json.
      cells: line number and label of each row, as in the list.

    Raises:
      UserError: a label is neither a name nor a non-negative integer (with its line), or not among the classes.
    """
    names = _named_classes(path.parent)
    known = set(names)
    labels, missing = [], Counter()
    for number, cell in cells:
        labels.append(cell if isinstance(cell, str) and cell in known else _read_label(path, number, cell))
        if labels[-1] is None:
            missing["empty" if cell is None or cell == "" else str(cell)] += 1
    given = set(labels) - {None}
    notes = ()
    if (given and missing) or set(missing) - {"empty"}:
        notes = (f"{path}: {missing.total():,} of {len(cells):,} rows have no label ({list_counts(missing)})",)
    if all(label.isdecimal() for label in given):
        numbers = [-1 if label is None else int(label) for label in labels]
        return _number_classes(path, max(numbers, default=-1) + 1, names), numbers, notes
    class_names = order_classes(path.parent, given)
    positions = {name: position for position, name in enumerate(class_names)} | {None: -1}
    return class_names, [positions[label] for label in labels], notes


def _read_label(path: Path, number: int, value: Any) -> str | None:
    """The label as a string, None for a missing one."""
    if is_missing(value):
        return None
    label = str(value)
    # A column of integers with missing values becomes a column of floats in pandas.
    integer = re.fullmatch(r"(-?\d+)\.0*", label)
    label = integer[1] if integer else label
    wrong = type(value) not in (str, int, float) or (isinstance(value, float) and not integer)  # a bool is an int too
    surrogates = re.search(r"[\ud800-\udc7f\udd00-\udfff]", label)  # which JSON allows
    if wrong or surrogates or (label != "-1" and re.fullmatch(r"-\d+|-?\d*\.\d+", label)):
        raise UserError(
            f"{path}, line {number}: its label is {value!r}, but it must be a name, an integer from 0, or -1 for none"
        )
    return None if label == "-1" else label


def _number_classes(path: Path, count: int, names: tuple[str, ...]) -> tuple[str, ...]:
    """The names of `count` classes: those in classes.json, or the numbers themselves without this file."""
    if not names and count > MOST_CLASSES:
        raise UserError(
            f"{path} has the label {count - 1}, which implies as many classes: number the classes from 0, or list "
            f"their names in a {CLASSES_FILE} in the same folder"
        )
    names = names or tuple(str(number) for number in range(count))
    if count > len(names):
        raise UserError(
            f"{path} has the label {count - 1}, but {CLASSES_FILE} in the same folder has only {len(names)} names: add "
            "the others"
        )
    return names


def order_classes(folder: Path, used: set[str]) -> tuple[str, ...]:
    """The names in the folder's classes.json; without this file, the used names in alphabetical order.

    Raises:
      UserError: a used name is not in classes.json.
    """
    names = _named_classes(folder) or tuple(sorted(used))
    if unknown := sorted(used - set(names)):
        raise UserError(
            f"{folder / CLASSES_FILE} lacks {len(unknown)} of the classes, {', '.join(unknown[:3])}"
            f"{', ...' if len(unknown) > 3 else ''}: add them"
        )
    return names


def _named_classes(folder: Path) -> tuple[str, ...]:
    file = folder / CLASSES_FILE
    return parse_class_names(file, file.read_bytes()) if file.is_file() else ()


def plain(class_name: str) -> str:
    """A class name without what differs between lists of the same classes: case, quotes, and underscores for spaces."""
    return " ".join(re.sub(r"[\"'\u2018\u2019\u201c\u201d]", "", class_name).replace("_", " ").split()).casefold()


def find_classes(wanted: Sequence[str], known: Sequence[str]) -> list[int | None]:
    """The position in `known` of each wanted class; None if it is not there.

    Names match if their `plain` forms are equal; an equal name takes precedence.
    """
    exact = {name: position for position, name in enumerate(known)}
    alike = {plain(name): position for position, name in enumerate(known)}
    return [exact.get(name, alike.get(plain(name))) for name in wanted]


def read_class_names(path: str | Path) -> tuple[str, ...]:
    """The names in a classes.json; raises UserError if it cannot be read or is invalid."""
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(f"classes {path} cannot be read ({error.strerror}): give a list of class names") from error
    return parse_class_names(path, content)


def parse_class_names(file: Path | str, content: bytes) -> tuple[str, ...]:
    """The names in a classes.json.

    Raises:
      UserError: the file is not a list of names, or contains a name twice.
    """
    try:
        names = json.loads(content)
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}): it must be a list of class names") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{file} must be a list of class names")
    if len(set(names)) < len(names):
        duplicate = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{file} has the class {duplicate!r} twice: class names must be unique")
    return tuple(names)


def list_counts(counts: Mapping[str, int], most: int = 6) -> str:
    """Formats the most frequent items with their counts, as in `.gif 3, .txt 1`."""
    first = Counter(counts).most_common(most)
    return ", ".join(f"{name} {count:,}" for name, count in first) + (", ..." if len(counts) > most else "")
