"""NumPy's scalars and arrays in PyTorch's files, made again without NumPy's own functions for it.

Training scripts put their best accuracy beside the weights, often as a NumPy scalar, and the state of NumPy's random
numbers, both of which `torch.load(weights_only=True)` refuses. Each name by which a pickle calls NumPy stands here for
something inert, which describes a type or an array. Nothing of what the file says is called, and types are those of
plain values: never of objects.
"""

import re
from typing import Any

import numpy as np

PLAIN = re.compile(r"[biufcSU]\d+|[mM]8")  # codes of types: truth values, numbers, text, and times


class DType:
    """Stands for `numpy.dtype`."""

    def __init__(self, code: str = "", *rest: Any) -> None:
        self.code, self.order = code, "|"

    def __setstate__(self, state: tuple) -> None:
        self.order = state[1]

    def read(self, data: bytes, shape: tuple[int, ...], fortran: bool = False) -> np.ndarray:
        """The array of these bytes.

        Raises:
          ValueError: the type is none of plain values, or the shape none of so many.
        """
        if not isinstance(self.code, str) or not PLAIN.fullmatch(self.code) or self.order not in ("<", ">", "|", "="):
            raise ValueError(f"it holds an array of NumPy's type {self.code!r}, which must be one of plain values")
        code = "i8" if self.code[0] in "mM" else self.code  # times without their unit are numbers
        return np.ndarray(shape, self.order + code, data, order="F" if fortran else "C")


def scalar(dtype: DType, data: bytes) -> np.generic:
    """Stands for `numpy.core.multiarray.scalar`."""
    return dtype.read(data, ())[()]


class Array:
    """Stands for `numpy.ndarray`."""

    value: np.ndarray | None = None

    def __setstate__(self, state: tuple) -> None:
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
