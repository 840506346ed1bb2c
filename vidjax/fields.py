"""What the fields of a config are declared to hold, checked also where no command line is read."""

import math
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints


def check_values(config: Any, prefix: str = "") -> None:
    """Refuses a word that its field does not know, and a number that is infinite or none; for `__post_init__`.

    Args:
      prefix: of the fields' names in the sentence, such as `optim.`.

    Raises:
      ValueError: see there.
    """
    for name, kind in get_type_hints(type(config)).items():
        value, words = getattr(config, name), choices(kind)
        for one in value if isinstance(value, tuple) else (value,):
            if words and one not in words and not (one is None and NoneType in get_args(kind)):
                raise ValueError(f"{prefix}{name} is {one!r}: choose one of {', '.join(map(str, words))}")
            if isinstance(one, float) and not math.isfinite(one):
                raise ValueError(f"{prefix}{name} is {one}: it must be a finite number")


def choices(kind: Any) -> tuple[Any, ...]:
    """The words that a type names by `Literal`, in itself or in its parts; empty where it names none."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    return tuple(word for part in get_args(kind) for word in choices(part))
