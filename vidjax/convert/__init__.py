"""Loads published weights into vidjax models, and exports them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from vidjax.convert import checkpoint, conversion, files, hub, preprocessing, published, rules
from vidjax.convert.checkpoint import COMPUTING, save_pretrained
from vidjax.convert.conversion import Report
from vidjax.convert.export import export_pretrained
from vidjax.convert.files import Weights
from vidjax.convert.peft import export_adapter, load_adapter
from vidjax.convert.published import list_pretrained
from vidjax.convert.recognition import CONFIGS, layouts, recognize
from vidjax.convert.rules import Inflation, Layout
from vidjax.errors import UserError
from vidjax.models import create_model, example_inputs, override, towers, variable_shapes, with_classes

__all__ = [
    "CONFIGS",
    "Report",
    "export_adapter",
    "export_pretrained",
    "from_state_dict",
    "layouts",
    "list_pretrained",
    "load_adapter",
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
    new: Sequence[str] = (),
    inflation: Inflation = "average",
    key: jax.Array | None = None,
) -> dict:
    """Converts a dictionary of published names and arrays to the model's variables.

    No report is printed. Parts that the layout allows to be missing, such as a head, are newly initialised, and
    entries of no known layout are ignored, unless `strict` is set. A head with another number of classes is an error
    unless a new one is requested with `new`.

    Args:
      state_dict: `{published name: numpy array}` in any layout known for the model's family.
      layout: name of the layout (`transformers`, `original`, ...); if None, it is recognised by the entries' names.
      strict: raise an error if any parameter would be newly initialised or any entry unused.
      new: prefixes of parameter paths to initialise even if the weights contain them, such as `["head"]`.
      inflation: how image kernels become clip kernels.
      key: PRNG key for new parameters, such as those of a head; `jax.random.key(0)` by default.

    Raises:
      UserError: the layout is unknown, or the weights do not fit the model.
    """
    chosen, prepared = recognize(model, state_dict, layout)
    variables, report = _fill(model, chosen, prepared, strict, inflation, key, new=new)
    classes = chosen.classes(prepared)
    if classes is not None and "head/kernel" in report.new and not rules.begins("head/kernel", new):
        raise UserError(
            f"the head has {classes} classes in the weights and {model.num_classes} in the model: set num_classes, or "
            'pass new=["head"] for a new head'
        )
    return variables


def load_weights(
    path: str | Path,
    model: nn.Module,
    params: dict,
    *,
    weights: Weights | None = None,
    layout: str | None = None,
    new: Sequence[str] = (),
    inflation: Inflation = "average",
) -> tuple[dict, Report]:
    """Loads published weights into existing parameters, keeping their dtypes and sharding.

    Args:
      path: a file or a directory, as for `vidjax.load_pretrained`.
      params: the model's parameters, or all its variables; arrays, or only their shapes (`jax.eval_shape`).
      weights: the entries, if they have been read from `path` already.
      layout: see `from_state_dict`.
      new: prefixes of parameter paths that keep their values; `["head"]` keeps a new head even if the weights have one
        with as many classes.
      inflation: how image kernels become clip kernels.

    Returns:
      the parameters, and a report of what was loaded.

    Example:
      >>> params, report = load_weights("checkpoint.pth", model, params, new=["head"])
      >>> print(report)
    """
    config = hub.read_config(Path(path).expanduser()) if weights is None else None
    described = hub.build(config, CONFIGS, path) if config and config["model_type"] in CONFIGS else None
    notes = []
    try:
        chosen, prepared = recognize(model, files.read(path, notes.append) if weights is None else weights, layout)
        native = _native(model, described)
        filled, report = conversion.apply(chosen, prepared, params, new=new, inflation=inflation, native=native)
        return filled, dataclasses.replace(report, notes=tuple(notes))
    except UserError as error:
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
    """`vidjax.load_pretrained` for all sources except work directories of runs."""
    row = None if Path(source).expanduser().exists() else published.ROWS.get(str(source))
    path = hub.fetch(source)
    described, card, notes = None, {}, []
    if row is not None:
        layout = layout or row.layout
        overrides = {**row.fields, **overrides}
        name = name if name or row.is_hub else row.model  # a Hugging Face directory has a configuration
    if checkpoint.is_one(path):
        described, weights = checkpoint.read(path)
        card = dataclasses.asdict(described.card) if hasattr(described, "card") else {}
    else:
        weights = files.read(path, notes.append)
        if config := hub.read_config(path):
            card = hub.read_card(config, path)
            notes += preprocessing.read(config, path).notes
            # A named model may be initialised from weights of another family, whose configuration is not needed.
            known = name is None or config["model_type"] in CONFIGS
            described = hub.build(config, CONFIGS, source) if known else None
    if row is not None:
        card |= row.card
        if row.class_list and not card.get("class_names"):
            notes.append(f"class names: {row.class_list}")
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
    """Builds the model of `load_pretrained` and fills its variables with weights that have been read.

    Args:
      described: the model that the source's configuration describes.
      card: fields of the model's `Card` from the source.
      notes: further remarks for the report, see `Report`.
    """
    if name is None and described is None:
        raise UserError(f"{source} does not describe its model: give name=, one of vidjax.list_models()")
    if name is None:
        model = override(type(described).__name__, described, overrides)
    else:
        model = create_model(name, **overrides)
    try:
        chosen, prepared = recognize(model, weights, layout)
        if chosen.name == checkpoint.OURS and described is not None and type(described) is not type(model):
            raise UserError(
                f"this is a checkpoint of {type(described).__name__}, not of {type(model).__name__}: "
                "omit the name, or use another checkpoint"
            )
        if name and described is not None:
            model = _reconcile(name, model, described, overrides)
        classes = chosen.classes(prepared)
        if "num_classes" not in overrides and classes is not None and hasattr(model, "num_classes"):
            model = with_classes(model, classes)
        if hasattr(model, "card"):  # a text tower has none
            card = dataclasses.replace(model.card, **{**chosen.card, **card})
            if len(card.class_names) != getattr(model, "num_classes", None):
                # The names are those of another head.
                card = dataclasses.replace(card, class_names=(), heads=(), stills=())
            model = model.clone(card=card)
        variables, report = _fill(model, chosen, prepared, strict, inflation, key, described=described)
    except UserError as error:
        raise UserError(f"{source}: {error}") from error
    card_notes = [f"the card's {field} is that of {chosen.name}" for field in chosen.card]
    report = dataclasses.replace(report, notes=(*notes, *card_notes))
    if verbose:
        print(f"{source} ({chosen.name}) in {name or type(model).__name__}: {report}")
    return model, variables


# Fields that may differ between the named model and that of the weights: clip size, classes, and training-only fields.
FREE = ("num_classes", "num_frames", "image_size", "dropout", "drop_path")
NOT_COPIED = ("parent", "name", "card", *COMPUTING)  # `assemble` combines the cards of both


def _reconcile(name: str, model: nn.Module, described: nn.Module, overrides: dict) -> nn.Module:
    """The named model with the fields that the weights' configuration describes, except those in `overrides`.

    Raises:
      UserError: the two contradict each other, so that the outputs would not be those of the weights.
    """
    common = [f.name for f in dataclasses.fields(model) if f.name in described.__dataclass_fields__]
    fields = {field: getattr(described, field) for field in common if field not in (*NOT_COPIED, *overrides)}
    for field, tower in towers(model).items():
        described_tower = fields.pop(field, None)
        if type(described_tower) is type(tower):  # otherwise a tower is initialised from one of another kind
            fields[field] = _reconcile(f"{name}'s {field}", tower, described_tower, overrides)
    for field, value in fields.items():
        if field not in (*FREE, *towers(model)) and value != getattr(model, field):
            raise UserError(
                f"{name} has {field} {getattr(model, field)!r}, the weights are of a model with {value!r}: omit the "
                f"name, or give {field} as well"
            )
    return model.clone(**fields)


def _native(model: nn.Module, described: nn.Module | None) -> dict[str, tuple[int, ...]]:
    """Shapes by path in the model that the weights come from, if it is known and of the same type."""
    if type(described) is not type(model):
        return {}
    shapes = flatten_dict(variable_shapes(described), sep="/")
    return {path.removeprefix("params/"): leaf.shape for path, leaf in shapes.items()}


def _fill(
    model: nn.Module,
    layout: Layout,
    weights: Weights,
    strict: bool,
    inflation: Inflation,
    key: jax.Array | None,
    *,
    new: Sequence[str] = (),
    described: nn.Module | None = None,
) -> tuple[dict, Report]:
    """The model's variables, of which only those missing from the weights are initialised, and a report."""

    def init(key):
        return model.init(key, *(jax.numpy.zeros(x.shape, x.dtype) for x in example_inputs(model)))

    native = {} if layout.name == checkpoint.OURS else _native(model, described)  # our own tables already are grids
    variables, report = conversion.apply(
        layout, weights, variable_shapes(model), strict=strict, new=new, inflation=inflation, native=native
    )
    flat = flatten_dict(variables)
    missing = [path for path, leaf in flat.items() if isinstance(leaf, jax.ShapeDtypeStruct)]
    if missing:
        key = jax.random.key(0) if key is None else key
        initial = jax.jit(lambda key: {path: leaf for path, leaf in flatten_dict(init(key)).items() if path in missing})
        flat |= initial(key)
    return unflatten_dict(flat), report
