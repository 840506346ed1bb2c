"""Listings of video files: folders, with one subfolder per class or without classes, and .csv and .jsonl manifests.

Files that are left out and columns that are not used are described in notes, which the scripts print when they open a
source.
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

from vidjax.data.example import Field
from vidjax.data.field_files import FIELDS_FILE, check_value, read_specs
from vidjax.data.labels import CLASSES_FILE, is_missing, list_counts, number_labels, order_classes
from vidjax.errors import UserError

VIDEO_SUFFIXES = (
    ".264", ".265", ".3g2", ".3gp", ".asf", ".avi", ".divx", ".dv", ".f4v", ".flv", ".h264", ".h265", ".hevc", ".ivf",
    ".m1v", ".m2t", ".m2ts", ".m2v", ".m4v", ".mjpeg", ".mjpg", ".mkv", ".mov", ".mp4", ".mpe", ".mpeg", ".mpg", ".mpv",
    ".mts", ".mxf", ".nut", ".obu", ".ogm", ".ogv", ".qt", ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv", ".y4m",
)  # fmt: skip
"""Suffixes of video files in a folder. GIF files are not among them, but manifests can contain them."""
BATCH = ("video", "ids", "truncated", "valid", "index", "times", "crop", "error")
"""Arrays of a batch that are not fields of an example."""
COLUMNS = ("path", "label", "caption", "rejected", "start", "end", "reverse")


@dataclass(frozen=True)
class Row:
    """A video file, or a part of one."""

    path: str
    label: int
    """Index into the class names, -1 for none."""
    captions: tuple[str, ...] = ()
    """Descriptions of the video; empty for none."""
    start: float | None = None
    """Seconds, None for the start of the video."""
    end: float | None = None
    """Seconds, None for the end of the video."""
    reverse: bool = False
    """Whether the video is played backwards."""
    rejected: tuple[str, ...] = ()
    """Texts to which the descriptions are preferred; empty for none."""
    fields: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """Values of further fields: arrays, or paths of .npy files for frames and samples."""

    @property
    def id(self) -> str:
        """The path, with the part of the video as a media fragment: `clip.mp4#t=2.5,7`, `clip.mp4#reverse`."""
        bounds = ",".join("" if bound is None else f"{bound:g}" for bound in (self.start, self.end)).rstrip(",")
        parts = ([f"t={bounds}"] if bounds else []) + (["reverse"] if self.reverse else [])
        return self.path + (f"#{'&'.join(parts)}" if parts else "")


@dataclass(frozen=True)
class Listing:
    """The videos of a folder or a list."""

    class_names: tuple[str, ...]
    """Empty without labels."""
    rows: Sequence[Row]
    notes: tuple[str, ...] = ()
    """Notes on what was left out or is not used, one line each, with counts."""
    fields: Mapping[str, Field] = field(default_factory=dict)
    """Specs of the further fields of the rows."""


def list_folder(folder: Path) -> Listing:
    """Lists all videos below a folder. The class of a video is its subfolder; videos at the top have none.

    Follows links, but visits each folder only once. Skips hidden files and folders.

    Raises:
      UserError: there are no videos, or a folder cannot be read.
    """
    videos, left_out = walk_videos(folder)
    if not videos:
        others = f", only {list_counts(left_out)}" if left_out else ""
        raise UserError(f"the folder {folder} contains no videos ({' '.join(VIDEO_SUFFIXES)}){others}: give another")
    subfolders = {path: Path(path).relative_to(folder).as_posix() for path in set(map(os.path.dirname, videos))}
    labels_by_video = [subfolders[os.path.dirname(path)] for path in videos]
    class_names = order_classes(folder, set(labels_by_video) - {"."})
    labels = {name: position for position, name in enumerate(class_names)} | {".": -1}
    notes = []
    if left_out:
        notes.append(
            f"{folder}: {left_out.total():,} files are left out, as their suffix is none of a video "
            f"({list_counts(left_out)})"
        )
    if 0 < (unlabelled := labels_by_video.count(".")) < len(videos):
        notes.append(f"{folder}: {unlabelled:,} of {len(videos):,} videos are not in a class folder and have no label")
    rows = [Row(path, labels[name]) for path, name in zip(videos, labels_by_video, strict=True)]
    return Listing(class_names, rows, tuple(notes))


def walk_videos(folder: Path) -> tuple[list[str], Counter]:
    """Returns the videos below a folder, each folder before its subfolders, and counts of other files by suffix.

    Raises:
      UserError: a folder cannot be read.
    """
    videos, left_out = [], Counter()
    for parent, files in sorted(_walk(folder), key=lambda item: Path(item[0]).parts):
        for file in sorted(files):
            suffix = os.path.splitext(file)[1].lower()
            if suffix in VIDEO_SUFFIXES:
                videos.append(os.path.join(parent, file))
            elif file not in (CLASSES_FILE, FIELDS_FILE):
                left_out[suffix or "no suffix"] += 1
    return videos, left_out


def _walk(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Yields each folder once with its files; links are followed last, so that real paths take precedence."""

    def refuse(error: OSError) -> None:
        raise UserError(f"the folder {error.filename} cannot be read ({error.strerror}): correct its permissions")

    seen, roots = set(), [os.fspath(folder)]
    for root in roots:
        for parent, folders, files in os.walk(root, onerror=refuse):
            if (real := os.path.realpath(parent)) in seen:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            roots += [path for name in folders if os.path.islink(path := os.path.join(parent, name))]
            yield parent, [name for name in files if not name.startswith(".")]


def list_manifest(path: Path, folder: Path | None = None) -> Listing:
    """Reads a manifest with the columns path and, optionally, label, caption, rejected, start, end and reverse.

    In a .jsonl manifest, a caption may be a list of captions, and likewise what is rejected. Further columns are fields
    if a fields.json in the folder of the manifest describes them, see `example.Field`; others are not used.

    Args:
      path: .csv or .jsonl file.
      folder: folder that paths are relative to, by default that of the manifest.

    Raises:
      UserError: there is no path column, a row is malformed (with its line), files do not exist (with their number and
        first names), or labels do not match the classes.
    """
    specs = read_specs(path.parent)
    if taken := sorted(specs.keys() & {*COLUMNS, *BATCH}):
        raise UserError(f"{path.parent / FIELDS_FILE} describes '{taken[0]}', which is a reserved name: rename it")
    lines = list(_csv_rows(path) if path.suffix.lower() == ".csv" else _jsonl_rows(path))
    rows, labels, unused = [], [], Counter()
    for number, row in lines:
        unused.update(row.keys() - set(COLUMNS) - specs.keys())
        labels.append((number, row.get("label")))
        # An empty string in JSON is kept, so that it is reported as an error.
        cells = {name: None if value != "" and is_missing(value) else value for name, value in row.items()}
        if not isinstance(cells.get("path"), str):
            raise UserError(f"{path}, line {number}: its path is missing, add it")
        start, end = (read_seconds(path, number, name, cells.get(name)) for name in ("start", "end"))
        check_part(path, number, start, end)
        captions = _captions(path, number, cells.get("caption"))
        reverse = _parse_bool(path, number, cells.get("reverse"))
        given = {name: cells[name] for name in specs if cells.get(name) is not None}
        values = {name: _value(path, number, folder, specs[name], name, value) for name, value in given.items()}
        if reverse and (forward := [name for name in values if specs[name].kind in ("frames", "samples")]):
            raise UserError(f"{path}, line {number}: reverse is not supported with '{forward[0]}': remove one of them")
        rejected = _captions(path, number, cells.get("rejected"), "rejected")
        rows.append(Row(cells["path"], -1, captions, start, end, reverse, rejected, values))
    notes = () if not unused else (f"{path}: unused columns: {_describe_unused(unused, len(rows))}",)
    if missing := [name for name in specs if not any(name in row.fields for row in rows)]:
        notes += (f"{path}: no row has {', '.join(missing)}, described in {FIELDS_FILE}",)
    return replace(finish_list(path, folder, rows, labels, notes), fields=specs)


def _value(path: Path, number: int, folder: Path | None, spec: Field, name: str, value: Any) -> Any:
    """Parses a further field of a row: an array, or the path of a file for frames and samples."""
    if spec.kind in ("frames", "samples"):
        file = str((path.parent if folder is None else folder) / str(value))
        if not os.path.isfile(file):
            raise UserError(f"{path}, line {number}: its {name}, {file}, does not exist: correct the path")
        return file
    try:
        return check_value(spec, json.loads(value) if isinstance(value, str) else value)
    except (ValueError, TypeError, OverflowError) as error:
        raise UserError(
            f"{path}, line {number}: its {name} is {str(value)[:60]}, which is not valid for {spec.kind}: {error}"
        ) from error


def finish_list(
    path: Path,
    folder: Path | None,
    rows: Sequence[Row],
    labels: Sequence[tuple[int, Any]],
    notes: tuple[str, ...] = (),
) -> Listing:
    """Makes a listing of rows with file paths, checking that all files exist.

    Args:
      path: path of the list.
      folder: folder that the paths are relative to, by default that of the list.
      rows: rows without labels.
      labels: line number and label of each row, see `number_labels`.
      notes: notes so far.

    Raises:
      UserError: there are no rows, files do not exist (with their number and first names), or labels do not match the
        classes.
    """
    require_rows(path, rows)
    base = path.parent if folder is None else folder
    rows = [row if "://" in row.path else replace(row, path=str(base / row.path)) for row in rows]
    class_names, positions, label_notes = number_labels(path, labels)
    missing = [row.path for row in rows if "://" not in row.path and not os.path.isfile(row.path)]
    if missing:
        raise UserError(
            f"the manifest {path} names {len(missing)} files of {len(rows)} that do not exist: "
            f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}; "
            f"correct the paths, which are relative to {'the manifest' if folder is None else folder}"
        )
    rows = [replace(row, label=label) for row, label in zip(rows, positions, strict=True)]
    return Listing(class_names, rows, notes + label_notes)


def require_rows(path: Path, rows: Sequence[Any]) -> None:
    """Raises UserError for a list without rows."""
    if not rows:
        raise UserError(f"the manifest {path} has no rows: add one per video")


def _describe_unused(unused: Counter, rows: int) -> str:
    described = []
    for name, count in unused.most_common(6):
        similar = _similar_column(name)
        hint = f" (did you mean {similar}?)" if similar else ""
        described.append(f"{name!r}{f' in {count:,} rows' if count < rows else ''}{hint}")
    known = f"known columns are {', '.join(COLUMNS)}"
    return f"{', '.join(described)}{', ...' if len(unused) > 6 else ''}; {known}"


def _similar_column(name: str) -> str | None:
    """The known column that is one of the words of this name (`start_time`), or has a similar spelling."""
    words = re.findall(r"[a-z]+", name.lower())
    near = [column for column in COLUMNS if column in words] + difflib.get_close_matches(name.lower(), COLUMNS, 1, 0.75)
    return near[0] if near else None


def read_csv(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str | None]]]]:
    """Reads the columns of a CSV file and, for each row, its line number and its cells by column (None if empty).

    Raises:
      UserError: the file is not CSV, a column is duplicated, or a row has more cells than there are columns.
    """
    reader = csv.reader(io.StringIO(read_text(path), newline=""), skipinitialspace=True)
    lines, last = [], 0
    try:
        for cells in reader:
            last = reader.line_num
            lines += [(last, cells)] if cells else []
    except csv.Error as error:  # for example, a field that is too long because of an unclosed quotation mark
        raise UserError(
            f"{path}, line {last + 1}: invalid CSV ({error}), close the quotation marks or shorten the field"
        ) from error
    names = [name.strip() for name in lines[0][1]] if lines else []
    if duplicates := [name for name, count in Counter(names).items() if count > 1]:
        raise UserError(f"{path} has the column '{duplicates[0]}' twice: remove one")
    rows = []
    for number, cells in lines[1:]:
        if len(cells) > len(names):
            raise UserError(
                f"{path}, line {number}: the row has more fields than the first line has columns; "
                "enclose text that contains commas in quotation marks"
            )
        rows.append((number, {name: cell.strip() or None for name, cell in zip(names, cells, strict=False)}))
    return names, rows


def _csv_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    names, rows = read_csv(path)
    if "path" not in names:
        near = next((f" (rename '{name}' to path)" for name in names if _similar_column(name) == "path"), "")
        near = " (separate them by commas)" if len(names) == 1 and re.search(r"[;\t]", names[0]) else near
        raise UserError(
            f"the manifest {path} has no 'path' column: its first line must name the columns (path, and "
            f"optionally label, caption, rejected, start, end, reverse), but it is '{','.join(names)}'{near}"
        )
    return rows


def _jsonl_rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(io.StringIO(read_text(path), newline=None), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"{path}, line {number}: invalid JSON ({error}), write one object per line") from error
            row = {name.strip(): value for name, value in row.items()} if isinstance(row, dict) else {}
            if "path" not in row:
                raise UserError(f"{path}, line {number}: the line must be an object with a 'path'")
            yield number, row


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, without a byte order mark."""
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:  # the default of Excel
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line}: not UTF-8 ({error.reason}), save the file as UTF-8") from error


def check_part(path: Path, number: int, start: float | None, end: float | None) -> None:
    """Raises UserError if the part from `start` to `end` is empty."""
    if end is not None and end <= (start or 0):
        raise UserError(
            f"{path}, line {number}: its end ({end} s) is not after its start ({start or 0} s), correct one of them"
        )


def _captions(path: Path, number: int, value: Any, name: str = "caption") -> tuple[str, ...]:
    captions = () if value is None else tuple(value) if isinstance(value, list) else (value,)
    if not all(isinstance(caption, str) for caption in captions):
        raise UserError(f"{path}, line {number}: its {name} is {value!r}, but it must be a string or list of strings")
    if not all(caption.strip() for caption in captions):
        which = f"one of its {name}s" if len(captions) > 1 else f"its {name}"
        raise UserError(f"{path}, line {number}: {which} is empty, remove it")
    try:
        "".join(captions).encode()
    except UnicodeEncodeError as error:  # unpaired surrogates, which JSON allows
        raise UserError(f"{path}, line {number}: its {name} is not valid text ({error.reason}): correct it") from error
    return captions


def _parse_bool(path: Path, number: int, value: Any) -> bool:
    words = {"true": True, "1": True, "false": False, "0": False, "none": False}
    if str(value).lower() not in words:
        raise UserError(f"{path}, line {number}: its reverse is {value!r}, but it must be true or false")
    return words[str(value).lower()]


def read_seconds(path: Path, number: int, name: str, value: Any) -> float | None:
    """Parses a non-negative number of seconds; raises UserError."""
    try:
        seconds = None if value is None else float(value)
    except (TypeError, ValueError):
        seconds = -1.0
    if seconds is not None and not 0 <= seconds < math.inf:
        raise UserError(f"{path}, line {number}: its {name} is {value!r}, but it must be seconds, 0 or more")
    return seconds
