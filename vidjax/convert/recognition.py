"""Which layout weights are in: the tables of all families, and how one is chosen from it."""

import difflib
import pkgutil
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

import flax.linen as nn

from vidjax import models
from vidjax.convert import checkpoint, rules
from vidjax.convert.files import Weights
from vidjax.convert.rules import Layout
from vidjax.errors import UserError
from vidjax.models.video_text import VideoText

# The rules of a family are in the file here that has the name of the family's own.
NAMES = {file.name for file in pkgutil.iter_modules(models.__path__)}
FILES = (file.name for file in pkgutil.iter_modules([str(Path(__file__).parent)]))
FAMILIES = tuple(import_module(f"vidjax.convert.{name}") for name in FILES if name in NAMES)

# By the type of the model; of a pair of towers by that of its video tower too.
LAYOUTS = {module: layouts for family in FAMILIES for module, layouts in family.LAYOUTS.items()}
CONFIGS = {kind: make for family in FAMILIES for kind, make in getattr(family, "CONFIGS", {}).items()}
# What makes a Hugging Face configuration of a model, by the same types.
TO_CONFIGS = {module: make for family in FAMILIES for module, make in getattr(family, "TO_CONFIGS", {}).items()}


def kind_of(model: nn.Module) -> type | tuple[type, type]:
    """What the tables name a model by."""
    return (type(model), type(model.video)) if isinstance(model, VideoText) else type(model)


def layouts(model: nn.Module) -> tuple[Layout, ...]:
    """The layouts that weights of this model are published in."""
    known = LAYOUTS.get(kind_of(model), ())
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


def named(model: nn.Module, key: str) -> list[Layout]:
    """The model's layouts that `layout=` calls so.

    Raises:
      UserError: there are none; the message names those that there are.
    """
    chosen = [layout for layout in layouts(model) if layout.key == key]
    if not chosen:
        keys = dict.fromkeys([layout.key for layout in layouts(model)] + [checkpoint.KEY])
        raise UserError(f"layout is '{key}': {type(model).__name__} has {', '.join(keys)}")
    return chosen


def recognize(model: nn.Module, weights: Weights, key: str | None = None) -> tuple[Layout, Weights]:
    """The layout that the weights are in, and they as its rules name them.

    Args:
      key: the layout by its name for `layout=`; otherwise it is known by the names of the entries.

    Raises:
      UserError: the layout is none that the model's family is published in, or not the one named; two layouts fit; or
        the model is computed otherwise than the weights' own, which they do not say.
    """
    ours = checkpoint.layout(weights, layouts(model))
    known = layouts(model) if key is None else [ours] if key == checkpoint.KEY else named(model, key)
    for entries in unwrapped(weights):
        prepared = [(layout, layout.prepare(entries)) for layout in known]
        fitting = [(layout, names) for layout, names in prepared if layout.sign in names]
        if key is None or len(fitting) > 1:
            fitting = [(layout, names) for layout, names in fitting if not layout.other(entries, names)]
        if len(fitting) > 1:
            both = " and ".join(f"{layout.name} (layout='{layout.key}')" for layout, _ in fitting)
            raise UserError(f"the weights fit {both}: choose one by layout=")
        if fitting:
            fitting[0][0].check(model)
            return fitting[0]
    if key is None and ours.sign in weights:
        return ours, weights
    known = [*known, ours] if key is None else known
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
