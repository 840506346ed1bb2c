"""Rules that map published parameter names to ours, applying them to a tree of parameters, and the resulting report."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, reduce
from types import MappingProxyType
from typing import Any, Literal

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from vidjax.convert.files import Weights
from vidjax.errors import UserError

Inflation = Literal["average", "central"]
Function = Callable[[np.ndarray], np.ndarray]
Fit = Callable[[np.ndarray, tuple[int, ...], Inflation, tuple[int, ...] | None], np.ndarray]


@dataclass(frozen=True)
class Transform:
    """A function from a published value to ours, and its inverse.

    Attributes:
      forward: maps the published value to ours.
      inverse: maps our value back to the published one, bit for bit; None if the transform cannot be inverted.
      part: index of our value within the published entry, if several rules read parts of it. On export the parts are
        concatenated in this order along `axis`.
      axis: None if our value is the whole entry.
    """

    forward: Function
    inverse: Function | None = None
    part: int = 0
    axis: int | None = None

    def __call__(self, value: np.ndarray) -> np.ndarray:
        """Maps the published value to ours."""
        return self.forward(value)


def _flax_kernel(value: np.ndarray) -> np.ndarray:
    return np.moveaxis(value, (0, 1), (-1, -2)) if value.ndim > 1 else value


def _torch_kernel(value: np.ndarray) -> np.ndarray:
    return np.moveaxis(value, (-1, -2), (0, 1)) if value.ndim > 1 else value


def _without_time(value: np.ndarray) -> np.ndarray:
    if value.shape[0] != 1:
        raise UserError(f"the layout has image kernels, but a kernel of the model spans {value.shape[0]} frames")
    return _torch_kernel(value[0])


same = Transform(lambda value: value, lambda value: value)
# PyTorch's `(out, in, ...)` to Flax's `(..., in, out)`: linear maps and convolutions of any dimension.
kernel = Transform(_flax_kernel, _torch_kernel)
# The same for a published image kernel; ours also has a time axis, which `convert.fits.inflate` adds.
image_kernel = Transform(_flax_kernel, _without_time)
first_axis = Transform(lambda value: value[0], lambda value: value[None])  # published with a leading axis of size 1


def kernel_rows(part: int, parts: int) -> Transform:
    """One of several linear layers (or biases) stored as one: `kernel_rows(0, 3)` is the query of a fused qkv."""
    return Transform(lambda value: kernel(np.array_split(value, parts)[part]), kernel.inverse, part, axis=0)


@dataclass(frozen=True)
class Rule:
    """Maps one kind of published entry to one of our parameters.

    Attributes:
      source: published name; `{i}` (any letters) stands for a number, as in `blocks.{i}.norm1.weight`.
      target: path in our parameters, as in `transformer/block_{i}/norm1/scale`; it may start with another collection.
      transform: from the published value to ours, and back; a plain function cannot be exported.
      fit: adapts a value of another shape to ours (see `convert.fits`), given the value, our shape, the inflation, and
        the shape in the model that the weights come from, if known. Without it a different shape is an error.
    """

    source: str
    target: str
    transform: Transform | Function = same
    fit: Fit | None = None

    def path(self, name: str) -> str | None:
        """Path of our parameter for the entry `name`; None if this rule does not match it."""
        match = re.fullmatch(_pattern(self.source), name)
        return self.target.format(**match.groupdict()) if match else None

    def entry(self, path: str) -> str | None:
        """Published name of our parameter at `path`; None if this rule does not match it."""
        match = re.fullmatch(_pattern(self.target), path)
        return self.source.format(**match.groupdict()) if match else None


@cache  # every rule is matched against every name in the weights
def _pattern(text: str) -> str:
    """A regular expression for `text`, in which `{i}` stands for a number."""
    return re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[0-9]+)", re.escape(text))


def begins(path: str, prefixes: Sequence[str]) -> bool:
    """Whether `path` starts with one of these prefixes, in which `{i}` stands for a number."""
    return any(re.match(_pattern(prefix), path) for prefix in prefixes)


def dense(source: str, target: str, fit: Fit | None = None, transform: Transform = kernel) -> tuple[Rule, ...]:
    """The two rules of a linear layer or a convolution."""
    return Rule(f"{source}.weight", f"{target}/kernel", transform, fit), Rule(f"{source}.bias", f"{target}/bias")


def norm(source: str, target: str) -> tuple[Rule, ...]:
    """The two rules of a layer norm's scale and bias."""
    return Rule(f"{source}.weight", f"{target}/scale"), Rule(f"{source}.bias", f"{target}/bias")


def batch_norm(source: str, target: str) -> tuple[Rule, ...]:
    """The four rules of a batch norm."""
    return (
        *norm(source, target),
        Rule(f"{source}.running_mean", f"batch_stats/{target}/mean"),
        Rule(f"{source}.running_var", f"batch_stats/{target}/var"),
    )


def strip(weights: Weights, *prefixes: str) -> Weights:
    """The same entries with these prefixes removed from their names, in this order."""
    return rename(weights, lambda name: reduce(str.removeprefix, prefixes, name))


def rename(weights: Weights, new_name: Callable[[str], str]) -> Weights:
    """The same entries under new names.

    Raises:
      UserError: two entries would get the same name.
    """
    renamed = {}
    for name, value in weights.items():
        if (renamed_to := new_name(name)) in renamed:
            raise UserError(f"two entries of the weights are called {renamed_to}, one of them {name}: keep one")
        renamed[renamed_to] = value
    return renamed


def prefix(weights: Weights, text: str, *exceptions: str) -> Weights:
    """The inverse of `strip`: adds a prefix to all names except those that start with one of `exceptions`."""
    return {name if name.startswith(exceptions) else text + name: value for name, value in weights.items()}


LAYER_SCALES = (  # names in BEiT, VideoMAE and mmaction2; then in timm's image ViTs (DINOv2, DeiT-III)
    ("gamma_1", "attn.proj"),
    ("gamma_2", "mlp.fc2"),
    ("gamma_2", "mlp.layers.1"),
    ("ls1.gamma", "attn.proj"),
    ("ls2.gamma", "mlp.fc2"),
)


def counted_from_zero(weights: Weights, *prefixes: str) -> Weights:
    """Strips these prefixes and renames a ResNet's groups `layer1` to `layer4` to `layer0` to `layer3`, as ours."""
    weights = strip(weights, "module.", *prefixes)
    return {re.sub(r"^layer(\d)\.", lambda m: f"layer{int(m[1]) - 1}.", name): value for name, value in weights.items()}


def counted_from_one(weights: Weights) -> Weights:
    """The inverse of `counted_from_zero`: `layer0` to `layer3` become `layer1` to `layer4`."""
    return {re.sub(r"^layer(\d)\.", lambda m: f"layer{int(m[1]) + 1}.", name): value for name, value in weights.items()}


def fold_layer_scale(weights: Weights) -> Weights:
    """The same entries with each block's layer scale multiplied into the preceding linear layer."""
    weights = dict(weights)
    for gamma, linear in LAYER_SCALES:
        for name in [name for name in weights if name.endswith(f".{gamma}")]:
            layer = name.removesuffix(gamma) + linear
            if f"{layer}.weight" in weights and f"{layer}.bias" in weights:  # otherwise the entry is kept and rejected
                scale = weights.pop(name)
                weights[f"{layer}.weight"] = weights[f"{layer}.weight"] * scale[:, None]
                weights[f"{layer}.bias"] = weights[f"{layer}.bias"] * scale
    return weights


COUNTS = ("num_batches_tracked", "n_averaged")  # PyTorch's step counters, which inference does not use


@dataclass(frozen=True)
class Layout:
    """The parameter names and shapes of one publisher of a family's weights.

    Attributes:
      name: the publisher, for messages.
      marker: name of an entry (after `prepare`) whose presence identifies the layout.
      prepare: turns a file's entries into those that the rules match: strips prefixes, folds layer scale, and so on.
      optional: prefixes of our paths (`{i}` is any number) that the weights may lack, each as a whole; such parameters
        are newly initialised.
      surplus: prefixes of our paths that the weights may contain although the model does not have them.
      check: raises ValueError for a model that computes something else than the publisher's, where no entry shows it.
      card: fields of the model's `Card` that differ for this publisher.
      key: value of `layout=` that selects it; a publisher's layouts for different models share a key.
      excludes: given a file's entries and the prepared ones, whether they are in another layout of the family although
        the marker is present; ignored if `layout=` selects this layout.
      restore: the inverse of `prepare`, for export; None if the layout cannot be exported.
      fixed: fields of the model, or of its towers (`video.joint`), for which the publisher's code supports only this
        value, and which neither entries nor configuration record; a model with another value is not exported.
      format: file format that the publisher's code reads: `torch` (safetensors if PyTorch is not installed),
        `safetensors` or `flax`.
      wrap: builds the content of that file from names and arrays (PyTorch tensors if `format` is `torch`).
    """

    name: str
    marker: str
    rules: tuple[Rule, ...]
    prepare: Callable[[Weights], Weights] = strip
    optional: tuple[str, ...] = ("head/",)
    surplus: tuple[str, ...] = ("head/",)
    check: Callable[[nn.Module], None] = lambda model: None
    card: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""
    excludes: Callable[[Weights, Weights], bool] = lambda entries, prepared: False
    restore: Callable[[Weights], Weights] | None = dict
    fixed: Mapping[str, Any] = field(default_factory=dict)
    format: Literal["torch", "safetensors", "flax"] = "torch"
    wrap: Callable[[dict], dict] = dict

    def matches(self, name: str) -> bool:
        """Whether a rule matches the entry."""
        return any(rule.path(name) is not None for rule in self.rules)

    def in_block(self, name: str) -> bool:
        """Whether the entry belongs to one of the repeated blocks in the rules."""
        blocks = {rule.source[: rule.source.rindex("}") + 2] for rule in self.rules if "}" in rule.source}
        return begins(name, tuple(blocks))

    def classes(self, weights: Weights) -> int | None:
        """Number of classes of the head in the (prepared) weights; None if there is no head."""
        pairs = (
            (rule, value) for name, value in weights.items() for rule in self.rules if rule.path(name) == "head/kernel"
        )
        return next((rule.transform(value).shape[-1] for rule, value in pairs), None)


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
      strict: raise an error if any parameter is not loaded or any entry is unused.
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
    loaded, resized, mismatched, unused, rejected, heads, unknown = {}, [], {}, [], [], [], []
    for name, value in weights.items():
        if name.endswith(COUNTS):
            continue
        paths = [(rule, path) for rule in layout.rules if (path := rule.path(name)) is not None]
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
    allowed = (*new, *heads, *([] if strict else omitted))
    missing = [path for path in not_loaded if path not in mismatched and not begins(path, allowed)]
    matched_kinds = {_kind(path) for path in (*loaded, *mismatched)}
    if unknown and not mismatched and (unmatched := [path for path in missing if _kind(path) not in matched_kinds]):
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
    parts: dict[str, dict[int, np.ndarray]] = {}
    read_by: dict[str, Rule] = {}
    for full_path, leaf in flatten_dict(variables, sep="/").items():
        path = full_path.removeprefix("params/")
        candidates = ((rule, rule.entry(path)) for rule in layout.rules)
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


def _kind(path: str) -> str:
    """The path without its numbers, which is the same for all blocks."""
    return re.sub(r"[0-9]+", "", path)


def _like(leaf: jax.Array | jax.ShapeDtypeStruct, value: np.ndarray) -> jax.Array:
    """`value` with the leaf's dtype, and its sharding if the leaf is committed to devices."""
    sharding = leaf.sharding if getattr(leaf, "committed", False) else None
    return jax.device_put(np.asarray(value, leaf.dtype, order="C"), sharding)
