"""Lists in other libraries' formats and those of published data sets, read as they are.

    PATH LABEL      a line a video, parted by spaces, tabs or a comma: VideoMAE, SlowFast, mmaction2, UniFormer, UCF101
    Kinetics        CSV with youtube_id, time_start, time_end and, optionally, label, split, is_cc
    Something-Something   JSON with id and, optionally, template and label; labels.json beside it has the classes' order

The last two name no files but ids, which are looked for in a folder. What is not there is left out and told: no copy of
Kinetics is whole.
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
"""A line that ends with a number; `PATH 0 -1` is VideoMAE V2's way to write a video without a label."""


def list_file(path: Path, folder: Path | None, split: str) -> Listing:
    """The videos that a list names, whose kind its suffix and its first line tell.

    Args:
      path: .csv, .jsonl, .txt or .json.
      folder: where its videos are; beside the list where not given.
      split: of a Kinetics list that holds several.

    Raises:
      UserError: one sentence on what is wrong and what to do.
    """
    if not path.is_file():
        raise UserError(f"the manifest {path} does not exist: correct its path")
    if folder is not None and not folder.is_dir():
        raise UserError(f"{folder}, where the videos of {path} should be, is no folder: correct its path")
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
    """No column is called like a video, or has a number at its end."""
    first = re.split(r"[\t,]", line)[0].strip(' "').lower()
    return _LABELLED.fullmatch(line.strip()) is not None or first.endswith(VIDEO_SUFFIXES)


def list_paths(path: Path, folder: Path | None = None) -> Listing:
    """A list with a path and a label a line and no header. Without a label, a line is a path.

    A label is the whole number that ends a line, or what follows a tab or the last comma; paths may hold spaces.

    Raises:
      UserError: files that do not exist, or labels that do not fit the classes.
    """
    rows, labels = [], []
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line := line.strip():
            if found := _LABELLED.fullmatch(line):
                name, label = found["path"], found["label"]
            else:
                name, _, label = line.rpartition("\t" if "\t" in line else ",")
                if not name or label.lower().endswith(VIDEO_SUFFIXES):  # a comma of the path's
                    name, label = line, None
            rows.append(Row(name.strip(' \t"'), -1))
            labels.append((number, label and label.strip(' "')))
    return finish_list(path, folder, rows, labels)


def list_kinetics(path: Path, folder: Path | None, split: str) -> Listing:
    """The videos of a Kinetics list that are in a folder, or anywhere below it.

    A file is called `ID_000010_000020.mp4`, by the seconds that were cut out, with any suffix of a video and any number
    of leading zeros; or `ID.mp4`: then it is the whole video, and the list's seconds apply.

    Args:
      path: CSV with youtube_id, time_start, time_end and, optionally, label, split and is_cc.
      folder: where the videos are.
      split: of a list that holds several, the one that is meant.

    Raises:
      UserError: there is no folder or none of the videos in it, the split is unknown, or a row is malformed.
    """
    folder = _require_folder(path, folder, "YouTube ids")
    names, lines = read_csv(path)
    if lacking := [name for name in ("youtube_id", "time_start", "time_end") if name not in names]:
        raise UserError(f"{path} has youtube_id but no column '{lacking[0]}': give a list of Kinetics as published")
    require_rows(path, lines)
    class_names, labels, notes = number_labels(path, [(number, cells.get("label")) for number, cells in lines])
    splits = [_usual(cells.get("split") or "") for _, cells in lines]
    if len(set(splits)) < 2:
        chosen = range(len(lines))
    elif _usual(split) in splits:
        chosen = [i for i, each in enumerate(splits) if each == _usual(split)]
    else:
        known = ", ".join(sorted(set(splits) - {""}))
        raise UserError(f"{path} holds no videos of data.split {split}, but of {known}: choose one of them")

    cut, whole = {}, _by_stem(folder)
    for stem, file in whole.items():
        if found := re.fullmatch(r"(.+)_(\d+)_(\d+)", stem):
            cut.setdefault((found[1], int(found[2]), int(found[3])), file)
    rows: list[Row | None] = []
    for i in chosen:
        number, cells = lines[i]
        start, end = (read_seconds(path, number, name, cells.get(name)) for name in ("time_start", "time_end"))
        if is_missing(cells.get("youtube_id")) or start is None or end is None:
            raise UserError(f"{path}, line {number}: it has no youtube_id, time_start or time_end, give it all three")
        if file := cut.get((cells["youtube_id"], int(start), int(end))):
            rows.append(Row(file, labels[i]))
        elif file := whole.get(cells["youtube_id"]):
            check_part(path, number, start, end)
            rows.append(Row(file, labels[i], start=start, end=end))
        else:
            rows.append(None)
    notes += _check_found(path, folder, rows, [lines[i][1]["youtube_id"] for i in chosen])
    kept = [row for row in rows if row is not None]
    if uncut := sum(row.end is not None for row in kept):
        said = "are named by their id alone, and time_start to time_end is their part"
        notes += (f"{path}: {uncut:,} of {len(kept):,} videos {said}",)
    return Listing(class_names, kept, notes)


def _usual(split: str) -> str:
    return {"val": "validation", "validate": "validation"}.get(split, split)


def list_something(path: Path, folder: Path | None) -> Listing:
    """The videos of a Something-Something list that are in a folder, or anywhere below it.

    A file is called `ID.webm`, or has another suffix of a video. The class is the template without its brackets; the
    label, which is a sentence, becomes the caption. A labels.json beside the list (`something-something-v2-labels.json`
    of an older release) has the order of the classes.

    Args:
      path: JSON, a list of objects with id and, optionally, template and label.
      folder: where the videos are.

    Raises:
      UserError: there is no folder or none of the videos in it, the file is of another kind, or templates are unknown.
    """
    items = _json(path)
    if not isinstance(items, list) or not items or not all(isinstance(item, dict) and "id" in item for item in items):
        raise UserError(
            f"{path} is no list of Something-Something, which is one of objects with an 'id': give that, or a .csv or "
            ".jsonl manifest"
        )
    folder = _require_folder(path, folder, "ids")
    templates = [str(item["template"]) if item.get("template") else None for item in items]
    templates = [template and re.sub(r"[\[\]]", "", template) for template in templates]
    used = set(templates) - {None}
    labels_files = [file for file in path.parent.glob("*labels.json") if path.name.startswith(file.name[:-11])]
    if labels_files:
        file = max(labels_files, key=lambda file: len(file.name))
        class_names = _ordered(file, _json(file))
        if unknown := sorted(used - set(class_names)):
            raise UserError(
                f"{path} has {len(unknown)} templates that are not in {file}, such as '{unknown[0]}': give both files "
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
    notes = _check_found(path, folder, rows, [str(item["id"]) for item in items])
    if used and None in templates:
        notes += (f"{path}: {templates.count(None):,} of {len(items):,} videos have no template, and so no label",)
    return Listing(class_names, [row for row in rows if row is not None], notes)


def _json(path: Path) -> object:
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(f"{path} is not JSON ({error}): give it as published") from error


def _ordered(file: Path, numbers: object) -> tuple[str, ...]:
    """Templates by their numbers, which a labels.json gives as text."""
    ordered = {}
    if isinstance(numbers, dict):
        ordered = {int(number): name for name, number in numbers.items() if re.fullmatch(r"\d+", str(number))}
    if not ordered or sorted(ordered) != list(range(len(numbers))):
        raise UserError(f"{file} must give each template a number, from 0 on: give it as published")
    return tuple(re.sub(r"[\[\]]", "", ordered[number]) for number in range(len(ordered)))


def _require_folder(path: Path, folder: Path | None, named: str) -> Path:
    if folder is None:
        raise UserError(f"{path} names videos by {named}: say which folder they are in, as {path}:FOLDER")
    return folder


def _by_stem(folder: Path) -> dict[str, str]:
    """The first video of each name without its suffix."""
    files: dict[str, str] = {}
    for file in walk_videos(folder)[0]:
        files.setdefault(Path(file).stem, file)
    return files


def _check_found(path: Path, folder: Path, rows: Sequence[Row | None], ids: Sequence[str]) -> tuple[str, ...]:
    """What is to be told of videos that are not there; refuses a folder without any of them."""
    missing = [id for id, row in zip(ids, rows, strict=True) if row is None]
    if len(missing) == len(rows):
        raise UserError(f"none of the {len(rows)} videos of {path} is in {folder} ({ids[0]}, ...): correct the folder")
    if not missing:
        return ()
    first = f"{', '.join(missing[:3])}{', ...' if len(missing) > 3 else ''}"
    return (f"{path}: {len(missing):,} of {len(rows):,} videos are not in {folder} and are left out ({first})",)
