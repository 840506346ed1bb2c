"""A video tower and a text tower as one model, and the weights that either starts from."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Bool

from vidjax import convert, matching
from vidjax.convert.checkpoint import read_model
from vidjax.errors import UserError
from vidjax.models import create_model, create_text_model
from vidjax.models.video_text import Projected, VideoText
from vidjax.runs.weights import start_from
from vidjax.runs.workdir import is_run
from vidjax.training.sharding import is_main_process

if TYPE_CHECKING:  # TensorFlow takes seconds, which --help and wrong input need not
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
    """The two towers for this tokeniser; a model that brings its text tower along is whole already.

    Args:
      features: width of the embedding that both are projected to; by default the text model's.
      context: tokens of a caption; by default the text model's.
      bias: of the sigmoid loss at first; None has none.
      fields: of the video model; `dtype`, `remat` and `scan` are the text model's too.

    Raises:
      UserError: towers that do not go together.
    """
    if video_model.endswith("_pretrain"):
        raise UserError(f"video_model {video_model} is for masked pre-training: give it without _pretrain")
    video = create_model(video_model, **fields)
    given = {name: value for name, value in (("features", features), ("context", context)) if value is not None}
    if isinstance(video, VideoText):
        if text_model:
            raise UserError(f"video_model {video_model} brings its own text tower: give --text_model None")
        for name, value in given.items():
            if value != (has := getattr(video.text, name)):
                raise UserError(f"{name} is {value}, but {video_model} has {has}: leave it out")
        matching.check_tokenizer(tokenizer, video)
        return video.clone(bias=bias)
    if text_model is None:
        raise UserError(f"video_model {video_model} needs a text tower: give --text_model")
    video = video.clone(num_classes=None)
    computing = {name: fields[name] for name in ("dtype", "remat", "scan") if name in fields}
    text = create_text_model(text_model, vocabulary=tokenizer.vocabulary, **given, **computing)
    if "end_token" in text.__dataclass_fields__:
        if tokenizer.end is None:
            raise UserError(
                f"tokenizer {tokenizer.name} puts no end token behind a text, where {text_model} reads its "
                "feature: give one that does, or a bert_* as --text_model"
            )
        text = text.clone(end_token=tokenizer.end)
    return VideoText(Projected(video, text.features, fields.get("dtype")), text, card=video.card, bias=bias)


def start_pair(
    model: VideoText, variables: dict, whole: str | None = None, video: str | None = None, text: str | None = None
) -> dict:
    """The variables with loaded weights in their place.

    Args:
      whole: a source of both towers: a run of two, a CLIP or an ActionCLIP.
      video, text: a source of one tower: a model of the tower's family, or a run of two of which one is taken.
    """
    if whole is not None:
        without = is_run(whole) and getattr(read_model(Path(whole)), "bias", None) is None
        new = ("logit_bias",) if model.bias is not None and without else ()
        variables, _ = start_from(whole, model, variables, new=new)
    for name, source in (("video", video), ("text", text)):
        if source is not None:
            variables = _start_tower(name, source, model, variables)
    return variables


def _start_tower(name: str, source: str, model: VideoText, variables: dict) -> dict:
    tower, inner = matching.tower(model, name)
    flat = flatten_dict(variables, sep="/")
    part = unflatten_dict(matching.below(flat, inner), sep="/")
    weights = matching.tower_weights(source, name)
    if weights is None:
        part, _ = start_from(source, tower, part, label=name)
    else:
        part, report = convert.load_weights(f"the {name} tower of {source}", tower, part, weights=weights)
        if is_main_process():
            print(f"{name:<9} from {source}: {report}")
    part = flatten_dict(part, sep="/")
    return unflatten_dict(flat | {path.replace("/", inner, 1): part[path] for path in part}, sep="/")


def all_but(tower: Literal["none", "video", "text"], params: Any) -> Any:
    """True for every parameter but those of a tower, for `training.optimizer.make_optimizer`; None for no tower."""
    if tower == "none":
        return None
    return {name: jax.tree.map(lambda _, kept=name == tower: not kept, part) for name, part in params.items()}


class CaptionCounter:
    """Counts the captions that were cut, and prints a note at the first."""

    def __init__(self, context: int):
        """Args: the tokens that a caption may have."""
        self._context, self._cut, self._seen = context, 0, 0

    def count(self, truncated: Bool[np.ndarray, "b"]) -> None:
        """Counts those of a batch."""
        if not self._cut and truncated.any() and is_main_process():
            print(f"note: captions of over {self._context} tokens are cut to that; the end says how many")
        self._cut += int(truncated.sum())
        self._seen += len(truncated)

    def describe(self) -> list[str]:
        """A line for the end of a run; none where no caption was cut."""
        if not self._cut:
            return []
        return [f"captions  {self._cut:,} of the {self._seen:,} read since this start were too long and cut"]
