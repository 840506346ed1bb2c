"""Features of sentences: of the words, by a text tower whose model stays frozen, or from published files."""

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from vidjax.data.feature_files import evenly, examples
from vidjax.data.moments import MomentSource, Query, unit_length
from vidjax.errors import UserError
from vidjax.models.video_text import Projected, VideoText
from vidjax.runs.video_text import check_tokenizer, require_video_text, tokenizer_of
from vidjax.runs.weights import fingerprint, load_pretrained
from vidjax.training.sharding import is_main_process

if TYPE_CHECKING:  # PyAV and the tokenizers are imported when they are needed
    from vidjax.data.text import Tokenizer

CHUNK = 64
"""Sentences that are encoded at once."""
PUBLISHED = "last_hidden_state"
"""The array in published files of features."""


class QueryFeatures(NamedTuple):
    """Features of the words of queries.

    Attributes:
      channels: width of the features.
      read: those of a query, of unit length.
    """

    channels: int
    read: Callable[[Query], Float[np.ndarray, "m e"]]


class TextTower(NamedTuple):
    """The text tower of a trained model.

    Attributes:
      channels: width of its tokens.
      weights: a hash of the model's weights.
      tokenizer: the name of its tokeniser.
      encode: the tokens of sentences, from start to end token, before the projection; the bytes of a word are averaged.
    """

    channels: int
    weights: str
    tokenizer: str
    encode: Callable[[Sequence[str]], list[Float[np.ndarray, "_ e"]]]


def open_tower(source: str, tokenizer: str | None = None) -> TextTower:
    """Opens the text tower of a run or a published checkpoint of a video-text model.

    Args:
      tokenizer: the tower's, if the source has none.

    Raises:
      UserError: the source has no text tower, or none of this tokeniser.
    """
    model, variables = load_pretrained(source, verbose=False, strict=True, dtype=jnp.dtype("float32"))
    model = require_video_text(source, model)
    opened = tokenizer_of(source, tokenizer)
    check_tokenizer(opened, model)
    ids = jax.ShapeDtypeStruct((1, model.text.context), jnp.int32)
    channels = jax.eval_shape(lambda ids: model.apply(variables, ids, method=_tokens), ids).shape[-1]
    return TextTower(channels, fingerprint(variables), opened.name, _make_encode(model, variables, opened))


def _tokens(model: VideoText, ids: jax.Array) -> jax.Array:
    text = model.text.tower if isinstance(model.text, Projected) else model.text
    return text.tokens(ids)


def _make_encode(model: VideoText, variables: dict[str, Any], tokenizer: "Tokenizer") -> Callable:
    from vidjax.data.text import tokenize

    context = model.text.context
    apply = jax.jit(lambda variables, ids: model.apply(variables, ids, method=_tokens).astype(jnp.float32))

    def encode(texts: Sequence[str]) -> list[Float[np.ndarray, "_ e"]]:
        rows: list[np.ndarray] = []
        for start in range(0, len(texts), CHUNK):
            chunk = texts[start : start + CHUNK]
            ids = np.stack([tokenize(tokenizer, text, context)[0] for text in chunk])
            padded = np.concatenate([ids, np.repeat(ids[:1], CHUNK - len(chunk), axis=0)])
            tokens = np.asarray(apply(variables, padded))
            lengths = (min(len(tokenizer.encode(text)), context) for text in chunk)
            encoded = [row[:length] for row, length in zip(tokens, lengths, strict=False)]
            rows += encoded if tokenizer.name != "bytes" else map(mean_of_words, chunk, encoded)
        return rows

    return encode


def mean_of_words(text: str, tokens: Float[np.ndarray, "n e"]) -> Float[np.ndarray, "m e"]:
    """The mean over the bytes of each word (and the space before it), the start token's and the end token's features.

    Sentences of bytes are several times as long as the parts of the video that attention compares them with.

    Args:
      tokens: of the start token, the bytes and the end token; a text that was too long lacks the last bytes.
    """
    spaces = np.frombuffer(text.encode(), np.uint8)[: len(tokens) - 2] == ord(" ")
    word = np.concatenate([[0], 1 + np.cumsum(spaces), [2 + spaces.sum()]])
    return np.stack([tokens[word == number].mean(axis=0) for number in range(word[-1] + 1)])


def tower_features(tower: TextTower, workdir: Path, sources: Sequence[MomentSource]) -> QueryFeatures:
    """Features of all queries by a tower, computed once: they are kept in the work directory, in queries.npy."""
    texts = list(dict.fromkeys(query.text for source in sources for query in source.queries))
    place = {text: number for number, text in enumerate(texts)}
    described = {
        "weights": tower.weights, "tokenizer": tower.tokenizer, "bytes": "mean of words",
        "texts": hashlib.sha256(repr(texts).encode()).hexdigest(),
    }  # fmt: skip
    array, listing = workdir / "queries.npy", workdir / "queries.json"
    kept = json.loads(listing.read_text()) if listing.is_file() else {}
    if kept.items() >= described.items():
        ends, rows = np.cumsum(kept["lengths"]), np.load(array, mmap_mode="r")
    else:
        tokens = tower.encode(texts)
        lengths = list(map(len, tokens))
        ends, rows = np.cumsum(lengths), np.concatenate(tokens)
        if is_main_process():
            listing.unlink(missing_ok=True)  # so that it never describes other features
            np.save(array, rows)
            unfinished = listing.with_suffix(".partial")
            unfinished.write_text(json.dumps(described | {"lengths": lengths}) + "\n")
            os.replace(unfinished, listing)

    def read(query: Query) -> Float[np.ndarray, "m e"]:
        number = place[query.text]
        return unit_length(np.asarray(rows[ends[number - 1] if number else 0 : ends[number]]))

    return QueryFeatures(tower.channels, read)


def published_features(folder: str, sources: Sequence[MomentSource]) -> QueryFeatures:
    """Features in files qidID.npz, as published for QVHighlights.

    Raises:
      UserError: queries have no file, or a file cannot be read, has another width, or contains what is not finite; a
        few files are read at once, the others when they are needed.
    """
    try:
        files = set(os.listdir(folder))
    except OSError as error:
        raise UserError(f"data.text_features {folder} cannot be listed ({error.strerror}): give a folder") from error
    queries = [query for source in sources for query in source.queries]
    if missing := [query.name for query in queries if f"qid{query.name}.npz" not in files]:
        raise UserError(
            f"{len(missing):,} of {len(queries):,} queries have no file qidID.npz in {folder}: {examples(missing)}; "
            "add them, or give --text, a model whose text tower makes them"
        )

    def open_words(query: Query) -> Float[np.ndarray, "m e"]:
        path = os.path.join(folder, f"qid{query.name}.npz")
        try:
            with np.load(path, allow_pickle=False) as arrays:
                words = arrays[PUBLISHED].astype(np.float32)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise UserError(f"{path} cannot be read ({error}): it needs an array {PUBLISHED}, words x width") from error
        if words.ndim != 2 or not words.size or not np.isfinite(words).all():
            sides = "x".join(map(str, words.shape))
            raise UserError(f"{path} has no words x width of finite numbers, but {sides}: make it again, or remove it")
        return unit_length(words)

    channels = open_words(queries[0]).shape[1]

    def read(query: Query) -> Float[np.ndarray, "m e"]:
        if (words := open_words(query)).shape[1] != channels:
            raise UserError(
                f"{folder}/qid{query.name}.npz has {words.shape[1]} channels, that of {queries[0].name} {channels}: "
                "make all by the same text tower"
            )
        return words

    for number in evenly(len(queries)):
        read(queries[number])
    return QueryFeatures(channels, read)
