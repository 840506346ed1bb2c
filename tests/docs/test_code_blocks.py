"""Every code block of the README and of docs/ is correct.

- `python`: executed, page by page in one namespace; shapes and numbers in a comment (`# (2, 10)`, `# 2.56`) are
  compared with the value's.
- `bash`, or no language: each command that calls a script is parsed by that script, which rejects wrong flags, values
  and recipes, and the models that it names must exist. test_shell_blocks.py runs them.
- `csv`, `jsonl`: written to the file in their title, with tiny videos of the names in them, and opened as a source.
- `text`: output of a program; test_shell_blocks.py compares it.

Any other language fails, and so does a command of any other program. In the running text, flags must be those of a
script, and the words after the name of a script are parsed by it.
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
from small_runs import two_devices

from vidjax import cli
from vidjax.models import LANGUAGE_VARIANTS, TEXT_VARIANTS, VARIANTS
from vidjax.models.actionformer import LOCALIZERS
from vidjax.models.moment_detr import RETRIEVERS

# Replacements that make the pages' Python run faster.
SHORTER = {"steps = 40": "steps = 2", "batch_size=32": "batch_size=8"}
# Other programs on the pages, which are not installed in a test: their commands are not checked.
FOREIGN = {"gcloud", "wait", "cd"}
FROM_EXTRAS = {
    "mkdocs": ("docs", "mkdocs"),
    "pytest": ("test", "pytest"),
    "tfds": ("train", "tensorflow-datasets"),
}  # the extra that installs it, and its package
# Flags of other programs in the running text.
OTHER_FLAGS = {
    "--help": "every script's, by tyro",
    "--debug": "every script's, by vidjax.cli",
    "--gpus-per-node": "Slurm",
    "--gpus-per-task": "Slurm",
    "--cpus-per-task": "Slurm",
    "--signal": "Slurm",
    "--xla_gpu_enable_latency_hiding_scheduler=true": "XLA",
}
# First words that select the command of a script.
FIRST_WORDS = {
    "benchmark.py": ("train", "infer", "input", "formats", "memory", "loss", "clips", "startup"),
    "scaling.py": ("--fsdp", "input"),
}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

WITH_PYTHON = [page for page in FILES if any(block.kind == "python" for block in blocks_of(page))]
WITH_PYTHON += ["models.md, generated"]

SYNTHETIC = tuple(f"synthetic:{kind}_shapes" for kind in ("moving", "untrimmed", "many", "sounding", "brief"))
SYNTHETIC += ("synthetic:shape_photos", "synthetic:shape_clips")


def test_every_block_has_a_language_that_is_tested():
    kinds = {"python", "text", *SHELL, *TABLES}
    for block in (block for page in PAGES for block in blocks_of(page)):
        assert block.kind in kinds, f"{block}: ```{block.kind} is not tested; the kinds are {', '.join(sorted(kinds))}"
        assert block.text.strip() and (block.kind not in TABLES or block.title), f"{block} is empty, or has no title"
    assert sum(len(blocks_of(page)) for page in PAGES) > 40  # blocks are found
    assert [page for page in PAGES if any(block.kind == "python" for block in blocks_of(page))] == WITH_PYTHON
    assert all(block.text.count("\n") < 60 for block in blocks_of("docs/extend.md"))


@pytest.mark.parametrize(
    "page", [page if page == "README.md" else pytest.param(page, marks=pytest.mark.long) for page in WITH_PYTHON]
)
def test_python_runs(page, place):
    names = {"__name__": "page"}
    for block in blocks_of(page):
        if block.kind == "python":
            # A model that is not tiny is only traced, which gives the same shapes.
            big = any("_tiny" not in name for name in re.findall(r'create_model\("(\w+)"', block.text))
            run = functools.partial(execute, block, names)
            with two_devices():
                jax.eval_shape(run) if big else run()
        elif block.kind in TABLES:
            write_table(block)


def execute(block, names):
    """Executes a block by statements, and compares the shapes or numbers in the comment of each with its value."""
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
            assert agrees(value, numbers[0]), f"{block}: {comment}, but {value}"
        shapes = [tuple(map(int, s.split(","))) for s in re.findall(r"\((\d+(?:, \d+)+)\)", comment)]
        if shapes and isinstance(node, ast.Assign):
            targets = getattr(node.targets[0], "elts", node.targets)
            made = shapes_of([names[target.id] for target in targets])
            assert made == shapes, f"{block}: {comment}, but {made}"
        elif shapes and isinstance(node, ast.Expr):
            made = shapes_of(value)
            assert made == shapes, f"{block}: {comment}, but {made}"


def shapes_of(value):
    """Shapes of an array or of several; a shape is returned as it is."""
    if isinstance(value, tuple) and all(isinstance(each, int) for each in value):
        return [value]
    return [each.shape for each in (value if isinstance(value, tuple | list) else [value])]


def agrees(value, comment):
    """Whether the numbers in a comment equal the value, rounded to their digits; `1, 2, ..., 9` omits some."""
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
    assert all(agrees(*each) for each in right) and not any(agrees(*each) for each in wrong)
    block = blocks.Block("page", 1, "python", "", "x = 2.5  # 2.56: seconds\n")
    with pytest.raises(AssertionError, match=r"2\.56: seconds, but 2\.5"):
        execute(block, {})


@pytest.mark.parametrize("line", ["x = jnp.zeros((2, 3))", "jnp.zeros((2, 3))", "jnp.zeros((2, 3)).shape"])
def test_shapes_in_comments_are_compared(line):
    execute(blocks.Block("page", 1, "python", "", f"{line}  # (2, 3)\n"), {"jnp": jax.numpy})
    with pytest.raises(AssertionError, match=r"\(2, 4\), but \[\(2, 3\)\]"):
        execute(blocks.Block("page", 1, "python", "", f"{line}  # (2, 4)\n"), {"jnp": jax.numpy})
    several = blocks.Block("page", 1, "python", "", "[jnp.ones((1, 2)), jnp.ones((3, 4))]  # (1, 2) and (3, 4)\n")
    execute(several, {"jnp": jax.numpy})


@pytest.mark.parametrize("block", [b for page in FILES for b in blocks_of(page) if b.kind in TABLES], ids=str)
def test_tables_open_as_sources(block, place):
    source = write_table(block)
    assert len(source) == sum(line.strip() != "" for line in block.text.splitlines()) - (block.kind == "csv")
    with source.open(0, ()) as example:
        video = example.streams["video"]
        video.read([video.info.num_frames - 1], 16)
    assert source.class_names or source.captions(0)


@pytest.mark.parametrize("page", PAGES)
def test_shell_commands_parse(page):
    for block in blocks_of(page):
        if block.kind in SHELL:
            for words in commands(block.text):
                check(words, block)


def check(words, where):
    while words and re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    words = words[1:] if words[:1] == ["srun"] else words
    program, *rest = words or ["wait"]
    command = f"{where}: {' '.join(words)}"
    if program == "python":
        assert rest and re.fullmatch(r"experiments/\w+\.py", rest[0]), command
        check_config(parse(*rest), command)
    elif program == "pip":
        assert rest[:2] == ["install", "-e"] and set(re.findall(r"\w+", rest[2])) <= EXTRAS.keys(), command
    elif program == "export":
        assert all(re.match(r"[A-Z_]+=", word) for word in rest), command
    elif program in FROM_EXTRAS:
        extra, package = FROM_EXTRAS[program]
        assert any(re.match(r"[\w-]+", need)[0] == package for need in EXTRAS[extra]), command
    else:
        assert program in FOREIGN, f"{command}\n{program} is unknown to this test"
        for word in rest:
            if word.startswith("--command="):
                for inner in commands(word.removeprefix("--command=")):
                    check(inner, where)


def check_config(config, command):
    """The models and sources that a config names exist."""
    for field in ("model", "video_model", "text_model", "models"):
        is_field = any(each.name == field for each in dataclasses.fields(config))  # preference_tune.py's is a run
        named = getattr(config, field, None) if is_field else None
        for name in [named] if isinstance(named, str) else named or ():
            known = {**VARIANTS, **TEXT_VARIANTS, **LANGUAGE_VARIANTS, **LOCALIZERS, **RETRIEVERS}
            assert {name, f"{name}_pretrain"} & known.keys() or " and " in name, f"{command}\nthere is no {name}"
    data = getattr(config, "data", None)
    for field in ("source", "train", "validation"):
        source = getattr(data, field, None) or ""
        parts = source.removeprefix("mix:").split(",") if isinstance(source, str) else []
        for part in (part for part in parts if ":" in part):
            assert part.startswith(("tfds:", "tfrecord:", *SYNTHETIC)), f"{command}\n{source}"


@functools.cache
def flags():
    """The flags of all scripts, with the config fields that they set."""
    fields = {}

    def collect(config, prefix=""):
        for field in dataclasses.fields(config):
            fields.setdefault(f"--{prefix}{field.name}", []).append(field)
            if field.type is bool:
                fields.setdefault(f"--{prefix}no_{field.name}", []).append(field)
            if dataclasses.is_dataclass(field.type):
                collect(field.type, f"{prefix}{field.name}.")

    for path in sorted((ROOT / "experiments").glob("*.py")):
        for word in FIRST_WORDS.get(path.name, ("--help",)):
            blocks.call(
                [f"experiments/{path.name}", word], lambda main, config, recipes=None, default=None: collect(config)
            )
    return fields


def inline_code(text):
    """The code in backticks in the running text."""
    without_blocks = re.sub(r"(?ms)^ *```.*?^ *```$", "", text)
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", without_blocks)]


def called(code):
    """The words of inline code that calls a script, by its path or its name; empty for other code."""
    match = re.fullmatch(r"(python )?(?:experiments/)?(\w+\.py)( .+)?", code)
    if not match or not (ROOT / "experiments" / match[2]).exists():
        return []
    python, script, rest = match[1], match[2], shlex.split(match[3] or "")
    # A script alone, or with its command, is a mention and not a call.
    if not python and (not rest or (len(rest) == 1 and rest[0] in FIRST_WORDS.get(script, ()))):
        return []
    return ["python", f"experiments/{script}", *rest]


def is_flag_of_a_script(code):
    """Whether each flag in the code exists, with a valid value."""
    for given in re.findall(r"--\S+(?: (?!--)\S+)*", code):
        flag, *values = given.split(" ")
        fields = flags().get(flag, ())
        # A flag without a value is a mention, unless it is a switch.
        if not any((not values and field.type is not bool) or takes(field, flag, values) for field in fields):
            return False
    return True


def takes(field, flag, values):
    """Whether tyro accepts the flag with these values for the field."""
    one = dataclasses.make_dataclass("One", [(field.name, field.type, dataclasses.field(default=field.default))])
    try:
        cli.parse(one, argv=[f"--{flag.rpartition('.')[2].removeprefix('--')}", *values])
    except SystemExit:
        return False
    return True


@pytest.mark.parametrize("page", PAGES)
def test_flags_and_commands_in_the_running_text_are_those_of_the_scripts(page):
    for code in inline_code(text_of(page)):
        if code.startswith("--") and code not in OTHER_FLAGS:
            assert is_flag_of_a_script(code), f"{page}: no script takes `{code}`"
        elif words := called(code):
            check(words, page)
        else:
            assert not code.startswith("python "), f"{page}: `{code}` calls no script"


def test_wrong_flags_in_the_running_text_are_found():
    right = ("--remat dots", "--scan", "--no_normalize_target", "--data.fps 6.25", "--query a.mp4 --index b.npz")
    wrong = ("--remta dots", "--remat many", "--normalize_target False", "--data.size 1.5", "--query a --idx b")
    assert [is_flag_of_a_script(code) for code in (*right, *wrong)] == [True] * 5 + [False] * 5
    text = "`--scan` and `--data.source\nx`\n\n```bash\n`--in a block`\n```\n"
    assert inline_code(text) == ["--scan", "--data.source x"]


def test_wrong_commands_in_the_running_text_are_found():
    assert not any(map(called, ("check_data.py", "benchmark.py input", "absent.py --x", "experiments/embed.py", "a b")))
    right = ("finetune.py videomae_base_k400\n  --data.train k400.csv", "python experiments/list_models.py --markdown")
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
