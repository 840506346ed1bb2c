"""Lists of video files: class-per-folder trees, and .csv or .jsonl manifests.

Class names are in the order of the labels: that of a `classes.json` (a list of names) in the folder or beside the
manifest, else sorted. Give training and validation the same file if one of them lacks a class.
"""

import csv
import io
import json
import math
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vidjax.data.decode import VIDEO_SUFFIXES

CLASSES_FILE = "classes.json"
MOST_CLASSES = 100_000
"""Labels that are numbers make no more classes than this: one that is larger is an id, and no place in a list."""


@dataclass(frozen=True)
class Row:
    """A video file, or a part of one."""

    path: str
    label: int
    """Position in the class names, -1 for none."""
    captions: tuple[str, ...] = ()
    """What is seen, in one sentence or several that say it differently."""
    start: float | None = None
    """Seconds, None for the start of the video."""
    end: float | None = None
    """Seconds, None for the end of the video."""
    reverse: bool = False
    """Played backwards."""

    @property
    def id(self) -> str:
        """The path, and the part of the video as a media fragment: `clip.mp4#t=2.5,7`, `clip.mp4#reverse`."""
        bounds = ",".join("" if bound is None else f"{bound:g}" for bound in (self.start, self.end)).rstrip(",")
        parts = ([f"t={bounds}"] if bounds else []) + (["reverse"] if self.reverse else [])
        return self.path + (f"#{'&'.join(parts)}" if parts else "")


def list_folder(folder: Path) -> tuple[tuple[str, ...], list[Row]]:
    """Class names, and every video below a folder: its class is the folder that it lies in, none at the top.

    Hidden files and folders are left out. Raises ValueError if there is no video.
    """
    found = []
    for place, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        label = Path(place).relative_to(folder).as_posix()
        for file in sorted(files):
            if file.lower().endswith(VIDEO_SUFFIXES) and not file.startswith("."):
                found.append((os.path.join(place, file), None if label == "." else label))
    if not found:
        raise ValueError(f"the folder {folder} holds no videos ({' '.join(VIDEO_SUFFIXES)}): give another")
    class_names = _class_names(folder, {label for _, label in found if label is not None})
    labels = {name: position for position, name in enumerate(class_names)} | {None: -1}
    return class_names, [Row(path, labels[label]) for path, label in found]


def list_manifest(path: Path) -> tuple[tuple[str, ...], list[Row]]:
    """Class names and rows of path and, optionally, label, caption, start, end and reverse.

    Paths are relative to the manifest. Labels that are all whole numbers are taken as they are, others are names; -1
    is none. The caption of a .jsonl may be a list of captions; a row without any has none.

    Raises:
      ValueError: no path column, a malformed row (with its line), files that do not exist (how many, which), or labels
        that do not fit the classes.
    """
    if not path.is_file():
        raise ValueError(f"the manifest {path} does not exist: correct its path")
    lines = list(_csv_rows(path) if path.suffix == ".csv" else _jsonl_rows(path))
    if not lines:
        raise ValueError(f"the manifest {path} has no rows: give one a video")
    rows, labels = [], []
    for number, row in lines:
        if not isinstance(row.get("path"), str):
            raise ValueError(f"{path}, line {number}: it has no path, give it one")
        start, end = (_seconds(path, number, name, row.get(name)) for name in ("start", "end"))
        if end is not None and end <= (start or 0):
            raise ValueError(
                f"{path}, line {number}: its end ({end} s) is not after its start ({start or 0} s), correct one of them"
            )
        video = row["path"] if "://" in row["path"] else str(path.parent / row["path"])
        captions = _captions(path, number, row.get("caption"))
        reverse = _truth(path, number, row.get("reverse"))
        rows.append(Row(video, -1, captions, start, end, reverse))
        labels.append(_label(path, number, row.get("label")))
    missing = [row.path for row in rows if "://" not in row.path and not os.path.isfile(row.path)]
    if missing:
        raise ValueError(
            f"the manifest {path} names {len(missing)} files of {len(rows)} that do not exist: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}; "
            "correct these paths, which are relative to the manifest"
        )
    class_names, labels = _number_labels(path, labels)
    return class_names, [replace(row, label=label) for row, label in zip(rows, labels, strict=True)]


def _csv_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(io.StringIO(_text(path), newline=""))
    try:
        names, rows = reader.fieldnames or (), [(reader.line_num, row) for row in reader]
    except csv.Error as error:  # a field without end, as after a quotation mark that is not closed
        raise ValueError(
            f"{path}, line {reader.line_num + 1}: it is not CSV ({error}), close its quotation marks or make it shorter"
        ) from error
    if "path" not in names:
        raise ValueError(
            f"the manifest {path} has no 'path' column: its first line must name the columns (path, and "
            f"optionally label, caption, start, end, reverse), but it is '{','.join(names)}'"
        )
    for number, row in rows:
        if None in row:
            raise ValueError(
                f"{path}, line {number}: it has more fields than the first line names; "
                "put a text with commas in quotation marks"
            )
        yield number, {key: value.strip() or None for key, value in row.items() if value is not None}


def _jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(io.StringIO(_text(path), newline=None), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: it is not JSON ({error}), write an object a line") from error
            if not isinstance(row, dict) or "path" not in row:
                raise ValueError(f"{path}, line {number}: it must be an object with a 'path'")
            yield number, row


def _text(path: Path) -> str:
    """What a file says, without the mark that some programs put before it."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:  # as of Excel, unless told
        line = error.object[: error.start].count(b"\n") + 1
        raise ValueError(f"{path}, line {line}: it is not UTF-8 ({error.reason}), save the file as UTF-8") from error


def _label(path: Path, number: int, value: Any) -> str | None:
    """A name or a number as text, None for none."""
    label = None if value is None else str(value)
    # True is an int to Python, and 1.0 would be the name of a class beside 1.
    if type(value) not in (str, int, type(None)) or (label != "-1" and re.fullmatch(r"-\d+", label or "")):
        raise ValueError(
            f"{path}, line {number}: its label is {value!r}, but it must be a name, a whole number from 0 on, or -1 "
            "for none"
        )
    return None if label == "-1" else label


def _captions(path: Path, number: int, value: Any) -> tuple[str, ...]:
    captions = () if value is None else tuple(value) if isinstance(value, list) else (value,)
    if not all(isinstance(caption, str) for caption in captions):
        raise ValueError(f"{path}, line {number}: its caption is {value!r}, but it must be a text or a list of texts")
    if not all(caption.strip() for caption in captions):
        raise ValueError(
            f"{path}, line {number}: its caption is empty{' in places' if len(captions) > 1 else ''}, leave it out"
        )
    try:
        "".join(captions).encode()
    except UnicodeEncodeError as error:  # halves of characters, which JSON lets through
        raise ValueError(f"{path}, line {number}: its caption is no text ({error.reason}): write it again") from error
    return captions


def _truth(path: Path, number: int, value: Any) -> bool:
    words = {"true": True, "1": True, "false": False, "0": False, "none": False}
    if str(value).lower() not in words:
        raise ValueError(f"{path}, line {number}: its reverse is {value!r}, but it must be true or false")
    return words[str(value).lower()]


def _seconds(path: Path, number: int, name: str, value: Any) -> float | None:
    try:
        seconds = None if value is None else float(value)
    except (TypeError, ValueError):
        seconds = -1.0
    if seconds is not None and not 0 <= seconds < math.inf:
        raise ValueError(f"{path}, line {number}: its {name} is {value!r}, but it must be seconds, 0 or more")
    return seconds


def _number_labels(path: Path, labels: Sequence[str | None]) -> tuple[tuple[str, ...], list[int]]:
    given = {label for label in labels if label is not None}
    if all(label.isdecimal() for label in given):
        numbers = [-1 if label is None else int(label) for label in labels]
        count = max(numbers) + 1
        class_names = _class_names(path.parent, set())
        if not class_names and count > MOST_CLASSES:
            raise ValueError(
                f"{path} has the label {count - 1}, which would make as many classes: number them from 0 on, or put "
                f"their names in a {CLASSES_FILE} beside it"
            )
        class_names = class_names or tuple(str(number) for number in range(count))
        if count > len(class_names):
            raise ValueError(
                f"{path} has the label {count - 1}, but {CLASSES_FILE} beside it {len(class_names)} names: "
                "add the others"
            )
        return class_names, numbers
    class_names = _class_names(path.parent, given)
    positions = {name: position for position, name in enumerate(class_names)} | {None: -1}
    return class_names, [positions[label] for label in labels]


def _class_names(folder: Path, used: set[str]) -> tuple[str, ...]:
    """The names in the folder's classes.json, or those that are used, sorted."""
    file = folder / CLASSES_FILE
    if not file.is_file():
        return tuple(sorted(used))
    names = parse_class_names(file, file.read_bytes())
    if used - set(names):
        unknown = sorted(used - set(names))
        raise ValueError(
            f"{file} lacks {len(unknown)} of the classes, {', '.join(unknown[:3])}"
            f"{', ...' if len(unknown) > 3 else ''}: add them"
        )
    return names


def parse_class_names(file: Path | str, content: bytes) -> tuple[str, ...]:
    """The names in a classes.json.

    Raises:
      ValueError: it is no list of names, or one comes twice.
    """
    try:
        names = json.loads(content)
    except ValueError as error:
        raise ValueError(f"{file} is not JSON ({error}): write a list of class names") from error
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{file} must be a list of class names")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{file} has the class {twice!r} twice: give each class a name of its own")
    return tuple(names)
