"""Our variables as the files that other code reads: published names and shapes, and a configuration where it asks."""

import importlib.util
import json
from pathlib import Path

import flax.linen as nn
import numpy as np
from flax.serialization import msgpack_serialize
from flax.traverse_util import unflatten_dict

from vidjax.convert import checkpoint, preprocessing, recognition, rules
from vidjax.convert.files import Weights
from vidjax.convert.rules import Layout
from vidjax.errors import UserError

TRANSFORMERS = "transformers"


def export_pretrained(model: nn.Module, variables: dict, out: str | Path, *, layout: str) -> Path:
    """Writes a model for the code that it was published with, and returns the file of its weights.

    `transformers` is a directory for its `from_pretrained`: `model.safetensors`, `config.json` and, where the model has
    a card, `preprocessor_config.json`. PyTorch's layouts are `model.pth`, a dictionary as the publisher's own loader
    takes it, or `model.safetensors` with the same names where PyTorch is not installed; Scenic's is its `checkpoint`.
    Beside these lies `vidjax.json`, so that `vidjax.load_pretrained(out)` gives model and variables back as they were.

    Args:
      variables: all of the model's, as `init` returns them.
      out: a new or empty directory.
      layout: a publisher's (`transformers`, `torchvision`, `mmaction2`, `original`, ...; an unknown one is answered
        with those of this model), or `vidjax` for our own, see `save_pretrained`.

    Raises:
      UserError: the layout is unknown, goes in but not out, has no place for a parameter, or the publisher's code would
        compute something else; `out` is not empty; the variables are not the model's.
    """
    out = Path(out)
    if layout == checkpoint.KEY:
        checkpoint.save_pretrained(out, model, variables)
        return out / "model.safetensors"
    chosen = next((one for one in recognition.named(model, layout) if one.restore is not None), None)
    if chosen is None:
        known = [one.key for one in recognition.layouts(model) if one.restore is not None]
        raise UserError(
            f"weights come in from layout '{layout}' and do not go out: {type(model).__name__} goes out as "
            f"{', '.join(dict.fromkeys([*known, checkpoint.KEY]))}"
        )
    checkpoint.refuse_full(out)
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
    """The model's variables under the names that files in this layout have.

    Raises:
      UserError: see `export_pretrained`.
    """
    layout.check(model)
    for path, value in layout.fixed.items():
        ours = model
        for field in path.split("."):
            ours = getattr(ours, field)
        if ours != value:
            raise UserError(
                f"{path} of the model is {ours!r}, and {layout.name} is computed with {value!r}: choose another layout"
            )
    weights = layout.restore(rules.invert(layout, variables))
    return {name: np.asarray(value, order="C") for name, value in weights.items()}


def to_config(model: nn.Module) -> dict:
    """The model's `config.json`; `hub.build` makes the model of it again.

    Raises:
      UserError: transformers has no such model.
    """
    config = recognition.TO_CONFIGS[recognition.kind_of(model)](model)
    classes = getattr(model, "num_classes", None)
    if classes is not None:
        names = model.card.class_names or [f"LABEL_{index}" for index in range(classes)]
        config["id2label"] = {str(index): name for index, name in enumerate(names)}
        config["label2id"] = {name: index for index, name in enumerate(names)}
    return config


def write(layout: Layout, weights: Weights, directory: Path) -> Path:
    """Writes the weights in the layout's format, and returns the file."""
    if layout.format == "flax":
        tree = layout.wrap(unflatten_dict({tuple(name.split("/")): value for name, value in weights.items()}))
        (directory / "checkpoint").write_bytes(msgpack_serialize(tree))
        return directory / "checkpoint"
    if layout.format == "torch" and importlib.util.find_spec("torch"):
        import torch

        tensors = {name: torch.from_numpy(value) for name, value in weights.items()}
        torch.save(layout.wrap(tensors), directory / "model.pth")
        return directory / "model.pth"
    from safetensors.numpy import save_file

    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory / "model.safetensors"


def _write_json(file: Path, content: dict) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n")
