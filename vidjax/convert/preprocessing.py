"""Hugging Face's files of preprocessing as a `Card` says it: what transformers feeds a model is what we feed it.

Scaling is followed to the last step: pixels are multiplied (`do_rescale`, `rescale_factor`), shifted (ViViT's `offset`)
and normalised (`do_normalize`, `image_mean`, `image_std`), which is one mean and one std in all. Of cropping, a card
holds the share of the frame's shorter side that the central crop keeps. What it cannot hold is refused, except for how
frames are resized: that is the data pipeline's own, and the report says where it differs.
"""

import json
import re
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

from vidjax.errors import UserError
from vidjax.layers.card import IMAGENET_MEAN, IMAGENET_STD, Card
from vidjax.models.clip import CARD as CLIP

FILES = ("processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json")  # the newest first
NESTED = ("video_processor", "image_processor")  # where the first of them holds several

BILINEAR = 2  # Pillow's number of it
SQUARE = {"height": 224, "width": 224}
HALF = {"image_mean": 0.5, "image_std": 0.5}
USUAL = {
    "do_resize": True, "resample": BILINEAR, "do_center_crop": False, "do_rescale": True, "rescale_factor": 1 / 255,
    "offset": False, "do_normalize": True,
}  # fmt: skip
CROPPED = USUAL | {"size": {"shortest_edge": 224}, "do_center_crop": True, "crop_size": SQUARE}
# Defaults of transformers 5.24 for fields that a file lacks, by the start of the processor's name. A step that a file
# sets to null (`do_rescale`) is off; other nulls are read as the default, where transformers refuses them.
PROCESSORS = {
    "videomae": CROPPED | HALF,
    "vivit": CROPPED | HALF | {"size": {"shortest_edge": 256}, "rescale_factor": 1 / 127.5, "offset": True},
    "timesformer": CROPPED | {"image_mean": IMAGENET_MEAN, "image_std": IMAGENET_STD},
    "vit": USUAL | HALF | {"size": SQUARE},
    "clip": CROPPED | {"image_mean": CLIP.mean, "image_std": CLIP.std, "resample": 3},
}
PROCESSOR = re.compile(r"(\w+?)(ImageProcessor|ImageProcessorFast|ImageProcessorPil|FeatureExtractor|VideoProcessor)")
TYPES = ("video_processor_type", "image_processor_type", "feature_extractor_type")
# Processors of the model types that are exported; the others' are CLIP's, which resizes and crops as ours do.
WRITTEN = {
    "videomae": "VideoMAEImageProcessor", "timesformer": "VideoMAEImageProcessor", "vivit": "VivitImageProcessor",
    "clip": "CLIPImageProcessor",
}  # fmt: skip
IDLE = ("do_convert_rgb", "do_zero_centering")  # frames are RGB already; the other is read by no class of today


class Preprocessing(NamedTuple):
    """Fields of a `Card`, and what the report must say beside them."""

    card: dict[str, Any]
    notes: tuple[str, ...] = ()


def read(config: dict, path: Path) -> Preprocessing:
    """What the directory's file of preprocessing says; nothing where there is none.

    Args:
      config: the directory's `config.json`.

    Raises:
      UserError: the file is damaged, or asks for what a card cannot hold.
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
                raise UserError(f"{file} cannot be followed: {error}") from error
    return Preprocessing({})


def from_card(card: Card, model_type: str, image_size: int) -> dict:
    """The file of preprocessing that `follow` reads this card from, for frames of the model's size."""
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
    """The named values of a file of JSON."""
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}): fetch it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{file} is not a configuration: it must hold named values")
    return content


def follow(content: dict, config: dict) -> Preprocessing:
    """What the fields of a processor say."""
    kind = next((str(content[key]) for key in TYPES if content.get(key)), "")
    name, suffix = match.groups() if (match := PROCESSOR.fullmatch(kind)) else (str(config.get("model_type")), "")
    name = name.lower()
    usual = PROCESSORS.get(name, USUAL)
    if kind and name not in PROCESSORS and (missing := [key for key in HALF if content.get(key) is None]):
        raise UserError(f"the defaults of {kind} are not known here and it lacks {missing[0]}: add the value to a copy")
    fields = usual | {key: value for key, value in content.items() if value is not None or key.startswith("do_")}
    for field, value in fields.items():
        if field.startswith("do_") and value and field not in (*USUAL, *IDLE):
            raise UserError(f"{field} is {value!r}, a step that is not known here: choose another model")
    if name in PROCESSORS and (name != "vivit" or suffix == "VideoProcessor"):  # these do not read it
        fields["offset"] = name == "vivit" and fields["do_rescale"]
    if name == "vit" and isinstance(fields["size"], int):  # of a square; elsewhere of the shorter side
        fields["size"] = {"height": fields["size"], "width": fields["size"]}
    channels = (config.get("vision_config") or config).get("num_channels", 3)
    card = scaling(fields, channels) | cropping(fields)
    notes = resizing(fields)
    if name == "vivit":
        low, high = ((pixel - card["mean"][0]) / card["std"][0] for pixel in (0, 1))
        if max(abs(low + 1), abs(high - 1)) > 1e-3:
            notes.append(
                f"pixels are scaled to [{low:.4g}, {high:.4g}], as transformers does by this directory's file; Google "
                "trained its own ViViTs on [-1, 1]: for those say rescale_factor 1/127.5, offset true and do_normalize "
                "false in a copy of it"
            )
    return Preprocessing(card, tuple(notes))


def scaling(fields: dict, channels: int) -> dict:
    """The mean and std of pixels in [0, 1] that do what the fields' steps do to those in [0, 255]."""
    factor, shift = 255.0, 0.0
    if fields["do_rescale"]:
        factor *= number("rescale_factor", fields["rescale_factor"])
        shift = 1.0 if fields["offset"] else 0.0
    elif fields["offset"]:
        raise UserError("offset is true and do_rescale is not, which transformers refuses too: set offset to false")
    if fields["do_normalize"]:
        given = {
            field: per_channel(f"image_{field}", fields.get(f"image_{field}"), channels) for field in ("mean", "std")
        }
    else:
        given = {"mean": (0.0,) * channels, "std": (1.0,) * channels}
    if (factor, shift) != (1.0, 0.0) and None in given.values():
        raise UserError("pixels are scaled in a way of its own, and image_mean or image_std is missing: add them")
    told = {}
    if given["mean"]:
        told["mean"] = tuple((value + shift) / factor for value in given["mean"])
    if given["std"]:
        told["std"] = tuple(value / factor for value in given["std"])
    return told


def number(field: str, value: Any, factor: bool = True) -> float:
    """The number itself, which as a factor must be one to divide by."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value) or (factor and not value):
        raise UserError(f"{field} is {value!r}: it must be a finite number{' other than 0' if factor else ''}")
    return float(value)


def per_channel(field: str, value: Any, channels: int) -> tuple[float, ...] | None:
    """One number a channel, of which transformers also takes one for all; None where there is none."""
    if value is None:
        return None
    values = tuple(value) if isinstance(value, list | tuple) else (value,) * channels
    if len(values) != channels:
        raise UserError(f"{field} has {len(values)} numbers for {channels} channels: give one for each")
    return tuple(number(field, each, factor=field == "image_std") for each in values)


def cropping(fields: dict) -> dict:
    """The share of the shorter side that the central crop keeps, where there is something to crop from."""
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
    """Side of a square, or a frame's shorter side; transformers has written sizes in four ways."""
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
    """Where the directory's file has frames resized otherwise than the data pipeline does."""
    size, notes = fields.get("size"), []
    if not fields["do_resize"]:
        return ["frames are resized (do_resize is false in the directory's file)"]
    if isinstance(size, list) or (isinstance(size, dict) and "height" in size):
        notes.append("frames are cropped to a square (by the directory's file, transformers squeezes them into it)")
    if fields["resample"] != BILINEAR:
        notes.append(
            f"frames are resized as for every model (resample is {fields['resample']} in the directory's file)"
        )
    return notes
