"""The work directory of a training run: its contents, and with which config a run can resume.

It contains `config.json`, the full config; `vidjax.json`, the model; `sources.json`, a description of the data;
`checkpoints/`, the newest states; and, with validation, `best/`. Everything that reads weights accepts a work directory
as well as a published checkpoint.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Collection
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from vidjax.cli import as_dict, make_folder
from vidjax.convert import hub
from vidjax.convert.checkpoint import NAME
from vidjax.errors import UserError
from vidjax.fields import describe_changes, differing_fields, matters

if TYPE_CHECKING:  # PyAV and the tokenizers are imported when they are needed
    from vidjax.data.sources import Source

RUN_FILES = (
    "config.json", "vidjax.json", "sources.json", "metrics.jsonl", "checkpoints", "best", "tensorboard", "curves.png",
    "reconstructions", "pictures", "similarity", "tokenizer",
    "bad_files*.jsonl", "bad_validation_files*.jsonl", "skipped_step_*.npz", "timelines.png", "features.json",
    "detections.csv", "detections.png", "classes.csv", "action_ids.json",
    "moments.png", "queries.npy", "queries.json", "reference.json", "adaptive.json", "adaptive.md", "adaptive.png",
)  # fmt: skip
"""Names and patterns of the files that a run writes into its work directory."""
TOKENIZER_FOLDER = "tokenizer"
"""Subdirectory of a work directory with a copy of the tokeniser's files."""
TOKENIZER_FILES = ("merges.txt", "vocab.json", "tokenizer.json")
"""Tokeniser files of a Hugging Face directory."""


def is_run(path: str | Path) -> bool:
    """Whether `path` is the work directory of a training run."""
    return (Path(path) / "config.json").is_file() and (Path(path) / NAME).is_file()


def read_config(workdir: str | Path) -> dict[str, Any]:
    """The config of the run in a work directory, as a dict.

    Raises:
      UserError: there is no config, or it is damaged.
    """
    path = Path(workdir) / "config.json"
    if not path.is_file():
        raise UserError(f"{workdir} is not a vidjax run, it has no config.json: give the work directory of a run")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error}): restore it from a copy") from error
    return config if isinstance(config, dict) else {}


def open_workdir(
    workdir: str | Path, config: Any, *, same: Collection[str] = (), fits: Callable[[], bool] = lambda: True
) -> Path:
    """Creates or reopens a work directory, and writes the effective config to `config.json`.

    A run resumes with a different config if the changed fields do not affect the results (`fields.free`), or if
    `config.accept_changes` is set.

    Args:
      same: names of other fields whose new value is equivalent to the old one, such as the path of data that was moved.
      fits: whether the run's checkpoints fit this config; called only if relevant fields differ.

    Raises:
      UserError: it contains a run with a different config (the message names the fields), or other files with the same
        names, or cannot be written.
    """
    path = Path(workdir)
    make_folder(path, "--workdir", "the work directory")
    saved, has_begun = path / "config.json", (path / "metrics.jsonl").exists() or (path / "checkpoints").exists()
    # Files are listed before config.json is read: another process of this run writes it before any of the others.
    found = [file.name for pattern in RUN_FILES for file in sorted(path.glob(pattern))]
    if found and not (saved.exists() and "workdir" in read_config(path)):
        raise UserError(f"{path} contains {found[0]}, which no vidjax run wrote: choose another --workdir")
    if has_begun:
        changes = differing_fields(read_config(path), as_dict(config), as_dict(type(config)()))
        changes = {name: values for name, values in changes.items() if name not in same}
        when = {name: matters(config, name) for name in changes}
        relevant = {name: values for name, values in changes.items() if when[name] != "never"}
        if relevant:
            refusal = f"{path} contains a run of another config: {describe_changes(relevant)}; use its flags, or"
            if "at the start" in when.values() or not fits():
                raise UserError(f"{refusal} another --workdir, with --init_from {path} to start from its weights")
            if not getattr(config, "accept_changes", False):
                raise UserError(f"{refusal} --accept_changes to continue with the new ones from its last checkpoint")
    unfinished = path / f".config_{os.getpid()}.json"  # replaces that of a run that was stopped before its first step
    unfinished.write_text(json.dumps(as_dict(config), indent=2) + "\n")
    os.replace(unfinished, saved)
    return path


def open_run(config: Any, state: Any, **sources: "Source") -> Path:
    """Opens the work directory of a training script, checking that it fits the state and the data; see `open_workdir`.

    `sources.json` identifies the data by their examples, and the tokeniser is compared with its copy, so that a run
    resumes after they were moved.

    Args:
      state: shapes of the state.
      sources: by the name of their field in `config.data`.
    """
    from vidjax.training.checkpoint import fits, has_checkpoint  # models do not depend on Orbax

    path, resumes = Path(config.workdir) / "sources.json", has_checkpoint(Path(config.workdir))
    previous = json.loads(path.read_text()) if path.exists() else {}
    examples = {f"data.{name}": describe_examples(source) for name, source in sources.items()}
    same = [name for name in examples if examples[name] == previous.get(name)]
    name = getattr(config, "tokenizer", None) or "bytes"
    if resumes and name != "bytes" and (Path(config.workdir) / TOKENIZER_FOLDER).is_dir():
        if not _has_kept_tokenizer(name, Path(config.workdir)):
            raise UserError(
                f"{config.workdir}: tokenizer was another one than {name}, see its copy in {TOKENIZER_FOLDER}/: give "
                "that one, or another --workdir"
            )
        same.append("tokenizer")
    workdir = open_workdir(config.workdir, config, same=same, fits=partial(fits, Path(config.workdir), state))
    if jax.process_index() == 0:
        for name in (examples.keys() & previous.keys() - set(same)) if resumes else ():
            print(
                f"note: {name} has other examples than before ({previous[name]['examples']:,} then, "
                f"{examples[name]['examples']:,} now): the clips differ from this step on"
            )
        unfinished = path.with_suffix(".json.tmp")  # other processes may be reading
        unfinished.write_text(json.dumps(examples, indent=2) + "\n")
        os.replace(unfinished, path)
    return workdir


def keep_tokenizer(name: str, workdir: Path) -> None:
    """Copies the tokeniser's files into a work directory, so that the run can be moved without them."""
    if name == "bytes" or (workdir / TOKENIZER_FOLDER).exists():
        return
    files = _tokenizer_files(name)
    (workdir / TOKENIZER_FOLDER).mkdir()
    for file in files:
        shutil.copy(file, workdir / TOKENIZER_FOLDER)


def _tokenizer_files(name: str) -> list[Path]:
    path = hub.fetch(name)
    folder = path if path.is_dir() else path.parent
    is_directory = path.is_dir() or path.name in ("merges.txt", "vocab.json")
    return [folder / file for file in TOKENIZER_FILES if (folder / file).is_file()] if is_directory else [path]


def _has_kept_tokenizer(name: str, workdir: Path) -> bool:
    """Whether a run keeps a copy of this tokeniser's files."""
    files = {file.name: file.read_bytes() for file in _tokenizer_files(name)}
    return files == {file.name: file.read_bytes() for file in (workdir / TOKENIZER_FOLDER).iterdir()}


def describe_examples(source: "Source") -> dict[str, Any]:
    """The number of examples of a source, and a hash of their names below their common folder.

    The hash covers labels and captions too, unless these require reading all of the data, what captions are preferred
    to if it is used, and the weights of a mix.
    """
    folders = (name.split("/")[:-1] for name in (min(source.ids), max(source.ids)))
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*folders, strict=False)))
    described = hashlib.sha256(repr(source.class_names).encode())
    uses_pairs = "pairs" in getattr(source, "fields", ())  # sources of segments and moments have no fields
    for index, name in enumerate(source.ids):
        text = (source.label(index), source.captions(index)) if source.listed else ()
        text += (source.rejected(index),) if uses_pairs else ()
        described.update(repr((name.split("/", shared)[-1], *text)).encode())
    if source.parts:
        described.update(repr([(part.count, part.weight) for part in source.parts]).encode())
    return {"examples": len(source), "sha256": described.hexdigest()}
