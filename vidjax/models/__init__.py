"""The model families. Every file here that defines `VARIANTS` is a family and is discovered automatically."""

import difflib
import pkgutil
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import import_module
from numbers import Integral, Real
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from vidjax.errors import UserError
from vidjax.fields import choices
from vidjax.models.text import TEXT_VARIANTS

FILES = tuple(import_module(f"{__name__}.{file.name}") for file in pkgutil.iter_modules(__path__))
FAMILIES = tuple(file for file in FILES if hasattr(file, "VARIANTS"))
VARIANTS = MappingProxyType({name: make for family in FAMILIES for name, make in family.VARIANTS.items()})
LANGUAGE_VARIANTS = MappingProxyType(
    {name: make for file in FILES for name, make in getattr(file, "LANGUAGE_VARIANTS", {}).items()}
)
"""Models of text alone, which `create_model` creates too; `list_models` lists those of videos."""

# Every module that these files define, models and their submodules, by its name in checkpoints.
MODULES = MappingProxyType(
    {
        f"{file.__name__.rsplit('.', 1)[-1]}.{name}": kind
        for file in FILES
        for name, kind in vars(file).items()
        if isinstance(kind, type) and issubclass(kind, nn.Module) and kind.__module__ == file.__name__
    }
)


def list_models(contains: str = "") -> list[str]:
    """The sorted names of all models, or of those containing `contains`."""
    return sorted(name for name in VARIANTS if contains in name)


def create_model(name: str, **overrides) -> nn.Module:
    """Creates a model by name, optionally with other values for some of its fields.

    The card, including the accuracy, remains that of the published variant even if fields are overridden.

    Example:
      >>> model = create_model("videomae_tiny", num_classes=8)
      >>> model = create_model("videomae_base", head=MyHead())  # takes features `b d`; see the model's `head`
      >>> model = create_model("clip_base_16", num_frames=8, dtype=jnp.bfloat16)  # see `override` for towers
      >>> model = create_model("gpt2", scan=True)  # one of LANGUAGE_VARIANTS

    Raises:
      UserError: an unknown model (similar names are suggested), an unknown field, or a value of the wrong type.
    """
    return override(name, _look_up("model", name, {**VARIANTS, **LANGUAGE_VARIANTS}), overrides)


def create_text_model(name: str, **overrides) -> nn.Module:
    """Creates a text tower by its name in `TEXT_VARIANTS`, optionally with other values for some of its fields.

    Example:
      >>> tower = create_text_model("clip_base", features=256)

    Raises:
      UserError: see `create_model`.
    """
    return override(name, _look_up("text tower", name, TEXT_VARIANTS), overrides)


def _look_up(kind: str, name: str, variants: Mapping[str, Callable[[], nn.Module]]) -> nn.Module:
    if name not in variants:
        nearest = difflib.get_close_matches(name, variants, n=3, cutoff=0.3) or sorted(variants)
        raise UserError(f"there is no {kind} '{name}': the nearest names are {', '.join(nearest)}")
    return variants[name]()


def towers(model: nn.Module) -> dict[str, nn.Module]:
    """The fields of a model that are models themselves."""
    return {field: value for field, value in _own(model).items() if isinstance(value, nn.Module)}


def _own(model: nn.Module) -> dict[str, Any]:
    """Fields and their values, without those added by Linen."""
    return {field: getattr(model, field) for field in model.__dataclass_fields__ if field not in ("parent", "name")}


def override(name: str, model: nn.Module, overrides: dict[str, Any]) -> nn.Module:
    """A copy of the model with other values for some of its fields.

    In a model with towers, a value is also set in every tower with this field, recursively. Values for one tower only
    are given as a dictionary under the tower's name: `create_model("clip_base_16", dtype=..., text={"depth": 6})`.

    Args:
      name: the model's name in error messages.

    Raises:
      UserError: neither the model nor a tower has the field, or the value is invalid (see `check_fields`).
    """
    fields = _fields(model)
    for field in overrides:
        if field not in fields:
            raise UserError(f"model '{name}' has no field '{field}': its fields are {', '.join(fields)}")
    changed = {field: value for field, value in overrides.items() if field in _own(model)}
    for field, tower in towers(model).items():
        specific = changed.pop(field, {})
        if not isinstance(specific, Mapping):  # another tower
            changed[field] = specific
            continue
        shared = {f: value for f, value in overrides.items() if f in _fields(tower)}
        changed[field] = override(f"{name}'s {field}", tower, shared | dict(specific))
    check_fields(name, type(model), changed)
    return model.clone(**changed)


def with_classes(model: nn.Module, classes: int | None) -> nn.Module:
    """A copy with this number of classes, or without a head; of a model that wraps a classifier, with that changed."""
    if "num_classes" in _own(model):
        return model.clone(num_classes=classes)
    return override(type(model).__name__, model, {"num_classes": classes})


def _fields(model: nn.Module) -> dict[str, None]:
    """Fields of the model, then those of its towers, in order."""
    return dict.fromkeys([*_own(model), *(field for tower in towers(model).values() for field in _fields(tower))])


def check_fields(name: str, module: type[nn.Module], overrides: dict[str, Any]) -> None:
    """Checks that the overrides are fields of the module, with values of the declared types and in range.

    Args:
      name: the model's name in error messages.

    Raises:
      UserError: an unknown field or an invalid value.
    """
    fields = module.__dataclass_fields__
    for field, value in overrides.items():
        if field not in fields:
            known = ", ".join(field for field in fields if field not in ("parent", "name"))
            raise UserError(f"model '{name}' has no field '{field}': its fields are {known}")
        kind = fields[field].type
        if not _is_of(value, kind):
            words = ", ".join(map(str, choices(kind)))
            kind = f"one of {words}" if words else kind.__name__ if isinstance(kind, type) else kind
            raise UserError(f"{field} of model '{name}' is {value!r}: it must be {kind}")
        if (
            isinstance(value, Integral)
            and float not in (kind, *get_args(kind))
            and not isinstance(value, bool)
            and value < 1
        ):
            features = ", or None for features" if field == "num_classes" else ""
            raise UserError(f"{field} of model '{name}' is {value}: it must be 1 or more{features}")
        if field.endswith(("drop_path", "dropout")) and not 0 <= value < 1:
            raise UserError(f"{field} of model '{name}' is {value}: it must be at least 0 and below 1")


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a literal, number, boolean or tuple has the declared type; other types are checked by the models."""
    if get_origin(kind) in (Union, UnionType):
        return any(_is_of(value, one) for one in get_args(kind))
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if kinds[-1] is Ellipsis and isinstance(value, tuple | list):
            kinds = kinds[:1] * len(value)
        return isinstance(value, tuple | list) and len(value) == len(kinds) and all(map(_is_of, value, kinds))
    if get_origin(kind) is Literal:
        return value in get_args(kind)
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    return isinstance(value, kind) if kind in (bool, NoneType, nn.Module) else True


def example_inputs(model: nn.Module) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shapes of the model's inputs for one clip of the size that the variant is meant for.

    A text tower takes ids, a cross-encoder tokens; a video-text model takes a video, and optionally ids.
    """
    if hasattr(model, "context") and not hasattr(model, "example_inputs"):
        return (jax.ShapeDtypeStruct((1, model.context), jnp.int32),)
    if "positions" in model.__dataclass_fields__:
        return (jax.ShapeDtypeStruct((1, model.positions, model.width), jnp.float32),)
    if not hasattr(model, "num_frames"):  # it takes features or tokens
        return model.example_inputs()
    shape = (1, model.num_frames, model.image_size, model.image_size, model.channels)
    video = jax.ShapeDtypeStruct(shape, jnp.float32)
    return model.example_inputs(video) if hasattr(model, "example_inputs") else (video,)


def variable_shapes(model: nn.Module) -> PyTree[jax.ShapeDtypeStruct]:
    """Shapes of the variables that `init` returns for `example_inputs`, without computing them.

    Tracing a large model takes seconds, so the shapes of the last models are kept.
    """
    try:
        hash(model)
    except TypeError:  # a head of the user's with a field that is a list or an array
        return _trace(model)
    return jax.tree.map(lambda leaf: leaf, _trace_once(model))  # a copy, which may be changed


def _trace(model: nn.Module) -> PyTree[jax.ShapeDtypeStruct]:
    return jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model))


_trace_once = lru_cache(maxsize=64)(_trace)
