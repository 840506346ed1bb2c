"""vidjax's own checkpoints of a model: a directory of `model.safetensors` and `vidjax.json`, which says what it is."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict

from vidjax.convert import files
from vidjax.convert.files import Weights, weights_of
from vidjax.convert.rules import Layout, Rule
from vidjax.errors import UserError
from vidjax.layers.card import Card
from vidjax.models import MODULES, example_inputs, towers

NAME = "vidjax.json"
COMPUTING = ("dtype", "remat", "scan", "implementation")  # fields that say how a model computes, not what
OURS, KEY = "vidjax's own", "vidjax"


def is_one(path: Path) -> bool:
    """Whether a checkpoint of ours is at `path`."""
    return (path / NAME).is_file() and weights_of(path) is not None


def save_pretrained(directory: str | Path, model: nn.Module, variables: dict) -> None:
    """Writes a model and its variables so that `load_pretrained(directory)` gives both back, every value as it was.

    Parameters come back as float32, as those of all models are; bfloat16 loses nothing in it. How to compute
    (`COMPUTING`) is no property of weights: it is chosen anew where they are loaded.

    Raises:
      UserError: something is there already.
      UserError: the directory cannot be made.
      UserError: the model is not of the library's families, or the variables are not of the model.
      UserError: safetensors is not installed.
    """
    try:
        from safetensors.numpy import save_file
    except ImportError as error:
        raise UserError("writing a checkpoint needs safetensors: pip install safetensors") from error
    directory = Path(directory)
    refuse_full(directory)
    describe(model)
    check_variables(model, variables)
    make(directory)
    write_model(directory, model)
    flat = flatten_dict(variables, sep="/")
    save_file({name: np.asarray(value, order="C") for name, value in flat.items()}, directory / "model.safetensors")


def refuse_full(directory: Path) -> None:
    """Refuses what is no empty directory: nothing is overwritten."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise UserError(f"{directory} is not an empty directory: give another one, nothing is overwritten")


def check_variables(model: nn.Module, variables: dict) -> None:
    """Refuses variables that are not the model's, all of them and of its shapes."""
    expected = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model))
    ours, theirs = (
        {(name, leaf.shape) for name, leaf in flatten_dict(each, sep="/").items()} for each in (expected, variables)
    )
    if odd := sorted(ours ^ theirs):
        raise UserError(
            f"the variables are not those of the {type(model).__name__}: {odd[0][0]} is missing, of another shape or "
            'too many; give the whole dictionary that init returns, {"params": ...} and what is beside it'
        )


def make(directory: Path) -> None:
    """Makes the directory and those above it."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make {directory} ({error.strerror}): give another directory") from error


def describe(model: nn.Module) -> dict:
    """The model's module and fields, and those of the towers among them, as JSON has them, but for how it computes."""
    left_out = {"parent", "name", *COMPUTING}
    fields = {f.name: getattr(model, f.name) for f in dataclasses.fields(model) if f.name not in left_out}
    fields |= {name: describe(tower) for name, tower in towers(model).items()}
    fields |= {name: dataclasses.asdict(value) for name, value in fields.items() if isinstance(value, Card)}
    name = next((name for name, module in MODULES.items() if module is type(model)), None)
    if name is None:
        raise UserError(
            f"a {type(model).__name__} is none of vidjax's modules, so nothing could make it again: put it into "
            "a file of vidjax/models, or save the variables by yourself"
        )
    return {"module": name, "fields": fields}


def read(path: Path) -> tuple[nn.Module, Weights]:
    """The model and its weights.

    Raises:
      UserError: the description is damaged or of another version.
    """
    return read_model(path), files.read(path)


def write_model(directory: Path, model: nn.Module) -> None:
    """Writes `vidjax.json`, which says what the model is."""
    (directory / NAME).write_text(json.dumps(describe(model), indent=1) + "\n")


def read_model(directory: Path) -> nn.Module:
    """The model that the directory's `vidjax.json` describes.

    Raises:
      UserError: the description is damaged or of another version.
    """
    try:
        return _build(json.loads((directory / NAME).read_text()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"{directory / NAME} does not describe a model of this version of vidjax ({error}): "
            "save it again by this one"
        ) from error


def _build(told: dict) -> nn.Module:
    module = MODULES[told["module"]]
    fields = {name: _tuples(value) for name, value in told["fields"].items()}
    fields |= {name: _build(value) for name, value in fields.items() if isinstance(value, dict) and "module" in value}
    if "card" in fields:
        fields["card"] = Card(**{name: _tuples(value) for name, value in fields["card"].items()})
    return module(**fields)


def layout(weights: Weights, published: Sequence[Layout]) -> Layout:
    """Our own names are their own rules; what the published ones resize is resized here too."""
    fits = {rule.target: rule.fit for layout in published for rule in layout.rules if rule.fit is not None}
    ours = {name: name.removeprefix("params/") for name in weights if name.startswith(("params/", "batch_stats/"))}
    rules = tuple(Rule(name, path, fit=fits.get(path)) for name, path in ours.items())
    return Layout(OURS, sign=next(iter(ours), "params/"), rules=rules, key=KEY)


def _tuples(value):
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
