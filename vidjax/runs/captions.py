"""Captions of clips from a video-text model with a decoder: as a function, and as an evaluation during training."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, UInt8

from vidjax.errors import UserError
from vidjax.evaluation.generation import beam_search
from vidjax.models.video_text import VideoText
from vidjax.runs.generation import begin
from vidjax.runs.run import Run
from vidjax.runs.validation import Validator
from vidjax.training.sharding import is_main_process, jit_on_mesh, put_batch
from vidjax.training.state import TrainState

if TYPE_CHECKING:  # PyAV and the tokenizers are imported when they are needed
    from vidjax.data.text import Tokenizer

Writer = Callable[[dict, UInt8[Array, "b t h w c"]], Int[Array, "b m"]]


def require_decoder(source: str | Path, model: nn.Module) -> VideoText:
    """Returns the model if it has a decoder of captions.

    Raises:
      UserError: it has none.
    """
    if getattr(model, "decoder", None) is None:
        raise UserError(
            f"{source} is a {type(model).__name__} without a decoder of captions: give a run of "
            "video_language_pretrain.py"
        )
    return model


def caption_writer(model: VideoText, tokenizer: "Tokenizer", beams: int = 1) -> Writer:
    """`(variables, pixels) -> ids` of a caption for each clip, a pure function for use under `jit`.

    Args:
      beams: see `evaluation.generation.beam_search`; 1 takes the likeliest word each time.

    Raises:
      UserError: the tokeniser adds no start or no end token.
    """
    start, end = tokenizer.encode("")[:1], tokenizer.end
    if end is None or not start or start[0] == end:
        raise UserError(f"tokenizer {tokenizer.name} adds no start and end token, between which a caption is written")

    def write(variables: dict, video: UInt8[Array, "b t h w c"]) -> Int[Array, "b m"]:
        seen = model.apply(variables, model.card.preprocess(video), method="seen")
        first = jnp.full((len(video), 1), start[0], jnp.int32)
        begun = begin(model, variables, seen, first, beams=beams)
        ids, _ = beam_search(*begun, length=model.text.context - 1, end=end, beams=beams)
        return jnp.concatenate([first, ids], axis=1)

    return write


def read_captions(tokenizer: "Tokenizer", ids: Int[np.ndarray, "b m"]) -> list[str]:
    """The texts of ids with a start token, and usually an end token."""
    ends = [np.flatnonzero(row == tokenizer.end) for row in ids]
    return [
        tokenizer.decode(row[1 : end[0] if len(end) else None].tolist()) for row, end in zip(ids, ends, strict=True)
    ]


def caption_validator(run: Run, tokenizer: "Tokenizer", count: int) -> Validator:
    """Writes captions of the first `count` validation videos to `captions/` in the work directory.

    `caption_exact` is the fraction that equals one of the video's own captions.
    """
    source, write = run.sources["validation"], caption_writer(run.model, tokenizer)
    chosen = np.arange(min(count, len(source)))

    @partial(jit_on_mesh, mesh=run.mesh)
    def caption(variables: dict, batch: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
        return write(variables, batch["video"]), batch["index"], batch["valid"]

    def validate(state: TrainState, step: int) -> dict[str, float]:
        variables: dict[str, Any] = {"params": state.evaluated_params, **state.model_state}
        parts = []
        for batch in run.validation_batches(indices=chosen):
            used = {name: batch[name] for name in ("video", "index", "valid")}
            parts.append(jax.device_get(caption(variables, put_batch(used, run.mesh))))
        ids, index, valid = (np.concatenate(column) for column in zip(*parts, strict=True))
        texts = read_captions(tokenizer, ids[valid])
        references = [source.captions(int(i)) for i in index[valid]]
        if is_main_process():
            _save(run.workdir / "captions" / f"step_{step:07d}.txt", texts, references)
        exact = [text in own for text, own in zip(texts, references, strict=True)]
        return {"caption_exact": sum(exact) / max(len(exact), 1)}

    return validate


def _save(path: Path, texts: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    path.parent.mkdir(exist_ok=True)
    lines = [f"{text}\n    {' | '.join(own)}\n" for text, own in zip(texts, references, strict=True)]
    path.write_text("".join(lines), "utf-8", "backslashreplace")
