"""Published weights into our models, in one line."""

import dataclasses
import difflib
import pkgutil
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

import flax.linen as nn
import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from vidjax.convert import checkpoint, files, hub, preprocessing, rules
from vidjax.convert.checkpoint import COMPUTING, save_pretrained
from vidjax.convert.files import Weights
from vidjax.convert.rules import Inflation, Layout, Report
from vidjax.errors import UserError
from vidjax.models import create_model, example_inputs, override, towers
from vidjax.models.video_text import VideoText

__all__ = ["Report", "from_state_dict", "load_pretrained", "load_weights", "save_pretrained"]

# Every file here that has `LAYOUTS` holds the rules of a family; no list names them.
FILES = tuple(import_module(f"{__name__}.{file.name}") for file in pkgutil.iter_modules(__path__))
FAMILIES = tuple(file for file in FILES if hasattr(file, "LAYOUTS"))

# By the type of the model; of a pair of towers by that of its video tower too.
LAYOUTS = {module: layouts for family in FAMILIES for module, layouts in family.LAYOUTS.items()}
CONFIGS = {kind: make for family in FAMILIES for kind, make in getattr(family, "CONFIGS", {}).items()}


def from_state_dict(
    model: nn.Module,
    state_dict: Weights,
    *,
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
      strict: nothing may be newly initialised or unused.
      fresh: beginnings of parameter paths that are newly initialised whatever the weights hold, such as `["head"]`.
      inflation: how kernels of images become kernels of clips.
      key: initialises what the weights may lack, such as a head; `jax.random.key(0)` where not given.

    Raises:
      UserError: the names are of no known layout, or do not fit the model.
    """
    layout, prepared = recognize(model, state_dict)
    variables, report = _fill(model, layout, prepared, strict, inflation, key, fresh=fresh)
    classes = layout.classes(prepared)
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
    fresh: Sequence[str] = (),
    inflation: Inflation = "average",
) -> tuple[dict, Report]:
    """The published weights at `path` in the place of the model's parameters, where they are and as they are sharded.

    Args:
      path: a file or a directory, as `vidjax.load_pretrained` takes them.
      weights: what was read from there, where that was done already.
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
        layout, prepared = recognize(model, files.read(path, notes.append) if weights is None else weights)
        native = _native(model, described)
        filled, report = rules.apply(layout, prepared, params, fresh=fresh, inflation=inflation, native=native)
        return filled, dataclasses.replace(report, notes=tuple(notes))
    except ValueError as error:
        raise UserError(f"{path}: {error}") from error


def load_pretrained(
    source: str | Path,
    name: str | None = None,
    *,
    strict: bool = False,
    inflation: Inflation = "average",
    key: jax.Array | None = None,
    verbose: bool = True,
    **overrides,
) -> tuple[nn.Module, dict]:
    """What `vidjax.load_pretrained` (see there) is for everything but the work directories of runs."""
    path = hub.fetch(source)
    described, card, notes = None, {}, []
    if checkpoint.is_one(path):
        described, weights = checkpoint.read(path)
        card = dataclasses.asdict(described.card)
    else:
        weights = files.read(path, notes.append)
        if config := hub.read_config(path):
            card = hub.read_card(config, path)
            notes += preprocessing.read(config, path).notes
            # Under a name, another family's weights may be where this one starts.
            known = name is None or config["model_type"] in CONFIGS
            described = hub.build(config, CONFIGS, source) if known else None
    return assemble(
        source,
        weights,
        described,
        card,
        name=name,
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
        layout, prepared = recognize(model, weights)
        if layout.name == checkpoint.OURS and described is not None and type(described) is not type(model):
            raise UserError(
                f"this is a checkpoint of {type(described).__name__}, not of {type(model).__name__}: "
                "leave the name out, or give another checkpoint"
            )
        if name and described is not None:
            model = _reconcile(name, model, described, overrides)
        classes = layout.classes(prepared)
        if "num_classes" not in overrides and classes is not None and hasattr(model, "num_classes"):
            model = model.clone(num_classes=classes)
        if hasattr(model, "card"):  # a text tower has none
            card = dataclasses.replace(model.card, **{**layout.card, **card})
            if len(card.class_names) != getattr(model, "num_classes", None):
                card = dataclasses.replace(card, class_names=())  # those of another head
            model = model.clone(card=card)
        variables, report = _fill(model, layout, prepared, strict, inflation, key, described=described)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from error
    said = [f"the card's {field} is that of {layout.name}" for field in layout.card]
    report = dataclasses.replace(report, notes=(*notes, *said))
    if verbose:
        print(f"{source} ({layout.name}) in {name or type(model).__name__}: {report}")
    return model, variables


def layouts(model: nn.Module) -> tuple[Layout, ...]:
    """The layouts that weights of this model are published in, in the order in which they are tried."""
    kind = (type(model), type(model.video)) if isinstance(model, VideoText) else type(model)
    known = LAYOUTS.get(kind, ())
    return known(model) if callable(known) else known


# What training adds to names: compiling, sharding and recomputing a module at any level of them; and modules around the
# model, of which Lightning's has no name of its own.
LEVELS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
AROUND = ("module.", "model.", "net.", "network.")


def unwrapped(weights: Weights) -> Iterator[Weights]:
    """The weights as they are but for `LEVELS`, then with one of `AROUND` less before their names, as often as it goes.

    Entries that have nothing before their names, such as those of a loss, stay.
    """
    try:
        weights = rules.rename(weights, lambda name: ".".join(part for part in name.split(".") if part not in LEVELS))
        yield weights
        while around := next((one for one in AROUND if any(name.startswith(one) for name in weights)), None):
            weights = rules.strip(weights, around)
            yield weights
    except ValueError:  # two entries would have one name
        return


def recognize(model: nn.Module, weights: Weights) -> tuple[Layout, Weights]:
    """The layout that the weights are in, and they as its rules name them.

    Raises:
      UserError: the layout is none that the model's family is published in, or the model is computed otherwise than
        the weights' own, which they do not tell.
    """
    known = [*layouts(model), checkpoint.layout(weights, layouts(model))]
    for named in unwrapped(weights):
        for layout in known:
            prepared = layout.prepare(named)
            if layout.sign in prepared:
                layout.check(model)
                return layout, prepared
    signs = [f"{layout.sign} ({layout.name})" for layout in known]
    seen = difflib.get_close_matches(known[0].sign, weights, n=3, cutoff=0.0)
    raise UserError(
        f"these are no weights of {type(model).__name__}: it would be known by {' or '.join(signs)}, the nearest of "
        f"{len(weights)} names are {', '.join(seen) or 'none'}; their layout is unknown, the nearest known one is "
        f"{_nearest(known, weights)}: choose the model that they are of"
    )


def _nearest(known: Sequence[Layout], weights: Weights) -> str:
    """The layout that these names are most like, and how far they are from it."""
    for layout in known:
        if around := [name.removesuffix(layout.sign) for name in weights if name.endswith(f".{layout.sign}")]:
            return f"{layout.name}, without {' or '.join(around)} before its names"
    counts = {layout.name: sum(map(layout.knows, layout.prepare(weights))) for layout in known}
    signs = {layout.sign: layout.name for layout in known}
    likest = max(
        signs, key=lambda sign: max((difflib.SequenceMatcher(None, sign, name).ratio() for name in weights), default=0)
    )
    best = max(counts, key=lambda name: (counts[name], name == signs[likest]))
    return f"{best}, which knows {counts[best]} of them"


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
