"""Checks of config fields, and the effect of changed fields on a run that resumes."""

import dataclasses
import math
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints

from vidjax.errors import UserError

Value = TypeVar("Value")


def check_values(config: Any, prefix: str = "") -> None:
    """Checks `Literal` fields and that floats are finite; for use in `__post_init__`.

    Args:
      prefix: prefix of the field names in error messages, such as `optim.`.

    Raises:
      UserError: a value is not among the choices of its field, or not finite.
    """
    for name, kind in get_type_hints(type(config)).items():
        value, allowed = getattr(config, name), choices(kind)
        for item in value if isinstance(value, tuple) else (value,):
            if allowed and item not in allowed and not (item is None and NoneType in get_args(kind)):
                raise UserError(f"{prefix}{name} is {item!r}: choose one of {', '.join(map(str, allowed))}")
            if isinstance(item, float) and not math.isfinite(item):
                raise UserError(f"{prefix}{name} is {item}: it must be a finite number")


def require_positive(config: Any, *names: str) -> None:
    """Checks that these fields are positive or None.

    Raises:
      UserError: a value is zero or negative.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and value <= 0:
            raise UserError(f"{name} is {value}: it must be above 0")


def require_not_negative(config: Any, *names: str) -> None:
    """Checks that these fields are non-negative or None.

    Raises:
      UserError: a value is negative.
    """
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 0:
            raise UserError(f"{name} is {value}: it must be 0 or more")


def choices(kind: Any) -> tuple[Any, ...]:
    """The values of a `Literal` type, also inside unions, tuples and `Annotated`; empty for other types."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    return tuple(choice for part in get_args(kind) for choice in choices(part))


def free(default: Value) -> Value:
    """Declares a config field that does not affect the results: a run can resume with another value."""
    return dataclasses.field(default=default, metadata={"matters": "never"})


def initial(default: Value) -> Value:
    """Declares a config field that only affects the start of a run: a run cannot resume with another value."""
    return dataclasses.field(default=default, metadata={"matters": "at the start"})


def matters(config: Any, name: str) -> Literal["never", "at the start", "always"]:
    """When a field affects the results of a run; the declaration of a nested config applies to all of its fields.

    Args:
      name: dotted name; unknown fields always matter.
    """
    for part in name.split("."):
        declared = {field.name: field for field in dataclasses.fields(config)}.get(part)
        if declared is None or "matters" in declared.metadata:
            return "always" if declared is None else declared.metadata["matters"]
        config = getattr(config, part)
    return "always"


def differing_fields(old: dict, new: dict, default: dict, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """The old and new values of the fields that differ between two saved configs, by dotted name.

    A field that the old config lacks had its default. `workdir` and `accept_changes` are ignored.
    """
    changes = {}
    for name in old.keys() | new.keys():
        before, after, usual = (config.get(name) for config in (old, new, default))
        before = before if name in old else usual
        if isinstance(before, dict) and isinstance(after, dict):
            changes |= differing_fields(before, after, usual if isinstance(usual, dict) else {}, f"{prefix}{name}.")
        elif before != after and prefix + name not in ("workdir", "accept_changes"):
            changes[prefix + name] = (before, after)
    return dict(sorted(changes.items()))


def describe_changes(changes: dict[str, tuple[Any, Any]]) -> str:
    """The changes of `differing_fields` as text."""
    return "; ".join(f"{name} was {old!r}, is {new!r}" for name, (old, new) in changes.items())
