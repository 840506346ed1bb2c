"""Converts published weights, or those of a run, to a vidjax checkpoint or to another library's layout.

    python experiments/convert_weights.py videomae_base_k400 weights/videomae_base
    python experiments/convert_weights.py MCG-NJU/videomae-base-finetuned-kinetics weights/videomae_base
    python experiments/convert_weights.py uniformer_base_k400_16x4.pth weights/uniformer --name uniformer_base
    python experiments/convert_weights.py runs/b weights/mine
    python experiments/convert_weights.py runs/ft weights/for_transformers --layout transformers
    python experiments/convert_weights.py runs/lora weights/adapter --layout peft
    python experiments/convert_weights.py runs/k710 weights/k400 --classes k710/k400/classes.json
    python experiments/convert_weights.py uniformerv2_base_16_8_k710 weights/k710 --class_names k710.json

A vidjax checkpoint (`model.safetensors` and `vidjax.json`) loads in one line, without PyTorch and without naming the
model: `model, variables = vidjax.load_pretrained("weights/videomae_base")`. `--layout` writes the files of another
library or of the original code instead, see `vidjax.export_pretrained`; `peft` writes what LoRA has trained alone.
"""

import dataclasses
from pathlib import Path
from typing import Literal

import flax.linen as nn
from tyro.conf import Positional

import vidjax
from vidjax import cli
from vidjax.convert import export_pretrained
from vidjax.convert.rules import Inflation
from vidjax.data.labels import read_class_names
from vidjax.errors import UserError
from vidjax.fields import check_values
from vidjax.runs import export_adapter, keep_classes


@dataclasses.dataclass(frozen=True)
class Config:
    """What to convert, and where to write it."""

    source: Positional[str]
    """Name of a published checkpoint, a Hugging Face id or directory, a weight file, or the work directory of a run."""
    out: Positional[str]
    """A new directory."""
    name: str | None = None
    """The model, one of vidjax.list_models(); required if the source does not describe it."""
    layout: str = "vidjax"
    """Layout to write: vidjax's own format or that of a publisher (transformers, torchvision, original, peft, ...)."""
    source_layout: str | None = None
    """Layout of the source's weights; recognised by their names when not given."""
    which: Literal["best", "last"] = "best"
    """Checkpoint of a run: the one with the best validation (the newest without validation), or the newest."""
    num_classes: int | None = None
    """Classes of the head; those of the weights when not given."""
    class_names: str | None = None
    """A classes.json with the names of the head's classes, in the order of its logits, for a source without names."""
    classes: str | None = None
    """A classes.json: reduce the head to these classes, in this order, which are found by name."""
    strict: bool = False
    """Raise an error if any parameter is newly initialised or any weight is unused."""
    inflation: Inflation = "average"
    """How image kernels become clip kernels."""

    def __post_init__(self) -> None:

        check_values(self)
        if self.classes is not None and self.num_classes is not None:
            raise UserError("classes and num_classes exclude each other: give one of them")


def name_classes(model: nn.Module, names: tuple[str, ...]) -> nn.Module:
    """The classifier with these class names on its card; raises `UserError` for another number of classes."""
    classes = getattr(model, "num_classes", None)
    if classes != len(names):
        raise UserError(
            f"class_names has {len(names)} names, but the head has {classes} classes: list all, in its order"
        )
    return model.clone(card=dataclasses.replace(model.card, class_names=names))


def main(config: Config) -> None:
    """Loads the source and writes it to a new directory."""
    out = Path(config.out)
    if out.exists():
        raise UserError(f"{out} already exists: give another directory, nothing is overwritten")
    files = {"class_names": config.class_names, "classes": config.classes}
    names = {flag: read_class_names(file) for flag, file in files.items() if file is not None}
    cli.make_folder(out.parent, "OUT")
    if config.layout == "peft":
        export_adapter(config.source, out, config.which)
        print(f'wrote {out}: load it with peft.PeftModel.from_pretrained(model, "{out}"), or vidjax.load_adapter')
        return
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
    if "class_names" in names:
        model = name_classes(model, names["class_names"])
    if "classes" in names:
        model, variables = keep_classes(model, variables, names["classes"])
    file = export_pretrained(model, variables, out, layout=config.layout)
    details = "" if config.layout == "vidjax" else f" ({file.name} in the layout {config.layout})"
    print(f'wrote {out}{details}: load it with vidjax.load_pretrained("{out}")')


if __name__ == "__main__":
    cli.run(main, Config)
