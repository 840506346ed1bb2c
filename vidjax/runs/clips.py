"""How clips are cut for a trained model: as when it was trained, unless something else is given."""

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import flax.linen as nn

from vidjax.data.config import ClipConfig, GivenClipConfig
from vidjax.errors import UserError
from vidjax.fields import matters
from vidjax.runs.workdir import is_run, read_config


def read_views(views: str) -> tuple[int, int]:
    """Clips over time and crops over space of a script's `--views`: `4x3` as (4, 3).

    Raises:
      UserError: it is not of this form.
    """
    clips, _, crops = views.partition("x")
    if not (clips.isdecimal() and crops.isdecimal() and int(clips) and int(crops)):
        raise UserError(f"views is {views}: write clips x crops, such as 4x3")
    return int(clips), int(crops)


def square_pixels(source: str | Path, data: GivenClipConfig) -> bool:
    """Whether pixels that are not square are stretched: as given, or as when a run was trained."""
    if data.square_pixels is not None:
        return data.square_pixels
    return read_config(source).get("data", {}).get("square_pixels", True) if is_run(source) else True


def cut_clips(source: str | Path, model: nn.Module, data: GivenClipConfig, window: int | None = None) -> ClipConfig:
    """How clips are cut: as `data` says, else as usual; those of a window that runs through a video are dense.

    Args:
      source: of the model.
      window: sampled frames of a window; None for clips of whole videos.

    Raises:
      UserError: windows are not of dense sampling.
    """
    usual = usual_clips(source, model)
    clips = data.clips(usual)
    if window is not None:
        if clips.sampling != "dense":
            raise UserError(
                f"clips are sampled as {clips.sampling}, over the whole of a video: give "
                "--data.sampling dense and --data.stride, the distance of a window's frames"
            )
        clips = replace(clips, frames=window)
    if clips.frames != usual["frames"]:
        print(f"note: clips of {clips.frames} frames are given to a model that was made with {usual['frames']}")
    return clips


def usual_clips(source: str | Path, model: nn.Module) -> dict[str, Any]:
    """Fields of a `ClipConfig`: how clips were cut when a run was trained, or as a model's card and fields have it."""
    if is_run(source):
        saved: Mapping[str, Any] = read_config(source)["data"]
        counting = {field.name for field in fields(ClipConfig) if matters(ClipConfig(), field.name) == "always"}
        return {name: value for name, value in saved.items() if name in counting}
    return {
        "frames": model.num_frames,
        "size": model.image_size,
        "stride": model.card.stride,
        "short_side": round(model.image_size / model.card.crop_ratio),
    }
