"""Reads the tensors of a TorchScript archive (OpenAI's format for CLIP) without PyTorch and without running its code.

The archive is a zip file with the module's code, raw storages, and a pickle of its attributes. The pickle is read by an
unpickler that imports nothing: every name in it is replaced by an inert class or function defined here.
"""

import pickle
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import jax.numpy as jnp
import numpy as np

from vidjax.errors import UserError

STORAGES = {
    "DoubleStorage": np.float64, "FloatStorage": np.float32, "HalfStorage": np.float16,
    "BFloat16Storage": jnp.bfloat16, "LongStorage": np.int64, "IntStorage": np.int32, "ShortStorage": np.int16,
    "CharStorage": np.int8, "ByteStorage": np.uint8, "BoolStorage": np.bool_,
}  # fmt: skip


class Inert:
    """Substitute for any class: accepts any arguments and has the attributes set by the pickle."""

    def __init__(self, *args: Any) -> None:
        pass


class _Unpickler(pickle.Unpickler):
    """Reads modules as `Inert` and tensors as arrays."""

    def __init__(self, archive: zipfile.ZipFile, root: PurePosixPath) -> None:
        super().__init__(BytesIO(archive.read(str(root / "data.pkl"))))
        self.archive, self.root = archive, root

    def find_class(self, module: str, name: str) -> Any:
        """Returns a substitute for every name; nothing is imported."""
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if (module, name) == ("torch.jit._pickle", "restore_type_tag"):
            return _untagged
        return STORAGES.get(name, Inert) if module == "torch" else Inert

    def persistent_load(self, pid: tuple) -> np.ndarray:
        """Reads a storage; `pid` is `("storage", type, file, device, length)`."""
        _, kind, key, *_ = pid
        return np.frombuffer(self.archive.read(str(self.root / "data" / key)), kind)


def _tensor(storage: np.ndarray, offset: int, shape: tuple, strides: tuple, *rest: Any) -> np.ndarray:
    """The part of a storage that is a tensor; memory outside the storage is never read."""
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if min(offset, *shape, *strides, 0) < 0 or (0 not in shape and last >= len(storage)):
        raise ValueError("a tensor reaches beyond its storage")
    strides = tuple(stride * storage.itemsize for stride in strides)
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, strides, writeable=False)


def _untagged(value: Any, tag: str) -> Any:
    return value


def _tensors(module: Inert, prefix: str = "") -> Iterator[tuple[str, np.ndarray]]:
    for name, value in vars(module).items():
        if isinstance(value, np.ndarray):
            yield prefix + name, value
        elif isinstance(value, Inert):
            yield from _tensors(value, f"{prefix}{name}.")


def is_torchscript(path: Path) -> bool:
    """Whether this zip archive is a TorchScript module."""
    with zipfile.ZipFile(path) as archive:
        return any(PurePosixPath(name).name == "constants.pkl" for name in archive.namelist())


def read(path: Path) -> dict[str, np.ndarray]:
    """Parameters and buffers of the module by name; floating-point values are converted to float32.

    Raises:
      UserError: the archive is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        root = next(PurePosixPath(name).parent for name in archive.namelist() if name.endswith("constants.pkl"))
        try:
            module = _Unpickler(archive, root).load()
            if not isinstance(module, Inert):
                raise ValueError("it contains no module")
            tensors = dict(_tensors(module))
        except Exception as error:  # damaged pickles raise many types of errors
            raise UserError(
                f"{path} cannot be read as TorchScript ({type(error).__name__} {error}): download it again"
            ) from error
    return {
        name: np.array(value, np.float32 if jnp.issubdtype(value.dtype, jnp.floating) else None)
        for name, value in tensors.items()
    }
