"""What the video-text scripts share: tokenisers, towers, and encoders of clips and texts.

Embeddings are those of `models.video_text.VideoText`: float32 unit vectors on the host, the same on every process.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from vidjax.convert import hub
from vidjax.errors import UserError
from vidjax.models.aligned import Aligned
from vidjax.models.blip import Blip
from vidjax.models.video_text import VideoText
from vidjax.objectives.contrastive import clamp_scale, clamp_temperature
from vidjax.runs.workdir import TOKENIZER_FILES, TOKENIZER_FOLDER, is_run, read_config
from vidjax.training.sharding import is_main_process, jit_on_mesh, put_batch

if TYPE_CHECKING:  # PyAV and the tokenizers are imported when they are needed
    from vidjax.data.text import Tokenizer


def require_video_text(source: str | Path, model: nn.Module) -> VideoText | Aligned:
    """Returns the model if it has a text tower.

    Raises:
      UserError: it has none.
    """
    if not isinstance(model, VideoText | Aligned):
        raise UserError(
            f"{source} is a {type(model).__name__}, which has no text tower: give a run of contrastive_pretrain.py or "
            "a published CLIP"
        )
    return model


def tokenizer_of(source: str | Path, given: str | None = None) -> "Tokenizer":
    """The tokeniser that a model's text tower was trained with.

    Args:
      source: of the model: a run, whose work directory has a copy, or a Hugging Face directory that contains one.
      given: a tokeniser to use instead.

    Raises:
      UserError: none is given, and the source contains none.
    """
    if given is not None:
        return load_tokenizer(given)
    path = hub.fetch(source)
    if is_run(path):
        saved = sorted((path / TOKENIZER_FOLDER).iterdir()) if (path / TOKENIZER_FOLDER).is_dir() else []
        if not saved:
            given = read_config(path)["tokenizer"]
        else:
            given = saved[0] if len(saved) == 1 else path / TOKENIZER_FOLDER
    elif any((path / file).is_file() for file in TOKENIZER_FILES):
        given = path
    else:
        raise UserError(f"{source} contains no tokenizer: give --tokenizer, CLIP's vocabulary file")
    return load_tokenizer(str(given))


def load_tokenizer(name: str) -> "Tokenizer":
    """`data.text.open_tokenizer`, which here also takes a hub id."""
    from vidjax.data.text import open_tokenizer

    return open_tokenizer(name if name == "bytes" else str(hub.fetch(name)))


def similarity_scale(model: VideoText | Aligned, params: dict) -> Float[jax.Array, ""]:
    """The factor on the cosines that the model has learnt."""
    if isinstance(model, Aligned):
        return 1 / clamp_temperature(params["temperature"])
    return clamp_scale(params["logit_scale"])


def check_tokenizer(tokenizer: "Tokenizer", model: VideoText | Aligned) -> None:
    """Checks that the tokeniser has the text tower's token ids, without those that the model adds at the end.

    Raises:
      UserError: it has others.
    """
    added = (2,) if isinstance(model, Blip) else (0, 1) if isinstance(model, Aligned) else (0,)  # a mask token
    if model.text.vocabulary - tokenizer.vocabulary not in added:
        raise UserError(
            f"tokenizer {tokenizer.name} has {tokenizer.vocabulary} ids, the text tower {model.text.vocabulary}: give "
            "the tokenizer that the tower was trained with"
        )


def text_encoder(
    model: VideoText | Aligned, tokenizer: "Tokenizer", mesh: Mesh, chunk: int = 64
) -> Callable[[dict, Sequence[str]], Float[np.ndarray, "n e"]]:
    """`(variables, texts) -> embeddings`, compiled once; each device encodes `chunk` texts at a time."""
    has_warned = False

    @partial(jit_on_mesh, mesh=mesh)
    def encode(variables: dict, batch: dict[str, jax.Array]) -> jax.Array:
        return model.apply(variables, batch["ids"], method="embed_text").astype(jnp.float32)

    def embed(variables: dict, texts: Sequence[str]) -> Float[np.ndarray, "n e"]:
        nonlocal has_warned
        ids, cut = tokenize_all(tokenizer, texts, model.text.context)
        if cut and not has_warned and is_main_process():
            has_warned = True
            print(f"note: {cut} of {len(texts)} texts are longer than {model.text.context} tokens and were truncated")
        return in_chunks(partial(encode, variables), {"ids": ids}, mesh, chunk)

    return embed


def tokenize_all(tokenizer: "Tokenizer", texts: Sequence[str], context: int) -> tuple[Int[np.ndarray, "n m"], int]:
    """`data.text.tokenize` of several texts: their ids, and how many were truncated."""
    from vidjax.data.text import tokenize

    tokenized = [tokenize(tokenizer, text, context) for text in texts]
    return np.stack([ids for ids, _ in tokenized]), sum(truncated for _, truncated in tokenized)


def in_chunks(
    compute: Callable[[dict[str, jax.Array]], jax.Array], rows: dict[str, np.ndarray], mesh: Mesh, chunk: int
) -> Float[np.ndarray, "n *_"]:
    """The outputs of a compiled function for arrays of rows that every process has; `chunk` rows per device at a time.

    Args:
      compute: of a batch, with replicated outputs.
    """
    count, size = len(next(iter(rows.values()))), chunk * mesh.size
    local, parts = slice(*(size * (jax.process_index() + i) // jax.process_count() for i in (0, 1))), []
    for start in range(0, count, size):
        part = {name: each[start : start + size] for name, each in rows.items()}
        padded = {name: np.concatenate([x, np.repeat(x[:1], size - len(x), axis=0)]) for name, x in part.items()}
        parts.append(jax.device_get(compute(put_batch({name: x[local] for name, x in padded.items()}, mesh))))
    return np.concatenate(parts)[:count]


def clip_encoder(
    model: VideoText | Aligned, mesh: Mesh
) -> Callable[
    [dict, Iterable[dict[str, np.ndarray]]],
    tuple[Float[np.ndarray, "n v e"], Int[np.ndarray, "n"], Int[np.ndarray, "n"], Bool[np.ndarray, "n"]],
]:
    """`(variables, batches) -> (embeddings of each view, labels, indices in the source, valid)`.

    The batches are those of `batches.evaluation_batches` with `view_counts`; padding rows are removed.
    """

    @partial(jit_on_mesh, mesh=mesh)
    def encode(variables: dict, batch: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
        def one_view(video: jax.Array) -> jax.Array:
            video = model.card.preprocess(video)
            return model.apply(variables, video, method="embed_video").astype(jnp.float32)

        views = jax.lax.map(one_view, jnp.swapaxes(batch["video"], 0, 1))
        return jnp.swapaxes(views, 0, 1), batch["label"], batch["index"], batch["valid"]

    def embed(variables: dict, batches: Iterable[dict[str, np.ndarray]]) -> tuple[np.ndarray, ...]:
        used = ({name: batch[name] for name in ("video", "label", "index", "valid")} for batch in batches)
        parts = [jax.device_get(encode(variables, put_batch(batch, mesh))) for batch in used]
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        if not columns[3].any():
            raise UserError("none of the videos could be read: check them with experiments/check_data.py")
        return tuple(column[columns[2] >= 0] for column in columns)

    return embed
