"""Token ids: CLIP's against a simple reference and transformers, bytes, and files of the library tokenizers."""

import gzip
import html
import json
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise, product

import ftfy
import numpy as np
import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from vidjax.data.text import open_tokenizer, tokenize

MERGES = 110
VERSION = '"bpe_simple_vocab_16e6.txt#version: 0.2'
CORPUS = (
    "a man plays with his dog in the park and the dogs don't mind it's a sunny day they'll be running déjà vu à "
    "l'école naïve 🐶 🎂 🐶 犬が走る 犬 собака бежит собаки a photo of a cat the cat sat on the mat 12 3/4 !!! ..."
)
TEXTS = [
    "a man plays with a dog",
    "The  DOG\tis\nrunning ",
    "Déjà vu à l'ÉCOLE, naïve?",
    "İstanbul Straße",
    "it's they'd've I'm we'll DON'T y're '",
    "‘curly’ “quotes” don’t",
    "a &amp;amp; b &lt;i&gt; &eacute; &#128054;",
    "<i> keeps ftfy from &amp;lt; and &amp;amp;lt; and &nbsp;!",
    "!".join(chr(code) for code in range(0x3001) if chr(code).isspace()),
    "12345 0.5 3/4 ½ ² Ⅷ ٣٤",
    "🐶🎂 plays 👩\u200d👩\u200d👧!",
    "犬が走る 개가 달린다 собака бежит",
    "كلب יום ไทย",
    "!!! ... --- ?!#@ ^_^ _a_",
    "a <|endoftext|> b<|startoftext|>",
    "!<|endoftext|>",
    "Ã©tÃ© mojibake",
    "ﬁne Ｆｕｌｌ ｗｉｄｔｈ",
    "ΟΔΥΣΣΕΥΣ",
    "e\u0301 a\u0308",
    "zero\u200bwidth\u00a0blank\u3000wide",
    "nul\x00 bell\x07 \x1b[31mred",
    "'ſ \ufeffbom",
    "",
    " \n ",
    "x" * 700,
    "the dog " * 300,
]


def symbols():
    """The characters by which OpenAI's file represents bytes, in the order of their ids."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    return {byte: chr(byte) for byte in shown} | {byte: chr(256 + number) for number, byte in enumerate(hidden)}


def merge(word, pair):
    out = []
    for symbol in word:
        if out and (out[-1], symbol) == pair:
            out[-1] += symbol
        else:
            out.append(symbol)
    return out


def spell(word):
    spelled = [symbols()[byte] for byte in word.encode()]
    return [*spelled[:-1], spelled[-1] + "</w>"]


def learn(count):
    """The merges that byte-pair encoding learns from the corpus."""
    words, merges = [spell(word) for word in CORPUS.split()], []
    while len(merges) < count:
        pairs = Counter(pair for word in words for pair in pairwise(word))
        merges.append(min(pairs, key=lambda pair: (-pairs[pair], pair)))
        words = [merge(word, merges[-1]) for word in words]
    return merges


def numbered(merges):
    plain = list(symbols().values())
    joined = ["".join(pair) for pair in merges]
    names = [*plain, *(symbol + "</w>" for symbol in plain), *joined, "<|startoftext|>", "<|endoftext|>"]
    return {name: number for number, name in enumerate(names)}


def reference(merges):
    """CLIP's encoding written as simply as possible."""
    regex = pytest.importorskip("regex")
    ids, ranks = numbered(merges), {pair: rank for rank, pair in enumerate(merges)}
    special = ["<|startoftext|>", "<|endoftext|>"]
    pattern = regex.compile(
        "|".join(map(regex.escape, special)) + r"|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
        regex.IGNORECASE,
    )

    def encode(text):
        text = html.unescape(html.unescape(ftfy.fix_text(text))).strip()
        names = []
        for word in pattern.findall(regex.sub(r"\s+", " ", text).strip().lower()):
            parts = [word] if word in special else spell(word)
            while known := [pair for pair in pairwise(parts) if pair in ranks]:
                parts = merge(parts, min(known, key=ranks.get))
            names += parts
        return [ids[name] for name in [special[0], *names, special[1]]]

    return encode


def write_merges(path, merges):
    text = "\n".join([VERSION, *map(" ".join, merges), ""]).encode()
    path.write_bytes(gzip.compress(text, mtime=0) if path.suffix == ".gz" else text)
    return str(path)


@pytest.fixture(scope="module")
def merges():
    return learn(MERGES)


@pytest.fixture(scope="module")
def folder(merges, tmp_path_factory):
    """A directory as transformers writes it, and OpenAI's file."""
    folder = tmp_path_factory.mktemp("clip")
    write_merges(folder / "bpe.txt.gz", merges)
    write_merges(folder / "bpe.txt", merges)
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, merges)]) + "\n")
    (folder / "vocab.json").write_text(json.dumps(numbered(merges)))
    return folder


@pytest.mark.parametrize("file", ["bpe.txt.gz", "bpe.txt", "merges.txt", "vocab.json", ""])
def test_ids_equal_the_reference(file, merges, folder):
    tokenizer, plain = open_tokenizer(str(folder / file)), reference(merges)
    assert (tokenizer.vocabulary, tokenizer.end) == (512 + MERGES + 2, 512 + MERGES + 1)
    for text in TEXTS:
        assert tokenizer.encode(text) == plain(text), text
    assert len(tokenizer.encode("the dog")) == len(tokenizer.encode("犬")) == 4  # three bytes, two of them merged


def test_ids_equal_those_of_transformers(folder):
    """On texts that ftfy leaves unchanged, since transformers only composes accents."""
    peer = pytest.importorskip("transformers").CLIPTokenizer.from_pretrained(folder)
    tokenizer = open_tokenizer(str(folder))
    texts = [text for text in TEXTS if ftfy.fix_text(text) == text == html.unescape(text) and "|>" not in text]
    assert len(texts) >= 12
    for text in texts:
        expected = peer(text).input_ids
        if "Σ" in text:  # transformers does not distinguish the final sigma
            text = text.lower().replace("ς", "σ")
        assert tokenizer.encode(text) == expected, text


def test_ids_of_clips_vocabulary(tmp_path):
    """Known ids of words, with their merges at the same lines as in OpenAI's file, of which CLIP uses 48,894."""
    first = "a n|t o</w>|a t</w>|a t|h o|p ho|r e|t re|d o|g s</w>|at s</w>|e l|el l|ell o</w>".split("|")
    known = dict(enumerate(first)) | {25: "an d</w>", 27: "o f</w>", 56: "' s</w>", 73: "i t</w>", 613: "pho to</w>"}
    known |= {1856: "c at</w>", 2165: "tre e</w>", 2743: "do gs</w>", 2794: "h ello</w>", 3477: "c ats</w>"}
    known |= {48894: "z z</w>"}  # the first merge that CLIP does not use
    foreign = [symbol for symbol in symbols().values() if ord(symbol) > 126]
    fill = (f"{a} {b}{end}" for end in ("", "</w>") for a, b in product(foreign, foreign))
    lines = [known.get(rank) or next(fill) for rank in range(50_000)]
    tokenizer = open_tokenizer(write_merges(tmp_path / "bpe_simple_vocab_16e6.txt.gz", map(str.split, lines)))
    assert (tokenizer.vocabulary, tokenizer.end) == (49408, 49407)
    for text, ids in {
        "a photo of a cat": [320, 1125, 539, 320, 2368],
        "A Photo of a TREE!": [320, 1125, 539, 320, 2677, 256],
        " it's a  cat, ": [585, 568, 320, 2368, 267],
        "2 dogs and 3 cats": [273, 3255, 537, 274, 3989],
        "hello": [3306],
        "zz": [89, 345],
        "": [],
    }.items():
        assert tokenizer.encode(text) == [49406, *ids, 49407], text


def test_threads_get_the_same_ids(folder):
    tokenizer = open_tokenizer(str(folder))
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(tokenizer.encode, TEXTS * 20)) == [tokenizer.encode(text) for text in TEXTS] * 20


def test_bytes():
    tokenizer = open_tokenizer("bytes")
    assert (tokenizer.vocabulary, tokenizer.end) == (259, 258)
    assert tokenizer.encode("aé\0") == [257, 98, 196, 170, 1, 258]
    for text in TEXTS:
        start, *ids, end = tokenizer.encode(text)
        assert (start, end) == (257, 258) and bytes(byte - 1 for byte in ids).decode() == text
        assert tokenizer.decode([start, *ids, end, 0]) == text


def test_ids_are_decoded_to_their_text(folder, tmp_path):
    clip = open_tokenizer(str(folder))
    assert clip.decode(clip.encode(" the Cat, déjà vu 犬\n🐶 don't")) == "the cat , déjà vu 犬 🐶 don 't"
    words = library(tmp_path / "tokenizer.json")
    assert words.decode(words.encode("a dog")) == "a dog"


def test_a_text_is_padded_or_truncated_before_its_end_token(folder):
    for name in ("bytes", str(folder)):
        tokenizer = open_tokenizer(name)
        ids = tokenizer.encode("the dog, the cat")
        exact, longer, shorter = (tokenize(tokenizer, "the dog, the cat", len(ids) + more) for more in (0, 3, -1))
        assert exact[0].tolist() == ids and longer[0].tolist() == [*ids, 0, 0, 0] and longer[0].dtype == np.int32
        assert shorter[0].tolist() == [*ids[:-2], tokenizer.end]
        assert (exact[1], longer[1], shorter[1]) == (False, False, True)
    with pytest.raises(
        ValueError, match="the context is 2: it must be 3 or more, for a start token, a token and an end token"
    ):
        tokenize(tokenizer, "a", 2)


def library(path, post_processor=None):
    words = tokenizers.Tokenizer(
        models.WordLevel({"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "a": 4, "dog": 9}, unk_token="[UNK]")
    )
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    if post_processor is not None:
        words.post_processor = post_processor
    words.enable_truncation(4)  # the file's truncation and padding are ignored
    words.enable_padding(length=9)
    words.save(str(path))
    return open_tokenizer(str(path))


def test_a_tokenizer_json_determines_start_and_end(tmp_path):
    specials = [("[CLS]", 2), ("[SEP]", 3)]
    both = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=specials)
    tokenizer = library(tmp_path / "tokenizer.json", both)
    assert (tokenizer.vocabulary, tokenizer.end) == (10, 3)
    assert tokenizer.encode("a dog a cat dog") == [2, 4, 9, 4, 1, 9, 3]
    assert tokenize(tokenizer, "a dog a cat dog", 5)[0].tolist() == [2, 4, 9, 4, 3]
    assert open_tokenizer(str(tmp_path)).encode("a dog") == [2, 4, 9, 3]
    first = processors.TemplateProcessing(single="[CLS] $A", special_tokens=specials)
    for post_processor, start in ((None, []), (first, [2])):
        tokenizer = library(tmp_path / "other.json", post_processor)
        assert tokenizer.end is None and tokenizer.encode("a dog") == [*start, 4, 9]
        assert tokenize(tokenizer, "a dog a dog", 3)[0].tolist() == [*start, 4, 9, 4][:3]


def test_clips_files_take_precedence_over_a_tokenizer_json_unlike_those_of_gpt2(folder, tmp_path):
    library(tmp_path / "tokenizer.json")
    (tmp_path / "merges.txt").write_text("#version: 0.2\ni n\n")
    (tmp_path / "vocab.json").write_text(json.dumps({"i": 0, "n": 1, "in": 2}))
    assert open_tokenizer(str(tmp_path)).vocabulary == 10
    for file in ("merges.txt", "vocab.json"):
        (tmp_path / file).write_text((folder / file).read_text())
    assert open_tokenizer(str(tmp_path)).vocabulary == 512 + MERGES + 2


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("absent.txt.gz", None, "does not exist: give bytes, CLIP's bpe_simple_vocab_16e6.txt.gz, a directory with"),
        ("a.model", b"x", "a.model is not a known format: give bytes"),
        ("a.txt.gz", b"no gzip", r"a.txt.gz is damaged or not a CLIP vocabulary \(Not a gzipped file"),
        (
            "a.txt.gz",
            gzip.compress(b"x" * 99, mtime=0)[:-9],
            r"a.txt.gz is damaged or not a CLIP vocabulary \(Compressed file",
        ),
        ("a.txt", b"\xff\xfe", r"a.txt is damaged or not a CLIP vocabulary \('utf-8' codec"),
        ("a.txt", b"", "a.txt is not a CLIP vocabulary: its first line has no #version"),
        ("a.txt", b"i n\nt h\n", "its first line has no #version"),
        ("a.txt", b"#version: 0.2\ni n\nt h e\n", "a.txt, line 3: 't h e' does not merge two symbols of earlier lines"),
        ("a.txt", b"#version: 0.2\ni n\nth e</w>\n", "a.txt, line 3: 'th e</w>' does not merge two symbols"),
        ("a.txt", b"#version: 0.2\ni n\n", "not a CLIP vocabulary: no merge has the end-of-word mark </w>"),
        ("merges.txt", b"", "merges.txt is not a CLIP vocabulary"),
        ("vocab.json", b"{}", "contains neither CLIP's merges.txt and vocab.json nor a tokenizer.json"),
        ("vocab.json", b"{", r"vocab.json is damaged \(Expecting .*\): download it again"),
        (
            "vocab.json",
            b'["a"]',
            "vocab.json is not a vocabulary: it must be a JSON object from symbols to integer ids",
        ),
        ("tokenizer.json", b"{}", "tokenizer.json is not a tokenizer.json of the library tokenizers"),
    ],
)
def test_a_wrong_or_damaged_file_is_one_line(name, content, sentence, tmp_path):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as caught:
        open_tokenizer(str(tmp_path / name))
    assert re.search(sentence, str(caught.value)) and "\n" not in str(caught.value), caught.value


def test_a_vocabulary_that_lacks_symbols_of_the_merges_is_refused(merges, folder, tmp_path):
    (tmp_path / "merges.txt").write_text((folder / "merges.txt").read_text())
    ids = numbered(merges)
    del ids["".join(merges[7])]
    (tmp_path / "vocab.json").write_text(json.dumps(ids))
    with pytest.raises(ValueError, match=r"vocab.json lacks 1 symbols of merges.txt, such as"):
        open_tokenizer(str(tmp_path))
