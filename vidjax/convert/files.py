"""Reads published weights into `{name: numpy array}`, without unpickling arbitrary objects."""

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

from vidjax.convert import caffe2, numpy_pickles, torchscript
from vidjax.errors import UserError

Weights = dict[str, np.ndarray]

SUFFIXES = (  # of published files
    ".safetensors", ".npz", ".msgpack", ".pth", ".pyth", ".pt", ".bin", ".tar", ".ckpt", ".pkl",
)  # fmt: skip
TORCH = (".pth", ".pyth", ".pt", ".bin")
ZIP, PICKLE = b"PK\x03\x04", b"\x80"  # first bytes of PyTorch files, since version 1.6 and before
OLD_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # first bytes of the latter: its magic number
IN_DIRECTORY = (  # Hugging Face's file names, safetensors first
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
    "checkpoint",  # Scenic
    "model.pth",  # written by `convert.export`
    "model.npz",
)
# Keys under which training scripts store weights, next to the optimizer state and so on. Trained weights come before
# their moving average, as in the code of our families' publishers.
CONTAINERS = (
    "model", "model_state", "model_state_dict", "state_dict", "module", "params", "net", "network", "weights",
    "model_ema", "state_dict_ema", "model_ema_state_dict", "ema_state_dict", "ema", "params_ema",
)  # fmt: skip
# ActionCLIP's two state dicts, which are merged with these prefixes.
PARTS = {"model_state_dict": "model.", "fusion_model_state_dict": "fusion."}
# V-JEPA 2's, of which a file has one or more, merged with their keys as prefixes; the last is a list of probes.
NETWORKS = ("encoder", "predictor", "target_encoder", "ema_encoder", "classifiers")


def read(path: str | Path, note: Callable[[str], None] = lambda line: None) -> Weights:
    """Reads all arrays of a safetensors, PyTorch, NumPy, Flax or Caffe2 file, or of a Hugging Face or Scenic directory.

    The format is recognised by the suffix (`SUFFIXES`) or, for names such as `x.pth.tar` and `checkpoint`, by the first
    bytes. If a file contains several sets of weights, the first in the order of `CONTAINERS` is read.

    Args:
      note: called with a line that says which weights were read, if there were several.

    Raises:
      UserError: the path does not exist, or the directory contains no weights.
      UserError: the file contains no weights, or objects other than weights, or is damaged.
      UserError: the file needs PyTorch, which is not installed.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        file = weights_of(path)
        if file is None and (path / "checkpoints").is_dir():
            raise UserError(f"{path} is a run: convert it with experiments/convert_weights.py")
        if file is None:
            raise UserError(f"{path} contains no weights: it must have one of {', '.join(IN_DIRECTORY)}")
        path = file
    if not path.is_file():
        raise UserError(f"there are no weights at {path}: give a file or a Hugging Face directory")
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    weights = _reader(path, note)(path)
    if not weights:
        raise UserError(f"{path} contains no weights: there is no array in it, give another file")
    return weights


def weights_of(directory: Path) -> Path | None:
    """The weight file in a directory; None if there is none."""
    return next((directory / name for name in IN_DIRECTORY if (directory / name).is_file()), None)


def _reader(path: Path, note: Callable[[str], None]) -> Callable[[Path], Weights]:
    """The function that reads a file of this format."""
    read_torch = partial(_read_torch, note=note)
    readers = {".safetensors": read_safetensors, ".npz": _read_npz, ".msgpack": _read_flax}
    if reader := readers.get(path.suffix) or (read_torch if path.suffix in TORCH else None):
        return reader
    with path.open("rb") as file:
        head = file.read(len(OLD_TORCH))
    if path.suffix == ".pkl" and not head.startswith((ZIP, OLD_TORCH)):
        return caffe2.read
    if head[5:9] == b"\0\0\0{":  # the header's length, below 2**40, and the start of its JSON
        return read_safetensors
    if head.startswith((ZIP, PICKLE)):
        return read_torch
    if head and (0x80 < head[0] < 0x90 or head[0] in (0xDE, 0xDF)):  # a non-empty MessagePack map
        return _read_flax
    raise UserError(f"{path} is not a weight file: give a safetensors, PyTorch, NumPy or Flax (msgpack) file")


def _read_shards(index: Path) -> Weights:
    try:
        shards = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise UserError(f"{index} is not an index of weight files: it must have a map named weight_map") from error
    weights = {}
    for shard in shards:
        weights |= read(index.parent / Path(shard).name)  # only the name: shards must be in the index's directory
    return weights


def read_safetensors(path: Path) -> Weights:
    """Reads all arrays of a safetensors file."""
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ImportError as error:
        raise UserError(f"reading {path} needs safetensors: pip install safetensors") from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path} is not a readable safetensors file ({error}): download it again") from error


def _read_torch(path: Path, note: Callable[[str], None]) -> Weights:
    with path.open("rb") as file:
        zipped = file.read(len(ZIP)) == ZIP
    if zipped:
        _check_archive(path)  # PyTorch does not verify checksums
        if torchscript.is_torchscript(path):
            return torchscript.read(path)
    try:
        import torch
    except ImportError as error:
        raise UserError(f"reading {path} needs PyTorch: pip install torch") from error
    try:
        # Published checkpoints include command-line arguments; a Namespace has only attributes, which is safe.
        with torch.serialization.safe_globals([argparse.Namespace, *numpy_pickles.SUBSTITUTES]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle may raise anything
        if unsafe := re.search(r"GLOBAL (\S+)|(an array of NumPy's type '\w*')", str(error)):
            reason = f"it contains {unsafe[1] or unsafe[2]}, and objects are not unpickled, save only its tensors"
        else:
            reason = "it is damaged, truncated or not a PyTorch file, download it again"
        raise UserError(f"{path} cannot be read as plain weights: {reason}") from error
    tensors = _unwrapped(content, note)
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
                    f"{name} in {path} is not a plain tensor ({str(error).splitlines()[0]}): save it as one"
                ) from error
    if not weights:
        keys = [str(key) for key in content] if isinstance(content, dict) else []
        actual = f"its keys are {', '.join(keys[:20])}" if keys else f"it is a {type(content).__name__}"
        raise UserError(
            f"{path} contains no weights: it must be a dictionary of tensors, or have one under the key "
            f"{', '.join(CONTAINERS[:-1])} or {CONTAINERS[-1]}; {actual}, save only the weights"
        )
    return weights


def _unwrapped(content: Any, note: Callable[[str], None]) -> dict:
    """The dictionary of tensors, without the containers that a training script put around it."""
    if not isinstance(content, dict):
        return {}
    if all(isinstance(content.get(key), dict) for key in PARTS):  # the second is empty if the head is a mean
        return {prefix + name: value for key, prefix in PARTS.items() for name, value in content[key].items()}
    keys = [key for key in CONTAINERS if _has_tensors(content.get(key))]
    if not keys:
        return _joined(content, note)
    if len(keys) > 1:
        note(f"the weights are read from the file's {keys[0]}, not from {' or '.join(keys[1:])}")
    return _unwrapped(content[keys[0]], note)


def _joined(content: dict, note: Callable[[str], None]) -> dict:
    """The state dicts of `NETWORKS` in one, or the content itself if it has none."""
    networks = {key: content[key] for key in NETWORKS if key in content}
    if isinstance(probes := networks.get("classifiers"), list) and probes:
        networks["classifiers"] = probes[0]
        if len(probes) > 1:
            note(f"the weights are read from the first of the file's {len(probes)} classifiers")
    networks = {key: network for key, network in networks.items() if _has_tensors(network)}
    if not networks:
        return content
    return {f"{key}.{name}": value for key, network in networks.items() for name, value in network.items()}


def _has_tensors(content: Any) -> bool:
    """Whether it is a dictionary of tensors, or contains one under a key in `CONTAINERS`."""
    return isinstance(content, dict) and (
        any(hasattr(value, "detach") or isinstance(value, numpy_pickles.Array) for value in content.values())
        or any(_has_tensors(content.get(key)) for key in CONTAINERS)
    )


def _check_archive(path: Path) -> None:
    """Raises `UserError` if a zip archive is truncated or one of its parts has a wrong checksum."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except (zipfile.BadZipFile, EOFError, zlib.error, struct.error, NotImplementedError, ValueError) as error:
        raise UserError(
            f"{path} is damaged or truncated: its list of contents cannot be read, download it again"
        ) from error
    if damaged:
        raise UserError(f"{path} is damaged: the checksum of its part {damaged} is wrong, download it again")


def _read_npz(path: Path) -> Weights:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return dict(arrays)
    except (ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(
            f"{path} cannot be read as NumPy arrays: it is damaged, or contains objects, which must be saved as arrays"
        ) from error


def _read_flax(path: Path) -> Weights:
    """Reads a Flax checkpoint, such as `checkpoint_30` written by Scenic, or any file with the suffix .msgpack."""
    try:
        tree = msgpack_restore(path.read_bytes())
        flat = flatten_dict(tree, sep="/")
    except Exception as error:  # msgpack raises many types of errors for damaged files
        raise UserError(
            f"{path} cannot be read as a Flax checkpoint ({type(error).__name__} {error}): download it again"
        ) from error
    return {name: value for name, value in flat.items() if isinstance(value, np.ndarray)}
