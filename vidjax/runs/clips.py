"""How clips are sampled and cropped for a trained model: as in training or as published, unless flags override it."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp

from vidjax.data.config import ClipConfig, GivenClipConfig
from vidjax.errors import UserError
from vidjax.fields import matters
from vidjax.layers.card import Card
from vidjax.runs.workdir import is_run, read_config

if TYPE_CHECKING:  # PyAV is imported when it is needed
    from vidjax.data.sources import Source


def read_views(views: str) -> tuple[int, int]:
    """Parses clips in time x crops in space: `4x3` gives (4, 3).

    Raises:
      UserError: the value does not have this form.
    """
    clips, _, crops = views.partition("x")
    if not (clips.isdecimal() and crops.isdecimal() and int(clips) and int(crops)):
        raise UserError(f"views is {views}: write clips x crops, such as 4x3")
    return int(clips), int(crops)


def check_views(views: str) -> None:
    """Raises `UserError` unless the value is clips x crops, or `published` (see `choose_views`)."""
    if views != "published":
        read_views(views)


def choose_views(views: str, model: nn.Module) -> str:
    """A script's `--views`: clips x crops, or for `published` those of the model's card.

    Raises:
      UserError: the card has none.
    """
    if views != "published":
        return views
    if not model.card.views:
        raise UserError("how many views this model was published with is unknown: write clips x crops, such as 4x3")
    return model.card.views


def square_pixels(source: str | Path, data: GivenClipConfig) -> bool:
    """Whether to resample non-square pixels to square ones: as `data` specifies, else as in the run's training."""
    if data.square_pixels is not None:
        return data.square_pixels
    return read_config(source).get("data", {}).get("square_pixels", True) if is_run(source) else True


def cut_clips(source: str | Path, model: nn.Module, data: GivenClipConfig, window: int | None = None) -> ClipConfig:
    """The clip settings: those that `data` specifies, and `usual_clips` for the others.

    Args:
      source: source of the model.
      window: sampled frames per window, for windows that slide over a video; None for clips of whole videos.

    Raises:
      UserError: windows without dense sampling.
    """
    usual = usual_clips(source, model)
    clips = data.clips(usual)
    if clips.stream == "video" and len(model.card.mean) != 3:
        raise UserError(
            f"the model takes {len(model.card.mean)} channels, such as optical flow, and the clips are RGB frames: "
            "fine-tune it on a stream of your records first (finetune.py --data.stream), or choose a model of RGB"
        )
    if window is not None:
        if clips.sampling != "dense":
            raise UserError(
                f"windows need dense sampling, but data.sampling is {clips.sampling}: give --data.sampling dense and "
                "--data.stride, the distance between the frames of a window"
            )
        clips = replace(clips, frames=window)
    if clips.frames != usual["frames"]:
        print(f"note: clips have {clips.frames} frames, the model was built for {usual['frames']}")
    return clips


def trained_card(
    card: Card,
    data: ClipConfig,
    class_names: tuple[str, ...] = (),
    heads: tuple[str, ...] = (),
    stills: tuple[str, ...] = (),
) -> Card:
    """The card of a model that is trained on such clips: with its classes and clips, and no published test."""
    return replace(
        card, class_names=class_names, heads=heads, stills=stills, stride=data.stride,
        rate=data.fps and data.fps * data.stride, crop_ratio=data.center_ratio, sampling=data.sampling,
        consecutive=data.consecutive, protocol=data.protocol, test_size=None, test_frames=None, views="", accuracy="",
    )  # fmt: skip


def usual_clips(source: str | Path, model: nn.Module) -> dict[str, Any]:
    """Values for `ClipConfig`: those of the run's training, or those of a model's card and fields."""
    if is_run(source):
        saved: Mapping[str, Any] = read_config(source)["data"]
        counting = {field.name for field in fields(ClipConfig) if matters(ClipConfig(), field.name) == "always"}
        return {name: value for name, value in saved.items() if name in counting}
    card = model.card
    size = card.test_size or model.image_size
    return {
        "frames": card.test_frames or model.num_frames,
        "size": size,
        "stride": card.stride,
        "fps": card.rate and card.rate / card.stride,
        "sampling": card.sampling,
        "consecutive": card.consecutive,
        "protocol": card.protocol,
        "short_side": round(size / card.crop_ratio),
    }


def clip_arrays(source: "Source", data: ClipConfig, model: nn.Module) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and type of the clips of a source, by their name in a batch.

    Raises:
      UserError: they have another number of channels than the model.
    """
    from vidjax.data.example import field_specs

    spec = field_specs(source, data, ())["video"]
    (channels,) = spec.shape
    if channels != len(model.card.mean):
        raise UserError(
            f"data.stream {data.stream} has {channels} channels, the model takes {len(model.card.mean)}: "
            "choose another --data.stream, or a model for this one, such as i3d_flow for optical flow"
        )
    return {"video": ((data.frames, data.size, data.size, channels), jnp.dtype(spec.dtype))}
