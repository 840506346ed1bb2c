"""What the fields of a config are declared to hold, and what it means for a run when they change."""

import dataclasses
import math
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from vidjax.errors import UserError

Value = TypeVar("Value")


def check_values(config: Any, prefix: str = "") -> None:
    """Refuses a word that its field does not know, and a number that is infinite or none; for `__post_init__`.

    Args:
      prefix: of the fields' names in the sentence, such as `optim.`.

    Raises:
      UserError: see there.
    """
    for name, kind in get_type_hints(type(config)).items():
        value, words = getattr(config, name), choices(kind)
        for one in value if isinstance(value, tuple) else (value,):
            if words and one not in words and not (one is None and NoneType in get_args(kind)):
                raise UserError(f"{prefix}{name} is {one!r}: choose one of {', '.join(map(str, words))}")
            if isinstance(one, float) and not math.isfinite(one):
                raise UserError(f"{prefix}{name} is {one}: it must be a finite number")


def require_positive(config: Any, *names: str) -> None:
    """Refuses a number of these fields that is not above 0; None passes.

    Raises:
      UserError: see there.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and value <= 0:
            raise UserError(f"{name} is {value}: it must be above 0")


def require_not_negative(config: Any, *names: str) -> None:
    """Refuses a number of these fields that is below 0; None passes.

    Raises:
      UserError: see there.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 0:
            raise UserError(f"{name} is {value}: it must be 0 or more")


def choices(kind: Any) -> tuple[Any, ...]:
    """The words that a type names by `Literal`, in itself or in its parts; empty where it names none."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    return tuple(word for part in get_args(kind) for word in choices(part))


def free(default: Value) -> Value:
    """A field of a run's config that changes none of its numbers: a begun run goes on with another value."""
    return dataclasses.field(default=default, metadata={"matters": "never"})


def initial(default: Value) -> Value:
    """A field that matters at a run's beginning alone: a begun run cannot take another value."""
    return dataclasses.field(default=default, metadata={"matters": "at the start"})


def matters(config: Any, name: str) -> Literal["never", "at the start", "always"]:
    """When the value of a field counts; what is said of a group of fields is said of all in it.

    Args:
      name: dotted; one that the config does not have always counts.
    """
    for part in name.split("."):
        declared = {field.name: field for field in dataclasses.fields(config)}.get(part)
        if declared is None or "matters" in declared.metadata:
            return "always" if declared is None else declared.metadata["matters"]
        config = getattr(config, part)
    return "always"


def differing_fields(old: dict, new: dict, default: dict, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Fields of saved configs that differ, by dotted name; a field new since then had its default.

    Where the run lies and whether its changes were accepted is no part of it.
    """
    found = {}
    for name in old.keys() | new.keys():
        before, after, usual = (config.get(name) for config in (old, new, default))
        before = before if name in old else usual
        if isinstance(before, dict) and isinstance(after, dict):
            found |= differing_fields(before, after, usual if isinstance(usual, dict) else {}, f"{prefix}{name}.")
        elif before != after and prefix + name not in ("workdir", "accept_changes"):
            found[prefix + name] = (before, after)
    return dict(sorted(found.items()))


def describe_changes(changes: dict[str, tuple[Any, Any]]) -> str:
    """Each field with the value that it had and the one that it has."""
    return "; ".join(f"{name} was {old!r}, is {new!r}" for name, (old, new) in changes.items())
