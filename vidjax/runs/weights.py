"""Trained weights, of a run or published: a model with them, and what a new run starts from."""

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
    """A model with trained weights: `model.apply(variables, video)` is ready, and a report is printed.

    The classes are those of the weights unless `num_classes` says otherwise; then the head is new, as the report says.
    `model.card` tells how pixels are normalised, how frames are sampled and what the classes are called.

    Args:
      source: the name of a published checkpoint (`vidjax.list_pretrained`; a local path of that name comes first), a
        Hugging Face id (through huggingface_hub), a Hugging Face directory, a vidjax checkpoint, the work directory of
        a run, or a file of safetensors, PyTorch (`.pth`, `.pyth`, `.pt`, `.bin`, `.pth.tar`), NumPy (`.npz`) or Flax
        (`.msgpack`, Scenic's `checkpoint`) in a published layout.
      name: see `vidjax.list_models`; not needed where the source says what it is, whose fields it must not contradict.
      layout: the publisher's layout of the weights (`transformers`, `torchvision`, `original`, ...); by default it is
        recognised by the names of the entries.
      which: of a run, the checkpoint that validated best (the newest where there was no validation), or the newest.
      strict: nothing may be newly initialised or unused.
      inflation: how kernels of images become kernels of clips: `average` or `central`.
      key: initialises what the weights may lack; `jax.random.key(0)` where not given.
      verbose: print the report.
      **overrides: fields of the model, such as `num_classes=174` (None gives features); they come before what the name
        and the source say, but must fit the weights.

    Raises:
      UserError: the source does not say what it is and there is no name, the name's fields contradict it, or its
        weights are damaged or do not fit the model.
      UserError: there are no weights.
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
    """A run's variables by their paths, and the step they are of; see `training.checkpoint.load_variables`."""
    from vidjax.training.checkpoint import has_checkpoint, load_variables  # Orbax is no dependency of a model

    return load_variables(Path(workdir), which if has_checkpoint(Path(workdir), which) else "last")


def class_names(source: str | Path) -> tuple[str, ...]:
    """What the classes of a run's or a published checkpoint's head are called; empty where it does not say."""
    path = Path(source).expanduser()
    if (path / NAME).is_file():
        return read_model(path).card.class_names
    config = convert.hub.read_config(path) if path.exists() else None
    return tuple(convert.hub.read_card(config, path).get("class_names", ())) if config else ()


def start_from(
    source: str | Path, model: nn.Module, variables: dict, *, new: Sequence[str] = (), label: str = "weights"
) -> tuple[dict, Report]:
    """`variables` with those of a run (its best) or of a published checkpoint in their place, where there are any.

    Args:
      source: see `load_pretrained`.
      variables: of the model, or its parameters alone; arrays.
      new: beginnings of parameter paths that stay as they are.
      label: what the printed report calls them.

    Raises:
      UserError: the run has saved nothing yet, or the weights do not fit the model.
      UserError: there are no weights.
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
    """`variables` with those of a run or of a published checkpoint in their place, all but those of the head.

    Args:
      variables: of the model, whose card has the names of its classes.
      keep_head: of the head too.

    Raises:
      UserError: as `start_from`; or the head is of other classes, and was to be kept.
    """
    kept = class_names(source) if keep_head else ()
    if kept and kept != model.card.class_names:
        names = f"{', '.join(kept[:3])}, ..."
        raise UserError(f"keep_head: the head in {source} is of other classes ({names}): leave it out")
    variables, report = start_from(source, model, variables, new=() if keep_head else ("head/",))
    if keep_head and any(path.startswith("head/") for path in report.new):
        raise UserError(f"keep_head: the head in {source} is not of the {model.num_classes} classes here: leave it out")
    return variables


def fingerprint(variables: dict) -> str:
    """A hash of all values, by which work is known to be of the same weights."""
    weights = hashlib.sha256()
    for leaf in jax.tree.leaves(variables):
        weights.update(np.ascontiguousarray(leaf))
    return weights.hexdigest()


def require_source(flag: str, source: str | None) -> None:
    """Refuses a source of weights that does not exist; what may be an id of Hugging Face's is not asked for.

    Args:
      flag: of the command line, for the sentence.

    Raises:
      UserError: nothing is there.
    """
    if source is not None and not Path(source).expanduser().exists() and not convert.hub.is_id(source):
        raise UserError(f"{flag}: there are no weights at {source}, give a run, a file or an id of Hugging Face's")
