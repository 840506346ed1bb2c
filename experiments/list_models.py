"""Lists the models of vidjax: input, parameters, cost, source, published accuracy and supported weights.

    python experiments/list_models.py
    python experiments/list_models.py uniformer
    python experiments/list_models.py --markdown
    python experiments/list_models.py --pretrained k400

`--pretrained` lists the checkpoints that `vidjax.load_pretrained` loads by name, with their publishers' figures.
Parameters are counted from the shapes of an initialisation, GMACs (multiply-accumulates of convolutions and matrix
products) from the traced forward pass of one clip of the listed size. Nothing is computed or downloaded.
"""

import dataclasses
from collections.abc import Callable, Iterator
from itertools import chain
from math import prod

import jax
from tyro.conf import Positional

import vidjax
from vidjax import cli
from vidjax.convert import layouts, published
from vidjax.errors import UserError
from vidjax.models import example_inputs, variable_shapes
from vidjax.training.cost import count_macs


@dataclasses.dataclass(frozen=True)
class Config:
    """What to list, and in which format."""

    contains: Positional[str] = ""
    """List only names that contain this."""
    markdown: bool = False
    """Print a Markdown table, as in the documentation."""
    pretrained: bool = False
    """List published checkpoints instead of models."""


CHECKPOINT = ("checkpoint", "model", "data", "top-1", "top-5", "views", "layout", "licence", "source")
COLUMNS = ("model", "input", "parameters", "GMACs", "published accuracy", "source", "weights that load")


def rows(contains: str) -> Iterator[tuple[str, ...]]:
    """One row of text per model."""
    for name in vidjax.list_models(contains):
        model = vidjax.create_model(name)
        shapes = variable_shapes(model)
        parameters = sum(prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))
        macs = count_macs(model.apply, shapes, *example_inputs(model))
        size = f"{model.num_frames} x {model.image_size} x {model.image_size}"
        formats = ", ".join(layout.name for layout in layouts(model))
        yield name, size, f"{parameters:,}", f"{macs / 1e9:,.2f}", model.card.accuracy, model.card.source, formats


def checkpoints(contains: str) -> Iterator[tuple[str, ...]]:
    """One row of text per published checkpoint."""
    for name in vidjax.list_pretrained(f"*{contains}*"):
        row = published.ROWS[name]
        accuracies = ("" if accuracy is None else f"{accuracy}" for accuracy in (row.top1, row.top5))
        yield name, row.model, row.data, *accuracies, row.views, row.layout, row.licence, row.source


def markdown(
    contains: str, columns: tuple[str, ...] = COLUMNS, table: Callable[[str], Iterator[tuple[str, ...]]] = rows
) -> Iterator[str]:
    """The lines of a table in Markdown."""
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for name, *cells in table(contains):
        yield "| " + " | ".join([f"`{name}`", *cells]) + " |"


def main(config: Config) -> None:
    """Prints one line per model, as soon as it is counted, or per checkpoint."""
    if config.pretrained:
        kind, names, columns, table = (
            "checkpoint",
            vidjax.list_pretrained(f"*{config.contains}*"),
            CHECKPOINT,
            checkpoints,
        )
        widths = (38, 42, 14, 7, 7, 10, 18, 13, 0)
    else:
        kind, names, columns, table = "model", vidjax.list_models(config.contains), COLUMNS, rows
        widths = (44, 16, 13, 10, 44, 32, 0)
    if not names:
        raise UserError(f"no {kind}'s name contains '{config.contains}': omit it to list all")
    if config.markdown:
        for line in markdown(config.contains, columns, table):
            print(line, flush=True)
        return
    for cells in chain([columns], table(config.contains)):
        print(" ".join(f"{cell:{width}}" for cell, width in zip(cells, widths, strict=True)), flush=True)


if __name__ == "__main__":
    cli.run(main, Config)
