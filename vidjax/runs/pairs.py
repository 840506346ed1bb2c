"""Building a video-text model from two towers, and loading the initial weights of either."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Bool

from vidjax import convert
from vidjax.convert.checkpoint import read_model
from vidjax.errors import UserError
from vidjax.models import create_model, create_text_model
from vidjax.models.video_text import Projected, VideoText
from vidjax.runs.video_text import check_tokenizer, subtree, tower, tower_weights
from vidjax.runs.weights import start_from
from vidjax.runs.workdir import is_run
from vidjax.training.sharding import is_main_process

if TYPE_CHECKING:  # PyAV and the tokenizers are imported when they are needed
    from vidjax.data.text import Tokenizer


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


def start_pair(
    model: VideoText, variables: dict, whole: str | None = None, video: str | None = None, text: str | None = None
) -> dict:
    """Loads initial weights into the variables.

    Args:
      whole: source of both towers: a contrastive run, a CLIP or an ActionCLIP.
      video, text: source of one tower: a model of the tower's family, or a contrastive run.
    """
    if whole is not None:
        lacks_bias = is_run(whole) and getattr(read_model(Path(whole)), "bias", None) is None
        new = ("logit_bias",) if model.bias is not None and lacks_bias else ()
        variables, _ = start_from(whole, model, variables, new=new)
    for name, source in (("video", video), ("text", text)):
        if source is not None:
            variables = _start_tower(name, source, model, variables)
    return variables


def _start_tower(name: str, source: str, model: VideoText, variables: dict) -> dict:
    module, inner = tower(model, name)
    flat = flatten_dict(variables, sep="/")
    part = unflatten_dict(subtree(flat, inner), sep="/")
    weights = tower_weights(source, name)
    if weights is None:
        part, _ = start_from(source, module, part, label=name)
    else:
        part, report = convert.load_weights(f"the {name} tower of {source}", module, part, weights=weights)
        if is_main_process():
            print(f"{name:<9} from {source}: {report}")
    part = flatten_dict(part, sep="/")
    return unflatten_dict(flat | {path.replace("/", inner, 1): part[path] for path in part}, sep="/")


def all_but(tower: Literal["none", "video", "text"], params: Any) -> Any:
    """Mask of the trained parameters for `make_optimizer`: False for the frozen tower; None if no tower is frozen."""
    if tower == "none":
        return None
    return {name: jax.tree.map(lambda _, frozen=name == tower: not frozen, part) for name, part in params.items()}


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
