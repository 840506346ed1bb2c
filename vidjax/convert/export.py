"""Exports our variables to files that other libraries read, with their names, shapes and configuration."""

import importlib.util
import json
from pathlib import Path

import flax.linen as nn
import numpy as np
from flax.serialization import msgpack_serialize
from flax.traverse_util import unflatten_dict

from vidjax.convert import checkpoint, conversion, preprocessing, recognition
from vidjax.convert.files import Weights
from vidjax.convert.rules import Layout
from vidjax.errors import UserError

TRANSFORMERS = "transformers"


def export_pretrained(model: nn.Module, variables: dict, out: str | Path, *, layout: str) -> Path:
    """Writes a model in a publisher's layout, and returns the path of the file with its weights.

    `transformers` writes a directory for `from_pretrained`: `model.safetensors`, `config.json` and, if the model has a
    card, `preprocessor_config.json`. PyTorch layouts write `model.pth`, a dictionary for the publisher's own loader, or
    `model.safetensors` with the same names if PyTorch is not installed; Scenic's writes `checkpoint`, VideoPrism's
    `model.npz`. All but `transformers` also write `vidjax.json`, so that `vidjax.load_pretrained(out)` restores the
    model and its variables.

    Args:
      variables: all variables of the model, as returned by `init`.
      out: a new or empty directory.
      layout: that of a publisher (`transformers`, `torchvision`, `mmaction2`, `original`, ...; the error for an unknown
        layout lists those of this model), or `vidjax` for our own format, see `save_pretrained`.

    Raises:
      UserError: the layout is unknown, cannot be exported, has no entry for a parameter, or the publisher's code would
        compute something else; `out` is not empty; the variables do not belong to the model.
    """
    out = Path(out)
    if layout == checkpoint.KEY:
        checkpoint.save_pretrained(out, model, variables)
        return out / "model.safetensors"
    chosen = next((one for one in recognition.named(model, layout) if one.restore is not None), None)
    if chosen is None:
        known = [one.key for one in recognition.layouts(model) if one.restore is not None]
        raise UserError(
            f"weights can be loaded from layout '{layout}', but not exported to it: {type(model).__name__} can be "
            f"exported to {', '.join(dict.fromkeys([*known, checkpoint.KEY]))}"
        )
    checkpoint.require_empty(out)
    checkpoint.describe(model)
    checkpoint.check_variables(model, variables)
    weights = entries(chosen, model, variables)
    config = to_config(model) if layout == TRANSFORMERS else None
    checkpoint.make(out)
    path = write(chosen, weights, out)
    if config is None:
        checkpoint.write_model(out, model)
    else:
        _write_json(out / "config.json", config)
        if hasattr(model, "card"):
            processor = preprocessing.from_card(model.card, config["model_type"], model.image_size)
            _write_json(out / "preprocessor_config.json", processor)
    return path


def entries(layout: Layout, model: nn.Module, variables: dict) -> Weights:
    """The model's variables with the names of a file in this layout.

    Raises:
      UserError: see `export_pretrained`.
    """
    layout.check(model)
    for path, value in layout.fixed.items():
        actual = model
        for field in path.split("."):
            actual = getattr(actual, field)
        if actual != value:
            raise UserError(
                f"{path} of the model is {actual!r}, but {layout.name} uses {value!r}: choose another layout"
            )
    weights = layout.restore(conversion.invert(layout, variables))
    return {name: np.asarray(value, order="C") for name, value in weights.items()}


def to_config(model: nn.Module) -> dict:
    """The content of the model's `config.json`, the inverse of `hub.build`.

    Raises:
      UserError: transformers has no equivalent model.
    """
    config = recognition.TO_CONFIGS[recognition.kind_of(model)](model)
    classes = getattr(model, "num_classes", None)
    if classes is not None:
        names = model.card.class_names or [f"LABEL_{index}" for index in range(classes)]
        config["id2label"] = {str(index): name for index, name in enumerate(names)}
        config["label2id"] = {name: index for index, name in enumerate(names)}
    return config


def write(layout: Layout, weights: Weights, directory: Path) -> Path:
    """Writes the weights in the layout's file format, and returns the path of the file."""
    if layout.format == "flax":
        tree = layout.wrap(unflatten_dict({tuple(name.split("/")): value for name, value in weights.items()}))
        (directory / "checkpoint").write_bytes(msgpack_serialize(tree))
        return directory / "checkpoint"
    if layout.format == "npz":
        np.savez(directory / "model.npz", **weights)
        return directory / "model.npz"
    if layout.format == "torch" and importlib.util.find_spec("torch"):
        import torch

        tensors = {name: torch.tensor(value) for name, value in weights.items()}  # copies, as arrays may be read-only
        torch.save(layout.wrap(tensors), directory / "model.pth")
        return directory / "model.pth"
    from safetensors.numpy import save_file

    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory / "model.safetensors"


def _write_json(file: Path, content: dict) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")
