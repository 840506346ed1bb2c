"""What the video-text scripts share: clips and sentences to embeddings, and captions to token ids.

Embeddings are those of `models.video_text.VideoText`: unit vectors, float32, on the host and the same on every process.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Bool, Float, Int

from vidjax import runs
from vidjax.cli import read_config
from vidjax.models.video_text import VideoText
from vidjax.training.sharding import put_batch, replicated

if TYPE_CHECKING:  # TensorFlow takes seconds, which --help and wrong input need not
    from vidjax.data.text import Tokenizer


def require_video_text(source: str | Path, model: nn.Module) -> VideoText:
    """The model, if it has a text tower.

    Raises:
      ValueError: it has none.
    """
    if not isinstance(model, VideoText):
        raise ValueError(
            f"{source} is a {type(model).__name__}, which knows no text: give a run of contrastive_pretrain.py or a "
            "published CLIP"
        )
    return model


def tokenizer_of(source: str | Path, given: str | None = None) -> "Tokenizer":
    """The tokeniser that a model's text tower was trained with.

    Args:
      source: of the model: a run remembers its own, a Hugging Face directory holds it.
      given: takes its place.

    Raises:
      ValueError: none is given, and the source does not say.
    """
    from vidjax.data.text import open_tokenizer

    if given is None and runs.is_run(source):
        given = read_config(source)["tokenizer"]
    if given is None and any((Path(source) / file).is_file() for file in ("merges.txt", "tokenizer.json")):
        given = str(source)
    if given is None:
        raise ValueError(f"{source} does not say how text becomes token ids: give --tokenizer, CLIP's vocabulary file")
    return open_tokenizer(given)


def check_tokenizer(tokenizer: "Tokenizer", model: VideoText) -> None:
    """Refuses a tokeniser whose ids are not those of the text tower."""
    if tokenizer.vocabulary != model.text.vocabulary:
        raise ValueError(
            f"tokenizer {tokenizer.name} has {tokenizer.vocabulary} ids, the text tower {model.text.vocabulary}: give "
            "the one that it was trained with"
        )


def text_encoder(
    model: VideoText, tokenizer: "Tokenizer", mesh: Mesh, chunk: int = 64
) -> Callable[[dict, Sequence[str]], Float[np.ndarray, "n e"]]:
    """`(variables, texts) -> embeddings`, compiled once; `chunk` sentences at a time on each device."""
    from vidjax.data.text import tokenize

    @jax.jit(out_shardings=replicated(mesh))
    def encode(variables: dict, ids: jax.Array) -> jax.Array:
        return model.apply(variables, ids, method="embed_text").astype(jnp.float32)

    def embed(variables: dict, texts: Sequence[str]) -> Float[np.ndarray, "n e"]:
        ids = np.stack([tokenize(tokenizer, text, model.text.context)[0] for text in texts])
        together = chunk * mesh.size
        mine, parts = slice(*(together * (jax.process_index() + i) // jax.process_count() for i in (0, 1))), []
        for start in range(0, len(ids), together):
            some = ids[start : start + together]
            some = np.concatenate([some, np.repeat(some[:1], together - len(some), axis=0)])
            parts.append(jax.device_get(encode(variables, put_batch({"ids": some[mine]}, mesh)["ids"])))
        return np.concatenate(parts)[: len(ids)]

    return embed


def clip_encoder(
    model: VideoText, mesh: Mesh
) -> Callable[
    [dict, Iterable[dict[str, np.ndarray]]],
    tuple[Float[np.ndarray, "n v e"], Int[np.ndarray, "n"], Int[np.ndarray, "n"], Bool[np.ndarray, "n"]],
]:
    """`(variables, batches) -> embeddings of every view, labels, numbers in the source, which could be read`.

    The batches are of `pipeline.evaluation_batches` with `view_counts`; what only fills them is left out.
    """

    @jax.jit(out_shardings=replicated(mesh))
    def encode(variables: dict, batch: dict[str, jax.Array]) -> tuple[jax.Array, ...]:
        def one_view(video: jax.Array) -> jax.Array:
            video = model.card.normalize(video.astype(jnp.float32) / 255)
            return model.apply(variables, video, method="embed_video").astype(jnp.float32)

        views = jax.lax.map(one_view, jnp.swapaxes(batch["video"], 0, 1))
        return jnp.swapaxes(views, 0, 1), batch["label"], batch["index"], batch["valid"]

    def embed(variables: dict, batches: Iterable[dict[str, np.ndarray]]) -> tuple[np.ndarray, ...]:
        parts = [jax.device_get(encode(variables, put_batch(batch, mesh))) for batch in batches]
        columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
        return tuple(column[columns[2] >= 0] for column in columns)

    return embed
