"""Converts Hugging Face preprocessing files to fields of a `Card`: models get the same input as in transformers.

Scaling is followed exactly: pixels are multiplied (`do_rescale`, `rescale_factor`), shifted (ViViT's `offset`) and
normalised (`do_normalize`, `image_mean`, `image_std`), which amounts to one mean and one std. For cropping, a card has
the fraction of the frame's shorter side that the centre crop keeps. Anything that a card cannot express is an error,
except for how frames are resized: the data pipeline does that in its own way, and the report lists the differences.
"""

import json
import re
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from vidjax.errors import UserError
from vidjax.layers.card import IMAGENET_MEAN, IMAGENET_STD, Card
from vidjax.models.clip import CARD as CLIP

FILES = ("processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json")  # newest format first
NESTED = ("video_processor", "image_processor")  # keys in the first of them

BILINEAR = 2  # Pillow's code
SQUARE = {"height": 224, "width": 224}
HALF = {"image_mean": 0.5, "image_std": 0.5}
DEFAULTS = {
    "do_resize": True, "resample": BILINEAR, "do_center_crop": False, "do_rescale": True, "rescale_factor": 1 / 255,
    "offset": False, "do_normalize": True,
}  # fmt: skip
CROPPED = DEFAULTS | {"size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": SQUARE}
# Defaults of transformers 5.24 for missing fields, by the first part of the processor's name. A step that is null
# (`do_rescale`) is off; other fields that are null get the default, although transformers rejects them.
PROCESSORS = {
    "videomae": CROPPED | HALF,
    "vivit": CROPPED | HALF | {"size": {"shortest_edge": 256}, "rescale_factor": 1 / 127.5, "offset": True},
    "timesformer": CROPPED | {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD},
    "vit": DEFAULTS | HALF | {"size": SQUARE},
    "beit": DEFAULTS | HALF | {"size": SQUARE, "resample": 3},
    "vjepa2": CROPPED
    | {
        "image_mean": IMAGENET_MEAN,
        "image_std": IMAGENET_STD,
        "size": {"shortest_edge": 292},
        "crop_size": {"height": 256, "width": 256},
    },
    "clip": CROPPED | {"image_mean": CLIP.mean, "image_std": CLIP.std, "resample": 3},
}
PROCESSOR = re.compile(r"(\w+?)(ImageProcessor|ImageProcessorFast|ImageProcessorPil|FeatureExtractor|VideoProcessor)")
TYPES = ("video_processor_type", "image_processor_type", "feature_extractor_type")
# Processors written on export, by model type; other types use that of CLIP, which resizes and crops as we do.
WRITTEN = {
    "videomae": "VideoMAEImageProcessor", "timesformer": "VideoMAEImageProcessor", "vivit": "VivitImageProcessor",
    "clip": "CLIPImageProcessor",
}  # fmt: skip
IDLE = ("do_convert_rgb", "do_zero_centering")  # no effect: frames are RGB; no current class reads the other


class Preprocessing(NamedTuple):
    """Fields of a `Card`, and notes for the report."""

    card: dict[str, Any]
    notes: tuple[str, ...] = ()


def read(config: dict, path: Path) -> Preprocessing:
    """Reads the directory's preprocessing file; empty if there is none.

    Args:
      config: content of the directory's `config.json`.

    Raises:
      UserError: the file is damaged, or requires something that a card cannot express.
    """
    for name in FILES:
        file = path / name
        content = read_json(file) if file.is_file() else {}
        if name == FILES[0]:
            content = next((content[key] for key in NESTED if isinstance(content.get(key), dict)), {})
        if content:
            try:
                return follow(content, config)
            except ValueError as error:
                raise UserError(f"{file} is not supported: {error}") from error
    return Preprocessing({})


def from_card(card: Card, model_type: str, image_size: int) -> dict:
    """The preprocessing file for this card, for frames of the model's size; the inverse of `follow`."""
    crop = {"height": image_size, "width": image_size}
    return {
        "image_processor_type": WRITTEN.get(model_type, WRITTEN["clip"]),
        "do_resize": True,
        "size": {"shortest_edge": round(image_size / card.crop_ratio)},
        "resample": BILINEAR,
        "do_center_crop": True,
        "crop_size": crop,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        **({"offset": False} if model_type == "vivit" else {}),
        "do_normalize": True,
        "image_mean": list(card.mean),
        "image_std": list(card.std),
    }


def read_json(file: Path) -> dict:
    """Reads a JSON object from a file."""
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}): download it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is not a configuration: it must be a JSON object")
    return content


def follow(content: dict, config: dict) -> Preprocessing:
    """Converts the fields of a processor; `config` is the directory's `config.json`."""
    kind = next((str(content[key]) for key in TYPES if content.get(key)), "")
    name, suffix = match.groups() if (match := PROCESSOR.fullmatch(kind)) else (str(config.get("model_type")), "")
    name = name.lower()
    defaults = PROCESSORS.get(name, DEFAULTS)
    if kind and name not in PROCESSORS and (missing := [key for key in HALF if content.get(key) is None]):
        raise UserError(f"the defaults of {kind} are unknown and {missing[0]} is missing: add it in a copy of the file")
    fields = defaults | {key: value for key, value in content.items() if value is not None or key.startswith("do_")}
    for field, value in fields.items():
        if field.startswith("do_") and value and field not in (*DEFAULTS, *IDLE):
            raise UserError(f"{field} is {value!r}, a step that is not supported: choose another checkpoint")
    if name in PROCESSORS and (name != "vivit" or suffix == "VideoProcessor"):  # these classes do not read the field
        fields["offset"] = name == "vivit" and fields["do_rescale"]
    if name == "vit" and isinstance(fields["size"], int):  # the side of a square; for other classes, the shorter side
        fields["size"] = {"height": fields["size"], "width": fields["size"]}
    channels = (config.get("vision_config") or config).get("num_channels", 3)
    card = scaling(fields, channels) | cropping(fields)
    notes = resizing(fields)
    if name == "vivit":
        low, high = ((pixel - card["mean"][0]) / card["std"][0] for pixel in (0, 1))
        if max(abs(low + 1), abs(high - 1)) > 1e-3:
            notes.append(
                f"pixels are scaled to [{low:.4g}, {high:.4g}], as transformers does with this directory's file; "
                "Google trained its own ViViTs on [-1, 1]: for those, set rescale_factor 1/127.5, offset true and "
                "do_normalize false in a copy of it"
            )
    return Preprocessing(card, tuple(notes))


def scaling(fields: dict, channels: int) -> dict:
    """The mean and std that give, for pixels in [0, 1], what the processor's steps give for pixels in [0, 255]."""
    factor, shift = 255.0, 0.0
    if fields["do_rescale"]:
        factor *= number("rescale_factor", fields["rescale_factor"])
        shift = 1.0 if fields["offset"] else 0.0
    elif fields["offset"]:
        raise UserError("offset is true but do_rescale is not, which transformers rejects too: set offset to false")
    if fields["do_normalize"]:
        given = {
            field: per_channel(f"image_{field}", fields.get(f"image_{field}"), channels) for field in ("mean", "std")
        }
    else:
        given = {"mean": (0.0,) * channels, "std": (1.0,) * channels}
    if (factor, shift) != (1.0, 0.0) and None in given.values():
        raise UserError("pixels are not scaled to [0, 1], and image_mean or image_std is missing: add them")
    card = {}
    if given["mean"]:
        card["mean"] = tuple((value + shift) / factor for value in given["mean"])
    if given["std"]:
        card["std"] = tuple(value / factor for value in given["std"])
    return card


def number(field: str, value: Any, factor: bool = True) -> float:
    """Checks that the value is a finite number, and not zero if it is a factor."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value) or (factor and not value):
        raise UserError(f"{field} is {value!r}: it must be a finite number{' other than 0' if factor else ''}")
    return float(value)


def per_channel(field: str, value: Any, channels: int) -> tuple[float, ...] | None:
    """One number per channel, from a list or a single number for all; None if there is no value."""
    if value is None:
        return None
    values = tuple(value) if isinstance(value, list | tuple) else (value,) * channels
    if len(values) != channels:
        raise UserError(f"{field} has {len(values)} numbers for {channels} channels: give one per channel")
    return tuple(number(field, each, factor=field == "image_std") for each in values)


def cropping(fields: dict) -> dict:
    """The fraction of the shorter side that the centre crop keeps, if frames are resized."""
    if not fields["do_resize"]:
        return {}
    if not fields["do_center_crop"]:
        return {"crop_ratio": 1.0}
    size, crop = side("size", fields.get("size")), side("crop_size", fields.get("crop_size"))
    if size is None or crop is None:
        return {}
    if crop > size:
        raise UserError(f"crop_size is {crop} and size {size}: frames would be padded, choose a smaller crop_size")
    return {"crop_ratio": crop / size}


def side(field: str, size: Any) -> int | None:
    """The side of a square, or a frame's shorter side, from any of the four forms that transformers has written."""
    if size is None:
        return None
    sides = size if isinstance(size, list) else [size, size]
    if isinstance(size, dict):
        edges = {edge: value for edge, value in size.items() if value is not None}
        sides = [edges.get(edge) for edge in ("height", "width")]
        sides = [edges["shortest_edge"]] * 2 if edges.keys() == {"shortest_edge"} else sides
    if len(sides) != 2 or not all(isinstance(one, int) and one > 0 for one in sides) or sides[0] != sides[1]:
        raise UserError(f"{field} is {size!r}: it must be the side of a square, or a shortest_edge")
    return sides[0]


def resizing(fields: dict) -> list[str]:
    """Notes on how the data pipeline resizes frames differently from the directory's file."""
    size, notes = fields.get("size"), []
    if not fields["do_resize"]:
        return ["frames are resized (do_resize is false in the directory's file)"]
    if isinstance(size, list) or (isinstance(size, dict) and "height" in size):
        notes.append("frames are cropped to a square (with the directory's file, transformers squeezes them)")
    if fields["resample"] != BILINEAR:
        notes.append(f"frames are resized as for all models (resample is {fields['resample']} in the directory's file)")
    return notes
