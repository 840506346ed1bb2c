"""Recognises the layout of weights, from the layouts of all families."""

import difflib
import pkgutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import flax.linen as nn

from vidjax import models
from vidjax.convert import checkpoint, rules
from vidjax.convert.files import Weights
from vidjax.convert.rules import Layout
from vidjax.errors import UserError
from vidjax.models.detector import Detector
from vidjax.models.video_text import VideoText

# A family's rules are in the module of this package with the same name as the family's module in `vidjax.models`.
NAMES = {file.name for file in pkgutil.iter_modules(models.__path__)}
FILES = (file.name for file in pkgutil.iter_modules([str(Path(__file__).parent)]))
FAMILIES = tuple(import_module(f"vidjax.convert.{name}") for name in FILES if name in NAMES)

# Keys are model types; for a video-text pair, its type and that of its video tower.
LAYOUTS = {module: layouts for family in FAMILIES for module, layouts in family.LAYOUTS.items()}
CONFIGS = {kind: make for family in FAMILIES for kind, make in getattr(family, "CONFIGS", {}).items()}
# Functions that make a Hugging Face configuration from a model, with the same keys.
TO_CONFIGS = {module: make for family in FAMILIES for module, make in getattr(family, "TO_CONFIGS", {}).items()}


def kind_of(model: nn.Module) -> type | tuple[type, type]:
    """The model's key in `LAYOUTS` and `TO_CONFIGS`."""
    return (type(model), type(model.video)) if isinstance(model, VideoText) else type(model)


def layouts(model: nn.Module) -> tuple[Layout, ...]:
    """The layouts in which weights of this model are published; those of a detector are its backbone's."""
    if isinstance(model, Detector):
        return tuple(map(_in_detector, layouts(model.backbone)))
    known = LAYOUTS.get(kind_of(model), ())
    return known(model) if callable(known) else known


def _in_detector(layout: Layout) -> Layout:
    """The layout of a classifier for a detector with the same entries (SlowFast's on AVA)."""

    def moved(path: str) -> str:
        if path.startswith("batch_stats/"):
            return path.replace("batch_stats/", "batch_stats/backbone/", 1)
        return path.replace("head/", "head/classes/", 1) if path.startswith("head/") else f"backbone/{path}"

    paths = {name: tuple(map(moved, getattr(layout, name))) for name in ("optional", "surplus", "absent")}
    return replace(layout, rules=tuple(replace(rule, target=moved(rule.target)) for rule in layout.rules), **paths)


# Name parts added by compiling, sharding or rematerialising a module, at any depth; and prefixes added by wrappers
# around the whole model (DistributedDataParallel, Lightning modules).
LEVELS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
WRAPPERS = ("module.", "model.", "net.", "network.")


def unwrapped(weights: Weights) -> Iterator[Weights]:
    """The weights without `LEVELS` in their names, then repeatedly with one of the prefixes in `WRAPPERS` removed.

    Entries without the prefix, such as parameters of a loss, keep their names.
    """
    try:
        weights = rules.rename(weights, lambda name: ".".join(part for part in name.split(".") if part not in LEVELS))
        yield weights
        while prefix := next((one for one in WRAPPERS if any(name.startswith(one) for name in weights)), None):
            weights = rules.strip(weights, prefix)
            yield weights
    except ValueError:  # two entries would get the same name
        return


def named(model: nn.Module, key: str) -> list[Layout]:
    """The model's layouts with this key.

    Raises:
      UserError: there are none; the message lists the available keys.
    """
    chosen = [layout for layout in layouts(model) if layout.key == key]
    if not chosen:
        keys = dict.fromkeys([layout.key for layout in layouts(model)] + [checkpoint.KEY])
        raise UserError(f"layout is '{key}': {type(model).__name__} has {', '.join(keys)}")
    return chosen


def recognize(model: nn.Module, weights: Weights, key: str | None = None) -> tuple[Layout, Weights]:
    """The layout of the weights, and the entries prepared for its rules.

    Args:
      key: value of `layout=`; if None, the layout is recognised by the names of the entries.

    Raises:
      UserError: no layout of the model's family (or not the one with this key) fits, or two do; or the model computes
        something else than the publisher's.
    """
    ours = checkpoint.layout(weights, layouts(model))
    known = layouts(model) if key is None else [ours] if key == checkpoint.KEY else named(model, key)
    for entries in unwrapped(weights):
        prepared = [(layout, layout.prepare(entries)) for layout in known]
        fitting = [(layout, names) for layout, names in prepared if layout.marker in names]
        if key is None or len(fitting) > 1:
            fitting = [(layout, names) for layout, names in fitting if not layout.excludes(entries, names)]
        if len(fitting) > 1:
            both = " and ".join(f"{layout.name} (layout='{layout.key}')" for layout, _ in fitting)
            raise UserError(f"the weights fit {both}: choose one with layout=")
        if fitting:
            fitting[0][0].check(model)
            return fitting[0]
    if key is None and ours.marker in weights:
        return ours, weights
    everything = [*layouts(model), ours]
    known = everything if key is None else known
    which = f"no known layout of {type(model).__name__} fits" if key is None else f"layout '{key}' does not fit"
    markers = [f"{layout.marker} ({layout.name})" for layout in known]
    nearest = difflib.get_close_matches(known[0].marker, weights, n=3, cutoff=0.0)
    raise UserError(
        f"{which} the weights: expected an entry {' or '.join(markers)}, the nearest of {len(weights)} names are "
        f"{', '.join(nearest) or 'none'}; the nearest layout is {_nearest(everything, weights)}: choose the matching "
        + ("model" if key is None else "layout, or omit layout=")
    )


def _nearest(known: Sequence[Layout], weights: Weights) -> str:
    """The layout most similar to these names, and how they differ from it."""
    for layout in known:
        if prefixes := [name.removesuffix(layout.marker) for name in weights if name.endswith(f".{layout.marker}")]:
            return f"{layout.name}, with the prefix {' or '.join(prefixes)}"
    counts = {
        f"{layout.name} (layout='{layout.key}')": sum(map(layout.matches, layout.prepare(weights))) for layout in known
    }
    markers = {layout.marker: f"{layout.name} (layout='{layout.key}')" for layout in known}
    closest = max(
        markers,
        key=lambda marker: max((difflib.SequenceMatcher(None, marker, name).ratio() for name in weights), default=0),
    )
    best = max(counts, key=lambda name: (counts[name], name == markers[closest]))
    return f"{best}, which has {counts[best]} of them"
