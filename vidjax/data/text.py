"""Tokenisers: bytes, CLIP's byte-pair encoding from a given vocabulary file, or any tokenizer.json.

CLIP's ids equal those of OpenAI's release: ftfy repairs the text, HTML entities are unescaped (twice) and letters are
lowercased. The text is split into words, single digits and runs of other characters, and each of these is merged pair
by pair from the symbols of its bytes, of which the last one is marked as the end of the word. The library `tokenizers`
does the merging.
"""

import gzip
import html
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import tokenizers
from jaxtyping import Float, Int
from tokenizers import models, pre_tokenizers

from vidjax.errors import UserError

_START, _END, _WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
_WORD = tokenizers.Regex(
    r"<\|startoftext\|>|<\|endoftext\|>|(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
)
_MERGES = 49152 - 256 - 2  # CLIP uses this many of the 262,144 merges in OpenAI's file


@dataclass(frozen=True)
class Tokenizer:
    """Converts texts to token ids. Deterministic and thread-safe."""

    name: str
    """The argument of `open_tokenizer`."""
    vocabulary: int
    """Size of the vocabulary: all ids are smaller. Id 0 is also used for padding, after the end of a text."""
    encode: Callable[[str], list[int]]
    """The ids of a text of any length, including start and end tokens."""
    end: int | None
    """The id of the end token; None if the tokeniser does not add one."""
    decode: Callable[[Sequence[int]], str]
    """The text of some ids, without start and end tokens."""


def open_tokenizer(name: str) -> Tokenizer:
    """Opens a tokeniser.

    Args:
      name: `bytes` (byte b of the UTF-8 text has id b + 1, start 257, end 258); OpenAI's
        `bpe_simple_vocab_16e6.txt.gz`, compressed or not; a Hugging Face directory, or its `merges.txt` or
        `vocab.json`; or a `tokenizer.json`, whose post-processor determines start and end tokens.

    Raises:
      UserError: the file does not exist, is damaged or is not a tokeniser.
    """
    if name == "bytes":
        return Tokenizer(
            name,
            259,
            lambda text: [257, *(byte + 1 for byte in text.encode()), 258],
            258,
            lambda ids: bytes(id - 1 for id in ids if 1 <= id <= 256).decode(errors="replace"),
        )
    path = Path(name)
    if path.is_dir() or (path.is_file() and path.name in ("merges.txt", "vocab.json")):
        return _open_directory(name, path if path.is_dir() else path.parent)
    if path.is_file() and path.suffix == ".json":
        return _open_json(name, path)
    if path.is_file() and path.name.endswith((".txt", ".txt.gz")):
        return _clip(name, *_read_merges(path))
    raise UserError(
        f"tokenizer {name} {'is not a known format' if path.exists() else 'does not exist'}: give bytes, CLIP's "
        "bpe_simple_vocab_16e6.txt.gz, a directory with merges.txt and vocab.json, or a tokenizer.json"
    )


def tokenize(tokenizer: Tokenizer, text: str, context: int) -> tuple[Int[np.ndarray, "m"], bool]:
    """Tokenises a text to a fixed length.

    A longer text is truncated, keeping the end token in the last position.

    Returns:
      The int32 ids, padded with 0 to `context`, and whether the text was truncated.

    Raises:
      UserError: the context has no room for a token between start and end.
    """
    if context < 3:
        raise UserError(f"the context is {context}: it must be 3 or more, for a start token, a token and an end token")
    ids = tokenizer.encode(text)
    truncated = len(ids) > context
    if truncated:
        ids = ids[:context] if tokenizer.end is None else [*ids[: context - 1], tokenizer.end]
    row = np.zeros(context, np.int32)
    row[: len(ids)] = ids
    return row, truncated


@dataclass(frozen=True)
class CaptionWriter:
    """Draws and tokenises captions for batches; does nothing without a tokeniser."""

    tokenizer: Tokenizer | None
    context: int | None
    """Tokens per caption."""
    texts: int = 1
    """Captions for each draw. More than one have an axis of their own, in which those that an example lacks are 0."""

    def __post_init__(self) -> None:
        if self.tokenizer is not None and self.context is None:
            raise UserError(
                "a tokenizer needs a context: give the number of tokens that captions are truncated or padded to"
            )

    def arrays(self, draws: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...], float]]:
        """By name the dtype, shape and fill value of the arrays that a call returns for draws of this shape."""
        if self.tokenizer is None:
            return {}
        shape = draws if self.texts == 1 else (*draws, self.texts)
        return {"ids": ("int32", (*shape, self.context), 0), "truncated": ("bool", shape, False)}

    def __call__(
        self, id: str, captions: Sequence[str], draws: np.ndarray, distances: Float[np.ndarray, "n"] | None = None
    ) -> dict[str, np.ndarray]:
        """Returns `ids` (... m) and `truncated` (...) of the captions chosen by `draws` (...), numbers in [0, 1).

        Args:
          distances: of each caption from the clip in time; the nearest are taken then, and nothing is drawn. Several
            texts of a draw are otherwise captions that follow one another, the first one after the last.

        Raises:
          UserError: the example has no captions, or not one for each distance; the message names its `id`.
        """
        if self.tokenizer is None:
            return {}
        if not captions:
            raise UserError(f"{id} has no caption: add one, or remove the example")
        count = len(captions)
        if distances is not None and len(distances) != count:
            raise UserError(
                f"{id} has {count} captions, but times of {len(distances)}: give a start and an end of each"
            )
        order = np.arange(count) if distances is None else np.argsort(distances, kind="stable")
        firsts = (draws.ravel() * (count if distances is None else 0)).astype(int)
        arrays = {name: np.full(shape, fill, kind) for name, (kind, shape, fill) in self.arrays(draws.shape).items()}
        ids = arrays["ids"].reshape(len(firsts), self.texts, self.context)
        truncated = arrays["truncated"].reshape(len(firsts), self.texts)
        for row, first in enumerate(firsts):
            for place in range(min(self.texts, count)):
                text = captions[order[(first + place) % count]]
                ids[row, place], truncated[row, place] = tokenize(self.tokenizer, text, self.context)
        return arrays


def _open_directory(name: str, folder: Path) -> Tokenizer:
    """Prefers CLIP's merges to a tokenizer.json, which normalises text less than OpenAI's code."""
    merges, vocabulary, library = (folder / file for file in ("merges.txt", "vocab.json", "tokenizer.json"))
    given = _read_json(vocabulary) if vocabulary.is_file() else None
    if merges.is_file() and (given is None or _START in given):  # GPT-2's files have the same names
        pairs, ids = _read_merges(merges)
        if given is not None and (missing := sorted(ids.keys() - given.keys())):
            raise UserError(
                f"{vocabulary} lacks {len(missing)} symbols of {merges.name}, such as {missing[0]!r}: "
                "use two files of the same tokenizer"
            )
        return _clip(name, pairs, given or ids)
    if library.is_file():
        return _open_json(name, library)
    raise UserError(
        f"{folder} contains neither CLIP's merges.txt and vocab.json nor a tokenizer.json: choose another directory"
    )


def _open_json(name: str, path: Path) -> Tokenizer:
    """A tokenizer.json. Its truncation and padding are disabled, as `tokenize` takes care of the length."""
    try:
        library = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise UserError(
            f"{path} is not a tokenizer.json of the library tokenizers ({error}): download it again"
        ) from error
    library.no_truncation()
    library.no_padding()
    probe = library.encode("a")
    end = probe.ids[-1] if probe.ids and probe.special_tokens_mask[-1] else None
    vocabulary = max(library.get_vocab().values(), default=-1) + 1
    return Tokenizer(
        name, vocabulary, lambda text: library.encode(text).ids, end, lambda ids: library.decode(list(ids))
    )


def _clip(name: str, merges: list[tuple[str, str]], ids: dict[str, int]) -> Tokenizer:
    bpe = models.BPE(vocab=ids, merges=merges, end_of_word_suffix=_WORD_END)
    words = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(_WORD, behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    start, end = ids[_START], ids[_END]

    @lru_cache(2**16)
    def merge_word(word: str) -> list[int]:
        # As in the release, the two special tokens may occur in a text.
        return [ids[word]] if word in (_START, _END) else [token.id for token in bpe.tokenize(word)]

    def encode(text: str) -> list[int]:
        return [start, *(id for word, _ in words.pre_tokenize_str(_clean(text)) for id in merge_word(word)), end]

    symbols = {id: symbol for symbol, id in ids.items()}
    byte_of = {symbol: byte for byte, symbol in _symbols().items()} | {" ": ord(" ")}

    def decode(ids: Sequence[int]) -> str:
        letters = "".join(symbols.get(id, "") for id in ids if id not in (start, end)).replace(_WORD_END, " ")
        return bytes(byte_of[letter] for letter in letters).decode(errors="replace").strip()

    return Tokenizer(name, max(ids.values()) + 1, encode, end, decode)


def _clean(text: str) -> str:
    import ftfy  # other tokenisers do without

    # The release also collapses white space, which does not affect the words.
    return html.unescape(html.unescape(ftfy.fix_text(text))).lower()


def _read_merges(path: Path) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """The merges of OpenAI's file that CLIP uses, and the ids: bytes, word-final bytes, merges, start and end."""
    try:
        data = path.read_bytes()
        lines = (gzip.decompress(data) if path.suffix == ".gz" else data).decode().rstrip().split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged or not a CLIP vocabulary ({error}): download it again") from error
    if "#version" not in lines[0]:
        raise UserError(f"{path} is not a CLIP vocabulary: its first line has no #version; download it again")
    symbols = list(_symbols().values())
    symbols += [symbol + _WORD_END for symbol in symbols]
    ids = {symbol: position for position, symbol in enumerate(symbols)}
    merges: list[tuple[str, str]] = []
    for number, line in enumerate(lines[1 : _MERGES + 1], 2):
        pair = line.split()
        if len(pair) != 2 or not set(pair) <= ids.keys():
            raise UserError(
                f"{path}, line {number}: {line[:40]!r} does not merge two symbols of earlier lines; download it again"
            )
        ids["".join(pair)] = len(symbols) + len(merges)
        merges.append((pair[0], pair[1]))
    if not any(second.endswith(_WORD_END) for _, second in merges):
        raise UserError(
            f"{path} is not a CLIP vocabulary: no merge has the end-of-word mark {_WORD_END}; download it again"
        )
    count = len(symbols) + len(merges)
    return merges, ids | {_START: count, _END: count + 1}


def _symbols() -> dict[int, str]:
    """How OpenAI's file writes bytes: a printable one as its character, any other one as a character from 256 on."""
    printable = [byte for byte in range(33, 256) if chr(byte).isprintable()]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _read_json(path: Path) -> dict[str, int]:
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON or of UTF-8
        raise UserError(f"{path} is damaged ({error}): download it again") from error
    if not isinstance(ids, dict) or not all(isinstance(value, int) for value in ids.values()):
        raise UserError(f"{path} is not a vocabulary: it must be a JSON object from symbols to integer ids")
    return ids
