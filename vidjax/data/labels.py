"""Class labels as lists write them: names, whole numbers (also as pandas writes them, 1.0), and the words for none.

Class names are in the order of the labels: that of a `classes.json` (a list of names) in the folder or beside the
list, else sorted. Give training and validation the same file if one of them lacks a class.
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
"""Labels that are numbers make no more classes than this: one that is larger is an id, and no place in a list."""
MISSING = ("", "#N/A", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null")
"""Cells that hold nothing: the words among those that pandas reads so (`na_values` of its read_csv, 2.3)."""


def is_missing(value: Any) -> bool:
    """True for a cell that holds nothing."""
    return value is None or value in MISSING or value != value  # the last one is JSON's NaN


def number_labels(path: Path, cells: Sequence[tuple[int, Any]]) -> tuple[tuple[str, ...], list[int], tuple[str, ...]]:
    """Class names, the position of each label in them (-1 for none), and what is to be told.

    Labels that are all whole numbers are positions as they are, others are names. A word of `MISSING` that classes.json
    names is a class.

    Args:
      path: of the list, beside which classes.json may lie.
      cells: the line and the label of each row, as they stand in the list.

    Raises:
      UserError: a label is neither a name nor a whole number from 0 on (with its line), or not among the classes.
    """
    names = _named_classes(path.parent)
    known = set(names)
    labels, none = [], Counter()
    for number, cell in cells:
        labels.append(cell if isinstance(cell, str) and cell in known else _read_label(path, number, cell))
        if labels[-1] is None:
            none["empty" if cell is None or cell == "" else str(cell)] += 1
    given = set(labels) - {None}
    notes = ()
    if (given and none) or set(none) - {"empty"}:
        notes = (f"{path}: {none.total():,} of {len(cells):,} rows have no label ({list_counts(none)})",)
    if all(label.isdecimal() for label in given):
        numbers = [-1 if label is None else int(label) for label in labels]
        return _number_classes(path, max(numbers, default=-1) + 1, names), numbers, notes
    class_names = order_classes(path.parent, given)
    positions = {name: position for position, name in enumerate(class_names)} | {None: -1}
    return class_names, [positions[label] for label in labels], notes


def _read_label(path: Path, number: int, value: Any) -> str | None:
    """A name or a number as text, None for none."""
    if is_missing(value):
        return None
    label = str(value)
    whole = re.fullmatch(
        r"(-?\d+)\.0*", label
    )  # to pandas, a column of whole numbers with a gap in it is one of floats
    label = whole[1] if whole else label
    wrong = type(value) not in (str, int, float) or (isinstance(value, float) and not whole)  # True is an int to Python
    halves = re.search(r"[\ud800-\udc7f\udd00-\udfff]", label)  # of characters, which JSON lets through
    if wrong or halves or (label != "-1" and re.fullmatch(r"-\d+|-?\d*\.\d+", label)):
        raise UserError(
            f"{path}, line {number}: its label is {value!r}, but it must be a name, a whole number from 0 on, or -1 "
            "for none"
        )
    return None if label == "-1" else label


def _number_classes(path: Path, count: int, names: tuple[str, ...]) -> tuple[str, ...]:
    """The names of so many classes, which are numbers where classes.json does not say more."""
    if not names and count > MOST_CLASSES:
        raise UserError(
            f"{path} has the label {count - 1}, which would make as many classes: number them from 0 on, or put "
            f"their names in a {CLASSES_FILE} beside it"
        )
    names = names or tuple(str(number) for number in range(count))
    if count > len(names):
        raise UserError(
            f"{path} has the label {count - 1}, but {CLASSES_FILE} beside it {len(names)} names: add the others"
        )
    return names


def order_classes(folder: Path, used: set[str]) -> tuple[str, ...]:
    """The names in the folder's classes.json, or those that are used, sorted.

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


def parse_class_names(file: Path | str, content: bytes) -> tuple[str, ...]:
    """The names in a classes.json.

    Raises:
      UserError: it is no list of names, or one comes twice.
    """
    try:
        names = json.loads(content)
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}): write a list of class names") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{file} must be a list of class names")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError(f"{file} has the class {twice!r} twice: give each class a name of its own")
    return tuple(names)


def list_counts(counts: Mapping[str, int], most: int = 6) -> str:
    """The most frequent ones with their numbers, as in `.gif 3, .txt 1`."""
    first = Counter(counts).most_common(most)
    return ", ".join(f"{name} {count:,}" for name, count in first) + (", ..." if len(counts) > most else "")
