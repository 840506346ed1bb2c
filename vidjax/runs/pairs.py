"""Building a video-text model from two towers, and loading the initial weights of either."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import flax.linen as nn
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Bool, PyTree

from vidjax.convert.checkpoint import read_model
from vidjax.errors import UserError
from vidjax.fields import free, require_positive
from vidjax.models import create_model, create_text_model, variable_shapes
from vidjax.models.text import CaptionDecoder, TextTower
from vidjax.models.video_text import Projected, VideoText
from vidjax.runs.config import CaptionedConfig
from vidjax.runs.video_text import check_tokenizer
from vidjax.runs.weights import Tower, start_from, subtree, tower
from vidjax.runs.workdir import is_run
from vidjax.training.sharding import is_main_process

if TYPE_CHECKING:  # PyAV and the tokenizers are imported when they are needed
    from vidjax.data.text import Tokenizer


@dataclasses.dataclass(frozen=True)
class PairConfig(CaptionedConfig):
    """Base config of a training script whose model consists of any video tower and a text tower."""

    video_model: str = "vivit_base_16x2_factorized_encoder"
    """One of vidjax.list_models(); clip_* and actionclip_* include their text tower."""
    text_model: str | None = "clip_base"
    """text_tiny, clip_base, clip_large, bert_tiny or bert_base; None for video models that include a text tower."""
    features: int | None = None
    """Width of the common embedding (default: the text model's)."""
    chunk: int | None = free(None)
    """Columns of the similarity matrix computed at once, to save memory (default: all)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "chunk", "features")
        if self.chunk and self.batch_size % self.chunk:
            raise UserError(f"chunk is {self.chunk}: it must divide the batch of {self.batch_size}")

    @property
    def model(self) -> str:
        """The name of the two towers in reports."""
        return self.video_model + (f" and {self.text_model}" if self.text_model else "")


def make_pair(
    video_model: str,
    text_model: str | None,
    tokenizer: "Tokenizer",
    *,
    features: int | None = None,
    context: int | None = None,
    bias: float | None = None,
    **fields: Any,
) -> VideoText:
    """Builds a video-text model for this tokeniser. Some video models, such as CLIP, include their text tower.

    Args:
      features: width of the common embedding; by default the text model's.
      context: tokens per caption; by default the text model's.
      bias: initial bias of the sigmoid loss; None for a model without one.
      fields: fields of the video model; `dtype`, `remat` and `scan` apply to the text model too.

    Raises:
      UserError: the towers cannot be combined.
    """
    if video_model.endswith("_pretrain"):
        raise UserError(f"video_model {video_model} is for masked pre-training: use the name without _pretrain")
    video = create_model(video_model, **fields)
    given = {name: value for name, value in (("features", features), ("context", context)) if value is not None}
    if isinstance(video, VideoText):
        if text_model:
            raise UserError(f"video_model {video_model} includes a text tower: give --text_model None")
        for name, value in given.items():
            if value != (fixed := getattr(video.text, name)):
                raise UserError(f"{name} is {value}, but {video_model} has {fixed}: omit --{name}")
        check_tokenizer(tokenizer, video)
        return video.clone(bias=bias)
    if text_model is None:
        raise UserError(f"video_model {video_model} needs a text tower: give --text_model")
    video = video.clone(num_classes=None)
    computing = {name: fields[name] for name in ("dtype", "remat", "scan") if name in fields}
    text = create_text_model(text_model, vocabulary=tokenizer.vocabulary, **given, **computing)
    if "end_token" in text.__dataclass_fields__:
        if tokenizer.end is None:
            raise UserError(
                f"tokenizer {tokenizer.name} adds no end token, which {text_model} needs to pool its features: give "
                "one that does, or a bert_* as --text_model"
            )
        text = text.clone(end_token=tokenizer.end)
    return VideoText(Projected(video, text.features, fields.get("dtype")), text, card=video.card, bias=bias)


def with_decoder(pair: VideoText, depth: int, **computing: Any) -> VideoText:
    """The pair with a decoder of captions on its text tower.

    Args:
      computing: fields `dtype`, `remat` and `scan` of the decoder.

    Raises:
      UserError: the text tower is not causal: its tokens would contain the words to predict.
    """
    if not isinstance(pair.text, TextTower):
        raise UserError(
            f"the text tower is a {type(pair.text).__name__}, whose tokens see the words that follow them: give a "
            "causal one as --text_model, such as clip_base"
        )
    return pair.clone(decoder=CaptionDecoder(depth, pair.text.heads, **computing))


def start_pair(
    model: VideoText, variables: dict, whole: str | None = None, video: str | None = None, text: str | None = None
) -> dict:
    """Loads initial weights into the variables. A bias and a decoder that the source does not have stay new.

    Args:
      whole: source of both towers: a contrastive run, a CLIP or an ActionCLIP.
      video, text: source of one tower: a model of the tower's family, or a contrastive run.
    """
    if whole is not None:
        source = read_model(Path(whole)) if is_run(whole) else None
        parts = {"bias": "logit_bias", "decoder": "decoder/"}
        ours = [part for part in parts if getattr(model, part) is not None]
        new = [parts[part] for part in ours if getattr(source, part, None) is None]
        variables, _ = start_from(whole, model, variables, new=new)
    return start_towers(model, variables, video, text)


def start_towers(model: nn.Module, variables: dict, video: str | None, text: str | None) -> dict:
    """`start_pair` of one tower or two, for any model with the fields `video` and `text`."""
    for name, source in (("video", video), ("text", text)):
        if source is not None:
            variables = start_part(source, *tower(model, name), variables, name, name)
    return variables


def start_part(source: str, module: nn.Module, inner: str, variables: dict, label: str, name: Tower = "video") -> dict:
    """Loads initial weights into a part of the variables, and prints a report.

    Args:
      source: of a model of the part's family, or a contrastive run.
      module: the part.
      inner: the part of variable paths that marks it, such as `/video/tower/`; see `runs.video_text.tower`.
      variables: of the whole model.
      label: first word of the printed report.
      name: the tower to take if the source is a contrastive run.
    """
    flat = flatten_dict(variables, sep="/")
    part = unflatten_dict(subtree(flat, inner), sep="/")
    part, _ = start_from(source, module, part, label=label, name=name)
    part = flatten_dict(part, sep="/")
    return unflatten_dict(flat | {path.replace("/", inner, 1): part[path] for path in part}, sep="/")


def trained_mask(frozen_tower: Literal["none", "video", "text"], model: nn.Module) -> PyTree[bool] | None:
    """Mask of the trained parameters for `make_optimizer`: False for a frozen tower, and for what the video tower
    freezes itself (UniFormerV2); None if all are trained.
    """
    frozen = tuple(f"video/{part}" for part in getattr(model.video, "frozen_parts", ()))
    if frozen_tower != "none":
        frozen += (f"{frozen_tower}/",)
    if not frozen:
        return None
    params = variable_shapes(model)["params"]
    return unflatten_dict({path: not "/".join(path).startswith(frozen) for path in flatten_dict(params)})


class CaptionCounter:
    """Counts truncated captions and prints a note at the first one.

    Args:
      context: maximum number of tokens of a caption.
    """

    def __init__(self, context: int):
        self._context, self._truncated, self._total = context, 0, 0

    def count(self, truncated: Bool[np.ndarray, "b"]) -> None:
        """Adds a batch."""
        if not self._truncated and truncated.any() and is_main_process():
            print(f"note: captions are truncated to {self._context} tokens; their number is reported at the end")
        self._truncated += int(truncated.sum())
        self._total += len(truncated)

    def describe(self) -> list[str]:
        """A line for the summary of a run; an empty list if no caption was truncated."""
        if not self._truncated:
            return []
        return [f"captions  {self._truncated:,} of {self._total:,} read since the last start were truncated"]
