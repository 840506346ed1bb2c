"""Loading trained weights of a run or a published checkpoint, as a model or as the initial weights of a run."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import numpy as np

from vidjax import convert
from vidjax.convert.checkpoint import NAME, read_model
from vidjax.convert.rules import Inflation, Report
from vidjax.errors import UserError
from vidjax.runs.workdir import is_run
from vidjax.training.sharding import is_main_process

Which = Literal["best", "last"]


def load_pretrained(
    source: str | Path,
    name: str | None = None,
    *,
    layout: str | None = None,
    which: Which = "best",
    strict: bool = False,
    inflation: Inflation = "average",
    key: jax.Array | None = None,
    verbose: bool = True,
    **overrides: Any,
) -> tuple[nn.Module, dict]:
    """Loads a model with trained weights, ready for `model.apply(variables, video)`, and prints a report.

    The model has the classes of the weights unless `num_classes` is given; the head is then newly initialised.
    `model.card` has the normalisation, the sampling and the class names.

    Args:
      source: the name of a published checkpoint (`vidjax.list_pretrained`; a local path of that name takes precedence),
        a Hugging Face id (through huggingface_hub), a Hugging Face directory, a vidjax checkpoint, the work directory
        of a run, or a file of safetensors, PyTorch (`.pth`, `.pyth`, `.pt`, `.bin`, `.pth.tar`), NumPy (`.npz`) or
        Flax (`.msgpack`, Scenic's `checkpoint`) in a published layout.
      name: name of the model (`vidjax.list_models`). Required if the source does not specify its model, otherwise it
        must agree with the source.
      layout: the publisher's layout of the weights (`transformers`, `torchvision`, `original`, ...); by default it is
        detected from the names of the entries.
      which: which checkpoint of a run: the one that validated best (the newest without validation), or the newest.
      strict: raise an error if parameters are newly initialised or entries are unused.
      inflation: how kernels of images become kernels of clips: `average` or `central`.
      key: PRNG key for parameters that the weights do not contain; `jax.random.key(0)` by default.
      verbose: print the report.
      **overrides: fields of the model, such as `num_classes=174` (None for features only). They override those of the
        name and the source, but must fit the weights.

    Raises:
      UserError: the source does not exist, does not specify its model although no name is given, contradicts the name,
        is damaged, or does not fit the model.
      UserError: the source needs a library that is not installed: PyTorch, safetensors or huggingface_hub.

    Example:
      >>> model, variables = load_pretrained("videomae_base_k400")
      >>> model, variables = load_pretrained("MCG-NJU/videomae-base-finetuned-kinetics", dtype=jnp.bfloat16)
      >>> model, variables = load_pretrained("runs/finetune")
    """
    settings = {"layout": layout, "strict": strict, "inflation": inflation, "key": key, "verbose": verbose, **overrides}
    if which not in get_args(Which):
        raise UserError(f"which is '{which}': choose one of {', '.join(get_args(Which))}")
    if not is_run(source):
        return convert.load_pretrained(source, name, **settings)
    weights, step = read_weights(source, which)
    described = read_model(Path(source))
    origin = f"{source}, step {step}"
    return convert.assemble(origin, weights, described, asdict(described.card), name=name, **settings)


def read_weights(workdir: str | Path, which: Which = "best") -> tuple[dict, int]:
    """A run's variables by path, and their step; see `training.checkpoint.load_variables`."""
    from vidjax.training.checkpoint import has_checkpoint, load_variables  # models do not depend on Orbax

    return load_variables(Path(workdir), which if has_checkpoint(Path(workdir), which) else "last")


def class_names(source: str | Path) -> tuple[str, ...]:
    """The class names of a run or a published checkpoint; empty if it has none."""
    path = Path(source).expanduser()
    if (path / NAME).is_file():
        return read_model(path).card.class_names
    config = convert.hub.read_config(path) if path.exists() else None
    return tuple(convert.hub.read_card(config, path).get("class_names", ())) if config else ()


def start_from(
    source: str | Path, model: nn.Module, variables: dict, *, new: Sequence[str] = (), label: str = "weights"
) -> tuple[dict, Report]:
    """Replaces variables by those of a run (its best checkpoint) or of a published checkpoint, and prints a report.

    Args:
      source: see `load_pretrained`.
      variables: variables of the model, or only its parameters.
      new: prefixes of the paths of parameters that stay newly initialised.
      label: first word of the printed report.

    Returns:
      The variables and the report.

    Raises:
      UserError: the source does not exist, has no checkpoint yet, or does not fit the model.
    """
    if is_run(source):
        weights, step = read_weights(source)
        variables, report = convert.load_weights(f"{source}, step {step}", model, variables, weights=weights, new=new)
    else:
        variables, report = convert.load_weights(convert.hub.fetch(source), model, variables, new=new)
    if is_main_process():
        print(f"{label:<9} from {source}: {report}")
    return variables, report


def start_classifier(source: str | Path, model: nn.Module, variables: dict, keep_head: bool) -> dict:
    """`start_from` for a classifier, whose head stays newly initialised by default.

    Args:
      model: its card has the class names.
      keep_head: load the head too.

    Raises:
      UserError: as in `start_from`; or the head should be kept but has other classes.
    """
    names = class_names(source) if keep_head else ()
    if names and names != model.card.class_names:
        raise UserError(
            f"keep_head: the head in {source} has other classes ({', '.join(names[:3])}, ...): omit --keep_head"
        )
    variables, report = start_from(source, model, variables, new=() if keep_head else ("head/",))
    if keep_head and any(path.startswith("head/") for path in report.new):
        raise UserError(
            f"keep_head: the head in {source} does not have the {model.num_classes} classes of the data: omit "
            "--keep_head"
        )
    return variables


def fingerprint(variables: dict) -> str:
    """A hash of all values, to check that results come from the same weights."""
    weights = hashlib.sha256()
    for leaf in jax.tree.leaves(variables):
        weights.update(np.ascontiguousarray(leaf))
    return weights.hexdigest()


def require_source(flag: str, source: str | None) -> None:
    """Checks that a source of weights exists; anything that could be a Hugging Face id passes without a request.

    Args:
      flag: the command-line flag, for the error message.

    Raises:
      UserError: it does not exist.
    """
    if source is not None and not Path(source).expanduser().exists() and not convert.hub.is_id(source):
        raise UserError(f"{flag}: there are no weights at {source}: give a run, a file or a Hugging Face id")
