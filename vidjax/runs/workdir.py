"""The work directory of a training run: what is in it, and which config may go on with it.

It holds `config.json`, the run's whole config; `vidjax.json`, the model; `sources.json`, what the data are;
`checkpoints/`, the newest states; and, where the run validated, `best/`. Whatever reads weights takes a work directory
as well as a published checkpoint.
"""

import hashlib
import json
import os
from collections.abc import Callable, Collection
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from vidjax.cli import as_dict, make_folder
from vidjax.convert.checkpoint import NAME
from vidjax.errors import UserError
from vidjax.fields import describe_changes, differing_fields, matters

if TYPE_CHECKING:  # TensorFlow takes seconds, which models need not
    from vidjax.data.sources import Source

OURS = (
    "config.json", "vidjax.json", "sources.json", "metrics.jsonl", "checkpoints", "best", "tensorboard", "curves.png",
    "reconstructions", "similarity", "tokenizer",
    "bad_files*.jsonl", "bad_validation_files*.jsonl", "skipped_step_*.npz",
)  # fmt: skip
"""What a run writes into its work directory, by name or pattern."""


def is_run(path: str | Path) -> bool:
    """Whether `path` is the work directory of a run that trained a model."""
    return (Path(path) / "config.json").is_file() and (Path(path) / NAME).is_file()


def read_config(workdir: str | Path) -> dict[str, Any]:
    """The config of the run in a work directory, as a dict.

    Raises:
      UserError: there is none.
    """
    path = Path(workdir) / "config.json"
    if not path.is_file():
        raise UserError(f"{workdir} is no vidjax run, as it has no config.json: give the directory of one")
    try:
        config = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} cannot be read ({error}): restore it from a copy") from error
    return config if isinstance(config, dict) else {}


def open_workdir(
    workdir: str | Path, config: Any, *, same: Collection[str] = (), fits: Callable[[], bool] = lambda: True
) -> Path:
    """The run's directory, made if need be, with the effective config in `config.json`.

    A begun run goes on with another config where only fields differ that change no number (`fields.free`), or where
    `config.accept_changes` says so.

    Args:
      same: names of further fields whose new value means what the old one meant, as the path of data that was moved.
      fits: whether the run's checkpoints fit this config; asked where other fields differ.

    Raises:
      UserError: it belongs to a run of another config (the fields that differ are named), or to no run of ours.
      UserError: it cannot be written.
    """
    path = Path(workdir)
    make_folder(path, "--workdir", "the work directory")
    saved, began = path / "config.json", (path / "metrics.jsonl").exists() or (path / "checkpoints").exists()
    ours = saved.exists() and "workdir" in read_config(path)
    if not ours and (others := [found.name for name in OURS for found in sorted(path.glob(name))]):
        raise UserError(f"{path} holds {others[0]}, which is not of a run of vidjax: choose another --workdir")
    if began:
        differing = differing_fields(read_config(path), as_dict(config), as_dict(type(config)()))
        differing = {name: both for name, both in differing.items() if name not in same}
        when = {name: matters(config, name) for name in differing}
        counting = {name: both for name, both in differing.items() if when[name] != "never"}
        if counting:
            refusal = (
                f"{path} holds a run of another config: {describe_changes(counting)}; give what it was begun with, or"
            )
            if "at the start" in when.values() or not fits():
                raise UserError(f"{refusal} another --workdir, with --init_from {path} to start from its weights")
            if not getattr(config, "accept_changes", False):
                raise UserError(f"{refusal} --accept_changes to go on with this from its last checkpoint")
    unfinished = path / f".config_{os.getpid()}.json"  # a run that took no step may begin anew
    unfinished.write_text(json.dumps(as_dict(config), indent=2) + "\n")
    os.replace(unfinished, saved)
    return path


def open_run(config: Any, state: Any, **sources: "Source") -> Path:
    """The work directory of a training script, see `open_workdir`: what is in it fits the state and the data.

    `sources.json` knows the data by its examples, so that a run goes on where they were moved.

    Args:
      state: its shapes.
      sources: by the name of their field in `config.data`.
    """
    from vidjax.training.checkpoint import fits, has_checkpoint  # Orbax is no dependency of a model

    path, goes_on = Path(config.workdir) / "sources.json", has_checkpoint(Path(config.workdir))
    known = json.loads(path.read_text()) if path.exists() else {}
    examples = {f"data.{name}": describe_examples(source) for name, source in sources.items()}
    same = [name for name in examples if examples[name] == known.get(name)]
    workdir = open_workdir(config.workdir, config, same=same, fits=partial(fits, Path(config.workdir), state))
    if jax.process_index() == 0:
        for name in (examples.keys() & known.keys() - set(same)) if goes_on else ():
            print(
                f"note: {name} has other examples than before ({known[name]['examples']:,} then, "
                f"{examples[name]['examples']:,} now): from here on other clips come"
            )
        unfinished = path.with_suffix(".json.tmp")  # other processes may be reading
        unfinished.write_text(json.dumps(examples, indent=2) + "\n")
        os.replace(unfinished, path)
    return workdir


def describe_examples(source: "Source") -> dict[str, Any]:
    """How many examples a source has, and a hash of their names below the folder that they share.

    And of their labels and captions, where these can be had without reading all of the data.
    """
    folders = (name.split("/")[:-1] for name in (min(source.ids), max(source.ids)))
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(*folders, strict=False)))
    described = hashlib.sha256(repr(source.class_names).encode())
    for index, name in enumerate(source.ids):
        text = (source.label(index), source.captions(index)) if source.listed else ()
        described.update(repr((name.split("/", shared)[-1], *text)).encode())
    return {"examples": len(source), "sha256": described.hexdigest()}
