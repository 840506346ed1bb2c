"""Every code block of the README and of docs/ does what it says.

- `python`: executed, page by page in one namespace; shapes and numbers in a comment (`# (2, 10)`, `# 2.56`) are
  compared with the value's.
- `bash`, or no name: each line that calls a script is parsed by that script, which refuses wrong flags, values and
  recipes, and the models that it names must exist. test_shell_blocks.py runs them.
- `csv`, `jsonl`: written under their title, beside tiny videos of the names in them, and opened as a source.
- `text`: what a program says; test_shell_blocks.py compares it.

Any other fence fails, and so does a line that is none of these. In the running text, flags are those of a script, and
what follows a script's name is parsed by it.
"""

import ast
import dataclasses
import functools
import re
import shlex
import tomllib

import blocks  # of this folder
import jax
import pytest
from blocks import FILES, PAGES, ROOT, SHELL, TABLES, blocks_of, commands, parse, text_of, write_table

from vidjax import cli
from vidjax.models import TEXT_VARIANTS, VARIANTS

# What is said in pages, and less of it here.
SHORTER = {"steps = 40": "steps = 2", "batch_size=32": "batch_size=4"}
# Programs that pages call besides ours, which are not there in a test: their lines are taken as they are.
FOREIGN = {"gcloud", "wait", "cd"}
OF_EXTRAS = {
    "mkdocs": ("docs", "mkdocs"),
    "pytest": ("test", "pytest"),
    "tfds": ("train", "tensorflow-datasets"),
}  # the extra that brings it, and the package in it
# Flags in the running text that are of other programs.
OF_OTHERS = {
    "--help": "every script's, by tyro",
    "--debug": "every script's, by vidjax.cli",
    "--gpus-per-node": "Slurm",
    "--gpus-per-task": "Slurm",
    "--cpus-per-task": "Slurm",
    "--signal": "Slurm",
    "--xla_gpu_enable_latency_hiding_scheduler=true": "XLA",
}
# First words that choose what a script does.
FIRST_WORDS = {
    "benchmark.py": ("train", "infer", "input", "memory", "loss", "clips"),
    "scaling.py": ("--fsdp", "input"),
}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

WITH_PYTHON = [page for page in FILES if any(block.kind == "python" for block in blocks_of(page))]
WITH_PYTHON += ["models.md, generated"]


def test_no_fence_is_of_a_kind_that_is_not_tested():
    kinds = {"python", "text", *SHELL, *TABLES}
    for block in (block for page in PAGES for block in blocks_of(page)):
        assert block.kind in kinds, f"{block}: ```{block.kind} is not tested; the kinds are {', '.join(sorted(kinds))}"
        assert block.text.strip() and (block.kind not in TABLES or block.title), f"{block} says nothing"
    assert sum(len(blocks_of(page)) for page in PAGES) > 40  # they are found at all
    assert [page for page in PAGES if any(block.kind == "python" for block in blocks_of(page))] == WITH_PYTHON
    assert all(block.text.count("\n") < 60 for block in blocks_of("docs/extend.md"))


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_python_runs(page, place):
    names = {"__name__": "page"}
    for block in blocks_of(page):
        if block.kind == "python":
            # A model that is not tiny is traced and not computed; its shapes are what they would be.
            big = any("_tiny" not in name for name in re.findall(r'create_model\("(\w+)"', block.text))
            run = functools.partial(execute, block, names)
            jax.eval_shape(run) if big else run()
        elif block.kind in TABLES:
            write_table(block)


def execute(block, names):
    """Statement by statement, each with the shapes or the numbers that its comment names."""
    text = functools.reduce(lambda text, old: text.replace(old, SHORTER[old]), SHORTER, block.text)
    lines = text.splitlines()
    for node in ast.parse(text).body:
        _, _, comment = lines[node.end_lineno - 1].partition("  # ")
        numbers = re.match(r"(-?\d[\d.]*|\.\.\.)(, (-?\d[\d.]*|\.\.\.))*(?=[:;,]|$)", comment)
        if isinstance(node, ast.Expr):
            value = eval(compile(ast.Expression(node.value), str(block), "eval"), names)
        else:
            exec(compile(ast.Module([node], []), str(block), "exec"), names)
            value = names.get(getattr(node.targets[0], "id", "")) if isinstance(node, ast.Assign) else None
        if numbers:
            assert says(value, numbers[0]), f"{block}: {comment}, but {value}"
        shapes = [tuple(map(int, s.split(","))) for s in re.findall(r"\((\d+(?:, \d+)+)\)", comment)]
        if shapes and isinstance(node, ast.Assign):
            targets = getattr(node.targets[0], "elts", node.targets)
            made = shapes_of([names[target.id] for target in targets])
            assert made == shapes, f"{block}: {comment}, but {made}"
        elif shapes and isinstance(node, ast.Expr):
            made = shapes_of(value)
            assert made == shapes, f"{block}: {comment}, but {made}"


def shapes_of(value):
    """Shapes of an array, of several, or of what is itself a shape."""
    if isinstance(value, tuple) and all(isinstance(each, int) for each in value):
        return [value]
    return [each.shape for each in (value if isinstance(value, tuple | list) else [value])]


def says(value, comment):
    """Whether a comment's numbers are the value, to the digits that it gives; `1, 2, ..., 9` leaves some out."""
    if value is None:
        return False
    values = [float(each) for each in (value if hasattr(value, "__len__") else [value])]
    before, left_out, after = comment.partition("..., ")
    first, last = (re.findall(r"-?\d[\d.]*", part) for part in (before, after))
    chosen = values[: len(first)] + values[len(values) - len(last) :] if left_out else values
    numbers = first + last
    digits = [len(number.partition(".")[2]) for number in numbers]
    return len(chosen) == len(numbers) and all(
        round(value, places) == float(number) for value, places, number in zip(chosen, digits, numbers, strict=True)
    )


def test_numbers_in_comments_are_compared():
    right = [(2.5600001, "2.56"), ([94, 98, 154], "94, 98, ..., 154"), ([1, 2], "1, 2"), (7, "7")]
    wrong = [(2.57, "2.56"), ([94, 99, 154], "94, 98, ..., 154"), ([1, 2, 3], "1, 2"), (None, "7")]
    assert all(says(*each) for each in right) and not any(says(*each) for each in wrong)
    block = blocks.Block("page", 1, "python", "", "x = 2.5  # 2.56: so long\n")
    with pytest.raises(AssertionError, match=r"2\.56: so long, but 2\.5"):
        execute(block, {})


@pytest.mark.parametrize("line", ["x = jnp.zeros((2, 3))", "jnp.zeros((2, 3))", "jnp.zeros((2, 3)).shape"])
def test_shapes_in_comments_are_compared(line):
    execute(blocks.Block("page", 1, "python", "", f"{line}  # (2, 3)\n"), {"jnp": jax.numpy})
    with pytest.raises(AssertionError, match=r"\(2, 4\), but \[\(2, 3\)\]"):
        execute(blocks.Block("page", 1, "python", "", f"{line}  # (2, 4)\n"), {"jnp": jax.numpy})
    several = blocks.Block("page", 1, "python", "", "[jnp.ones((1, 2)), jnp.ones((3, 4))]  # (1, 2) and (3, 4)\n")
    execute(several, {"jnp": jax.numpy})


@pytest.mark.parametrize("block", [b for page in FILES for b in blocks_of(page) if b.kind in TABLES], ids=str)
def test_tables_are_sources(block, place):
    source = write_table(block)
    assert len(source) == sum(line.strip() != "" for line in block.text.splitlines()) - (block.kind == "csv")
    with source.open(0, ()) as example:
        video = example.streams["video"]
        video.read([video.info.num_frames - 1], 16)
    assert source.class_names or source.captions(0)


@pytest.mark.parametrize("page", PAGES)
def test_shell_is_understood(page):
    for block in blocks_of(page):
        if block.kind in SHELL:
            for words in commands(block.text):
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
                for inner in commands(word.removeprefix("--command=")):
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
def flags():
    """Every script's flags, with the fields of the configs that they set."""
    found = {}

    def collect(config, prefix=""):
        for field in dataclasses.fields(config):
            found.setdefault(f"--{prefix}{field.name}", []).append(field)
            if field.type is bool:
                found.setdefault(f"--{prefix}no_{field.name}", []).append(field)
            if dataclasses.is_dataclass(field.type):
                collect(field.type, f"{prefix}{field.name}.")

    for path in sorted((ROOT / "experiments").glob("*.py")):
        for word in FIRST_WORDS.get(path.name, ("--help",)):
            blocks.call(
                [f"experiments/{path.name}", word], lambda main, config, recipes=None, default=None: collect(config)
            )
    return found


def inline_code(text):
    """What stands between backticks in the running text."""
    without_blocks = re.sub(r"(?ms)^ *```.*?^ *```$", "", text)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", without_blocks)]


def called(code):
    """The words of inline code that calls a script, by its path or by its name alone; none of other code."""
    found = re.fullmatch(r"(python )?(?:experiments/)?(\w+\.py)( .+)?", code)
    if not found or not (ROOT / "experiments" / found[2]).exists():
        return []
    python, script, rest = found[1], found[2], shlex.split(found[3] or "")
    # By itself a file, or a file and what it does, is named and not called.
    if not python and (not rest or (len(rest) == 1 and rest[0] in FIRST_WORDS.get(script, ()))):
        return []
    return ["python", f"experiments/{script}", *rest]


def is_flag_of_a_script(code):
    """Whether each flag in it is one, and has a value that it takes."""
    for said in re.findall(r"--\S+(?: (?!--)\S+)*", code):
        flag, *values = said.split(" ")
        fields = flags().get(flag, ())
        # A flag without a value is named, not given, unless it takes none.
        if not any((not values and field.type is not bool) or takes(field, flag, values) for field in fields):
            return False
    return True


def takes(field, flag, values):
    """Whether tyro takes the flag so."""
    one = dataclasses.make_dataclass("One", [(field.name, field.type, dataclasses.field(default=field.default))])
    try:
        cli.parse(one, argv=[f"--{flag.rpartition('.')[2].removeprefix('--')}", *values])
    except SystemExit:
        return False
    return True


@pytest.mark.parametrize("page", PAGES)
def test_flags_and_commands_in_the_running_text_are_those_of_the_scripts(page):
    for code in inline_code(text_of(page)):
        if code.startswith("--") and code not in OF_OTHERS:
            assert is_flag_of_a_script(code), f"{page}: no script takes `{code}`"
        elif words := called(code):
            check(words, page)
        else:
            assert not code.startswith("python "), f"{page}: `{code}` is no script"


def test_wrong_flags_in_the_running_text_are_found():
    right = ("--remat dots", "--scan", "--no_normalize_target", "--data.fps 6.25", "--query a.mp4 --index b.npz")
    wrong = ("--remta dots", "--remat many", "--normalize_target False", "--data.frames 1.5", "--query a --idx b")
    assert [is_flag_of_a_script(code) for code in (*right, *wrong)] == [True] * 5 + [False] * 5
    text = "`--scan` and `--data.source\nx`\n\n```bash\n`--in a block`\n```\n"
    assert inline_code(text) == ["--scan", "--data.source x"]


def test_wrong_commands_in_the_running_text_are_found():
    assert not any(map(called, ("check_data.py", "benchmark.py input", "absent.py --x", "experiments/embed.py", "a b")))
    right = ("finetune.py videomae_base_k400\n  --workdir runs/a", "python experiments/list_models.py --markdown")
    for code in inline_code("".join(f"`{code}` " for code in right)):
        check(called(code), "page")
    for wrong, reason in (
        ("finetune.py videomae_base_k4000 --workdir runs/a", "there is no recipe 'videomae_base_k4000'"),
        ("mae_pretrain.py --steqs 3", "unknown argument --steqs"),
        ("benchmark.py inputs", "the first argument must be a command"),
        ("predict.py --run runs/ft clip.mp4 --topk many", "--topk"),
    ):
        with pytest.raises(AssertionError, match=reason):
            check(called(wrong), "page")
