"""Turns published weights, or a run of ours, into a vidjax checkpoint: `model.safetensors` and `vidjax.json`.

    python experiments/convert_weights.py MCG-NJU/videomae-base-finetuned-kinetics weights/videomae_base
    python experiments/convert_weights.py uniformer_base_k400_16x4.pth weights/uniformer --name uniformer_base
    python experiments/convert_weights.py runs/b weights/mine

The result loads in one line, without PyTorch and without saying again what it is:
`model, variables = vidjax.load_pretrained("weights/videomae_base")`.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

import vidjax
from vidjax import cli
from vidjax.convert import save_pretrained
from vidjax.convert.rules import Inflation
from vidjax.errors import UserError
from vidjax.fields import check_values


@dataclasses.dataclass(frozen=True)
class Config:
    """What to convert, and to where."""

    source: Positional[str]
    """A Hugging Face id or directory, a file of published weights, or the work directory of a run."""
    out: Positional[str]
    """A new directory."""
    name: str | None = None
    """The model, one of vidjax.list_models(); needed where the source does not say it."""
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
        which=config.which,
        strict=config.strict,
        inflation=config.inflation,
        **fields,
    )
    save_pretrained(out, model, variables)
    print(f'wrote {out}: vidjax.load_pretrained("{out}") reads it')


if __name__ == "__main__":
    cli.run(main, Config)
