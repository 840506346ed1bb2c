"""Applies a layout's rules to a tree of parameters, with a report, and the inverse."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from vidjax.convert.files import Weights
from vidjax.convert.rules import Inflation, Layout, Rule, Transform, begins, kind
from vidjax.errors import UserError

COUNTS = ("num_batches_tracked", "n_averaged")  # PyTorch's step counters, which inference does not use


@dataclass(frozen=True)
class Report:
    """Which parameters were loaded and which entries of the weights were used; `str` gives a one-line summary.

    Attributes:
      loaded: paths of the parameters loaded from the weights.
      resized: those of them that were resized or inflated, with both shapes.
      new: paths of the parameters that were not loaded: newly initialised, or left unchanged.
      unused: names of entries that were not used.
      notes: further remarks, such as which weights of a file were read or how the input is scaled.
    """

    loaded: tuple[str, ...]
    resized: tuple[str, ...]
    new: tuple[str, ...]
    unused: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        parts = [f"loaded {len(self.loaded)} of {len(self.loaded) + len(self.new)} parameters"]
        parts += [f"resized: {_shorten(self.resized)}"] if self.resized else []
        parts += [f"newly initialised: {_shorten(self.new)}"] if self.new else []
        parts += [f"in the weights but unused: {_shorten(self.unused)}"] if self.unused else []
        return "; ".join([*parts, *self.notes])


def _shorten(names: Sequence[str], limit: int = 4) -> str:
    """The first names of a list, and how many more there are."""
    rest = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + rest


def apply(
    layout: Layout,
    weights: Weights,
    tree: dict,
    *,
    strict: bool = False,
    new: Sequence[str] = (),
    inflation: Inflation = "average",
    native: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
) -> tuple[dict, Report]:
    """Loads into `tree` every parameter that a rule finds in `weights`, keeping the tree's dtypes and sharding.

    Parameters that are optional and missing from the weights, a head with another number of classes, and those listed
    in `new` keep their values in the tree. Any other mismatch is an error, as is an entry inside a block that no rule
    matches, since it would change what the block computes.

    Args:
      weights: entries returned by `layout.prepare`.
      tree: all variables (`{"params": ..., "batch_stats": ...}`) or only the parameters; arrays or their shapes.
      strict: raise an error if any parameter is not loaded, except those in `layout.absent`, or any entry is unused.
      new: prefixes of our paths that keep their values, whether or not the weights contain them.
      inflation: how image kernels become clip kernels, see `convert.fits.inflate`.
      native: shapes, by our paths, in the model that the weights come from, if its configuration is known.

    Raises:
      UserError: an entry is missing, unexpected, of another shape or not finite.
    """
    if inflation not in ("average", "central"):
        raise UserError(f"inflation is '{inflation}': choose average or central")
    flat = flatten_dict(tree, sep="/")
    full_paths = {full_path.removeprefix("params/"): full_path for full_path in flat}
    new = (new,) if isinstance(new, str) else tuple(new)  # a single string would be iterated letter by letter
    rules = _by_kind(layout.rules, lambda rule: rule.source)
    loaded, resized, mismatched, unused, rejected, heads, unknown = {}, [], {}, [], [], [], []
    for name, value in weights.items():
        if name.endswith(COUNTS):
            continue
        paths = [(rule, path) for rule in rules[kind(name)] if (path := rule.path(name)) is not None]
        wanted = [(rule, path) for rule, path in paths if path in full_paths and not begins(path, new)]
        unknown += [] if paths else [name]
        if not wanted:
            unused.append(name)
            allowed = (*layout.surplus, *layout.optional, *new)
            if strict or any(not begins(path, allowed) for _, path in paths) or (not paths and layout.in_block(name)):
                rejected.append(name)
        elif not np.isfinite(value).all():
            raise UserError(
                f"{name} in the weights is not finite: use another checkpoint, this one is damaged or training diverged"
            )
        for rule, path in wanted:
            if path in loaded:
                raise UserError(f"two entries of the weights map to {path}, one of them {name}: keep one")
            parameter, converted = flat[full_paths[path]], rule.transform(value)
            if parameter.shape != converted.shape and rule.fit is not None:
                fitted = rule.fit(converted, parameter.shape, inflation, native.get(path))
                if not np.array_equal(fitted.ravel(), converted.ravel()):
                    resized.append(f"{path} {converted.shape} -> {fitted.shape}")
                converted = fitted
            given, expected = converted.shape, parameter.shape
            if given == expected:
                loaded[path] = _like(parameter, converted)
            elif path.startswith("head/") and not strict:
                heads.append(path)
            elif path.startswith("head/") and given[:-1] == expected[:-1]:
                classes = f"the head has {given[-1]} classes in the weights and {expected[-1]} in the model"
                mismatched[path] = f"{classes}: set num_classes, or strict=False for a new head"
            else:
                mismatched[path] = f"{path} is {expected} in the model and {given} in the weights"
    not_loaded = tuple(path for path in full_paths if path not in loaded)
    omitted = [part for part in layout.optional if not any(begins(path, [part]) for path in loaded)]
    allowed = (*new, *heads, *layout.absent, *([] if strict else omitted))
    missing = [path for path in not_loaded if path not in mismatched and not begins(path, allowed)]
    matched_kinds = {kind(path) for path in (*loaded, *mismatched)}
    if unknown and not mismatched and (unmatched := [path for path in missing if kind(path) not in matched_kinds]):
        raise UserError(
            f"the layout of the weights is unknown: the nearest known layout, {layout.name}, does not have "
            f"{_shorten(unknown)}, and has no entry here for {_shorten(unmatched)}; choose the matching model, or "
            "rename the entries as in that layout"
        )
    if mismatched or missing or rejected:
        problems = [_shorten(list(dict.fromkeys(mismatched.values())), 2)] if mismatched else []
        problems += [f"not in the weights: {_shorten(missing)}"] if missing else []
        problems += [f"in the weights and not in the model: {_shorten(rejected)}"] if rejected else []
        problems += [] if "set num_classes" in "".join(problems) else ["choose the matching model"]
        raise UserError(f"the weights do not fit: {'; '.join(problems)}")
    filled = flat | {full_paths[path]: value for path, value in loaded.items()}
    return unflatten_dict(filled, sep="/"), Report(tuple(loaded), tuple(resized), not_loaded, tuple(unused))


def invert(layout: Layout, variables: dict) -> Weights:
    """The inverse of `apply`: the model's variables as entries of the layout.

    The entries have the names in the rules; `layout.restore` turns them into those of a file.

    Raises:
      UserError: the layout has no entry for a parameter, or the rule has no inverse.
    """
    rules = _by_kind(layout.rules, lambda rule: rule.target)
    parts: dict[str, dict[int, np.ndarray]] = {}
    read_by: dict[str, Rule] = {}
    for full_path, leaf in flatten_dict(variables, sep="/").items():
        path = full_path.removeprefix("params/")
        if begins(path, layout.absent):
            continue
        candidates = ((rule, rule.entry(path)) for rule in rules[kind(path)])
        rule, name = next(((rule, name) for rule, name in candidates if name is not None), (None, None))
        if rule is None:
            raise UserError(f"{layout.name} has no entry for {path}: choose another layout, such as vidjax")
        if not isinstance(rule.transform, Transform) or rule.transform.inverse is None:
            raise UserError(f"{path} cannot be converted to {name} in {layout.name}: choose another layout")
        if rule.transform.part in parts.setdefault(name, {}):
            raise UserError(f"two parameters map to {name} in {layout.name}, one of them {path}: choose another layout")
        parts[name][rule.transform.part] = rule.transform.inverse(np.asarray(leaf, np.float32))
        read_by[name] = rule
    weights = {}
    for name, rule in read_by.items():
        wanted = {other.transform.part for other in layout.rules if other.source == rule.source}
        if missing := wanted - parts[name].keys():
            raise UserError(f"the model lacks part {min(missing)} of {name} in {layout.name}: choose another layout")
        values = [parts[name][part] for part in sorted(parts[name])]
        weights[name] = values[0] if rule.transform.axis is None else np.concatenate(values, rule.transform.axis)
    steps = {name.removesuffix("running_mean") + COUNTS[0] for name in weights if name.endswith(".running_mean")}
    return weights | {name: np.zeros((), np.int64) for name in steps}


def _by_kind(rules: Sequence[Rule], name: Callable[[Rule], str]) -> dict[str, list[Rule]]:
    """The rules by the kind of their source or target: few are matched against each of many names."""
    grouped = defaultdict(list)
    for rule in rules:
        grouped[kind(name(rule))].append(rule)
    return grouped


def _like(leaf: jax.Array | jax.ShapeDtypeStruct, value: np.ndarray) -> jax.Array:
    """`value` with the leaf's dtype, and its sharding if the leaf is committed to devices."""
    sharding = leaf.sharding if getattr(leaf, "committed", False) else None
    return jax.device_put(np.asarray(value, leaf.dtype, order="C"), sharding)
