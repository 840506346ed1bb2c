"""Each message that a user can meet stands in a test, and says in one sentence what was wrong, where and what to do."""

import ast
import re
from collections import defaultdict
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[1]
ANY = ""
"""Stands for what is filled in: a value in a message; a value, or what a regular expression leaves open, in a test."""
SEED = 12
"""So many characters on end does a test's string share with the message that it is about."""

PASSED_ON = {
    "{}": "a sentence made elsewhere",
    "{}: {}": "the same, after the file",
    "{}: error: {}": "the same, after the script",
    "{} of {} {} no {}: {}{}; {}": "of a source's examples, which lack what and what to do: all in its callers' words",
    "data.source {}: {}": "the same, of tfds, after the source",
}
NO_ADVICE = {
    "DecodeError": "what is wrong with one file: it is listed and left out, data.max_bad_share says what to do",
    "NoPeerError": "why a benchmark has no PyTorch side: a remark in its table",
    "warning": "what was done about a damaged checkpoint",
    "print": "how many files were left out, and why each: the others are done",
    "its video has no timestamps": "becomes a DecodeError",
    "it holds no video": "becomes a DecodeError",
    "frame {} of it is damaged": "becomes a DecodeError",
    "none of its frames can be decoded": "becomes a DecodeError",
    "it breaks off after frame {}, before frame {}": "becomes a DecodeError",
    "its frames have no timestamps": "becomes a DecodeError",
    "a tensor reaches beyond its storage": "becomes the reason of a TorchScript file that cannot be read",
    "there is no module in it": "becomes the reason of a TorchScript file that cannot be read",
    "the weights do not fit: {}": "each of the parts, or the last, says what to do",
    "the config.json of {} cannot be followed: {}": "what follows says what to do",
    "{} cannot be followed: {}": "the same, of a file of preprocessing",
    "{} ended with status {}, see {}: {}": "what follows is the other script's sentence",
    "unknown argument {}: {}": "what follows says what to do",
    "{} holds a run of another config: {}; {}": "what follows says what to do",
    "{} cannot be read as plain weights: {}": "what follows says what to do",
    "cannot read who takes part in {}: {}": "XLA's own text, in a form of later versions",
}
ADVICE = re.compile(  # what must be, or at the head of a clause what to do
    r"\b(must|needs?|takes|at least|nearest names are|its fields are|did you mean)\b|"
    r"(^|[:;,(] |\b(or|and|so|first|to) )(add|ask|change|choose|compile|correct|embed|evaluate|fetch|fine-tune|give|"
    r"install|keep|label|leave|let|load|look|lower|make|mend|name|pip install|put|read|rename|restore|run|save|say|"
    r"see|set|simulate|sort|start|stop|use|write)\b"
)


@dataclass(frozen=True)
class Message:
    file: str
    line: int
    kind: str
    text: tuple[str, ...]
    """Characters, and an ANY for each value."""

    def __str__(self) -> str:
        return "".join(c or "{}" for c in self.text).strip("\n")


def texts(node: ast.expr) -> list[tuple[str, ...]]:
    """What an expression may give: one text, or one for each branch."""
    match node:
        case ast.Constant(value=str(text)):
            return [tuple(text)]
        case ast.JoinedStr():
            parts = (tuple(part.value) if isinstance(part, ast.Constant) else (ANY,) for part in node.values)
            return [sum(parts, ())]
        case ast.IfExp():
            return texts(node.body) + texts(node.orelse)
        case _:
            return [(ANY,)]


def spoken(node: ast.AST) -> tuple[str, ast.expr] | None:
    """The kind of a statement that tells the user something, and what it says."""
    call = node.exc if isinstance(node, ast.Raise) else node
    if not isinstance(call, ast.Call) or not call.args:
        return None
    name = ast.unparse(call.func).rpartition(".")[2]
    to_stderr = name == "print" and any("stderr" in ast.unparse(keyword.value) for keyword in call.keywords)
    if isinstance(node, ast.Raise) or name in ("fail", "warn", "warning") or to_stderr:
        return name, call.args[0]
    return None


@cache
def messages() -> list[Message]:
    """All that the library and the scripts raise, warn of or write to stderr."""
    found = []
    for path in sorted([*ROOT.glob("vidjax/**/*.py"), *ROOT.glob("experiments/*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            if said := spoken(node):
                for text in texts(said[1]):
                    if said[0] == "warning":  # logging fills these in
                        pieces = re.split("(%[ds])", "".join(text))
                        text = sum(((ANY,) if piece in ("%d", "%s") else tuple(piece) for piece in pieces), ())
                    found.append(Message(path.relative_to(ROOT).as_posix(), node.lineno, said[0], text))
    return [message for message in found if str(message) not in PASSED_ON]


def as_expression(text: tuple[str, ...]) -> tuple[str, ...] | None:
    """The string read as a regular expression."""
    try:
        parsed = re._parser.parse("".join(c or ".*" for c in text))
    except re.error:
        return None

    def read(parsed) -> tuple[str, ...]:
        found = []
        for kind, value in parsed:
            if kind is re._constants.LITERAL:
                found.append(chr(value))
            elif kind is re._constants.SUBPATTERN:
                found += read(value[-1])
            elif kind is not re._constants.AT:
                found.append(ANY)
        return tuple(found)

    return read(parsed)


def grams(text: tuple[str, ...]) -> set[str]:
    """Its parts of SEED characters in which nothing is filled in; a single word says too little."""
    whole = "".join(c or "\0" for c in text)
    parts = {whole[i : i + SEED] for i in range(len(whole) - SEED + 1)}
    return {part for part in parts if "\0" not in part and " " in part.strip()}


def overlap(text: tuple[str, ...], message: tuple[str, ...]) -> float:
    """So many characters of both fall together where the text is a part of the message; below 0 if it cannot be one."""
    letters = np.array(message)
    best = np.zeros(len(letters) + 1)  # best[i]: of the text so far, up to the message's i-th
    free, equal = np.flatnonzero(letters == ANY).tolist(), {c: np.flatnonzero(letters == c) for c in set(text)}
    for c in text:
        if c == ANY:
            best = np.maximum.accumulate(best)
            continue
        for i in free:  # what is filled in may be empty
            best[i + 1] = max(best[i], best[i + 1])
        moved = np.full(len(best), -np.inf)
        moved[equal[c] + 1] = best[equal[c]] + 1
        for i in free:  # or hold this character
            moved[i] = max(moved[i], best[i])
        best = moved
    return best.max()


def names(source: str, file: str) -> bool:
    """Does a test's source import this file, or call it by name?"""
    path = Path(file)
    stem = path.parent.name if path.stem == "__init__" else path.stem
    return bool(re.search(rf"^ *(from|import) .*\b{stem}\b|\b{stem}\.py\b", source, re.MULTILINE))


def strings() -> list[tuple[str, str, set[int]]]:
    """Each string of the tests that is about a message: its file, itself, and numbers of messages.

    It is about the message with which it shares most. Where several files have that one, it is about those that its
    test imports or calls; where it fits different messages of a file alike, about none.
    """
    by_gram = defaultdict(set)
    for number, message in enumerate(messages()):
        for gram in grams(message.text):
            by_gram[gram].add(number)

    @cache
    def closest(plain: tuple[str, ...]) -> list[int]:
        fits = {}
        for text in filter(None, {plain, as_expression(plain)}):
            for number in set().union(*(by_gram.get(gram, ()) for gram in grams(text))):
                fits[number] = max(overlap(text, messages()[number].text), fits.get(number, 0))
        return [number for number in fits if fits[number] == max(fits.values()) >= SEED]

    found = []
    for path in sorted(set(ROOT.glob("tests/**/*.py")) - {Path(__file__)}):
        source = path.read_text()
        nodes = list(ast.walk(ast.parse(source)))
        silent = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}  # docstrings
        silent |= {id(part) for node in nodes if isinstance(node, ast.JoinedStr) for part in node.values}
        for node in nodes:
            if not isinstance(node, ast.JoinedStr | ast.Constant) or id(node) in silent:
                continue
            (plain,) = texts(node)
            while plain and plain[-1] == "\n":
                plain = plain[:-1]
            about = closest(plain)
            if len({messages()[number].file for number in about}) > 1:
                about = [number for number in about if names(source, messages()[number].file)]
            by_file = defaultdict(set)
            for number in about:
                by_file[messages()[number].file].add(messages()[number].text)
            about = {number for number in about if len(by_file[messages()[number].file]) == 1}
            if about:
                found.append((path.name, "".join(c or "{}" for c in plain), about))
    return found


def asserted() -> set[int]:
    """Numbers of the messages that stand in a test, where no string stands for two."""
    speaks, said_by = strings(), {}

    def find(number: int, tried: set[int]) -> bool:  # a string that is free, or whose message finds another one
        for place, (_, _, about) in enumerate(speaks):
            if number in about and place not in tried:
                tried.add(place)
                if place not in said_by or find(said_by[place], tried):
                    said_by[place] = number
                    return True
        return False

    return {number for number in range(len(messages())) if find(number, set())}


def test_each_message_stands_in_a_test():
    found = asserted()
    lacking = [f"{m.file}:{m.line}: {m}" for number, m in enumerate(messages()) if number not in found]
    assert not lacking, "no test asserts:\n" + "\n".join(lacking)


@pytest.mark.parametrize("table", [PASSED_ON, NO_ADVICE])
def test_the_exceptions_are_needed(table):
    every = {str(message) for message in messages()} | {message.kind for message in messages()} | set(PASSED_ON)
    assert not set(table) - every


def wrong(message: Message) -> list[str]:
    """What a reader would mend about its wording."""
    said = str(message)
    found = {
        "one line, and no blanks at its ends or in a row": not re.fullmatch(r"\S+( \S+)*", said),
        "a small letter first, but for names": re.match(r"[A-Z][a-z]+(?![A-Za-z])", said),
        "no full stop, and nothing else, behind it": re.search(r"[.!?,:;]$", said),
        "one sentence": re.search(r"[.!?] [A-Z]", said),
        "what is wrong, not that something is": re.search(
            r"\b(error|invalid|illegal|failed|please|sorry)\b", said, re.I
        ),
        "what to do": not ADVICE.search(said) and not {said, message.kind} & set(NO_ADVICE),
    }
    return [rule for rule, broken in found.items() if broken]


@pytest.mark.parametrize(
    "said",
    ["none of the {} files could be read", "cannot write to {} ({})", "{} is a run: a script makes weights of it"],
)
def test_what_is_wrong_is_no_advice(said):
    assert not ADVICE.search(said)


def test_each_message_reads_like_the_others():
    broken = [f"{m.file}:{m.line}: {m}  ({'; '.join(wrong(m))})" for m in messages() if wrong(m)]
    assert not broken, "\n".join(broken)
