"""vidjax's own checkpoint format: a directory with `model.safetensors` and `vidjax.json`, which describes the model."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict

from vidjax.convert import files
from vidjax.convert.files import Weights, weights_of
from vidjax.convert.rules import Layout, Rule
from vidjax.errors import UserError
from vidjax.layers.adapters import Adapter
from vidjax.layers.card import Card
from vidjax.models import MODULES, towers, variable_shapes

NAME = "vidjax.json"
COMPUTING = ("dtype", "remat", "scan", "implementation")  # fields that change how a model computes, but not what
OURS, KEY = "vidjax's own", "vidjax"


def is_one(path: Path) -> bool:
    """Whether `path` is a checkpoint in vidjax's own format."""
    return (path / NAME).is_file() and weights_of(path) is not None


def save_pretrained(directory: str | Path, model: nn.Module, variables: dict) -> None:
    """Writes a model and its variables, so that `load_pretrained(directory)` returns both with identical values.

    Parameters are loaded as float32, which represents bfloat16 values exactly. Fields that only affect the computation
    (`dtype`, `remat`, `scan`, `implementation`) are not saved, but chosen when loading.

    Raises:
      UserError: the directory is not empty or cannot be created.
      UserError: the model is not one of vidjax's modules, or the variables do not belong to it.
      UserError: safetensors is not installed.
    """
    try:
        from safetensors.numpy import save_file
    except ImportError as error:
        raise UserError("writing a checkpoint needs safetensors: pip install safetensors") from error
    directory = Path(directory)
    require_empty(directory)
    describe(model)
    check_variables(model, variables)
    make(directory)
    write_model(directory, model)
    flat = flatten_dict(variables, sep="/")
    save_file({name: np.asarray(value, order="C") for name, value in flat.items()}, directory / "model.safetensors")


def require_empty(directory: Path) -> None:
    """Raises `UserError` unless the directory is new or empty."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} is not an empty directory: give another one, nothing is overwritten")


def check_variables(model: nn.Module, variables: dict) -> None:
    """Raises `UserError` unless the variables have exactly the model's paths and shapes."""
    initial = variable_shapes(model)
    expected, given = (
        {(name, leaf.shape) for name, leaf in flatten_dict(each, sep="/").items()} for each in (initial, variables)
    )
    if different := sorted(expected ^ given):
        raise UserError(
            f"the variables are not those of the {type(model).__name__}: {different[0][0]} is missing, of another "
            'shape or unexpected; pass all variables that init returns, {"params": ...} and any other collections'
        )


def make(directory: Path) -> None:
    """Creates the directory and its parents."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {directory} ({error.strerror}): give another directory") from error


def describe(model: nn.Module) -> dict:
    """The model's module and fields (except `COMPUTING`), and those of its towers, as JSON-compatible values."""
    left_out = {"parent", "name", *COMPUTING}
    fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.name not in left_out}
    fields |= {name: describe(tower) for name, tower in towers(model).items()}
    fields |= {name: dataclasses.asdict(value) for name, value in fields.items() if isinstance(value, Card | Adapter)}
    name = next((name for name, module in MODULES.items() if module is type(model)), None)
    if name is None:
        raise UserError(
            f"{type(model).__name__} is not one of vidjax's modules, so it could not be rebuilt when loading: add it "
            "to a file in vidjax/models, or save the variables yourself"
        )
    return {"module": name, "fields": fields}


def read(path: Path) -> tuple[nn.Module, Weights]:
    """The model and the weights of a checkpoint.

    Raises:
      UserError: the description is damaged or was written by an incompatible version.
    """
    return read_model(path), files.read(path)


def write_model(directory: Path, model: nn.Module) -> None:
    """Writes `vidjax.json`, the description of the model."""
    (directory / NAME).write_text(json.dumps(describe(model), indent=1) + "\n")


def read_model(directory: Path) -> nn.Module:
    """The model described by the directory's `vidjax.json`.

    Raises:
      UserError: the description is damaged or was written by an incompatible version.
    """
    try:
        return _build(json.loads((directory / NAME).read_text()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{directory / NAME} does not describe a model of this version of vidjax ({error}): "
            "save the model again with this version"
        ) from error


def _build(description: dict) -> nn.Module:
    module = MODULES[description["module"]]
    fields = {name: _tuples(value) for name, value in description["fields"].items()}
    fields |= {name: _build(value) for name, value in fields.items() if isinstance(value, dict) and "module" in value}
    if "card" in fields:
        fields["card"] = Card(**{name: _tuples(value) for name, value in fields["card"].items()})
    if fields.get("adapter"):
        fields["adapter"] = Adapter(**fields["adapter"])
    return module(**fields)


def layout(weights: Weights, published: Sequence[Layout]) -> Layout:
    """The layout of our own checkpoints: names are our paths, and shapes are fitted as by the published layouts."""
    fitted = [rule for layout in published for rule in layout.rules if rule.fit is not None]
    collections = ("params/", "batch_stats/", "queue/")
    paths = {name: name.removeprefix("params/") for name in weights if name.startswith(collections)}
    fits = {path: next((rule.fit for rule in fitted if rule.entry(path)), None) for path in paths.values()}
    rules = tuple(Rule(name, path, fit=fits[path]) for name, path in paths.items())
    return Layout(OURS, marker=next(iter(paths), "params/"), rules=rules, key=KEY)


def _tuples(value):
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
