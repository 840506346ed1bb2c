"""Reads published weights into `{name: numpy array}`. Nothing here unpickles objects that a file brings along."""

import argparse
import json
import pickle
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from flax.serialization import msgpack_restore
from flax.traverse_util import flatten_dict

from vidjax.convert import torchscript

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
)
CONTAINERS = (
    "model",
    "model_state",
    "state_dict",
    "module",
)  # where training scripts put the weights beside optimizer and epoch
PARTS = {"model_state_dict": "model.", "fusion_model_state_dict": "fusion."}  # ActionCLIP's two, joined under these


def read(path: str | Path) -> Weights:
    """All arrays of a file of safetensors, PyTorch, NumPy or Flax, or of a directory of Hugging Face's or Scenic's.

    The name's ending tells the format (`SUFFIXES`); where it does not (`x.pth.tar`, `checkpoint`), the first bytes do.

    Raises:
      FileNotFoundError: nothing is there, or the directory holds no weights.
      ValueError: the file holds no weights, or more than weights, or is damaged.
      ImportError: PyTorch's formats need PyTorch.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        found = [path / name for name in IN_DIRECTORY if (path / name).is_file()]
        if not found and (path / "checkpoints").is_dir():
            raise FileNotFoundError(f"{path} is a run: make weights of it by experiments/convert_weights.py")
        if not found:
            raise FileNotFoundError(f"{path} holds no weights: it must have one of {', '.join(IN_DIRECTORY)}")
        path = found[0]
    if not path.is_file():
        raise FileNotFoundError(f"there are no weights at {path}: give a file or a Hugging Face directory")
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    weights = _reader(path)(path)
    if not weights:
        raise ValueError(f"{path} holds no weights: there is no array in it, give another file")
    return weights


def _reader(path: Path) -> Callable[[Path], Weights]:
    """What reads the file."""
    readers = {".safetensors": read_safetensors, ".npz": _read_npz, ".msgpack": _read_flax}
    if reader := readers.get(path.suffix) or (_read_torch if path.suffix in TORCH else None):
        return reader
    with path.open("rb") as file:
        head = file.read(9)
    if head[5:] == b"\0\0\0{":  # the length of a header, below 2**40, and JSON
        return read_safetensors
    if head.startswith((ZIP, PICKLE)):
        return _read_torch
    if head and (0x80 < head[0] < 0x90 or head[0] in (0xDE, 0xDF)):  # MessagePack's maps that are not empty
        return _read_flax
    raise ValueError(f"{path} is no file of weights: give one of safetensors, PyTorch, NumPy or Flax (msgpack)")


def _read_shards(index: Path) -> Weights:
    try:
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"{index} is not an index of weight files: it must have a map named weight_map") from error
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
        raise ImportError(f"reading {path} needs safetensors: pip install safetensors") from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a readable safetensors file ({error}): fetch it again") from error


def _read_torch(path: Path) -> Weights:
    with path.open("rb") as file:
        zipped = file.read(len(ZIP)) == ZIP
    if zipped:
        _check_archive(path)  # PyTorch looks at no checksum
        if torchscript.is_torchscript(path):
            return torchscript.read(path)
    try:
        import torch
    except ImportError as error:
        raise ImportError(f"reading {path} needs PyTorch: pip install torch") from error
    try:
        # Published checkpoints carry their command line beside the weights; a Namespace only holds attributes.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, struct.error) as error:
        if foreign := re.search(r"GLOBAL (\S+)", str(error)):
            said = f"it holds {foreign[1]}, and objects are not unpickled, save its tensors alone"
        else:
            said = "it is damaged, cut short or no file of PyTorch's, fetch it again"
        raise ValueError(f"{path} cannot be read as plain weights: {said}") from error
    while isinstance(content, dict) and (key := next((key for key in CONTAINERS if _is_dict(content, key)), None)):
        content = content[key]
    if all(isinstance(content, dict) and _is_dict(content, key) for key in PARTS):
        content = {prefix + name: value for key, prefix in PARTS.items() for name, value in content[key].items()}
    tensors = content if isinstance(content, dict) else {}
    weights = {
        name: (value.float() if value.is_floating_point() else value).numpy()
        for name, value in tensors.items()
        if isinstance(value, torch.Tensor)
    }
    if not weights:
        raise ValueError(f"{path} holds no weights: it must be a dictionary of tensors, or have one as 'model'")
    return weights


def _check_archive(path: Path) -> None:
    """Refuses a zip archive that is cut short, or a part of which has a wrong checksum."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, zlib.error, struct.error, NotImplementedError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged or cut short: its list of contents cannot be read, fetch it again"
        ) from error
    if damaged:
        raise ValueError(f"{path} is damaged: the checksum of {damaged} in it is wrong, fetch it again")


def _read_npz(path: Path) -> Weights:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(
            f"{path} cannot be read as NumPy arrays: it is damaged, or holds objects, which must be saved as arrays"
        ) from error


def _read_flax(path: Path) -> Weights:
    """Flax's own file, as Scenic writes it: `checkpoint_30`, or any name that ends in .msgpack."""
    try:
        tree = msgpack_restore(path.read_bytes())
        flat = flatten_dict(tree, sep="/")
    except Exception as error:  # msgpack has an error for every kind of damage
        raise ValueError(
            f"{path} cannot be read as a Flax checkpoint ({type(error).__name__} {error}): fetch it again"
        ) from error
    return {name: value for name, value in flat.items() if isinstance(value, np.ndarray)}


def _is_dict(content: dict, key: str) -> bool:
    return isinstance(content.get(key), dict)
