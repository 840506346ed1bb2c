"""Turns published weights, or a run of ours, into a vidjax checkpoint, or into what other code loads.

    python experiments/convert_weights.py videomae_base_k400 weights/videomae_base
    python experiments/convert_weights.py MCG-NJU/videomae-base-finetuned-kinetics weights/videomae_base
    python experiments/convert_weights.py uniformer_base_k400_16x4.pth weights/uniformer --name uniformer_base
    python experiments/convert_weights.py runs/b weights/mine
    python experiments/convert_weights.py runs/ft weights/for_transformers --layout transformers

A vidjax checkpoint (`model.safetensors` and `vidjax.json`) loads in one line, without PyTorch and without saying again
what it is: `model, variables = vidjax.load_pretrained("weights/videomae_base")`. With `--layout` the files are those of
another library or of the original code, see `vidjax.export_pretrained`.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

import vidjax
from vidjax import cli
from vidjax.convert import export_pretrained
from vidjax.convert.rules import Inflation
from vidjax.errors import UserError
from vidjax.fields import check_values


@dataclasses.dataclass(frozen=True)
class Config:
    """What to convert, and to where."""

    source: Positional[str]
    """A published checkpoint's name, a Hugging Face id or directory, a file of weights, or a run's work directory."""
    out: Positional[str]
    """A new directory."""
    name: str | None = None
    """The model, one of vidjax.list_models(); needed where the source does not say it."""
    layout: str = "vidjax"
    """What to write: vidjax's own format or a publisher's: transformers, torchvision, mmaction2, original, ..."""
    source_layout: str | None = None
    """The layout that the source's weights are in, where their names are not to decide."""
    which: Literal["best", "last"] = "best"
    """Of a run, the checkpoint that validated best (the newest where there was no validation), or the newest."""
    num_classes: int | None = None
    """Classes of the head; those of the weights when not given."""
    strict: bool = False
    """Refuse weights that leave anything newly initialised or unused."""
    inflation: Inflation = "average"
    """How kernels of images become kernels of clips."""

    def __post_init__(self) -> None:
        """Refuses values that cannot be meant."""
        check_values(self)


def main(config: Config) -> None:
    """Converts and writes."""
    out = Path(config.out)
    if out.exists():
        raise UserError(f"{out} is there already: give another directory, nothing is overwritten")
    cli.make_folder(out.parent, "OUT")
    fields = {} if config.num_classes is None else {"num_classes": config.num_classes}
    model, variables = vidjax.load_pretrained(
        config.source,
        config.name,
        layout=config.source_layout,
        which=config.which,
        strict=config.strict,
        inflation=config.inflation,
        **fields,
    )
    file = export_pretrained(model, variables, out, layout=config.layout)
    others = "" if config.layout == "vidjax" else f" ({file.name} in the layout {config.layout})"
    print(f'wrote {out}{others}: vidjax.load_pretrained("{out}") reads it')


if __name__ == "__main__":
    cli.run(main, Config)
