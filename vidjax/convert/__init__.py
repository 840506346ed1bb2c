"""Published weights into our models, in one line."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from vidjax.convert import checkpoint, files, hub, preprocessing, published, rules
from vidjax.convert.checkpoint import COMPUTING, save_pretrained
from vidjax.convert.export import export_pretrained
from vidjax.convert.files import Weights
from vidjax.convert.published import list_pretrained
from vidjax.convert.recognition import CONFIGS, layouts, recognize
from vidjax.convert.rules import Inflation, Layout, Report
from vidjax.errors import UserError
from vidjax.models import create_model, example_inputs, override, towers

__all__ = [
    "CONFIGS",
    "Report",
    "export_pretrained",
    "from_state_dict",
    "layouts",
    "list_pretrained",
    "load_pretrained",
    "load_weights",
    "recognize",
    "save_pretrained",
]


def from_state_dict(
    model: nn.Module,
    state_dict: Weights,
    *,
    layout: str | None = None,
    strict: bool = False,
    fresh: Sequence[str] = (),
    inflation: Inflation = "average",
    key: jax.Array | None = None,
) -> dict:
    """The model's variables from published names and arrays.

    There is no report: what the layout lets the weights lack, as a whole (a head, say), is newly initialised, and names
    that no layout knows are left out, both without a word unless `strict` refuses them. A head of other classes is
    refused unless a new one is asked for.

    Args:
      state_dict: `{published name: numpy array}` in any layout known for the model's family.
      layout: the layout by its name (`transformers`, `original`, ...), where the entries' names are not to decide.
      strict: nothing may be newly initialised or unused.
      fresh: beginnings of parameter paths that are newly initialised whatever the weights hold, such as `["head"]`.
      inflation: how kernels of images become kernels of clips.
      key: initialises what the weights may lack, such as a head; `jax.random.key(0)` where not given.

    Raises:
      UserError: the names are of no known layout, or do not fit the model.
    """
    chosen, prepared = recognize(model, state_dict, layout)
    variables, report = _fill(model, chosen, prepared, strict, inflation, key, fresh=fresh)
    classes = chosen.classes(prepared)
    if classes is not None and "head/kernel" in report.fresh and not rules.begins("head/kernel", fresh):
        raise UserError(
            f"the head has {classes} classes in the weights and {model.num_classes} in the model: set num_classes, or "
            'give fresh=["head"] for a new head'
        )
    return variables


def load_weights(
    path: str | Path,
    model: nn.Module,
    params: dict,
    *,
    weights: Weights | None = None,
    layout: str | None = None,
    fresh: Sequence[str] = (),
    inflation: Inflation = "average",
) -> tuple[dict, Report]:
    """The published weights at `path` in the place of the model's parameters, where they are and as they are sharded.

    Args:
      path: a file or a directory, as `vidjax.load_pretrained` takes them.
      weights: what was read from there, where that was done already.
      layout: see `from_state_dict`.
      params: the model's parameters, or all its variables; arrays, or their shapes alone (`jax.eval_shape`).
      fresh: beginnings of parameter paths that stay as they are: `["head"]` gives other classes of the same number a
        new head.
      inflation: how kernels of images become kernels of clips.

    Example:
      >>> params, report = load_weights("checkpoint.pth", model, params, fresh=["head"])
      >>> print(report)
    """
    config = hub.read_config(Path(path).expanduser()) if weights is None else None
    described = hub.build(config, CONFIGS, path) if config and config["model_type"] in CONFIGS else None
    notes = []
    try:
        chosen, prepared = recognize(model, files.read(path, notes.append) if weights is None else weights, layout)
        native = _native(model, described)
        filled, report = rules.apply(chosen, prepared, params, fresh=fresh, inflation=inflation, native=native)
        return filled, dataclasses.replace(report, notes=tuple(notes))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def load_pretrained(
    source: str | Path,
    name: str | None = None,
    *,
    layout: str | None = None,
    strict: bool = False,
    inflation: Inflation = "average",
    key: jax.Array | None = None,
    verbose: bool = True,
    **overrides,
) -> tuple[nn.Module, dict]:
    """What `vidjax.load_pretrained` (see there) is for everything but the work directories of runs."""
    row = None if Path(source).expanduser().exists() else published.ROWS.get(str(source))
    path = hub.fetch(source)
    described, card, notes = None, {}, []
    if row is not None:
        layout = layout or row.layout
        overrides = {**row.fields, **overrides}
        name = name if name or row.is_hub else row.model  # a directory says itself what it is
    if checkpoint.is_one(path):
        described, weights = checkpoint.read(path)
        card = dataclasses.asdict(described.card) if hasattr(described, "card") else {}
    else:
        weights = files.read(path, notes.append)
        if config := hub.read_config(path):
            card = hub.read_card(config, path)
            notes += preprocessing.read(config, path).notes
            # Under a name, another family's weights may be where this one starts.
            known = name is None or config["model_type"] in CONFIGS
            described = hub.build(config, CONFIGS, source) if known else None
    if row is not None:
        card |= {"accuracy": row.accuracy} | ({"stride": row.stride} if row.stride else {})
    return assemble(
        source,
        weights,
        described,
        card,
        name=name,
        layout=layout,
        strict=strict,
        inflation=inflation,
        key=key,
        verbose=verbose,
        notes=notes,
        **overrides,
    )


def assemble(
    source: str | Path,
    weights: Weights,
    described: nn.Module | None,
    card: dict,
    *,
    name: str | None,
    layout: str | None,
    strict: bool,
    inflation: Inflation,
    key: jax.Array | None,
    verbose: bool,
    notes: Sequence[str] = (),
    **overrides,
) -> tuple[nn.Module, dict]:
    """What `load_pretrained` does once the weights are read.

    Args:
      described: the model that the source says it is.
      card: what the source says of input and classes besides.
      notes: what the report says besides, see `Report`.
    """
    if name is None and described is None:
        raise UserError(f"{source} does not say what model it is: give name=, one of vidjax.list_models()")
    if name is None:
        model = override(type(described).__name__, described, overrides)
    else:
        model = create_model(name, **overrides)
    try:
        chosen, prepared = recognize(model, weights, layout)
        if chosen.name == checkpoint.OURS and described is not None and type(described) is not type(model):
            raise UserError(
                f"this is a checkpoint of {type(described).__name__}, not of {type(model).__name__}: "
                "leave the name out, or give another checkpoint"
            )
        if name and described is not None:
            model = _reconcile(name, model, described, overrides)
        classes = chosen.classes(prepared)
        if "num_classes" not in overrides and classes is not None and hasattr(model, "num_classes"):
            model = model.clone(num_classes=classes)
        if hasattr(model, "card"):  # a text tower has none
            card = dataclasses.replace(model.card, **{**chosen.card, **card})
            if len(card.class_names) != getattr(model, "num_classes", None):
                card = dataclasses.replace(card, class_names=())  # those of another head
            model = model.clone(card=card)
        variables, report = _fill(model, chosen, prepared, strict, inflation, key, described=described)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from error
    said = [f"the card's {field} is that of {chosen.name}" for field in chosen.card]
    report = dataclasses.replace(report, notes=(*notes, *said))
    if verbose:
        print(f"{source} ({chosen.name}) in {name or type(model).__name__}: {report}")
    return model, variables


# Fields in which a model may differ from what its weights are of: clips, classes, and what is there in training alone.
FREE = ("num_classes", "num_frames", "image_size", "dropout", "drop_path")
OWN = ("parent", "name", "card", *COMPUTING)  # never taken over: the card is put together from both


def _reconcile(name: str, model: nn.Module, described: nn.Module, overrides: dict) -> nn.Module:
    """The model of this name with what its weights say of themselves, where the caller does not say it.

    Raises:
      UserError: they say something else than the name: the outputs would not be those of the weights.
    """
    both = [f.name for f in dataclasses.fields(model) if f.name in described.__dataclass_fields__]
    kept = {field: getattr(described, field) for field in both if field not in (*OWN, *overrides)}
    for field, tower in towers(model).items():
        theirs = kept.pop(field, None)
        if type(theirs) is type(tower):  # otherwise the weights of one kind of tower are where another starts
            kept[field] = _reconcile(f"{name}'s {field}", tower, theirs, overrides)
    for field, value in kept.items():
        if field not in (*FREE, *towers(model)) and value != getattr(model, field):
            raise UserError(
                f"{name} has {field} {getattr(model, field)!r}, the weights are of a model with {value!r}: leave the "
                f"name out, or give {field} as well"
            )
    return model.clone(**kept)


def _shapes(model: nn.Module) -> dict:
    """Shapes of the model's variables."""
    return jax.eval_shape(model.init, jax.random.key(0), *example_inputs(model))


def _native(model: nn.Module, described: nn.Module | None) -> dict[str, tuple[int, ...]]:
    """Shapes by path in the model that the weights are of, where that is known and of the same kind."""
    if type(described) is not type(model):
        return {}
    shapes = flatten_dict(_shapes(described), sep="/")
    return {path.removeprefix("params/"): leaf.shape for path, leaf in shapes.items()}


def _fill(
    model: nn.Module,
    layout: Layout,
    weights: Weights,
    strict: bool,
    inflation: Inflation,
    key: jax.Array | None,
    *,
    fresh: Sequence[str] = (),
    described: nn.Module | None = None,
) -> tuple[dict, Report]:
    """Variables and report; only what the weights lack is initialised."""

    def init(key):
        return model.init(key, *(jax.numpy.zeros(x.shape, x.dtype) for x in example_inputs(model)))

    native = {} if layout.name == checkpoint.OURS else _native(model, described)  # our own tables are grids
    variables, report = rules.apply(
        layout, weights, _shapes(model), strict=strict, fresh=fresh, inflation=inflation, native=native
    )
    flat = flatten_dict(variables)
    left = [path for path, leaf in flat.items() if isinstance(leaf, jax.ShapeDtypeStruct)]
    if left:
        key = jax.random.key(0) if key is None else key
        flat |= jax.jit(lambda key: {path: leaf for path, leaf in flatten_dict(init(key)).items() if path in left})(key)
    return unflatten_dict(flat), report
