"""What the video-text scripts share: clips and sentences to embeddings, and captions to token ids.

Embeddings are those of `models.video_text.VideoText`: unit vectors, float32, on the host and the same on every process.
"""

import shutil
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

from vidjax import runs
from vidjax.convert import hub
from vidjax.convert.checkpoint import read_model
from vidjax.errors import UserError
from vidjax.models.video_text import Projected, VideoText
from vidjax.training.sharding import jit_on_mesh, put_batch

if TYPE_CHECKING:  # TensorFlow takes seconds, which --help and wrong input need not
    from vidjax.data.text import Tokenizer

FILES = ("merges.txt", "vocab.json", "tokenizer.json")
"""What a Hugging Face directory holds of a tokeniser."""
KEPT = "tokenizer"
"""The folder of a run's directory that keeps its tokeniser's files."""


def require_video_text(source: str | Path, model: nn.Module) -> VideoText:
    """The model, if it has a text tower.

    Raises:
      UserError: it has none.
    """
    if not isinstance(model, VideoText):
        raise UserError(
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
      UserError: none is given, and the source does not say.
    """
    if given is not None:
        return open_given(given)
    path = hub.fetch(source)
    if runs.is_run(path):
        kept = sorted((path / KEPT).iterdir()) if (path / KEPT).is_dir() else []
        given = runs.read_config(path)["tokenizer"] if not kept else kept[0] if len(kept) == 1 else path / KEPT
    elif any((path / file).is_file() for file in FILES):
        given = path
    else:
        raise UserError(f"{source} does not say how text becomes token ids: give --tokenizer, CLIP's vocabulary file")
    return open_given(str(given))


def open_given(name: str) -> "Tokenizer":
    """`data.text.open_tokenizer`, of a hub id as well."""
    from vidjax.data.text import open_tokenizer

    return open_tokenizer(name if name == "bytes" else str(hub.fetch(name)))


def keep_tokenizer(name: str, workdir: Path) -> None:
    """Copies the tokeniser's files into a run's directory, which then knows it wherever it is moved."""
    if name == "bytes" or (workdir / KEPT).exists():
        return
    path = hub.fetch(name)
    folder = path if path.is_dir() else path.parent
    whole = path.is_dir() or path.name in ("merges.txt", "vocab.json")
    files = [folder / file for file in FILES if (folder / file).is_file()] if whole else [path]
    (workdir / KEPT).mkdir()
    for file in files:
        shutil.copy(file, workdir / KEPT)


def tower(model: VideoText, name: str) -> tuple[nn.Module, str]:
    """One of the two as it would be by itself, and where it stands in the paths of variables, behind their kind."""
    found = getattr(model, name)
    return (found.tower, f"/{name}/tower/") if isinstance(found, Projected) else (found, f"/{name}/")


def below(flat: dict, inner: str) -> dict:
    """What stands there, by paths without it: `params/video/tower/head` as `params/head`."""
    parts = {path: path.partition(inner) for path in flat}
    return {f"{kind}/{rest}": flat[path] for path, (kind, found, rest) in parts.items() if found and "/" not in kind}


def tower_weights(source: str | Path, name: str) -> dict | None:
    """One tower's weights of a run of two, by their paths in the tower alone; None where the source is no such run.

    Args:
      name: video or text.
    """
    if not runs.is_run(source) or not isinstance(model := read_model(Path(source)), VideoText):
        return None
    return below(runs.read_weights(source)[0], tower(model, name)[1])


def check_tokenizer(tokenizer: "Tokenizer", model: VideoText) -> None:
    """Refuses a tokeniser whose ids are not those of the text tower."""
    if tokenizer.vocabulary != model.text.vocabulary:
        raise UserError(
            f"tokenizer {tokenizer.name} has {tokenizer.vocabulary} ids, the text tower {model.text.vocabulary}: give "
            "the one that it was trained with"
        )


def text_encoder(
    model: VideoText, tokenizer: "Tokenizer", mesh: Mesh, chunk: int = 64
) -> Callable[[dict, Sequence[str]], Float[np.ndarray, "n e"]]:
    """`(variables, texts) -> embeddings`, compiled once; `chunk` sentences at a time on each device."""
    from vidjax.data.text import tokenize

    told = False

    @partial(jit_on_mesh, mesh=mesh)
    def encode(variables: dict, ids: jax.Array) -> jax.Array:
        return model.apply(variables, ids, method="embed_text").astype(jnp.float32)

    def embed(variables: dict, texts: Sequence[str]) -> Float[np.ndarray, "n e"]:
        nonlocal told
        found = [tokenize(tokenizer, text, model.text.context) for text in texts]
        ids, cut = np.stack([ids for ids, _ in found]), sum(truncated for _, truncated in found)
        if cut and not told and jax.process_index() == 0:
            told = True
            print(f"note: {cut} of {len(texts)} texts are over {model.text.context} tokens long and cut to that")
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
            raise UserError("none of the videos could be read: look with experiments/check_data.py")
        return tuple(column[columns[2] >= 0] for column in columns)

    return embed
