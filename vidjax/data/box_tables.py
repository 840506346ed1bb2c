"""AVA's files: boxes in key frames (CSV), label maps (.pbtxt or CSV), and lists of excluded key frames.

A row of boxes is `video_id, timestamp, x1, y1, x2, y2, action_id, person_id` if annotated, with a row for each action
of a person, and `..., action_id or nothing, score` if detected. Time stamps are in seconds, boxes fractions of the
frame. There is no header.
"""

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float

from vidjax.errors import UserError

SLACK = 0.01
"""How far a box may reach beyond the frame; it is cut there."""
PIXELS = 2.0
"""Coordinates above this are pixels."""

Key = tuple[str, float]
"""Video and time in seconds of a key frame."""


@dataclass(frozen=True)
class BoxTable:
    """The rows of a file.

    Attributes:
      frames: for each key frame its distinct boxes, as fractions of the frame, each with the actions in its rows.
      notes: on rows that are left out.
    """

    path: str
    frames: Mapping[Key, Mapping[tuple[float, ...], Sequence[str]]]
    notes: tuple[str, ...]

    @property
    def actions(self) -> set[str]:
        """All actions of the table."""
        return {action for boxes in self.frames.values() for actions in boxes.values() for action in actions}


def examples(names: Sequence[str]) -> str:
    """The first three of some names."""
    return f"{', '.join(map(str, names[:3]))}{', ...' if len(names) > 3 else ''}"


def read_boxes(path: str, least_score: float | None = None) -> BoxTable:
    """Reads boxes in key frames.

    Args:
      least_score: rows with a lower score in their last column are left out; None if it is no score.

    Raises:
      UserError: the file cannot be read, a row has another form, or boxes lie outside the frame or are in pixels.
    """
    keys, boxes, actions, bare, weak = [], [], [], 0, 0
    for number, row in _rows(path):
        try:
            if not any(map(str.strip, row[2:6])) and len(row) >= 2:
                bare += 1
                continue
            if least_score is not None and float(row[-1] if len(row) > 6 else "no score") < least_score:
                weak += 1
                continue
            key, box = (row[0], float(row[1])), [float(each) for each in row[2:6]]
            if len(box) < 4 or not np.isfinite([key[1], *box]).all():
                raise ValueError("four coordinates")
        except ValueError as error:
            last = "score" if least_score is not None else "person_id"
            raise UserError(
                f"{path}, line {number}: {','.join(row)!r} is no row of video_id, timestamp, x1, y1, x2, y2, "
                f"action_id, {last}: give a CSV file in AVA's form, without a header"
            ) from error
        action = row[6].strip() if len(row) > 6 else ""
        keys.append(key)
        boxes.append(box)
        actions.append("" if action == "-1" else action)
    cut = _check_boxes(path, keys, np.array(boxes, float).reshape(-1, 4))
    frames: dict[Key, dict[tuple[float, ...], list[str]]] = {}
    empty = []
    for key, box, action in zip(keys, map(tuple, cut.tolist()), actions, strict=True):
        if box[2] <= box[0] or box[3] <= box[1]:
            empty.append(f"{key[0]} at {key[1]:g} s")
            continue
        of_box = frames.setdefault(key, {}).setdefault(box, [])
        if action and action not in of_box:
            of_box.append(action)
    notes = [f"{path}: {len(empty):,} boxes have no area and are left out: {examples(empty)}"] if empty else []
    notes += [f"{path}: {bare:,} rows have no box and are left out"] if bare else []
    notes += [f"{path}: {weak:,} boxes with a score below {least_score:g} are left out"] if weak else []
    if not frames:
        raise UserError(f"{path} has no boxes{f' with a score of {least_score:g} or more' if weak else ''}: add some")
    return BoxTable(path, frames, tuple(notes))


def _check_boxes(path: str, keys: Sequence[Key], boxes: Float[np.ndarray, "n 4"]) -> Float[np.ndarray, "n 4"]:
    """The boxes cut to the frame; raises UserError if some are in pixels or reach far beyond it."""
    for wrong, what, advice in (
        ((boxes > PIXELS).any(axis=1), "look like pixels", "divide them by the width and the height of the frame"),
        (((boxes < -SLACK) | (boxes > 1 + SLACK)).any(axis=1), "lie outside the frame", "correct or remove them"),
    ):
        if wrong.any():
            named = [f"{keys[i][0]} at {keys[i][1]:g} s ({' '.join(f'{x:g}' for x in boxes[i])})" for i in
                     np.flatnonzero(wrong)[:4]]  # fmt: skip
            raise UserError(
                f"{path}: {wrong.sum():,} of {len(boxes):,} boxes {what}: {examples(named)}; coordinates are fractions "
                f"of the frame, from 0 to 1: {advice}"
            )
    return boxes.clip(0, 1)


def read_excluded(path: str | None) -> frozenset[Key]:
    """The key frames of a list of `video_id, timestamp`; none without a file. Raises UserError."""
    try:
        return frozenset((row[0], float(row[1])) for _, row in _rows(path)) if path else frozenset()
    except (ValueError, IndexError) as error:
        raise UserError(
            f"{path} is no list of video_id, timestamp ({error}): give a CSV file without a header"
        ) from error


def read_label_map(path: str) -> dict[str, str]:
    """The names of actions by their ids, in the order of the ids.

    Args:
      path: AVA's .pbtxt, with a block of a name and an id for each, or its .csv: `label_id,label_name` and a header.

    Raises:
      UserError: the file cannot be read, or has another form.
    """
    if path.endswith(".csv"):
        pairs = [row[:2] for _, row in _rows(path) if row[0].isdecimal() and len(row) > 1]
    else:
        pairs = []
        for block in re.findall(r"\{([^}]*)\}", _read(path)):
            number = re.search(r"\b(?:label_)?id\s*:\s*(\d+)", block)
            name = re.search(r"\bname\s*:\s*([\"'])(.*?)\1", block)
            pairs += [(number[1], name[2])] if number and name else []
    if not pairs:
        raise UserError(f"{path} names no actions: give AVA's .pbtxt, or a .csv of label_id, label_name")
    return dict(sorted(((str(int(number)), name.strip()) for number, name in pairs), key=lambda pair: int(pair[0])))


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read ({getattr(error, 'strerror', error)}): give another file") from error


def _rows(path: str) -> Iterator[tuple[int, list[str]]]:
    """The rows of a CSV file that are not empty, with their line numbers."""
    for number, row in enumerate(csv.reader(_read(path).splitlines()), start=1):
        if row:
            yield number, row
