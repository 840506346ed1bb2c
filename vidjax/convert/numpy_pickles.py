"""NumPy's scalars and arrays in PyTorch's files, made again without NumPy's own functions for it.

Training scripts put their best accuracy beside the weights, often as a NumPy scalar, and the state of NumPy's random
numbers, both of which `torch.load(weights_only=True)` refuses. Each name by which a pickle calls NumPy stands here for
something inert, which describes a type or an array. Nothing of what the file says is called, and types are those of
plain values: never of objects.
"""

import re
from typing import Any

import numpy as np

from vidjax.errors import UserError

PLAIN = re.compile(r"[biufcSU]\d+|[mM]8")  # codes of types: truth values, numbers, text, and times


class DType:
    """Stands for `numpy.dtype`."""

    def __init__(self, code: Any = None, *rest: Any) -> None:
        self.code, self.order = code, "|"

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]

    def read(self, data: Any, shape: Any, fortran: Any = False) -> np.ndarray:
        """The array of these bytes.

        Raises:
          UserError: the type is none of plain values, or the bytes are no array of this shape.
        """
        code, order = str(self.code), str(self.order)
        if not PLAIN.fullmatch(code) or order not in ("<", ">", "|", "="):
            raise UserError(f"it holds an array of NumPy's type '{code}', which must be one of plain values")
        code = "i8" if code[0] in "mM" else code  # times without their unit are numbers
        if min(shape, default=0) < 0:
            raise UserError(f"it holds an array of shape {shape}, which must be one of sizes")
        return np.ndarray(shape, order + code, data, order="F" if fortran else "C")


def scalar(dtype: DType, data: Any) -> np.generic:
    """Stands for `numpy.core.multiarray.scalar`."""
    return dtype.read(data, ())[()]


class Array:
    """Stands for `numpy.ndarray`."""

    value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        self.value = dtype.read(data, shape, fortran)


def reconstruct(*_: Any) -> Array:
    """Stands for `numpy.core.multiarray._reconstruct`."""
    return Array()


def nothing() -> bytes:
    """Stands for `bytes`, which an array without values is pickled by."""
    return b""


STANDING_IN = (
    (nothing, "builtins.bytes"),
    (DType, "numpy.dtype"),
    (Array, "numpy.ndarray"),
    *((DType, f"numpy.{kind.__name__}") for kind in {*np.sctypeDict.values()}),  # types themselves, such as float32
    *(
        pair
        for core in ("numpy.core", "numpy._core")  # before NumPy 2, and since
        for pair in ((scalar, f"{core}.multiarray.scalar"), (reconstruct, f"{core}.multiarray._reconstruct"))
    ),
)
