"""Reads published weights into `{name: numpy array}`. Nothing here unpickles objects that a file brings along."""

import argparse
import json
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flax.serialization import msgpack_restore
from flax.traverse_util import flatten_dict

from vidjax.convert import numpy_pickles, torchscript
from vidjax.errors import UserError

Weights = dict[str, np.ndarray]

SUFFIXES = (".safetensors", ".npz", ".msgpack", ".pth", ".pyth", ".pt", ".bin", ".tar", ".ckpt")  # of published files
TORCH = (".pth", ".pyth", ".pt", ".bin")
ZIP, PICKLE = b"PK\x03\x04", b"\x80"  # how PyTorch's files begin, since version 1.6 and before
IN_DIRECTORY = (  # Hugging Face's names, the safe ones first
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "checkpoint",  # Scenic's
    "model.pth",  # of `convert.export`
)
# Where training scripts put the weights beside optimizer and epoch, the weights that were trained before their moving
# average: what the publishers of our families read themselves.
CONTAINERS = (
    "model", "model_state", "model_state_dict", "state_dict", "module", "params", "net", "network", "weights",
    "model_ema", "state_dict_ema", "model_ema_state_dict", "ema_state_dict", "ema", "params_ema",
)  # fmt: skip
PARTS = {"model_state_dict": "model.", "fusion_model_state_dict": "fusion."}  # ActionCLIP's two, joined under these


def read(path: str | Path, tell: Callable[[str], None] = lambda line: None) -> Weights:
    """All arrays of a file of safetensors, PyTorch, NumPy or Flax, or of a directory of Hugging Face's or Scenic's.

    The name's ending tells the format (`SUFFIXES`); where it does not (`x.pth.tar`, `checkpoint`), the first bytes do.
    Of several sets of weights in one file it is the first in the order of `CONTAINERS`.

    Args:
      tell: takes a line on which weights were taken, where there were several.

    Raises:
      UserError: nothing is there, or the directory holds no weights.
      UserError: the file holds no weights, or more than weights, or is damaged.
      UserError: PyTorch's formats need PyTorch.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        inside = weights_of(path)
        if inside is None and (path / "checkpoints").is_dir():
            raise UserError(f"{path} is a run: make weights of it by experiments/convert_weights.py")
        if inside is None:
            raise UserError(f"{path} holds no weights: it must have one of {', '.join(IN_DIRECTORY)}")
        path = inside
    if not path.is_file():
        raise UserError(f"there are no weights at {path}: give a file or a Hugging Face directory")
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    weights = _reader(path, tell)(path)
    if not weights:
        raise UserError(f"{path} holds no weights: there is no array in it, give another file")
    return weights


def weights_of(directory: Path) -> Path | None:
    """The file of weights in a directory; None where there is none."""
    return next((directory / name for name in IN_DIRECTORY if (directory / name).is_file()), None)


def _reader(path: Path, tell: Callable[[str], None]) -> Callable[[Path], Weights]:
    """What reads the file."""
    read_torch = partial(_read_torch, tell=tell)
    readers = {".safetensors": read_safetensors, ".npz": _read_npz, ".msgpack": _read_flax}
    if reader := readers.get(path.suffix) or (read_torch if path.suffix in TORCH else None):
        return reader
    with path.open("rb") as file:
        head = file.read(9)
    if head[5:] == b"\0\0\0{":  # the length of a header, below 2**40, and JSON
        return read_safetensors
    if head.startswith((ZIP, PICKLE)):
        return read_torch
    if head and (0x80 < head[0] < 0x90 or head[0] in (0xDE, 0xDF)):  # MessagePack's maps that are not empty
        return _read_flax
    raise UserError(f"{path} is no file of weights: give one of safetensors, PyTorch, NumPy or Flax (msgpack)")


def _read_shards(index: Path) -> Weights:
    try:
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{index} is not an index of weight files: it must have a map named weight_map") from error
    weights = {}
    for shard in shards:
        weights |= read(index.parent / Path(shard).name)  # the bare name: an index may not lead out of its directory
    return weights


def read_safetensors(path: Path) -> Weights:
    """All arrays of a safetensors file."""
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError as error:
        raise UserError(f"reading {path} needs safetensors: pip install safetensors") from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is not a readable safetensors file ({error}): fetch it again") from error


def _read_torch(path: Path, tell: Callable[[str], None]) -> Weights:
    with path.open("rb") as file:
        zipped = file.read(len(ZIP)) == ZIP
    if zipped:
        _check_archive(path)  # PyTorch looks at no checksum
        if torchscript.is_torchscript(path):
            return torchscript.read(path)
    try:
        import torch
    except ImportError as error:
        raise UserError(f"reading {path} needs PyTorch: pip install torch") from error
    try:
        # Published checkpoints carry their command line beside the weights; a Namespace only holds attributes.
        with torch.serialization.safe_globals([argparse.Namespace, *numpy_pickles.STANDING_IN]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        if foreign := re.search(r"GLOBAL (\S+)|(an array of NumPy's type '\w*')", str(error)):
            said = f"it holds {foreign[1] or foreign[2]}, and objects are not unpickled, save its tensors alone"
        else:
            said = "it is damaged, cut short or no file of PyTorch's, fetch it again"
        raise UserError(f"{path} cannot be read as plain weights: {said}") from error
    tensors = _unwrapped(content, tell)
    weights = {}
    for name, value in tensors.items():
        if isinstance(value, numpy_pickles.Array) and value.value.dtype.kind in "biuf":
            weights[str(name)] = value.value
        elif isinstance(value, torch.Tensor):
            try:
                value = value.detach().resolve_conj().to_dense()
                weights[str(name)] = (value.float() if value.is_floating_point() else value).numpy()
            except (RuntimeError, TypeError, NotImplementedError) as error:
                raise UserError(
                    f"{name} in {path} is no plain tensor ({str(error).splitlines()[0]}): save it as one"
                ) from error
    if not weights:
        keys = [str(key) for key in content] if isinstance(content, dict) else []
        there = f"its keys are {', '.join(keys[:20])}" if keys else f"it is a {type(content).__name__}"
        raise UserError(
            f"{path} holds no weights: it must be a dictionary of tensors, or have one as "
            f"{', '.join(CONTAINERS[:-1])} or {CONTAINERS[-1]}; {there}, save the weights alone"
        )
    return weights


def _unwrapped(content: Any, tell: Callable[[str], None]) -> dict:
    """The tensors by their names, from whatever a training script put around them."""
    if not isinstance(content, dict):
        return {}
    if all(isinstance(content.get(key), dict) for key in PARTS):  # the second is empty where the head is a mean
        return {prefix + name: value for key, prefix in PARTS.items() for name, value in content[key].items()}
    fits = [key for key in CONTAINERS if _has_tensors(content.get(key))]
    if not fits:
        return content
    if len(fits) > 1:
        tell(f"the weights are the file's {fits[0]}, and not its {' or '.join(fits[1:])}")
    return _unwrapped(content[fits[0]], tell)


def _has_tensors(content: Any) -> bool:
    """Whether it is a dictionary of tensors, or has one where training scripts put them."""
    return isinstance(content, dict) and (
        any(hasattr(value, "detach") or isinstance(value, numpy_pickles.Array) for value in content.values())
        or any(_has_tensors(content.get(key)) for key in CONTAINERS)
    )


def _check_archive(path: Path) -> None:
    """Refuses a zip archive that is cut short, or a part of which has a wrong checksum."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, zlib.error, struct.error, NotImplementedError, ValueError) as error:
        raise UserError(
            f"{path} is damaged or cut short: its list of contents cannot be read, fetch it again"
        ) from error
    if damaged:
        raise UserError(f"{path} is damaged: the checksum of {damaged} in it is wrong, fetch it again")


def _read_npz(path: Path) -> Weights:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{path} cannot be read as NumPy arrays: it is damaged, or holds objects, which must be saved as arrays"
        ) from error


def _read_flax(path: Path) -> Weights:
    """Flax's own file, as Scenic writes it: `checkpoint_30`, or any name that ends in .msgpack."""
    try:
        tree = msgpack_restore(path.read_bytes())
        flat = flatten_dict(tree, sep="/")
    except Exception as error:  # msgpack has an error for every kind of damage
        raise UserError(
            f"{path} cannot be read as a Flax checkpoint ({type(error).__name__} {error}): fetch it again"
        ) from error
    return {name: value for name, value in flat.items() if isinstance(value, np.ndarray)}
