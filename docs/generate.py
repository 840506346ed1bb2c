"""Pages that MkDocs makes anew at each build: the table of models, the recipes, and the reference of every package.

Their content is in the code alone: `experiments/list_models.py`, `experiments/recipes/`, and docstrings.
"""

import functools
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the tests read the pages where MkDocs is not installed
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import vidjax  # noqa: E402

ROOMS = (
    "models", "layers", "kernels", "objectives", "data", "training", "evaluation", "visualize", "convert", "runs",
)  # fmt: skip
TRAINING = ("mae_pretrain", "finetune", "contrastive_pretrain")


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Adds the pages; MkDocs calls it once a build."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "models.md", content=models_page(config.extra["models"])))
    files.append(File.generated(config, "recipes.md", content=recipes_page()))
    files.append(File.generated(config, "reference/index.md", content=reference_index()))
    for room in ROOMS:
        files.append(File.generated(config, f"reference/{room}.md", content=reference_page(room)))
    return files


def load_script(name: str) -> ModuleType:
    """A script of experiments/ as a module."""
    if (
        str(ROOT / "experiments") not in sys.path
    ):  # where its recipes are; MkDocs restores sys.path after loading a hook
        sys.path.insert(0, str(ROOT / "experiments"))
    spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    sys.modules[name] = script  # dataclasses look their module up there
    spec.loader.exec_module(script)
    return script


@functools.cache  # `mkdocs serve` builds anew at each edit
def models_page(contains: str = "") -> str:
    """The table that `list_models.py --markdown` prints, under a few words on how to read it."""
    table = "\n".join(load_script("list_models").markdown(contains))
    return f"""# Models

```python
import vidjax

vidjax.list_models("timesformer")
model = vidjax.create_model("timesformer_tiny_divided", num_classes=10)
```

A row is a name for `create_model` and for every script's `--model` (`mae_pretrain.py` takes it without `_pretrain`).
Each field of a row can be given another value, and other clip lengths and sizes go through the same parameters.
Parameters are counted from the shapes of an initialisation. GMACs are multiply-accumulates of convolutions and matrix
products in the traced program, of one clip of the input given; those of VideoMAE's pre-training are at a mask of 90 %.
Rows without an accuracy have no published weights that we know of. `weights that load` names the publishers whose files
`vidjax.load_pretrained` reads, see [checkpoints](checkpoints.md).

{table}
"""


def recipes_page() -> str:
    """A table for each training script: its RECIPES."""
    parts = []
    for name in TRAINING:
        script = load_script(name)
        said = comments(ROOT / "experiments" / "recipes" / f"{name}.py")
        lines = [
            "| recipe | model | clips | batch | epochs | peak rate at that batch | published top-1 | source |",
            "|---|---|---|---|---|---|---|---|",
            *(row(recipe, config, said.get(recipe, "")) for recipe, config in script.RECIPES.items()),
        ]
        parts.append(f"## {name}.py\n\n{(script.__doc__ or '').strip().splitlines()[0]}\n\n" + "\n".join(lines))
    return f"""# Recipes

The first word of a training script's command line chooses a recipe; flags after it change single fields:

```bash
python experiments/mae_pretrain.py k400_base_1600 --data.source k400/train.csv --workdir runs/k400
python experiments/finetune.py videomae_base_k400 --init_from runs/k400 --data.train k400/train.csv --workdir runs/ft
```

Without a first word it is `demo`, on rendered videos, or `videos` where a source of your own is given. `--help` after a
recipe's name shows every field with its value there. Learning rates in the configs are for a batch of 256 and scaled by
the batch; the tables give the product. `published top-1` is what the source reports at the end of the recipe (of
pre-training: after fine-tuning), not what was measured here. Where a recipe departs from its source, a comment above it
in `experiments/recipes/` says so.

{chr(10).join(part + chr(10) for part in parts)}"""


def comments(recipes: Path) -> dict[str, str]:
    """The comment beside each entry of a file's RECIPES, by the entry's name."""
    inside = recipes.read_text().partition("\nRECIPES = {\n")[2].partition("\n}")[0]
    entries = re.split(r'^    "(\w+)": ', inside, flags=re.MULTILINE)[1:]
    found = {}
    for name, text in zip(entries[::2], entries[1::2], strict=True):
        beside = re.search(r"^(?:(?! *#).*)[,)]  # (.*)\s*\Z", text, flags=re.MULTILINE)
        found[name] = beside[1].strip() if beside else ""
    return found


def row(name: str, config: Any, said: str) -> str:
    """One recipe as a row of Markdown."""
    data, optim = config.data, config.optim
    model = getattr(config, "video_model", config.model)
    sampling = f"stride {data.stride}" if data.sampling == "dense" else data.sampling
    clips = f"{data.frames} x {data.size} x {data.size}, {sampling}"
    if data.repeats > 1:
        clips += f", each video {data.repeats} times"
    batch = f"{config.batch_size:,}"
    length = f"{config.epochs:,g}" if config.steps is None else f"{config.steps:,} steps"
    rate = f"{optim.learning_rate * config.batch_size / 256:.3g}, {getattr(optim, 'kind', 'adamw')}"
    published = name not in ("demo", "videos")
    top1 = said.partition(";")[0] if re.match(r"\d", said) else ""  # other remarks are for who reads the script
    source = vidjax.create_model(model).card.source if published else "vidjax"
    cells = (f"`{name}`", f"`{model}`", clips, batch, length, rate, top1 if published else "", source)
    return "| " + " | ".join(cells) + " |"


def modules(room: str) -> Iterator[str]:
    """The modules of a room, its own first."""
    yield f"vidjax.{room}"
    for path in sorted((ROOT / "vidjax" / room).glob("[!_]*.py")):
        yield f"vidjax.{room}.{path.stem}"


def reference_page(room: str) -> str:
    """A heading for each module of a room; mkdocstrings fills in what the docstrings say."""
    return f"# vidjax.{room}\n\n" + "\n".join(f"::: {module}\n" for module in modules(room))


def reference_index() -> str:
    """The package's own functions, and the rooms."""
    rooms = "\n".join(f"- [vidjax.{room}]({room}.md): {summary(room)}" for room in ROOMS)
    functions = (
        "vidjax.models.create_model", "vidjax.models.create_text_model", "vidjax.models.list_models",
        "vidjax.runs.weights.load_pretrained", "vidjax.convert.published.list_pretrained",
        "vidjax.convert.load_weights", "vidjax.convert.checkpoint.save_pretrained",
        "vidjax.convert.export.export_pretrained",
    )  # fmt: skip
    listed = "\n".join(f"- [`vidjax.{function.rsplit('.', 1)[-1]}`][{function}]" for function in functions)
    return (
        f"# Reference\n\nWhat `import vidjax` gives:\n\n{listed}\n\nThe rooms:\n\n{rooms}\n\n"
        "## Command lines\n\n::: vidjax.cli\n    options:\n      heading_level: 3\n"
    )


def summary(room: str) -> str:
    """The first line of a room's docstring."""
    text = (ROOT / "vidjax" / room / "__init__.py").read_text()
    return text.split('"""')[1].strip().splitlines()[0]
