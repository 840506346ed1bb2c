"""Safe substitutes for the NumPy functions that rebuild scalars and arrays in PyTorch files.

Training scripts store their best accuracy next to the weights, often as a NumPy scalar, and NumPy's random state.
`torch.load(weights_only=True)` rejects both. Here every NumPy name that a pickle refers to is replaced by an inert
function or class that describes a dtype or an array. No function named in the file is called, and only dtypes of plain
values are accepted, never objects.
"""

import re
from typing import Any

import numpy as np

from vidjax.errors import UserError

PLAIN = re.compile(r"[biufcSU]\d+|[mM]8")  # dtype codes of booleans, numbers, text and times


class DType:
    """Substitute for `numpy.dtype`."""

    def __init__(self, code: Any = None, *rest: Any) -> None:
        self.code, self.order = code, "|"

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    def read(self, data: Any, shape: Any, fortran: Any = False) -> np.ndarray:
        """The array with these bytes and this shape.

        Raises:
          UserError: the dtype is not one of plain values, or the shape is invalid.
        """
        code, order = str(self.code), str(self.order)
        if not PLAIN.fullmatch(code) or order not in ("<", ">", "|", "="):
            raise UserError(f"it contains an array of NumPy's type '{code}', which must be one of plain values")
        data = data.encode("latin1") if isinstance(data, str) else data  # bytes in pickles of Python 2
        code = "i8" if code[0] in "mM" else code  # times are read as numbers, without their unit
        if min(shape, default=0) < 0:
            raise UserError(f"it contains an array of shape {shape}, which must not be negative")
        return np.ndarray(shape, order + code, data, order="F" if fortran else "C")


def scalar(dtype: DType, data: Any) -> np.generic:
    """Substitute for `numpy.core.multiarray.scalar`."""
    return dtype.read(data, ())[()]


class Array:
    """Substitute for `numpy.ndarray`."""

    value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.value = dtype.read(data, shape, fortran)


def reconstruct(*_: Any) -> Array:
    """Substitute for `numpy.core.multiarray._reconstruct`."""
    return Array()


def nothing() -> bytes:
    """Substitute for `bytes`, which pickles of empty arrays refer to."""
    return b""


SUBSTITUTES = (
    (nothing, "builtins.bytes"),
    (DType, "numpy.dtype"),
    (Array, "numpy.ndarray"),
    *((DType, f"numpy.{kind.__name__}") for kind in {*np.sctypeDict.values()}),  # scalar types, such as float32
    *(
        pair
        for core in ("numpy.core", "numpy._core")  # before and since NumPy 2
        for pair in ((scalar, f"{core}.multiarray.scalar"), (reconstruct, f"{core}.multiarray._reconstruct"))
    ),
)
