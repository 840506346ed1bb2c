"""Rules that map published parameter names to ours, and layouts of a publisher's weights, which are made of them."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, reduce
from types import MappingProxyType
from typing import Any, Literal

import flax.linen as nn
import numpy as np

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


def kind(text: str) -> str:
    """A name or path without numbers, which is the same for a rule's and for all names that it matches."""
    return re.sub(r"\{\w+\}|[0-9]+", "", text)


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


def recurrent(source: str, target: str, layer: int = 0) -> tuple[Rule, ...]:
    """The four rules of one layer of PyTorch's LSTM or GRU."""
    pairs = (("weight_ih", "input_kernel"), ("weight_hh", "state_kernel"))
    biases = (("bias_ih", "input_bias"), ("bias_hh", "state_bias"))
    return (
        *(Rule(f"{source}{entry}_l{layer}", f"{target}{parameter}", kernel) for entry, parameter in pairs),
        *(Rule(f"{source}{entry}_l{layer}", f"{target}{parameter}") for entry, parameter in biases),
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


# Fields of the layouts of mmaction2's ResNets.
MMACTION2_RESNET = MappingProxyType(
    {
        "key": "mmaction2",
        "prepare": lambda weights: counted_from_zero(weights, "backbone."),
        "restore": lambda weights: prefix(counted_from_one(weights), "backbone.", "cls_head."),
        "wrap": lambda content: {"state_dict": content},
    }
)


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
      absent: prefixes of our paths that these weights never have; they are newly initialised even if loading is strict,
        and left out on export.
      check: raises ValueError for a model that computes something else than the publisher's, where no entry shows it.
      card: fields of the model's `Card` that differ for this publisher.
      key: value of `layout=` that selects it; a publisher's layouts for different models share a key.
      excludes: given a file's entries and the prepared ones, whether they are in another layout of the family although
        the marker is present; ignored if `layout=` selects this layout.
      restore: the inverse of `prepare`, for export; None if the layout cannot be exported.
      fixed: fields of the model, or of its towers (`video.joint`), for which the publisher's code supports only this
        value, and which neither entries nor configuration record; a model with another value is not exported.
      format: file format that the publisher's code reads: `torch` (safetensors if PyTorch is not installed),
        `safetensors`, `flax` or `npz`.
      wrap: builds the content of that file from names and arrays (PyTorch tensors if `format` is `torch`).
    """

    name: str
    marker: str
    rules: tuple[Rule, ...]
    prepare: Callable[[Weights], Weights] = strip
    optional: tuple[str, ...] = ("head/",)
    surplus: tuple[str, ...] = ("head/",)
    absent: tuple[str, ...] = ()
    check: Callable[[nn.Module], None] = lambda model: None
    card: Mapping[str, Any] = field(default_factory=dict)
    key: str = ""
    excludes: Callable[[Weights, Weights], bool] = lambda entries, prepared: False
    restore: Callable[[Weights], Weights] | None = dict
    fixed: Mapping[str, Any] = field(default_factory=dict)
    format: Literal["torch", "safetensors", "flax", "npz"] = "torch"
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
        heads = [rule for rule in self.rules if rule.target == "head/kernel"]
        pairs = ((rule, value) for name, value in weights.items() for rule in heads if rule.path(name))
        return next((rule.transform(value).shape[-1] for rule, value in pairs), None)
