"""Lists in the formats of other libraries and of published data sets.

    PATH LABEL            one video per line, separated by spaces, a tab or a comma: VideoMAE, SlowFast, mmaction2,
                          UniFormer, UCF101
    Kinetics              CSV with youtube_id, time_start, time_end and, optionally, label, split, is_cc
    Something-Something   JSON with id and, optionally, template and label; the order of the classes is in labels.json

The last two contain ids instead of paths, which are looked up in a folder. Missing videos are left out with a note,
since many Kinetics videos are no longer available.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from vidjax.data.labels import is_missing, number_labels, order_classes
from vidjax.data.manifest import (
    VIDEO_SUFFIXES,
    Listing,
    Row,
    check_part,
    finish_list,
    list_manifest,
    read_csv,
    read_seconds,
    read_text,
    require_rows,
    walk_videos,
)
from vidjax.errors import UserError

SUFFIXES = (".csv", ".jsonl", ".txt", ".json")
_LABELLED = re.compile(r"(?P<path>.+?)[ \t,]+(?:0[ \t,]+(?=-1))?(?P<label>-?\d+(?:\.0*)?)")
"""A line that ends with a number. `PATH 0 -1` is a video without a label in lists of VideoMAE V2."""


def list_file(path: Path, folder: Path | None, split: str) -> Listing:
    """Lists the videos of a list, whose format is determined from its suffix and its first line.

    Args:
      path: .csv, .jsonl, .txt or .json file.
      folder: folder that contains the videos, by default that of the list.
      split: split of a Kinetics list that contains several.

    Raises:
      UserError: the list cannot be read or is invalid.
    """
    if not path.is_file():
        raise UserError(f"the manifest {path} does not exist: correct its path")
    if folder is not None and not folder.is_dir():
        raise UserError(f"{folder}, given as the folder of the videos of {path}, is not a folder: correct its path")
    suffix = path.suffix.lower()
    if suffix == ".json":
        return list_something(path, folder)
    if suffix == ".jsonl":
        return list_manifest(path, folder)
    first = next((line for line in read_text(path).splitlines() if line.strip()), "")
    columns = [name.strip(' "') for name in first.split(",")]
    if suffix == ".csv" and "path" in columns:
        return list_manifest(path, folder)
    if suffix == ".csv" and "youtube_id" in columns:
        return list_kinetics(path, folder, split)
    if suffix == ".txt" or _looks_like_a_row(first):
        return list_paths(path, folder)
    return list_manifest(path, folder)


def _looks_like_a_row(line: str) -> bool:
    """Whether a first line is a row rather than a header: it starts with a video or ends with a number."""
    first = re.split(r"[\t,]", line)[0].strip(' "').lower()
    return _LABELLED.fullmatch(line.strip()) is not None or first.endswith(VIDEO_SUFFIXES)


def list_paths(path: Path, folder: Path | None = None) -> Listing:
    """Lists the videos of a list with a path and, optionally, a label per line, and no header.

    The label is an integer at the end of the line, or the text after a tab or the last comma. Paths may contain spaces.

    Raises:
      UserError: files do not exist, or labels do not match the classes.
    """
    rows, labels = [], []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line := line.strip():
            if match := _LABELLED.fullmatch(line):
                name, label = match["path"], match["label"]
            else:
                name, _, label = line.rpartition("\t" if "\t" in line else ",")
                if not name or label.lower().endswith(VIDEO_SUFFIXES):  # the comma is part of the path
                    name, label = line, None
            rows.append(Row(name.strip(' \t"'), -1))
            labels.append((number, label and label.strip(' "')))
    return finish_list(path, folder, rows, labels)


def list_kinetics(path: Path, folder: Path | None, split: str) -> Listing:
    """Lists the videos of a Kinetics list that exist in a folder or its subfolders.

    Trimmed clips are named `ID_000010_000020.mp4`, with start and end in seconds, any number of leading zeros and any
    video suffix. A file named `ID.mp4` is the whole video, of which the part in the list is used.

    Args:
      path: CSV with youtube_id, time_start, time_end and, optionally, label, split and is_cc.
      folder: folder that contains the videos.
      split: the split to use if the list contains several.

    Raises:
      UserError: no folder is given, it contains none of the videos, the split is unknown, or a row is malformed.
    """
    folder = _require_folder(path, folder, "YouTube ids")
    names, lines = read_csv(path)
    if missing := [name for name in ("youtube_id", "time_start", "time_end") if name not in names]:
        raise UserError(f"{path} has youtube_id but no column '{missing[0]}': give a Kinetics list as published")
    require_rows(path, lines)
    class_names, labels, notes = number_labels(path, [(number, cells.get("label")) for number, cells in lines])
    splits = [_canonical_split(cells.get("split") or "") for _, cells in lines]
    if len(set(splits)) < 2:
        chosen = range(len(lines))
    elif _canonical_split(split) in splits:
        chosen = [i for i, each in enumerate(splits) if each == _canonical_split(split)]
    else:
        known = ", ".join(sorted(set(splits) - {""}))
        raise UserError(f"{path} has no videos of data.split {split}, only of {known}: choose one of these")

    trimmed, by_stem = {}, _by_stem(folder)
    for stem, file in by_stem.items():
        if match := re.fullmatch(r"(.+)_(\d+)_(\d+)", stem):
            trimmed.setdefault((match[1], int(match[2]), int(match[3])), file)
    rows: list[Row | None] = []
    for i in chosen:
        number, cells = lines[i]
        start, end = (read_seconds(path, number, name, cells.get(name)) for name in ("time_start", "time_end"))
        if is_missing(cells.get("youtube_id")) or start is None or end is None:
            raise UserError(f"{path}, line {number}: its youtube_id, time_start or time_end is missing, add it")
        if file := trimmed.get((cells["youtube_id"], int(start), int(end))):
            rows.append(Row(file, labels[i]))
        elif file := by_stem.get(cells["youtube_id"]):
            check_part(path, number, start, end)
            rows.append(Row(file, labels[i], start=start, end=end))
        else:
            rows.append(None)
    notes += _note_missing(path, folder, rows, [lines[i][1]["youtube_id"] for i in chosen])
    existing = [row for row in rows if row is not None]
    if untrimmed := sum(row.end is not None for row in existing):
        notes += (
            f"{path}: {untrimmed:,} of {len(existing):,} videos are not trimmed; only time_start to time_end is read",
        )
    return Listing(class_names, existing, notes)


def _canonical_split(split: str) -> str:
    return {"val": "validation", "validate": "validation"}.get(split, split)


def list_something(path: Path, folder: Path | None) -> Listing:
    """Lists the videos of a Something-Something list that exist in a folder or its subfolders.

    Files are named `ID.webm`, or with another video suffix. The class is the template without its brackets; the label,
    a sentence, becomes the caption. The order of the classes is that of a labels.json in the same folder
    (`something-something-v2-labels.json` in an older release).

    Args:
      path: JSON, a list of objects with id and, optionally, template and label.
      folder: folder that contains the videos.

    Raises:
      UserError: no folder is given, it contains none of the videos, the file has another format, or templates are
        unknown.
    """
    items = _json(path)
    if not isinstance(items, list) or not items or not all(isinstance(item, dict) and "id" in item for item in items):
        raise UserError(
            f"{path} is not a Something-Something list, in which every item is an object with an 'id': give such a "
            "list, or a .csv or .jsonl manifest"
        )
    folder = _require_folder(path, folder, "ids")
    templates = [str(item["template"]) if item.get("template") else None for item in items]
    templates = [template and re.sub(r"[\[\]]", "", template) for template in templates]
    used = set(templates) - {None}
    labels_files = [file for file in path.parent.glob("*labels.json") if path.name.startswith(file.name[:-11])]
    if labels_files:
        file = max(labels_files, key=lambda file: len(file.name))
        class_names = _templates_in_order(file, _json(file))
        if unknown := sorted(used - set(class_names)):
            raise UserError(
                f"{path} has {len(unknown)} templates that are not in {file}, such as '{unknown[0]}': use both files "
                "of the same release"
            )
    else:
        class_names = order_classes(path.parent, used)
    positions = {name: position for position, name in enumerate(class_names)} | {None: -1}

    files = _by_stem(folder)
    rows: list[Row | None] = []
    for item, template in zip(items, templates, strict=True):
        file, text = files.get(str(item["id"])), item.get("label")
        captions = (text,) if isinstance(text, str) and text.strip() else ()
        rows.append(Row(file, positions[template], captions) if file else None)
    notes = _note_missing(path, folder, rows, [str(item["id"]) for item in items])
    if used and None in templates:
        notes += (f"{path}: {templates.count(None):,} of {len(items):,} videos have no template and hence no label",)
    return Listing(class_names, [row for row in rows if row is not None], notes)


def _json(path: Path) -> object:
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON ({error}): give the file as published") from error


def _templates_in_order(file: Path, numbers: object) -> tuple[str, ...]:
    """The templates of a labels.json, which maps each to its class index as a string, in order."""
    ordered = {}
    if isinstance(numbers, dict):
        ordered = {int(number): name for name, number in numbers.items() if re.fullmatch(r"\d+", str(number))}
    if not ordered or sorted(ordered) != list(range(len(numbers))):
        raise UserError(f"{file} must number the templates from 0: give the file as published")
    return tuple(re.sub(r"[\[\]]", "", ordered[number]) for number in range(len(ordered)))


def _require_folder(path: Path, folder: Path | None, named: str) -> Path:
    if folder is None:
        raise UserError(f"{path} contains {named} instead of paths: add the folder of the videos, {path}:FOLDER")
    return folder


def _by_stem(folder: Path) -> dict[str, str]:
    """The videos below a folder by name without suffix; the first one if names repeat."""
    files: dict[str, str] = {}
    for file in walk_videos(folder)[0]:
        files.setdefault(Path(file).stem, file)
    return files


def _note_missing(path: Path, folder: Path, rows: Sequence[Row | None], ids: Sequence[str]) -> tuple[str, ...]:
    """A note on missing videos, if any; raises UserError if all are missing."""
    missing = [id for id, row in zip(ids, rows, strict=True) if row is None]
    if len(missing) == len(rows):
        raise UserError(f"none of the {len(rows)} videos of {path} is in {folder} ({ids[0]}, ...): correct the folder")
    if not missing:
        return ()
    first = f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
    return (f"{path}: {len(missing):,} of {len(rows):,} videos are not in {folder} and are left out ({first})",)
