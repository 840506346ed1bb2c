"""Hugging Face's directories: fetched by id, and told by their `config.json` and `preprocessor_config.json`."""

import json
from collections.abc import Callable
from pathlib import Path

import flax.linen as nn

PATTERNS = ("config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json")


def fetch(source: str | Path) -> Path:
    """Where the source is on this machine; an id that is no path here is downloaded through huggingface_hub."""
    path = Path(source).expanduser()
    name = str(source)
    if path.exists() or name.count("/") != 1 or name.startswith((".", "/", "~")) or path.suffix in (".pth", ".pyth"):
        return path
    try:
        import huggingface_hub
    except ImportError as error:
        raise ImportError(
            f"nothing is at {source}; to fetch it from Hugging Face: pip install huggingface_hub"
        ) from error
    try:
        # The files that hold pickles are left where they are, unless there is nothing else.
        folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=PATTERNS))
        if not any(folder.glob("*.safetensors")):
            folder = Path(huggingface_hub.snapshot_download(name, allow_patterns=(*PATTERNS, "pytorch_model*")))
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise FileNotFoundError(f"nothing is at {source}, and Hugging Face does not give it: {reason}") from error
    return folder


def read_config(path: Path) -> dict | None:
    """The directory's `config.json`; None where there is none."""
    file = path / "config.json"
    if not file.is_file():
        return None
    try:
        config = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    return config if isinstance(config, dict) and "model_type" in config else None


def build(config: dict, known: dict[str, Callable[[dict], nn.Module]], source: str | Path) -> nn.Module:
    """The model that a configuration describes.

    Args:
      known: makers by `model_type`.
    """
    kind = config["model_type"]
    if kind not in known:
        raise ValueError(f"{source} is a model of type '{kind}': those that can be read are {', '.join(sorted(known))}")
    try:
        return known[kind](config)
    except KeyError as error:
        raise ValueError(f"the config.json of {source} lacks {error}") from error


def read_card(config: dict, path: Path) -> dict:
    """What the directory says of input and classes, as fields of a `Card`."""
    told = {}
    names = config.get("id2label") or {}
    if names and not all(str(name).startswith("LABEL_") for name in names.values()):
        told["class_names"] = tuple(names[index] for index in sorted(names, key=int))
    file = path / "preprocessor_config.json"
    if file.is_file():
        preprocessor = json.loads(file.read_text())
        for field, key in (("mean", "image_mean"), ("std", "image_std")):
            if key in preprocessor:
                told[field] = tuple(float(value) for value in preprocessor[key])
        sides = (
            (preprocessor.get("crop_size") or {}).get("height"),
            (preprocessor.get("size") or {}).get("shortest_edge"),
        )
        if preprocessor.get("do_center_crop") and all(sides):
            told["crop_ratio"] = sides[0] / sides[1]
    return told
