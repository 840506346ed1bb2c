"""Published names to ours: what a rule is, how rules fill a tree of parameters, and the report of what happened."""

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
    """A function from the published value to ours, and its inverse.

    Attributes:
      forward: from the published value to ours.
      inverse: from ours to the published value, exact to the last bit; None where there is none.
      part: which part of the published value ours is, where several rules read one entry: inverses give the parts,
        which are joined in this order along `axis`.
      axis: None where ours is the whole entry.
    """

    forward: Function
    inverse: Function | None = None
    part: int = 0
    axis: int | None = None

    def __call__(self, value: np.ndarray) -> np.ndarray:
        """The published value as ours."""
        return self.forward(value)


def _flax_kernel(value: np.ndarray) -> np.ndarray:
    return np.moveaxis(value, (0, 1), (-1, -2)) if value.ndim > 1 else value


def _torch_kernel(value: np.ndarray) -> np.ndarray:
    return np.moveaxis(value, (-1, -2), (0, 1)) if value.ndim > 1 else value


def _without_time(value: np.ndarray) -> np.ndarray:
    if value.shape[0] != 1:
        raise UserError(f"the layout has kernels of images, and one of the model's spans {value.shape[0]} frames")
    return _torch_kernel(value[0])


same = Transform(lambda value: value, lambda value: value)
# PyTorch's `(out, in, ...)` to Flax's `(..., in, out)`: linear maps and convolutions of any dimension.
kernel = Transform(_flax_kernel, _torch_kernel)
# The same, published as a kernel of images; ours has an axis of time besides, which `convert.fits.inflate` adds.
image_kernel = Transform(_flax_kernel, _without_time)
first_axis = Transform(lambda value: value[0], lambda value: value[None])  # published with an axis of one entry before


def kernel_rows(part: int, parts: int) -> Transform:
    """One of several linear maps (or their biases) stored as one: `kernel_rows(0, 3)` is the query of a fused qkv."""
    return Transform(lambda value: kernel(np.array_split(value, parts)[part]), kernel.inverse, part, axis=0)


@dataclass(frozen=True)
class Rule:
    """Where one kind of parameter comes from and goes.

    Attributes:
      source: published name; `{i}` (any letters) stands for a number, as in `blocks.{i}.norm1.weight`.
      target: path in our parameters, as in `transformer/block_{i}/norm1/scale`; it may start with another collection.
      transform: from the published value to ours, and back; a plain function goes one way alone.
      fit: makes a value of another shape fit ours (`convert.fits`), from the value, our shape, the inflation, and the
        shape that the weights' own model has there if it is known; without it another shape is an error.
    """

    source: str
    target: str
    transform: Transform | Function = same
    fit: Fit | None = None

    def path(self, name: str) -> str | None:
        """Where the entry `name` goes; None when this rule is not about it."""
        match = re.fullmatch(_pattern(self.source), name)
        return self.target.format(**match.groupdict()) if match else None

    def entry(self, path: str) -> str | None:
        """The published name of our parameter at `path`; None when this rule is not about it."""
        match = re.fullmatch(_pattern(self.target), path)
        return self.source.format(**match.groupdict()) if match else None


@cache  # each rule is held against every name of the weights
def _pattern(text: str) -> str:
    """A regular expression for `text`, in which `{i}` stands for a number."""
    return re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[0-9]+)", re.escape(text))


def begins(path: str, beginnings: Sequence[str]) -> bool:
    """Whether `path` begins with one of these, in which `{i}` stands for a number."""
    return any(re.match(_pattern(beginning), path) for beginning in beginnings)


def dense(source: str, target: str, fit: Fit | None = None, transform: Transform = kernel) -> tuple[Rule, ...]:
    """The two rules of a linear map or a convolution."""
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
    """The same entries without these beginnings of their names, taken off in this order."""
    return rename(weights, lambda name: reduce(str.removeprefix, prefixes, name))


def rename(weights: Weights, new: Callable[[str], str]) -> Weights:
    """The same entries under other names.

    Raises:
      UserError: two of them would have one name.
    """
    renamed = {}
    for name, value in weights.items():
        if (bare := new(name)) in renamed:
            raise UserError(f"two entries of the weights are called {bare}, one of them {name}: keep one")
        renamed[bare] = value
    return renamed


def prefix(weights: Weights, beginning: str, *but: str) -> Weights:
    """The inverse of `strip`: this beginning before all names but those that begin with one of `but`."""
    return {name if name.startswith(but) else beginning + name: value for name, value in weights.items()}


LAYER_SCALES = (  # of BEiT's line and VideoMAE, mmaction2's too; of timm's image ViTs (DINOv2, DeiT-III)
    ("gamma_1", "attn.proj"),
    ("gamma_2", "mlp.fc2"),
    ("gamma_2", "mlp.layers.1"),
    ("ls1.gamma", "attn.proj"),
    ("ls2.gamma", "mlp.fc2"),
)


def counted_from_zero(weights: Weights, *prefixes: str) -> Weights:
    """Without these prefixes; a ResNet's groups `layer1` to `layer4` become `layer0` to `layer3`, as ours are."""
    bare = strip(weights, "module.", *prefixes)
    return {re.sub(r"^layer(\d)\.", lambda m: f"layer{int(m[1]) - 1}.", name): value for name, value in bare.items()}


def counted_from_one(weights: Weights) -> Weights:
    """The inverse: `layer0` to `layer3` become `layer1` to `layer4`."""
    return {re.sub(r"^layer(\d)\.", lambda m: f"layer{int(m[1]) + 1}.", name): value for name, value in weights.items()}


def fold_layer_scale(weights: Weights) -> Weights:
    """The same entries with layer scale (in each block) multiplied into the linear map before it."""
    weights = dict(weights)
    for gamma, linear in LAYER_SCALES:
        for name in [name for name in weights if name.endswith(f".{gamma}")]:
            at = name.removesuffix(gamma) + linear
            if f"{at}.weight" in weights and f"{at}.bias" in weights:  # otherwise the entry is left, and refused
                scale = weights.pop(name)
                weights[f"{at}.weight"] = weights[f"{at}.weight"] * scale[:, None]
                weights[f"{at}.bias"] = weights[f"{at}.bias"] * scale
    return weights


COUNTS = ("num_batches_tracked", "n_averaged")  # PyTorch's, of steps: nothing reads them


@dataclass(frozen=True)
class Layout:
    """One published naming of a family's weights.

    Attributes:
      name: whose it is.
      sign: the name of an entry (after `prepare`) that weights in this layout have.
      prepare: from the file's entries to those that the rules name: strips prefixes, folds what we do not have.
      optional: beginnings of our paths (`{i}` is any number) that the weights may lack, each as a whole: they are newly
        initialised.
      surplus: beginnings of our paths that the weights may have and the model lack.
      check: raises ValueError for a model that is computed otherwise than this publisher's, which no entry would tell.
      card: fields of the model's `Card` that are others with this publisher.
      key: what `layout=` calls it; layouts of one publisher for different models share a key.
      other: of a file's entries, and of what `prepare` made of them: whether they are in another layout of the family
        although they have the sign; not asked where `layout=` names this one.
      restore: the inverse of `prepare`, for export; None where weights go in but not out.
      fixed: fields of the model, and of its towers by their names, that the publisher's code computes with one value
        alone, which no entry and no configuration tells: a model with others is not exported.
      format: the file that the publisher's own code reads: `torch` (one of safetensors where PyTorch is not installed),
        `safetensors` or `flax`.
      wrap: what such a file holds, from the names and arrays (tensors of PyTorch where `format` is `torch`).
    """

    name: str
    sign: str
    rules: tuple[Rule, ...]
    prepare: Callable[[Weights], Weights] = strip
    optional: tuple[str, ...] = ("head/",)
    surplus: tuple[str, ...] = ("head/",)
    check: Callable[[nn.Module], None] = lambda model: None
    card: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""
    other: Callable[[Weights, Weights], bool] = lambda entries, prepared: False
    restore: Callable[[Weights], Weights] | None = dict
    fixed: Mapping[str, Any] = field(default_factory=dict)
    format: Literal["torch", "safetensors", "flax"] = "torch"
    wrap: Callable[[dict], dict] = dict

    def knows(self, name: str) -> bool:
        """Whether a rule is about the entry."""
        return any(rule.path(name) is not None for rule in self.rules)

    def holds(self, name: str) -> bool:
        """Whether the entry stands in one of the repeated blocks that the rules name."""
        blocks = {rule.source[: rule.source.rindex("}") + 2] for rule in self.rules if "}" in rule.source}
        return begins(name, tuple(blocks))

    def classes(self, weights: Weights) -> int | None:
        """How many classes the head in the (prepared) weights has; None without one."""
        pairs = (
            (rule, value) for name, value in weights.items() for rule in self.rules if rule.path(name) == "head/kernel"
        )
        return next((rule.transform(value).shape[-1] for rule, value in pairs), None)


@dataclass(frozen=True)
class Report:
    """What became of every parameter and of every entry of the weights; `str` tells it in a paragraph.

    Attributes:
      loaded: paths of the parameters that were filled.
      resized: what was resized or inflated among them, in words.
      fresh: paths of those that the weights did not fill: newly initialised, or left as they were.
      unused: names of the entries that went nowhere.
      notes: what else must be known: which weights of a file were taken, how the input is prepared.
    """

    loaded: tuple[str, ...]
    resized: tuple[str, ...]
    fresh: tuple[str, ...]
    unused: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        said = [f"loaded {len(self.loaded)} of {len(self.loaded) + len(self.fresh)} parameters"]
        said += [f"resized: {_some(self.resized)}"] if self.resized else []
        said += [f"newly initialised: {_some(self.fresh)}"] if self.fresh else []
        said += [f"in the weights and unused: {_some(self.unused)}"] if self.unused else []
        return "; ".join([*said, *self.notes])


def _some(names: Sequence[str], most: int = 4) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def apply(
    layout: Layout,
    weights: Weights,
    tree: dict,
    *,
    strict: bool = False,
    fresh: Sequence[str] = (),
    inflation: Inflation = "average",
    native: Mapping[str, tuple[int, ...]] = MappingProxyType({}),
) -> tuple[dict, Report]:
    """`tree` with every parameter that a rule finds in `weights`, in the tree's own types and placement.

    What the weights may lack and does not stand in them, a head of another class count and what is named in `fresh`
    stay as they are in the tree. Everything else that does not fit is an error, and so is an entry that no rule knows
    within a block: it would change what the block computes.

    Args:
      weights: as `layout.prepare` made them.
      tree: all variables (`{"params": ..., "batch_stats": ...}`) or the parameters alone; arrays or their shapes.
      strict: nothing may be left as it was, and nothing unused.
      fresh: beginnings of our paths that are left as they are, whatever the weights hold.
      inflation: how kernels of images become kernels of clips, see `convert.fits.inflate`.
      native: shapes by our paths in the model that the weights are of, where its configuration is known.

    Raises:
      UserError: something is missing, left over, of another shape or not finite.
    """
    if inflation not in ("average", "central"):
        raise UserError(f"inflation is '{inflation}': choose average or central")
    flat = flatten_dict(tree, sep="/")
    places = {place.removeprefix("params/"): place for place in flat}
    fresh = (fresh,) if isinstance(fresh, str) else tuple(fresh)  # one name would be read letter by letter
    loaded, resized, mismatched, unused, refused, heads, foreign = {}, [], {}, [], [], [], []
    for name, value in weights.items():
        if name.endswith(COUNTS):
            continue
        paths = [(rule, path) for rule in layout.rules if (path := rule.path(name)) is not None]
        wanted = [(rule, path) for rule, path in paths if path in places and not begins(path, fresh)]
        foreign += [] if paths else [name]
        if not wanted:
            unused.append(name)
            allowed = (*layout.surplus, *layout.optional, *fresh)
            if strict or any(not begins(path, allowed) for _, path in paths) or (not paths and layout.holds(name)):
                refused.append(name)
        elif not np.isfinite(value).all():
            raise UserError(
                f"{name} in the weights is not finite: give others, as these are damaged or of no good training"
            )
        for rule, path in wanted:
            if path in loaded:
                raise UserError(f"two entries of the weights are {path}, one of them {name}: keep one")
            ours, theirs = flat[places[path]], rule.transform(value)
            if ours.shape != theirs.shape and rule.fit is not None:
                fitted = rule.fit(theirs, ours.shape, inflation, native.get(path))
                if not np.array_equal(fitted.ravel(), theirs.ravel()):
                    resized.append(f"{path} {theirs.shape} -> {fitted.shape}")
                theirs = fitted
            if ours.shape == theirs.shape:
                loaded[path] = _like(ours, theirs)
            elif path.startswith("head/") and not strict:
                heads.append(path)
            elif path.startswith("head/") and ours.shape[:-1] == theirs.shape[:-1]:
                classes = f"the head has {theirs.shape[-1]} classes in the weights and {ours.shape[-1]} in the model"
                mismatched[path] = f"{classes}: set num_classes, or leave strict off for a new head"
            else:
                mismatched[path] = f"{path} is {ours.shape} in the model and {theirs.shape} in the weights"
    left = tuple(path for path in places if path not in loaded)
    whole = [part for part in layout.optional if not any(begins(path, [part]) for path in loaded)]
    allowed = (*fresh, *heads, *([] if strict else whole))
    lacking = [path for path in left if path not in mismatched and not begins(path, allowed)]
    met = {_kind(path) for path in (*loaded, *mismatched)}
    if foreign and not mismatched and (unmet := [path for path in lacking if _kind(path) not in met]):
        raise UserError(
            f"the layout of the weights is unknown: the nearest known one is {layout.name}, which does not know "
            f"{_some(foreign)} and needs what becomes {_some(unmet)}; choose the model that they are of, or name them "
            "as that layout does"
        )
    if mismatched or lacking or refused:
        said = [_some(list(dict.fromkeys(mismatched.values())), 2)] if mismatched else []
        said += [f"not in the weights: {_some(lacking)}"] if lacking else []
        said += [f"in the weights and not in the model: {_some(refused)}"] if refused else []
        said += [] if "set num_classes" in "".join(said) else ["choose the model that they are of"]
        raise UserError(f"the weights do not fit: {'; '.join(said)}")
    filled = flat | {places[path]: value for path, value in loaded.items()}
    return unflatten_dict(filled, sep="/"), Report(tuple(loaded), tuple(resized), left, tuple(unused))


def invert(layout: Layout, variables: dict) -> Weights:
    """The model's variables as the layout's entries, by the inverses of its rules: what `apply` would take.

    The entries are named as the rules name them; `layout.restore` names them as files do.

    Raises:
      UserError: the layout has no entry for a parameter, or none that the rule's inverse could make.
    """
    parts: dict[str, dict[int, np.ndarray]] = {}
    read_by: dict[str, Rule] = {}
    for place, leaf in flatten_dict(variables, sep="/").items():
        path = place.removeprefix("params/")
        named = ((rule, rule.entry(path)) for rule in layout.rules)
        rule, name = next(((rule, name) for rule, name in named if name is not None), (None, None))
        if rule is None:
            raise UserError(f"{layout.name} has no entry for {path}: choose another layout, such as vidjax")
        if not isinstance(rule.transform, Transform) or rule.transform.inverse is None:
            raise UserError(f"{path} cannot be made what {layout.name} has as {name}: choose another layout")
        if rule.transform.part in parts.setdefault(name, {}):
            raise UserError(
                f"two parameters would be {name} in {layout.name}, one of them {path}: choose another layout"
            )
        parts[name][rule.transform.part] = rule.transform.inverse(np.asarray(leaf, np.float32))
        read_by[name] = rule
    weights = {}
    for name, rule in read_by.items():
        wanted = {other.transform.part for other in layout.rules if other.source == rule.source}
        if missing := wanted - parts[name].keys():
            raise UserError(
                f"the model lacks part {min(missing)} of what {layout.name} has as {name}: choose another layout"
            )
        values = [parts[name][part] for part in sorted(parts[name])]
        weights[name] = values[0] if rule.transform.axis is None else np.concatenate(values, rule.transform.axis)
    steps = {name.removesuffix("running_mean") + COUNTS[0] for name in weights if name.endswith(".running_mean")}
    return weights | {name: np.zeros((), np.int64) for name in steps}


def _kind(path: str) -> str:
    """The path without its numbers: what is alike in all blocks."""
    return re.sub(r"[0-9]+", "", path)


def _like(leaf: jax.Array | jax.ShapeDtypeStruct, value: np.ndarray) -> jax.Array:
    """`value` in the leaf's type, and on its devices where it was put on some."""
    sharding = leaf.sharding if getattr(leaf, "committed", False) else None
    return jax.device_put(np.asarray(value, leaf.dtype, order="C"), sharding)
