"""Building a cross-model from two trained encoders, and loading their weights."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import flax.linen as nn
import jax
from jaxtyping import PyTree

from vidjax.convert.checkpoint import NAME, read_model
from vidjax.errors import UserError
from vidjax.models import override, variable_shapes
from vidjax.models.internvideo import CrossModel, TowerClassifier
from vidjax.models.video_text import VideoText
from vidjax.runs.pairs import start_part
from vidjax.runs.weights import load_pretrained, tower


def read_classifier(kind: Literal["masked", "contrastive"], source: str, class_names: Sequence[str]) -> nn.Module:
    """The classifier that a source describes; for a video-text model, its video tower with a new classifier.

    Args:
      kind: for the error message.
      source: a run, or a published checkpoint that describes its model.
      class_names: classes of the data.

    Raises:
      UserError: it has other classes, or none.
    """
    path = Path(source).expanduser()
    model = read_model(path) if (path / NAME).is_file() else load_pretrained(source, verbose=False)[0]
    if isinstance(model, VideoText) and kind == "contrastive":
        return TowerClassifier(tower(model, "video")[0], len(class_names), model.card)
    if getattr(model, "num_classes", None) is None:
        raise UserError(f"the {kind} encoder in {source} has no classes: fine-tune it first (finetune.py)")
    pairs = zip(model.card.class_names, class_names, strict=False)
    if model.num_classes != len(class_names):
        differs = f"{model.num_classes} classes, and the data {len(class_names)}"
    elif other := next((f"'{own}' where the data has '{name}'" for own, name in pairs if own != name), None):
        differs = f"other classes than the data, or another order: {other}"
    else:
        return model
    raise UserError(
        f"the {kind} encoder in {source} has {differs}: fine-tune it on the classes of the data first (finetune.py)"
    )


def unnamed_heads(model: CrossModel) -> list[str]:
    """Which encoders have heads without class names, whose classes can only be taken to be in the order of the data."""
    encoders = {"masked": model.masked, "contrastive": model.contrastive}
    trained = {name: encoder for name, encoder in encoders.items() if not isinstance(encoder, TowerClassifier)}
    return [name for name, encoder in trained.items() if not encoder.card.class_names]


def late_depths(depth: int) -> tuple[int, ...]:
    """Four depths in the second half of an encoder: later ones keep fewer activations."""
    return tuple(sorted({round(depth * part / 6) for part in (3, 4, 5, 6)}))


def make_cross_model(
    masked: nn.Module, contrastive: nn.Module, depths: tuple[int, ...] | None, class_names: Sequence[str], **fields: Any
) -> CrossModel:
    """The joint model, checked.

    Args:
      depths: see `CrossModel`; None for `late_depths`.
      fields: of both encoders and the joint model, such as `dtype`.

    Raises:
      UserError: the encoders do not fit together, or a depth does not exist.
    """
    depths = late_depths(getattr(masked, "depth", 0)) if depths is None else depths
    card = replace(masked.card, class_names=tuple(class_names), accuracy="", views="")
    model = CrossModel(masked, contrastive, depths, card)
    model.check()
    return override("cross_model", model, fields)


def trained_parts(model: CrossModel) -> PyTree[bool]:
    """Mask of the parameters: True for those of the joint model itself and for the two heads."""
    params = variable_shapes(model)["params"]

    def is_trained(path: tuple, _: Any) -> bool:
        part, *names = (key.key for key in path)
        return part not in ("masked", "contrastive") or names[0] == "head"

    return jax.tree.map_with_path(is_trained, params)


def start_encoders(model: CrossModel, variables: dict, masked: str, contrastive: str) -> dict:
    """The variables with the weights of both encoders from their sources."""
    variables = start_part(masked, model.masked, "/masked/", variables, "masked")
    if isinstance(model.contrastive, TowerClassifier):
        return start_part(contrastive, model.contrastive.tower, "/contrastive/tower/", variables, "contrast")
    return start_part(contrastive, model.contrastive, "/contrastive/", variables, "contrast")
