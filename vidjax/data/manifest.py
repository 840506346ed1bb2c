"""Folders of videos, class-per-folder trees among them, and manifests of our own: .csv and .jsonl.

What a listing leaves out or does not use, it says in notes, which the scripts print when they open a source.
"""

import csv
import difflib
import io
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from vidjax.data.example import FIELDS_FILE, Field, check_value, read_specs
from vidjax.data.labels import CLASSES_FILE, is_missing, list_counts, number_labels, order_classes
from vidjax.errors import UserError

VIDEO_SUFFIXES = (
    ".264", ".265", ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".h264", ".h265", ".hevc", ".ivf",
    ".m1v", ".m2t", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mpv",
    ".mts", ".mxf", ".nut", ".obu", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv", ".y4m",
)  # fmt: skip
"""Files of a folder that are videos. A .gif is more often a picture of something than a video to learn from: a manifest
may name it."""
BATCH = ("video", "ids", "truncated", "valid", "index", "times", "crop", "error")
"""Arrays that a batch has beside an example's fields."""
COLUMNS = ("path", "label", "caption", "start", "end", "reverse")


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
    fields: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """Further fields that it has: arrays, or of frames and samples the path of a .npy file."""

    @property
    def id(self) -> str:
        """The path, and the part of the video as a media fragment: `clip.mp4#t=2.5,7`, `clip.mp4#reverse`."""
        bounds = ",".join("" if bound is None else f"{bound:g}" for bound in (self.start, self.end)).rstrip(",")
        parts = ([f"t={bounds}"] if bounds else []) + (["reverse"] if self.reverse else [])
        return self.path + (f"#{'&'.join(parts)}" if parts else "")


@dataclass(frozen=True)
class Listing:
    """What a folder or a list holds."""

    class_names: tuple[str, ...]
    """Empty without labels."""
    rows: Sequence[Row]
    notes: tuple[str, ...] = ()
    """What was left out or is not used, a line each, with counts."""
    fields: Mapping[str, Field] = field(default_factory=dict)
    """The specs of the rows' further fields."""


def list_folder(folder: Path) -> Listing:
    """Every video below a folder: its class is the folder that it lies in, none at the top.

    Links are followed, and each real folder is looked into once. Hidden files and folders are left out.

    Raises:
      UserError: there is no video, or a folder cannot be read.
    """
    videos, left_out = walk_videos(folder)
    if not videos:
        held = f", but {list_counts(left_out)}" if left_out else ""
        raise UserError(f"the folder {folder} holds no videos ({' '.join(VIDEO_SUFFIXES)}){held}: give another")
    places = {place: Path(place).relative_to(folder).as_posix() for place in set(map(os.path.dirname, videos))}
    named = [places[os.path.dirname(path)] for path in videos]
    class_names = order_classes(folder, set(named) - {"."})
    labels = {name: position for position, name in enumerate(class_names)} | {".": -1}
    notes = []
    if left_out:
        notes.append(
            f"{folder}: {left_out.total():,} files are left out, as their suffix is none of a video "
            f"({list_counts(left_out)})"
        )
    if 0 < (stray := named.count(".")) < len(named):
        notes.append(f"{folder}: {stray:,} of {len(named):,} videos lie in no folder of a class and have no label")
    rows = [Row(path, labels[name]) for path, name in zip(videos, named, strict=True)]
    return Listing(class_names, rows, tuple(notes))


def walk_videos(folder: Path) -> tuple[list[str], Counter]:
    """The videos below a folder, those of a place before those of the folders in it, and the other files by suffix.

    Raises:
      UserError: a folder cannot be read.
    """
    videos, left_out = [], Counter()
    for place, files in sorted(_places(folder), key=lambda found: Path(found[0]).parts):
        for file in sorted(files):
            suffix = os.path.splitext(file)[1].lower()
            if suffix in VIDEO_SUFFIXES:
                videos.append(os.path.join(place, file))
            elif file not in (CLASSES_FILE, FIELDS_FILE):
                left_out[suffix or "without suffix"] += 1
    return videos, left_out


def _places(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Each real folder from this one on, with its files; by a link only where there is no other way to it."""

    def refuse(error: OSError) -> None:
        raise UserError(f"the folder {error.filename} cannot be read ({error.strerror}): correct its permissions")

    seen, tops = set(), [os.fspath(folder)]
    for top in tops:
        for place, folders, files in os.walk(top, onerror=refuse):
            if (real := os.path.realpath(place)) in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            tops += [path for name in folders if os.path.islink(path := os.path.join(place, name))]
            yield place, [name for name in files if not name.startswith(".")]


def list_manifest(path: Path, folder: Path | None = None) -> Listing:
    """The rows of a manifest of path and, optionally, label, caption, start, end and reverse.

    The caption of a .jsonl may be a list of captions; a row without any has none. Further columns are fields where a
    fields.json beside the manifest describes them, see `example.Field`; others are not used.

    Args:
      path: .csv or .jsonl.
      folder: where the paths begin; beside the manifest where not given.

    Raises:
      UserError: no path column, a malformed row (with its line), files that do not exist (how many, which), or labels
        that do not fit the classes.
    """
    specs = read_specs(path.parent)
    if taken := sorted(specs.keys() & {*COLUMNS, *BATCH}):
        raise UserError(
            f"{path.parent / FIELDS_FILE} describes '{taken[0]}', a name with a meaning of its own: rename it"
        )
    lines = list(_csv_rows(path) if path.suffix.lower() == ".csv" else _jsonl_rows(path))
    rows, labels, unused = [], [], Counter()
    for number, row in lines:
        unused.update(row.keys() - set(COLUMNS) - specs.keys())
        labels.append((number, row.get("label")))
        # An empty text of JSON was written on purpose: what it stands for is told to be empty.
        cells = {name: None if value != "" and is_missing(value) else value for name, value in row.items()}
        if not isinstance(cells.get("path"), str):
            raise UserError(f"{path}, line {number}: it has no path, give it one")
        start, end = (read_seconds(path, number, name, cells.get(name)) for name in ("start", "end"))
        check_part(path, number, start, end)
        captions = _captions(path, number, cells.get("caption"))
        reverse = _truth(path, number, cells.get("reverse"))
        given = {name: cells[name] for name in specs if cells.get(name) is not None}
        values = {name: _value(path, number, folder, specs[name], name, value) for name, value in given.items()}
        if reverse and (forward := [name for name in values if specs[name].kind in ("frames", "samples")]):
            raise UserError(
                f"{path}, line {number}: it is played backwards, but its {forward[0]} is not: leave out one"
            )
        rows.append(Row(cells["path"], -1, captions, start, end, reverse, values))
    notes = () if not unused else (f"{path}: columns that are not used: {_describe_unused(unused, len(rows))}",)
    if lacking := [name for name in specs if not any(name in row.fields for row in rows)]:
        notes += (f"{path}: no row has {', '.join(lacking)}, which {FIELDS_FILE} describes",)
    return replace(finish_list(path, folder, rows, labels, notes), fields=specs)


def _value(path: Path, number: int, folder: Path | None, spec: Field, name: str, value: Any) -> Any:
    """A further field of a row, as an array, or of frames and samples as the path of a file."""
    if spec.kind in ("frames", "samples"):
        file = str((path.parent if folder is None else folder) / str(value))
        if not os.path.isfile(file):
            raise UserError(f"{path}, line {number}: its {name}, {file}, does not exist: correct the path")
        return file
    try:
        return check_value(spec, json.loads(value) if isinstance(value, str) else value)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(
            f"{path}, line {number}: its {name} is {str(value)[:60]}, and no {spec.kind}: {error}"
        ) from error


def finish_list(
    path: Path,
    folder: Path | None,
    rows: Sequence[Row],
    labels: Sequence[tuple[int, Any]],
    notes: tuple[str, ...] = (),
) -> Listing:
    """A listing of rows that name their files, which must all be there.

    Args:
      path: of the list.
      folder: where the files' paths begin; beside the list where not given.
      rows: without labels.
      labels: the line and the label of each, see `number_labels`.
      notes: what is to be told already.

    Raises:
      UserError: there are no rows, files that do not exist (how many, which), or labels that do not fit the classes.
    """
    require_rows(path, rows)
    base = path.parent if folder is None else folder
    rows = [row if "://" in row.path else replace(row, path=str(base / row.path)) for row in rows]
    class_names, positions, told = number_labels(path, labels)
    missing = [row.path for row in rows if "://" not in row.path and not os.path.isfile(row.path)]
    if missing:
        raise UserError(
            f"the manifest {path} names {len(missing)} files of {len(rows)} that do not exist: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}; "
            f"correct these paths, which are relative to {'the manifest' if folder is None else folder}"
        )
    rows = [replace(row, label=label) for row, label in zip(rows, positions, strict=True)]
    return Listing(class_names, rows, notes + told)


def require_rows(path: Path, rows: Sequence[Any]) -> None:
    """Refuses a list of nothing."""
    if not rows:
        raise UserError(f"the manifest {path} has no rows: give one a video")


def _describe_unused(unused: Counter, rows: int) -> str:
    described = []
    for name, count in unused.most_common(6):
        meant = _meant(name)
        hint = f" (did you mean {meant}?)" if meant else ""
        described.append(f"{name!r}{f' of {count:,} rows' if count < rows else ''}{hint}")
    known = f"known are {', '.join(COLUMNS)}"
    return f"{', '.join(described)}{', ...' if len(unused) > 6 else ''}; {known}"


def _meant(name: str) -> str | None:
    """The column that this name comes near to: one that has it among its words (`start_time`), or spells it so."""
    words = re.findall(r"[a-z]+", name.lower())
    near = [column for column in COLUMNS if column in words] + difflib.get_close_matches(name.lower(), COLUMNS, 1, 0.75)
    return near[0] if near else None


def read_csv(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str | None]]]]:
    """The columns of a CSV file and, for each row, its line and its cells by column, None for empty ones.

    Raises:
      UserError: it is not CSV, a column comes twice, or a row has more cells than there are columns.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), skipinitialspace=True)
    lines, last = [], 0
    try:
        for cells in reader:
            last = reader.line_num
            lines += [(last, cells)] if cells else []
    except csv.Error as error:  # a field without end, as after a quotation mark that is not closed
        raise UserError(
            f"{path}, line {last + 1}: it is not CSV ({error}), close its quotation marks or make it shorter"
        ) from error
    names = [name.strip() for name in lines[0][1]] if lines else []
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{path} has the column '{twice[0]}' twice: leave one out")
    rows = []
    for number, cells in lines[1:]:
        if len(cells) > len(names):
            raise UserError(
                f"{path}, line {number}: it has more fields than the first line names; "
                "put a text with commas in quotation marks"
            )
        rows.append((number, {name: cell.strip() or None for name, cell in zip(names, cells, strict=False)}))
    return names, rows


def _csv_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    names, rows = read_csv(path)
    if "path" not in names:
        near = next((f" (rename '{name}' to path)" for name in names if _meant(name) == "path"), "")
        near = " (put commas between them)" if len(names) == 1 and re.search(r"[;\t]", names[0]) else near
        raise UserError(
            f"the manifest {path} has no 'path' column: its first line must name the columns (path, and "
            f"optionally label, caption, start, end, reverse), but it is '{','.join(names)}'{near}"
        )
    return rows


def _jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(io.StringIO(read_text(path), newline=None), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}, line {number}: it is not JSON ({error}), write an object a line") from error
            row = {name.strip(): value for name, value in row.items()} if isinstance(row, dict) else {}
            if "path" not in row:
                raise UserError(f"{path}, line {number}: it must be an object with a 'path'")
            yield number, row


def read_text(path: Path) -> str:
    """What a file says, without the mark that some programs put before it."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:  # as of Excel, unless told
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: it is not UTF-8 ({error.reason}), save the file as UTF-8") from error


def check_part(path: Path, number: int, start: float | None, end: float | None) -> None:
    """Refuses a range of seconds that is empty."""
    if end is not None and end <= (start or 0):
        raise UserError(
            f"{path}, line {number}: its end ({end} s) is not after its start ({start or 0} s), correct one of them"
        )


def _captions(path: Path, number: int, value: Any) -> tuple[str, ...]:
    captions = () if value is None else tuple(value) if isinstance(value, list) else (value,)
    if not all(isinstance(caption, str) for caption in captions):
        raise UserError(f"{path}, line {number}: its caption is {value!r}, but it must be a text or a list of texts")
    if not all(caption.strip() for caption in captions):
        raise UserError(
            f"{path}, line {number}: its caption is empty{' in places' if len(captions) > 1 else ''}, leave it out"
        )
    try:
        "".join(captions).encode()
    except UnicodeEncodeError as error:  # halves of characters, which JSON lets through
        raise UserError(f"{path}, line {number}: its caption is no text ({error.reason}): write it again") from error
    return captions


def _truth(path: Path, number: int, value: Any) -> bool:
    words = {"true": True, "1": True, "false": False, "0": False, "none": False}
    if str(value).lower() not in words:
        raise UserError(f"{path}, line {number}: its reverse is {value!r}, but it must be true or false")
    return words[str(value).lower()]


def read_seconds(path: Path, number: int, name: str, value: Any) -> float | None:
    """A number of seconds from 0 on; raises ValueError."""
    try:
        seconds = None if value is None else float(value)
    except (TypeError, ValueError):
        seconds = -1.0
    if seconds is not None and not 0 <= seconds < math.inf:
        raise UserError(f"{path}, line {number}: its {name} is {value!r}, but it must be seconds, 0 or more")
    return seconds
