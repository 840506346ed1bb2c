"""Text to token ids: bytes, CLIP's byte-pair encoding from a given vocabulary, or any tokenizer.json.

CLIP's ids are those of OpenAI's release: ftfy repairs the text, HTML entities are undone (twice), letters become lower
case; words, single digits and runs of other signs are then merged, pair by pair, from the symbols of their bytes, of
which the last one of a word is marked. The merging itself is the library `tokenizers`'.
"""

import gzip
import html
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import ftfy
import numpy as np
import tokenizers
from jaxtyping import Int
from tokenizers import models, pre_tokenizers

from vidjax.errors import UserError

_START, _END, _WORD_END = "<|startoftext|>", "<|endoftext|>", "</w>"
_WORD = tokenizers.Regex(
    r"<\|startoftext\|>|<\|endoftext\|>|(?i:'s|'t|'re|'ve|'m|'ll|'d)|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"
)
_MERGES = 49152 - 256 - 2  # of the 262,144 in OpenAI's file, CLIP uses so many


@dataclass(frozen=True)
class Tokenizer:
    """Texts as ids; deterministic, and safe to be used by several threads."""

    name: str
    """What `open_tokenizer` was given."""
    vocabulary: int
    """All ids lie below it. The id 0 also pads."""
    encode: Callable[[str], list[int]]
    """The ids of a text of any length, its start and end tokens with it."""
    end: int | None
    """The id at the end of every text; None where the tokeniser adds nothing there, so that there is no end to see."""


def open_tokenizer(name: str) -> Tokenizer:
    """The tokeniser of this name.

    Args:
      name: `bytes` (byte b of the UTF-8 text is id b + 1, start 257, end 258); OpenAI's `bpe_simple_vocab_16e6.txt.gz`,
        packed or not; a Hugging Face directory, or its `merges.txt` or `vocab.json`; or a `tokenizer.json`, whose
        own post-processor decides about start and end.

    Raises:
      UserError: there is no such file, or it is damaged or something else.
    """
    if name == "bytes":
        return Tokenizer(name, 259, lambda text: [257, *(byte + 1 for byte in text.encode()), 258], 258)
    path = Path(name)
    if path.is_dir() or (path.is_file() and path.name in ("merges.txt", "vocab.json")):
        return _open_directory(name, path if path.is_dir() else path.parent)
    if path.is_file() and path.suffix == ".json":
        return _open_json(name, path)
    if path.is_file() and path.name.endswith((".txt", ".txt.gz")):
        return _clip(name, *_read_merges(path))
    raise UserError(
        f"tokenizer {name} {'is of an unknown kind' if path.exists() else 'does not exist'}: give bytes, CLIP's "
        "bpe_simple_vocab_16e6.txt.gz, a directory with merges.txt and vocab.json, or a tokenizer.json"
    )


def tokenize(tokenizer: Tokenizer, text: str, context: int) -> tuple[Int[np.ndarray, "m"], bool]:
    """The ids of a text, int32, filled up with 0 to `context`, and whether it was longer.

    Of a longer one the first tokens are kept, and the end token takes the last place.

    Raises:
      UserError: the context has no room for a token between start and end.
    """
    if context < 3:
        raise UserError(f"the context is {context}: it must be 3 or more, for a start, a token and an end")
    ids = tokenizer.encode(text)
    truncated = len(ids) > context
    if truncated:
        ids = ids[:context] if tokenizer.end is None else [*ids[: context - 1], tokenizer.end]
    row = np.zeros(context, np.int32)
    row[: len(ids)] = ids
    return row, truncated


@dataclass(frozen=True)
class CaptionWriter:
    """Writes captions as ids; without a tokeniser nothing."""

    tokenizer: Tokenizer | None
    context: int | None
    """Tokens of a caption."""

    def __post_init__(self) -> None:
        if self.tokenizer is not None and self.context is None:
            raise UserError(
                "a tokenizer needs a context: give the number of tokens that a caption is cut or filled up to"
            )

    def arrays(self, draws: tuple[int, ...]) -> dict[str, tuple[str, tuple[int, ...], float]]:
        """The type, shape and filling of what a call gives for so many draws."""
        if self.tokenizer is None:
            return {}
        return {"ids": ("int32", (*draws, self.context), 0), "truncated": ("bool", draws, False)}

    def __call__(self, id: str, captions: Sequence[str], draws: np.ndarray) -> dict[str, np.ndarray]:
        """`ids` (... m) and `truncated` (...) of the captions that `draws` (...), numbers in [0, 1), fall on.

        Raises:
          UserError: the example, which is called `id`, has no captions.
        """
        if self.tokenizer is None:
            return {}
        if not captions:
            raise UserError(f"{id} has no caption: give it one, or leave it out")
        chosen = [captions[int(draw * len(captions))] for draw in draws.ravel()]
        ids, truncated = zip(*(tokenize(self.tokenizer, text, self.context) for text in chosen), strict=True)
        return {
            "ids": np.stack(ids).reshape(*draws.shape, self.context),
            "truncated": np.array(truncated).reshape(draws.shape),
        }


def _open_directory(name: str, folder: Path) -> Tokenizer:
    """CLIP's merges before a tokenizer.json, which cleans the text less than OpenAI's code."""
    merges, vocabulary, library = (folder / file for file in ("merges.txt", "vocab.json", "tokenizer.json"))
    given = _read_json(vocabulary) if vocabulary.is_file() else None
    if merges.is_file() and (given is None or _START in given):  # GPT-2's files are called the same
        pairs, ids = _read_merges(merges)
        if given is not None and (lacking := sorted(ids.keys() - given.keys())):
            raise UserError(
                f"{vocabulary} lacks {len(lacking)} symbols of {merges.name}, such as {lacking[0]!r}: "
                "give two files of one tokenizer"
            )
        return _clip(name, pairs, given or ids)
    if library.is_file():
        return _open_json(name, library)
    raise UserError(
        f"{folder} holds neither CLIP's merges.txt and vocab.json nor a tokenizer.json: give a directory with either"
    )


def _open_json(name: str, path: Path) -> Tokenizer:
    """A file of the library tokenizers; the length is `tokenize`'s affair."""
    try:
        library = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library knows no narrower one
        raise UserError(f"{path} is no tokenizer.json of the library tokenizers ({error}): fetch it again") from error
    library.no_truncation()
    library.no_padding()
    probe = library.encode("a")
    end = probe.ids[-1] if probe.ids and probe.special_tokens_mask[-1] else None
    vocabulary = max(library.get_vocab().values(), default=-1) + 1
    return Tokenizer(name, vocabulary, lambda text: library.encode(text).ids, end)


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
    def merged(word: str) -> list[int]:
        # As in the release, the two special tokens may stand in a text.
        return [ids[word]] if word in (_START, _END) else [token.id for token in bpe.tokenize(word)]

    def encode(text: str) -> list[int]:
        return [start, *(id for word, _ in words.pre_tokenize_str(_clean(text)) for id in merged(word)), end]

    return Tokenizer(name, max(ids.values()) + 1, encode, end)


def _clean(text: str) -> str:
    # The release also makes white space single blanks, which changes no word.
    return html.unescape(html.unescape(ftfy.fix_text(text))).lower()


def _read_merges(path: Path) -> tuple[list[tuple[str, str]], dict[str, int]]:
    """The merges of OpenAI's file that CLIP uses, and the ids: bytes, bytes that end a word, merges, start and end."""
    try:
        data = path.read_bytes()
        lines = (gzip.decompress(data) if path.suffix == ".gz" else data).decode().rstrip().split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{path} is damaged or no vocabulary of CLIP's ({error}): fetch it again") from error
    if "#version" not in lines[0]:
        raise UserError(f"{path} is no vocabulary of CLIP's, as its first line names no #version: fetch it again")
    # A byte is shown as its character where that can be seen, the others as the characters from 256 on.
    seen = [chr(byte) for byte in range(33, 256) if chr(byte).isprintable()]
    symbols = seen + [chr(256 + number) for number in range(256 - len(seen))]
    symbols += [symbol + _WORD_END for symbol in symbols]
    ids = {symbol: position for position, symbol in enumerate(symbols)}
    merges: list[tuple[str, str]] = []
    for number, line in enumerate(lines[1 : _MERGES + 1], 2):
        pair = line.split()
        if len(pair) != 2 or not set(pair) <= ids.keys():
            raise UserError(
                f"{path}, line {number}: {line[:40]!r} does not merge two symbols known by then, fetch it again"
            )
        ids["".join(pair)] = len(symbols) + len(merges)
        merges.append((pair[0], pair[1]))
    if not any(second.endswith(_WORD_END) for _, second in merges):
        raise UserError(
            f"{path} is no vocabulary of CLIP's, as no merge of it ends a word ({_WORD_END}): fetch it again"
        )
    count = len(symbols) + len(merges)
    return merges, ids | {_START: count, _END: count + 1}


def _read_json(path: Path) -> dict[str, int]:
    try:
        ids = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of JSON or of UTF-8
        raise UserError(f"{path} is damaged ({error}): fetch it again") from error
    if not isinstance(ids, dict) or not all(isinstance(value, int) for value in ids.values()):
        raise UserError(f"{path} is no vocabulary: it must be an object of symbols and their ids")
    return ids
