"""Helpers for the tests of the pages: code blocks, the commands in them, and calling a script in this process."""

import contextlib
import dataclasses
import functools
import importlib.util
import io
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import jax
import numpy as np
import pytest
import videos

import vidjax
from vidjax import cli
from vidjax.convert import save_pretrained
from vidjax.data.sources import open_source
from vidjax.models import variable_shapes

ROOT = Path(__file__).resolve().parents[2]
FILES = ("README.md", *sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").glob("*.md")))
# Generated on demand, as that takes seconds, with the models of one family, as all of them take minutes.
GENERATED = {
    "models.md, generated": lambda generate: generate.models_page("r2plus1d_tiny"),
    "recipes.md, generated": lambda generate: generate.recipes_page(),
}
PAGES = (*FILES, *GENERATED)
SHELL = ("", "bash")
TABLES = ("csv", "jsonl")


@dataclasses.dataclass(frozen=True)
class Block:
    page: str
    line: int
    kind: str
    title: str
    text: str

    def __str__(self):
        return f"{self.page}, line {self.line}"


@functools.cache
def generator() -> ModuleType:
    """docs/generate.py as a module."""
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def text_of(page: str) -> str:
    """A page's Markdown, generated or read."""
    return GENERATED[page](generator()) if page in GENERATED else (ROOT / page).read_text()


@functools.cache
def blocks_of(page: str) -> tuple[Block, ...]:
    """The code blocks of a page, in order."""
    blocks, opened = [], None
    for number, line in enumerate(text_of(page).splitlines(), 1):
        fence = re.match(r"\s*```(\w*)(?: title=\"(.+)\")?$", line)
        assert fence or "```" not in line, f"{page}, line {number}: this fence cannot be parsed: {line}"
        if fence and opened is None:
            opened = number, fence[1], fence[2] or "", []
        elif fence:
            assert not fence[1], f"{page}, line {number}: nested blocks"
            blocks.append(Block(page, *opened[:3], "\n".join(opened[3]) + "\n"))
            opened = None
        elif opened:
            opened[3].append(line)
    assert opened is None, f"{page}: the block of line {opened[0]} is not closed"
    return tuple(blocks)


def commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a shell block; comments, such as directives to Slurm, are left out."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars="&|;")
        words.whitespace_split = True
        command = []
        for word in (*words, "&&"):
            if word in ("&&", ";", "|", "&"):
                yield from [command] if command else []
                command = []
            else:
                command.append(word)


@functools.cache
def compiled(script: str):
    return compile((ROOT / script).read_text(), str(ROOT / script), "exec")


def call(words, run=cli.run) -> None:
    """Runs a script as `python SCRIPT WORDS` would, with `run` in place of `cli.run`."""
    script, *flags = words
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str((ROOT / script).parent))  # as Python does
        patch.setattr(sys, "argv", [str(ROOT / script), *flags])
        patch.setattr(cli, "run", run)
        stderr, status = io.StringIO(), 0
        try:
            with contextlib.redirect_stderr(stderr):
                exec(compiled(script), {"__name__": "__main__", "__file__": str(ROOT / script)})
        except SystemExit as stop:
            status = stop.code
        assert not status, f"{' '.join(words)}\n{stderr.getvalue()}"


@functools.cache
def parse(*words):
    """The config that a script parses from its command line."""
    parsed = []
    call(words, lambda main, config, recipes=None, default=None: parsed.append(cli.parse(config, recipes, default)))
    return parsed[0]


def save(path, class_names, name, **fields) -> None:
    """Saves a checkpoint with random weights, which saves compiling `init`."""
    model = vidjax.create_model(name, num_classes=len(class_names), **fields)
    model = model.clone(card=dataclasses.replace(model.card, class_names=class_names))
    shapes, draw = variable_shapes(model), np.random.default_rng(0)
    save_pretrained(path, model, jax.tree.map(lambda leaf: 0.1 * draw.random(leaf.shape, np.float32), shapes))


def write_table(block):
    """Writes a manifest block to the file in its title, and the videos that it names; returns the opened source."""
    Path(block.title).parent.mkdir(parents=True, exist_ok=True)
    Path(block.title).write_text(block.text)
    for name in re.findall(r"[\w/ -]+\.mp4", block.text):
        path = Path(block.title).parent / name
        if not path.exists():
            videos.write_video(path, videos.numbered(250, 32, 40))
    return open_source(block.title)
