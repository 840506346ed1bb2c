"""Every code block of the README and of docs/ does what it says.

- `python`: executed, page by page in one namespace; a shape in a comment (`# (2, 10)`) is compared with the value's.
- `bash`, or no name: each line that calls a script is parsed by that script, which refuses wrong flags, values and
  recipes, and the models that it names must exist. Those of START are run as well.
- `csv`, `jsonl`: written under their title, beside tiny videos of the names in them, and opened as a source.
- `text`: what a program says.

Any other fence fails, and so does a line that is none of these.
"""

import ast
import contextlib
import dataclasses
import functools
import importlib.util
import io
import re
import shlex
import sys
import tomllib
from pathlib import Path

import jax
import numpy as np
import pytest
import videos

import vidjax
from vidjax import cli, runs
from vidjax.convert import save_pretrained
from vidjax.data.sources import open_source
from vidjax.models import TEXT_VARIANTS, VARIANTS, example_inputs

ROOT = Path(__file__).resolve().parents[2]

# What stands in for what cannot be had in a test. Weights by what pages call them: a tiny model, as initialised.
WEIGHTS = {
    "MCG-NJU/videomae-base-finetuned-kinetics": "videomae_tiny",
    "uniformer_base_k400_16x4.pth": "uniformer_tiny",
    "vit_base.safetensors": "timesformer_tiny_divided",
}
# Folders at the root of a machine are folders of the test's own; `/videos` holds six tiny videos of two classes.
FOLDERS = {"/videos": "videos", "/records": "records"}
# The page whose scripts are run in its order, but for those that train, which tests/experiments runs; what they leave.
START = "docs/index.md"
TRAINED = {"runs/mine": {"name": "fr2d_tiny", "num_frames": 2, "image_size": 16}}
QUICK = {  # what makes the others quick; later flags win
    "check_data.py": "--data.frames 2 --data.size 16 --clips 1",
    "evaluate.py": "--data.workers 1",
    "predict.py": "--data.workers 1",
    "embed.py": "--data.workers 1 --batch_size 8",
}
# What is said in pages, and less of it here.
SHORTER = {"steps = 40": "steps = 2", "batch_size=32": "batch_size=4"}
# Programs that pages call besides ours, which are not there in a test: their lines are taken as they are.
FOREIGN = {"gcloud", "wait", "cd"}
OF_EXTRAS = {
    "mkdocs": ("docs", "mkdocs"),
    "pytest": ("test", "pytest"),
    "tfds": ("train", "tensorflow-datasets"),
}  # the extra that brings it, and the package in it


@dataclasses.dataclass(frozen=True)
class Block:
    page: str
    line: int
    kind: str
    title: str
    text: str

    def __str__(self):
        return f"{self.page}, line {self.line}"


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read_blocks(page, text):
    found, opened = [], None
    for number, line in enumerate(text.splitlines(), 1):
        fence = re.match(r"\s*```(\w*)(?: title=\"(.+)\")?$", line)
        assert fence or "```" not in line, f"{page}, line {number}: a fence that cannot be read: {line}"
        if fence and opened is None:
            opened = number, fence[1], fence[2] or "", []
        elif fence:
            assert not fence[1], f"{page}, line {number}: a block within a block"
            found.append(Block(page, *opened[:3], "\n".join(opened[3]) + "\n"))
            opened = None
        elif opened:
            opened[3].append(line)
    assert opened is None, f"{page}: the block of line {opened[0]} has no end"
    return found


def read_pages():
    generate = load(ROOT / "docs" / "generate.py")
    pages = {
        "models.md, generated": generate.models_page("r2plus1d_tiny"),
        "recipes.md, generated": generate.recipes_page(),
    }
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        pages[path.relative_to(ROOT).as_posix()] = path.read_text()
    return {name: read_blocks(name, text) for name, text in pages.items()}


PAGES = read_pages()
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Directories of the models in WEIGHTS, as their publishers' are called."""

    @functools.cache
    def saved(name):
        path = tmp_path_factory.mktemp("weights") / name
        save(path, ("abseiling", "air drumming"), name)
        return path

    return saved


def save(path, class_names, name, **fields):
    """A checkpoint of a model with drawn weights: compiling `init` would take longer than all the rest."""
    model = vidjax.create_model(name, num_classes=len(class_names), **fields)
    model = model.clone(card=dataclasses.replace(model.card, class_names=class_names))
    shapes, draw = jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model)), np.random.default_rng(0)
    save_pretrained(path, model, jax.tree.map(lambda leaf: 0.1 * draw.random(leaf.shape, np.float32), shapes))


@pytest.fixture
def place(tmp_path, monkeypatch, weights):
    """A directory to work in, with `/videos` and with published weights that are tiny."""
    monkeypatch.chdir(tmp_path)
    for i in range(6):
        videos.write_video(Path("videos") / ("jump", "wave")[i % 2] / f"{i}.mp4", videos.numbered(12, 32, 40, first=i))
    videos.write_video(Path("clip.mp4"), videos.numbered(12, 32, 40))
    load_pretrained = runs.load_pretrained

    def load_tiny(source, name=None, **fields):
        if source not in WEIGHTS:
            return load_pretrained(source, name, **fields)
        if name is not None:
            vidjax.create_model(name, **{k: v for k, v in fields.items() if k == "num_classes"})  # there is such a one
        return load_pretrained(weights(WEIGHTS[source]), **fields)

    monkeypatch.setattr(vidjax, "load_pretrained", load_tiny)
    monkeypatch.setattr(runs, "load_pretrained", load_tiny)
    return tmp_path


def test_no_fence_is_of_a_kind_that_is_not_tested():
    kinds = {"": "shell", "bash": "shell", "python": "python", "csv": "table", "jsonl": "table", "text": "output"}
    for blocks in PAGES.values():
        for block in blocks:
            assert block.kind in kinds, f"{block}: ```{block.kind} is not tested; the kinds are {', '.join(kinds)}"
            assert block.text.strip() and (block.kind not in ("csv", "jsonl") or block.title), f"{block} says nothing"
    assert sum(map(len, PAGES.values())) > 40  # they are found at all
    assert all(block.text.count("\n") < 60 for block in PAGES["docs/extend.md"])


@pytest.mark.parametrize("page", [page for page, blocks in PAGES.items() if any(b.kind == "python" for b in blocks)])
def test_python_runs(page, place):
    names = {"__name__": "page"}
    for block in PAGES[page]:
        if block.kind == "python":
            # A model that is not tiny is traced and not computed; its shapes are what they would be.
            big = any("_tiny" not in name for name in re.findall(r'create_model\("(\w+)"', block.text))
            run = functools.partial(execute, block, names)
            jax.eval_shape(run) if big else run()
        elif block.kind in ("csv", "jsonl"):
            write_table(block)


def execute(block, names):
    """Statement by statement, each with the shapes that its comment names."""
    text = functools.reduce(lambda text, old: text.replace(old, SHORTER[old]), SHORTER, block.text)
    lines = text.splitlines()
    for node in ast.parse(text).body:
        code = compile(ast.Module([node], []), str(block), "exec")
        exec(code, names)
        _, _, comment = lines[node.end_lineno - 1].partition("  # ")
        shapes = [tuple(map(int, s.split(","))) for s in re.findall(r"\((\d+(?:, \d+)+)\)", comment)]
        if shapes and isinstance(node, ast.Assign):
            targets = getattr(node.targets[0], "elts", node.targets)
            made = [names[target.id].shape for target in targets]
            assert made == shapes, f"{block}: {comment}, but {made}"


@pytest.mark.parametrize(
    "block", [b for blocks in PAGES.values() for b in blocks if b.kind in ("csv", "jsonl")], ids=str
)
def test_tables_are_sources(block, place):
    source = write_table(block)
    assert len(source) == sum(line.strip() != "" for line in block.text.splitlines()) - (block.kind == "csv")
    source.read(0, lambda info: [info.num_frames - 1], 16)
    assert source.class_names or source.captions(0)


def write_table(block):
    Path(block.title).parent.mkdir(parents=True, exist_ok=True)
    Path(block.title).write_text(block.text)
    for name in re.findall(r"[\w/ -]+\.mp4", block.text):
        path = Path(block.title).parent / name
        if not path.exists():
            videos.write_video(path, videos.numbered(250, 32, 40))
    return open_source(block.title)


def commands(block):
    """Words of each command of a block of shell; comments and what is for the scheduler are left out."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars="&|;")
        words.whitespace_split = True
        command = []
        for word in (*words, "&&"):
            if word in ("&&", ";", "|", "&"):
                yield from [command] if command else []
                command = []
            else:
                command.append(word)


@pytest.mark.parametrize("page", PAGES)
def test_shell_is_understood(page):
    for block in PAGES[page]:
        if block.kind in ("", "bash"):
            for words in commands(block):
                check(words, block)


def check(words, where):
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    words = words[1:] if words[:1] == ["srun"] else words
    program, *rest = words or ["wait"]
    said = f"{where}: {' '.join(words)}"
    if program == "python":
        assert rest and re.fullmatch(r"experiments/\w+\.py", rest[0]), said
        check_config(parse(*rest), said)
    elif program == "pip":
        assert rest[:2] == ["install", "-e"] and set(re.findall(r"\w+", rest[2])) <= EXTRAS.keys(), said
    elif program == "export":
        assert all(re.match(r"[A-Z_]+=", word) for word in rest), said
    elif program in OF_EXTRAS:
        extra, package = OF_EXTRAS[program]
        assert any(re.match(r"[\w-]+", need)[0] == package for need in EXTRAS[extra]), said
    else:
        assert program in FOREIGN, f"{said}\n{program} is neither ours nor known to this test"
        for word in rest:
            if word.startswith("--command="):
                for inner in commands(Block(str(where), 0, "bash", "", word.removeprefix("--command="))):
                    check(inner, where)


def check_config(config, said):
    """The models and sources that a config names can be had."""
    for field in ("model", "video_model", "text_model", "models"):
        named = getattr(config, field, None)
        for name in [named] if isinstance(named, str) else named or ():
            known = {**VARIANTS, **TEXT_VARIANTS}
            assert {name, f"{name}_pretrain"} & known.keys() or " and " in name, f"{said}\nthere is no {name}"
    data = getattr(config, "data", None)
    for field in ("source", "train", "validation"):
        source = getattr(data, field, None) or ""
        if isinstance(source, str) and ":" in source:
            assert source.startswith(("tfds:", "tfrecord:", "synthetic:moving_shapes")), f"{said}\n{source}"


@functools.cache
def compiled(script):
    return compile((ROOT / script).read_text(), str(ROOT / script), "exec")


def call(words, run):
    """Starts a script as `python SCRIPT WORDS` would, with `run` in the place of `cli.run`."""
    script, *flags = words
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *flags])
        patch.setattr(cli, "run", run)
        said, status = io.StringIO(), 0
        try:
            with contextlib.redirect_stderr(said):
                exec(compiled(script), {"__name__": "__main__", "__file__": str(ROOT / script)})
        except SystemExit as stop:
            status = stop.code
        assert not status, f"{' '.join(words)}\n{said.getvalue()}"


@functools.cache
def parse(*words):
    parsed = []
    call(words, lambda main, config, recipes=None, default=None: parsed.append(cli.parse(config, recipes, default)))
    return parsed[0]


def test_the_first_page_runs_from_videos_to_answers(place, capsys):
    for workdir, fields in TRAINED.items():
        save(workdir, ("jump", "wave"), **fields)
    run = cli.run
    for words in (words for block in PAGES[START] if block.kind == "bash" for words in commands(block)):
        script = Path(words[1]).name
        if words[0] == "python" and script in QUICK:
            flags = [FOLDERS.get(word, word) for word in words[2:]]
            call([words[1], *flags, *shlex.split(QUICK[script])], run)
    said = capsys.readouterr().out
    assert "6 examples, 6 looked at, 0 unreadable" in said  # check_data
    assert "top-1" in said and "6 of 6 videos decoded" in said  # evaluate
    assert "is most like" in said  # embed
    with np.load("embeddings.npz") as embeddings:
        assert len(embeddings["features"]) == 6
