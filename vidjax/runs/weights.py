"""Loading trained weights of a run or a published checkpoint, as a model or as the initial weights of a run."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict

from vidjax import convert
from vidjax.convert import files
from vidjax.convert.checkpoint import NAME, read_model
from vidjax.convert.conversion import Report
from vidjax.convert.rules import Inflation
from vidjax.data.labels import find_classes
from vidjax.errors import UserError
from vidjax.layers.card import Card
from vidjax.layers.stills import sum_over_time
from vidjax.models import variable_shapes, with_classes
from vidjax.models.aligned import Aligned, VideoTokens
from vidjax.models.vatt_pretraining import Vatt
from vidjax.models.video_text import Projected, VideoText
from vidjax.runs.adapting import WHOLE, AdaptConfig, base_of, read_adaptation, require_loaded, with_base
from vidjax.runs.workdir import is_run, read_config
from vidjax.training.sharding import is_main_process

Which = Literal["best", "last"]
Tower = Literal["video", "text"]


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
    card = asdict(described.card) if hasattr(described, "card") else {}  # a language model has none
    return convert.assemble(origin, weights, described, card, name=name, **settings)


def read_weights(workdir: str | Path, which: Which = "best") -> tuple[dict, int]:
    """A run's variables by path, and their step; see `training.checkpoint.load_variables`.

    Those of a run that has trained few parameters are merged with its base, which is loaded, and those of a run with
    frozen parts with these, in float32.
    """
    from vidjax.training.checkpoint import has_checkpoint, load_frozen, load_variables  # models do not depend on Orbax

    workdir = Path(workdir)
    weights, step = load_variables(workdir, which if has_checkpoint(workdir, which) else "last")
    config = read_config(workdir) if is_run(workdir) else {}
    adapt = read_adaptation(config)
    if adapt is not None:
        model = read_model(workdir)
        keep_head = config.get("keep_head", False)
        base = start_classifier(base_of(workdir), model, variable_shapes(model), keep_head, adapt)
        weights = with_base(workdir, adapt, weights, base["params"])
    frozen = flatten_dict(load_frozen(workdir), sep="/")
    return weights | {f"params/{path}": np.asarray(leaf, np.float32) for path, leaf in frozen.items()}, step


def export_adapter(workdir: str | Path, out: str | Path, which: Which = "best") -> Path:
    """Writes the few parameters of a run that has trained LoRA or DoRA for peft; returns the path of its weights.

    Raises:
      UserError: it has trained something else; or see `convert.peft.export_adapter`.
    """
    from vidjax.training.checkpoint import has_checkpoint, load_variables  # models do not depend on Orbax

    workdir = Path(workdir)
    adapt = read_adaptation(read_config(workdir))
    if adapt is None or adapt.method not in ("lora", "dora"):
        raise UserError(
            f"{workdir} has trained neither LoRA nor DoRA, which peft's files are of: choose another layout"
        )
    weights, _ = load_variables(workdir, which if has_checkpoint(workdir, which) else "last")
    few = {path.removeprefix("params/"): value for path, value in weights.items() if path.startswith("params/")}
    settings = {"rank": adapt.rank, "alpha": adapt.full_alpha, "stabilized": adapt.rank_stabilized}
    return convert.export_adapter(out, read_model(workdir), few, **settings, base=base_of(workdir))


def class_names(source: str | Path) -> tuple[str, ...]:
    """The class names of a run or a published checkpoint; empty if it has none."""
    path = Path(source).expanduser()
    if (path / NAME).is_file():
        return getattr(read_model(path), "card", Card()).class_names
    config = convert.hub.read_config(path) if path.exists() else None
    return tuple(convert.hub.read_card(config, path).get("class_names", ())) if config else ()


def tower(model: nn.Module, name: Tower) -> tuple[nn.Module, str]:
    """One of the two towers as a model, and the part of variable paths that marks it, such as `/video/tower/`."""
    module = getattr(model, name)
    wraps = isinstance(module, Projected | VideoTokens)
    return (module.tower, f"/{name}/tower/") if wraps else (module, f"/{name}/")


def subtree(flat: dict, inner: str) -> dict:
    """The variables of a tower, with `inner` removed from their paths: `params/video/tower/head` as `params/head`."""
    parts = {path: path.partition(inner) for path in flat}
    return {f"{kind}/{rest}": flat[path] for path, (kind, match, rest) in parts.items() if match and "/" not in kind}


def read_pair(source: str | Path) -> VideoText | Aligned | Vatt | None:
    """The model of a run, or of a checkpoint in our own format, if it has towers of video and text."""
    path = Path(source).expanduser()
    model = read_model(path) if (path / NAME).is_file() else None
    return model if isinstance(model, VideoText | Aligned | Vatt) else None


def start_from(
    source: str | Path,
    model: nn.Module,
    variables: dict,
    *,
    new: Sequence[str] = (),
    label: str = "weights",
    name: Tower = "video",
) -> tuple[dict, Report]:
    """Replaces variables by those of a run (its best checkpoint) or of a published checkpoint, and prints a report.

    Args:
      source: see `load_pretrained`. Of a video-text model (a contrastive run), one tower is taken, unless the model is
        one too.
      variables: variables of the model, or only its parameters.
      new: prefixes of the paths of parameters that stay newly initialised.
      label: first word of the printed report.
      name: the tower to take.

    Returns:
      The variables and the report.

    Raises:
      UserError: the source does not exist, has no checkpoint yet, or does not fit the model.
    """
    weights = None
    if is_run(source):
        weights, step = read_weights(source)
        path = f"{source}, step {step}"
    else:
        path = convert.hub.fetch(source)
    if not isinstance(model, VideoText | Aligned | Vatt) and (pair := read_pair(source)):
        weights = subtree(files.read(Path(source).expanduser()) if weights is None else weights, tower(pair, name)[1])
        path = f"the {name} tower of {source}"
    variables, report = convert.load_weights(path, model, variables, weights=weights, new=new)
    if is_main_process():
        print(f"{label:<9} from {source}: {report}")
    return variables, report


def keep_classes(
    model: nn.Module, variables: dict, names: Sequence[str], owner: str = "the model"
) -> tuple[nn.Module, dict]:
    """Reduces the head of a classifier to some of its classes, in the given order.

    The logits of these classes do not change. This turns a model of a merged data set, such as Kinetics-710, into one
    of any of its parts.

    Args:
      model: a classifier whose card has the class names.
      variables: its variables, of which only those of the head change.
      names: the classes to keep. They match regardless of case, quotes, and spaces or underscores.
      owner: what the model is called in error messages.

    Returns:
      The model with these classes, named as in `names`, and its variables.

    Raises:
      UserError: the model has no class names, or no head of its own, or lacks some of the classes.
    """
    known = model.card.class_names
    if not known:
        raise UserError("the model has no class names to choose from: give them on its card (class_names)")
    if "head" not in variables["params"]:
        raise UserError(
            f"a {type(model).__name__} has no head of its own: reduce those of its parts before they are joined"
        )
    rows = np.array(_require_classes(names, known, owner))
    smaller = replace(model.card, class_names=tuple(names), heads=(), stills=())
    head = jax.tree.map(lambda leaf: leaf[..., rows], variables["params"]["head"])  # a kernel and a bias
    params = variables["params"] | {"head": head}
    return with_classes(model, len(rows)).clone(card=smaller), variables | {"params": params}


def choose_head(model: nn.Module, variables: dict, head: str | None, owner: str) -> tuple[nn.Module, dict]:
    """The classifier of one data set, of a model that was trained on several; any other model as it is.

    That of images has the kernels summed over time with which it was trained, so that it sees each frame by itself: of
    an image in all frames of a clip it says what it says of the image.

    Args:
      head: the name of the data set; None for a model without heads.
      owner: what the model is called in error messages.

    Raises:
      UserError: the model has no such head, or has several and none is chosen.
    """
    heads = model.card.heads
    if head is None and not heads:
        return model, variables
    if head not in heads:
        has = f"the heads {', '.join(heads)}: give --head with one of them" if heads else "one head: omit --head"
        raise UserError(f"{owner} has {has}")
    if head in model.card.stills:
        variables = variables | {"params": sum_over_time(variables["params"])}
    names = [name for name in model.card.class_names if name.startswith(f"{head}: ")]
    model, variables = keep_classes(model, variables, names, owner)
    card = replace(model.card, class_names=tuple(name.removeprefix(f"{head}: ") for name in names))
    return model.clone(card=card), variables


def _require_classes(names: Sequence[str], known: Sequence[str], owner: str, advice: str = "") -> list[int]:
    """The positions of the classes among those that are known; raises UserError if some are not."""
    positions = find_classes(names, known)
    if lacking := [name for name, position in zip(names, positions, strict=True) if position is None]:
        raise UserError(
            f"{owner} lacks {len(lacking)} of the {len(names)} classes, {', '.join(map(repr, lacking[:5]))}"
            f"{', ...' if len(lacking) > 5 else ''}: name them as among its {len(known)} ({', '.join(known[:3])}"
            f"{', ...' if len(known) > 3 else ''}){advice}"
        )
    return [position for position in positions if position is not None]


def start_classifier(
    source: str | Path, model: nn.Module, variables: dict, keep_head: bool, adapt: AdaptConfig = WHOLE
) -> dict:
    """`start_from` for a classifier, whose head stays newly initialised by default.

    Args:
      model: its card has the class names.
      variables: all variables of the model.
      keep_head: load the head too. The source may have further classes, which are left out (see `keep_classes`).
      adapt: which few parameters are trained.

    Raises:
      UserError: as in `start_from`; or the head should be kept but lacks classes of the model; or a parameter is
        neither in the source nor trained.
    """
    names, wanted = class_names(source) if keep_head else (), model.card.class_names
    fewer = bool(names) and names != wanted
    loaded, initial = model, variables
    if fewer:
        _require_classes(wanted, names, f"keep_head: the head in {source}", ", or omit --keep_head")
        loaded = with_classes(model, len(names)).clone(card=replace(model.card, class_names=names))
        head = jax.tree.map(partial(_with_classes, count=len(names)), variables["params"]["head"])
        initial = variables | {"params": variables["params"] | {"head": head}}
    added = adapt.added(variables["params"])
    started, report = start_from(source, loaded, initial, new=(*added, *(() if keep_head else ("head/",))))
    if adapt.used:
        require_loaded(adapt, variables["params"], report.new, source)
    if keep_head and any(path.startswith("head/") for path in report.new):
        raise UserError(
            f"keep_head: the head in {source} does not have the {loaded.num_classes} classes of the data: omit "
            "--keep_head"
        )
    if fewer:
        _, started = keep_classes(loaded, started, wanted)
        placed = jax.tree.map(_placed_like, started["params"]["head"], variables["params"]["head"])
        started = started | {"params": started["params"] | {"head": placed}}
        if is_main_process():
            print(f"{'head':<9} {len(wanted)} of its {len(names)} classes are kept, by name")
    return started


def _with_classes(leaf: jax.Array, count: int) -> jax.ShapeDtypeStruct:
    """The shape of a head's parameter for another number of classes."""
    return jax.ShapeDtypeStruct((*leaf.shape[:-1], count), leaf.dtype)


def _placed_like(value: jax.Array, leaf: jax.Array) -> jax.Array:
    return jax.device_put(np.asarray(value), leaf.sharding)


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
        hint = convert.hub.nearest_names(source)
        raise UserError(f"{flag}: there are no weights at {source}{hint}: give a run, a file or a Hugging Face id")
