"""Features of videos on disk: written in parts, then joined into one `.npz` or TFRecord file, or a folder of `.npy`s.

A part contains the windows of some examples as arrays with one row per window: features, index (of the example), start
and end (seconds), first (the number of its first sampled frame) and labels. It also contains `bad`, the unreadable
examples, as JSON. Joining reads one part at a time.
"""

import json
import os
import shutil
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vidjax.errors import UserError

ARRAYS = ("features", "start", "end", "labels")
"""Arrays in both parts and finished files. In place of the index, a finished file has ids."""
SINCE = {"data.stream": "video", "feature_dtype": "float32"}
VIDEOS = "videos.json"
"""In a folder of features: their settings, and the rate of the sampled frames and the duration of each video."""


def parts_of(out: Path) -> Path:
    """The folder that contains the parts of a file until it is finished."""
    return out.with_name(f"{out.name}.parts")


def open_parts(out: Path, meta: Mapping[str, Any]) -> Path | None:
    """Returns the folder for the parts, which may contain parts of an interrupted run; None if the file is finished.

    Raises:
      UserError: the file or its parts were made with other settings (the message names them), the file was not written
        by embed.py, or the folder cannot be created.
    """
    folder = parts_of(out)
    if out.exists():
        check_same(str(out), read_meta(out), meta)
        shutil.rmtree(folder, ignore_errors=True)  # left over if the run was interrupted before removing it
        return None
    if (folder / "meta.json").exists():
        check_same(str(folder), json.loads((folder / "meta.json").read_text()), meta)
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "meta.partial").write_text(json.dumps(meta, indent=1) + "\n")
        os.replace(folder / "meta.partial", folder / "meta.json")
    except OSError as error:
        raise UserError(f"cannot write to {folder} ({error.strerror}): choose another --out") from None
    return folder


def check_same(where: str, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Raises UserError, which names the differing settings, unless features at `where` were made in the same way."""
    # Older files do not contain these.
    old = {name: value for name, value in SINCE.items() if name in new} | dict(old)
    names = sorted(old.keys() | new.keys())
    differing = [
        "the files, parts or labels changed" if name == "list" else f"{name} was {old.get(name)}, is {new.get(name)}"
        for name in names
        if old.get(name) != new.get(name)
    ]
    if differing:
        raise UserError(
            f"{where} contains features made in another way ({'; '.join(differing)}): choose another --out, nothing is "
            "overwritten"
        )


def read_meta(out: Path) -> dict[str, Any]:
    """The settings with which a finished file was made.

    Raises:
      UserError: the file was not written by embed.py.
    """
    if not out.exists():
        raise UserError(f"{out} does not exist: embed videos first")
    try:
        if out.is_dir():
            return json.loads((out / VIDEOS).read_text())["meta"]
        if out.suffix == ".npz":
            with np.load(out) as arrays:
                return json.loads(str(arrays["meta"]))
        return json.loads(_sidecar(out).read_text())["meta"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{out} has no features written by embed.py: choose another file") from error


def write_part(path: Path, arrays: Mapping[str, np.ndarray], bad: Sequence[Mapping[str, str]]) -> None:
    """Writes a part atomically."""
    unfinished = path.with_suffix(".partial")
    with open(unfinished, "wb") as file:
        np.savez(file, **arrays, bad=np.array(json.dumps(bad)))
    os.replace(unfinished, path)


def read_bad(parts: Sequence[Path]) -> list[dict[str, str]]:
    """The unreadable examples in the parts, with their errors."""
    bad = []
    for path in parts:
        with np.load(path) as part:
            bad += json.loads(str(part["bad"]))
    return bad


def join(
    parts: Sequence[Path], out: Path, ids: Sequence[str], class_names: Sequence[str], meta: Mapping[str, Any]
) -> tuple[int, ...]:
    """Joins all parts into one file and removes their folder; returns the shape of the features.

    Args:
      parts: paths of the parts, in order.
      out: .npz, or .tfrecord with a .json file in the same folder, or without suffix a folder of .npy files.
      ids: ids of all examples.
      class_names: empty without labels.
      meta: settings with which the features were made.

    Raises:
      UserError: no part contains features.
    """
    shapes = []
    for path in parts:
        with np.load(path) as part:
            shapes.append(part["features"].shape)
    nonempty = [path for path, shape in zip(parts, shapes, strict=True) if shape[0]]
    if not nonempty:
        raise UserError(
            f"no features were made: none of the {len(ids)} videos could be read, look with experiments/check_data.py"
        )
    shape = (sum(shape[0] for shape in shapes), *next(shape for shape in shapes if shape[0])[1:])
    unfinished = out.with_name(f"{out.name}.partial")
    if not out.suffix:
        _write_folder(unfinished, nonempty, ids, meta)
    elif out.suffix == ".npz":
        _write_npz(unfinished, nonempty, shape[0], ids, class_names, meta)
    else:
        _sidecar(out).write_text(json.dumps({"class_names": list(class_names), "meta": meta}, indent=1) + "\n")
        _write_records(unfinished, nonempty, ids)
    os.replace(unfinished, out)
    shutil.rmtree(parts_of(out))
    return shape


def _sidecar(out: Path) -> Path:
    """The .json file of a .tfrecord file."""
    return out.with_name(f"{out.name}.json")


def _write_npz(
    path: Path, parts: Sequence[Path], count: int, ids: Sequence[str], class_names: Sequence[str], meta: Mapping
) -> None:
    """Writes the file that `np.savez` would, with only one part in memory at a time."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in ARRAYS:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                for position, source in enumerate(parts):
                    with np.load(source) as part:
                        array = np.ascontiguousarray(part[name])
                    if not position:
                        header = np.lib.format.header_data_from_array_1_0(array)
                        header["shape"] = (count, *array.shape[1:])
                        np.lib.format.write_array_header_1_0(file, header)
                    file.write(memoryview(array).cast("B"))
        index = np.concatenate([np.load(source)["index"] for source in parts])
        rest = {
            "ids": np.array([ids[i] for i in index]),
            "class_names": np.array(class_names, dtype=None if class_names else "U1"),
            "meta": np.array(json.dumps(meta)),
        }
        for name, array in rest.items():
            with archive.open(f"{name}.npy", "w") as file:
                np.lib.format.write_array(file, array, allow_pickle=False)


def require_names(ids: Sequence[str], remedy: str = "rename one, or write an .npz file") -> None:
    """Raises UserError if two videos have files of the same name, so that their features would too."""
    names: dict[str, str] = {}
    for name in ids:
        if (other := names.setdefault(Path(name).stem, name)) != name:
            raise UserError(f"{other} and {name} have the same name: {remedy}")


def sampled_rate(first: np.ndarray, start: np.ndarray, end: np.ndarray, window: int) -> float:
    """Sampled frames per second, from the first sampled frames of the windows of a video, and their times."""
    if len(first) == 1:
        return float(window / (end[0] - start[0]))
    return float((first[-1] - first[0]) / (start[-1] - start[0]))


def _write_folder(folder: Path, parts: Sequence[Path], ids: Sequence[str], meta: Mapping[str, Any]) -> None:
    """Writes one `.npy` file (t d) for each video, and `videos.json`.

    Its features are `stride` sampled frames apart: a last window that is nearer to the one before is left out.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    videos = {}
    for source in parts:
        with np.load(source) as part:
            arrays = {name: part[name] for name in ("features", "index", "start", "end", "first")}
        for index in np.unique(arrays["index"]):
            rows = arrays["index"] == index
            start, end, first = (arrays[name][rows] for name in ("start", "end", "first"))
            name = Path(ids[index]).stem
            np.save(folder / f"{name}.npy", arrays["features"][rows][first % meta["stride"] == 0])
            videos[name] = {"fps": sampled_rate(first, start, end, meta["window"]), "duration": float(end[-1])}
    settings = {"window": meta["window"], "stride": meta["stride"], "meta": dict(meta), "videos": videos}
    (folder / VIDEOS).write_text(json.dumps(settings, indent=1) + "\n")


def _write_records(path: Path, parts: Sequence[Path], ids: Sequence[str]) -> None:
    """Writes one `tf.train.Example` per window: features (flat floats) and their shape, id, start, end, label."""
    import tensorflow as tf  # takes seconds and is not needed for .npz files

    def floats(values: Any) -> tf.train.Feature:
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))

    def integers(values: Any) -> tf.train.Feature:
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    with tf.io.TFRecordWriter(os.fsencode(path)) as writer:
        for source in parts:
            with np.load(source) as part:
                arrays = {name: part[name] for name in (*ARRAYS, "index")}
            for row, index in enumerate(arrays["index"]):
                feature = {
                    "features": floats(arrays["features"][row].ravel()),
                    "shape": integers(arrays["features"].shape[1:]),
                    "id": tf.train.Feature(
                        bytes_list=tf.train.BytesList(value=[ids[index].encode(errors="surrogateescape")])
                    ),
                    "start": floats([arrays["start"][row]]),
                    "end": floats([arrays["end"][row]]),
                    "label": integers([arrays["labels"][row]]),
                }
                writer.write(
                    tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString(deterministic=True)
                )
