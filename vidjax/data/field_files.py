"""The specs of further fields in files, and the values that they admit."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Shaped

from vidjax.data.example import Field
from vidjax.errors import UserError

FIELDS_FILE = "fields.json"
"""Name of the file next to a manifest or TFRecords that contains the specs of their further fields."""


def read_specs(folder: Path) -> dict[str, Field]:
    """Reads the specs of further fields from a folder's fields.json; empty without such a file.

    Raises:
      UserError: it is not JSON, or a spec in it is wrong.
    """
    path = folder / FIELDS_FILE
    return parse_specs(path, path.read_bytes()) if path.is_file() else {}


def parse_specs(path: Path | str, content: bytes) -> dict[str, Field]:
    """The specs in a fields.json, `{"boxes": {"kind": "boxes", "shape": [8, 4]}, ...}`.

    Raises:
      UserError: it is not JSON, or a spec in it is wrong.
    """
    try:
        specs = json.loads(content)
    except ValueError as error:
        raise UserError(f"{path} is not JSON ({error}): it must be an object of names and specs") from error
    if not isinstance(specs, dict):
        raise UserError(f"{path} must be an object of names and specs")
    fields = {}
    for name, spec in specs.items():
        known = Field.__dataclass_fields__
        if not isinstance(spec, dict) or "kind" not in spec or set(spec) - set(known):
            raise UserError(f"{path}: '{name}' must be an object with 'kind' and any of {', '.join(list(known)[1:])}")
        lists = {key: tuple(value) if isinstance(value, list) else value for key, value in spec.items()}
        try:
            fields[name] = Field(**({"dtype": "uint8"} if spec["kind"] == "frames" else {}) | lists)
        except (UserError, TypeError) as error:
            raise UserError(f"{path}: in '{name}', {error}") from error
    return fields


def write_specs(specs: Mapping[str, Field]) -> str:
    """The content of a fields.json, the inverse of `parse_specs`."""
    return json.dumps({name: vars(spec) for name, spec in specs.items()}, indent=1) + "\n"


def check_value(spec: Field, value: Any) -> Shaped[np.ndarray, "..."]:
    """Converts the value of a field to an array.

    Raises:
      ValueError: the value does not match the spec.
    """
    array = np.asarray(value, np.float32 if spec.kind in ("segments", "boxes", "tracks") else spec.dtype)
    width = {"segments": spec.shape[-1], "boxes": 4, "tracks": 6}.get(spec.kind) if spec.shape else None
    if width is not None:
        array = array.reshape(0, width) if not array.size else array
        if array.ndim != 2 or array.shape[1] != width:
            raise ValueError(f"it must be a list of lists of {width} numbers")
    if spec.kind == "numbers" and (array.ndim != len(spec.shape) or array.shape[1:] != spec.shape[1:]):
        raise ValueError(f"it must be of shape {list(spec.shape)}")
    return array
