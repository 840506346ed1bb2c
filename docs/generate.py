"""Pages that MkDocs generates at each build: the table of models, the recipes, and the reference of every package.

Their content comes from the code: `experiments/list_models.py`, `experiments/recipes/`, and docstrings.
"""

import functools
import importlib.util
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # the tests generate the pages without MkDocs
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

import vidjax  # noqa: E402
from vidjax.models.actionformer import LOCALIZERS  # noqa: E402
from vidjax.models.moment_detr import RETRIEVERS  # noqa: E402

PACKAGES = (
    "models", "layers", "kernels", "objectives", "data", "training", "evaluation", "visualize", "convert", "runs",
)  # fmt: skip
TRAINING = sorted(path.stem for path in (ROOT / "experiments" / "recipes").glob("[!_]*.py"))


def on_files(files: "Files", config: "MkDocsConfig") -> "Files":
    """Adds the pages; MkDocs calls this function once per build."""
    from mkdocs.structure.files import File

    files.append(File.generated(config, "models.md", content=models_page(config.extra["models"])))
    files.append(File.generated(config, "recipes.md", content=recipes_page()))
    files.append(File.generated(config, "reference/index.md", content=reference_index()))
    for package in PACKAGES:
        files.append(File.generated(config, f"reference/{package}.md", content=reference_page(package)))
    return files


def load_script(name: str) -> ModuleType:
    """A script of experiments/ as a module."""
    folder = str(ROOT / "experiments")
    if folder not in sys.path:  # for its recipes; MkDocs restores sys.path after loading a hook
        sys.path.insert(0, folder)
    spec = importlib.util.spec_from_file_location(name, ROOT / "experiments" / f"{name}.py")
    script = importlib.util.module_from_spec(spec)
    sys.modules[name] = script  # dataclasses look up their module there
    spec.loader.exec_module(script)
    return script


@functools.cache  # `mkdocs serve` rebuilds at each edit
def models_page(contains: str = "") -> str:
    """The table that `list_models.py --markdown` prints, after an explanation of its columns."""
    table = "\n".join(load_script("list_models").markdown(contains))
    return f"""# Models

```python
import vidjax

vidjax.list_models("timesformer")
model = vidjax.create_model("timesformer_tiny_divided", num_classes=10)
```

The names are arguments of `create_model` and of every script's `--model` (`mae_pretrain.py` takes them without
`_pretrain`). Any field of a model can be changed, and the same parameters apply to clips of other lengths and sizes.
Parameters are counted from the shapes of the initial variables. GMACs are the multiply-accumulates of convolutions and
matrix products in the traced program for one clip of the given input size, for VideoMAE's pre-training with 90 % of the
tokens masked. Rows without an accuracy have no published weights that we know of. `weights that load` lists the
publishers whose files `vidjax.load_pretrained` reads, see [checkpoints](checkpoints.md).

{table}
"""


def recipes_page() -> str:
    """A table for each training script: its RECIPES."""
    parts = []
    for name in TRAINING:
        script = load_script(name)
        folder = ROOT / "experiments" / "recipes"
        files = [folder / f"{name}.py", *folder.glob(f"_{name}_*.py")]
        remarks = {recipe: remark for path in files for recipe, remark in comments(path).items()}
        lines = [
            "| recipe | model | clips | batch | epochs | peak rate at that batch | published top-1 | source |",
            "|---|---|---|---|---|---|---|---|",
            *(row(recipe, config, remarks.get(recipe, "")) for recipe, config in script.RECIPES.items()),
        ]
        parts.append(f"## {name}.py\n\n{(script.__doc__ or '').strip().splitlines()[0]}\n\n" + "\n".join(lines))
    return f"""# Recipes

The first word of a training script's command line selects a recipe; the flags after it change single fields:

```bash
python experiments/mae_pretrain.py k400_base_1600 --data.source k400/train.csv --workdir runs/k400
python experiments/finetune.py videomae_base_k400 --init_from runs/k400 --data.train k400/train.csv --workdir runs/ft
```

The default is `demo`, on rendered videos, or `videos` if you give a source of your own. `--help` after a recipe's name
shows its value of every field. Learning rates in the configs are for a batch of 256 and are scaled by the batch size;
the tables give the product. `published top-1` is what the source reports for the recipe (for pre-training: after
fine-tuning), and was not measured here. Differences between a recipe and its source are listed in a comment above it in
`experiments/recipes/`.

{chr(10).join(part + chr(10) for part in parts)}"""


def comments(recipes: Path) -> dict[str, str]:
    """The comment at the end of each entry of a file's RECIPES, by the entry's name."""
    inside = recipes.read_text().partition("\nRECIPES = {\n")[2].partition("\n}")[0]
    entries = re.split(r'^    "(\w+)": ', inside, flags=re.MULTILINE)[1:]
    remarks = {}
    for name, text in zip(entries[::2], entries[1::2], strict=True):
        remark = re.search(r"^(?:(?! *#).*)[,)]  # (.*)\s*\Z", text, flags=re.MULTILINE)
        remarks[name] = remark[1].strip() if remark else ""
    return remarks


def row(name: str, config: Any, remark: str) -> str:
    """One recipe as a row of Markdown."""
    data, optim = config.data, config.optim
    model = config.model if config.model in vidjax.list_models() else getattr(config, "video_model", config.model)
    make = (LOCALIZERS | RETRIEVERS).get(model)
    localizer = make() if make else None
    if localizer is not None:  # it takes features of whole videos
        clips = f"{config.max_length or localizer.max_length} steps of features"
    else:
        sampling = f"stride {data.stride}" if data.sampling == "dense" else data.sampling
        clips = f"{data.frames} x {data.size} x {data.size}, {sampling}"
        if data.repeats > 1:
            clips += f", each video {data.repeats} times"
    batch = f"{config.batch_size:,}"
    length = f"{config.epochs:,g}" if config.steps is None else f"{config.steps:,} steps"
    rate = f"{optim.learning_rate * config.batch_size / 256:.3g}, {getattr(optim, 'kind', 'adamw')}"
    published = not name.startswith("demo") and name != "videos"
    top1 = remark.partition(";")[0] if re.match(r"\d", remark) else ""  # other remarks are for readers of the script
    source = (localizer or vidjax.create_model(model)).card.source if published else "vidjax"
    named = f"`{model}`" if localizer or model in vidjax.list_models() else "from flags"  # of cross_model.py's two
    cells = (f"`{name}`", named, clips, batch, length, rate, top1 if published else "", source)
    return "| " + " | ".join(cells) + " |"


def modules(package: str) -> Iterator[str]:
    """The package itself, then its modules."""
    yield f"vidjax.{package}"
    for path in sorted((ROOT / "vidjax" / package).glob("[!_]*.py")):
        yield f"vidjax.{package}.{path.stem}"


def reference_page(package: str) -> str:
    """A heading for each module of a package; mkdocstrings inserts the docstrings."""
    return f"# vidjax.{package}\n\n" + "\n".join(f"::: {module}\n" for module in modules(package))


def reference_index() -> str:
    """The functions of `vidjax` itself, and its packages."""
    packages = "\n".join(f"- [vidjax.{package}]({package}.md): {summary(package)}" for package in PACKAGES)
    functions = (
        "vidjax.models.create_model", "vidjax.models.create_text_model", "vidjax.models.list_models",
        "vidjax.runs.weights.load_pretrained", "vidjax.convert.published.list_pretrained",
        "vidjax.convert.load_weights", "vidjax.convert.checkpoint.save_pretrained",
        "vidjax.convert.export.export_pretrained",
    )  # fmt: skip
    listed = "\n".join(f"- [`vidjax.{function.rsplit('.', 1)[-1]}`][{function}]" for function in functions)
    return (
        f"# Reference\n\nFunctions of `vidjax`:\n\n{listed}\n\nPackages:\n\n{packages}\n\n"
        "## Command lines\n\n::: vidjax.cli\n    options:\n      heading_level: 3\n"
    )


def summary(package: str) -> str:
    """The first line of a package's docstring."""
    text = (ROOT / "vidjax" / package / "__init__.py").read_text()
    return text.split('"""')[1].strip().splitlines()[0]
