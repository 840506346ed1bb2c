"""Published names to ours: what a rule is, how rules fill a tree of parameters, and the report of what happened."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from vidjax.convert.files import Weights

Transform = Callable[[np.ndarray], np.ndarray]


def same(value: np.ndarray) -> np.ndarray:
    """The value as it is."""
    return value


def kernel(value: np.ndarray) -> np.ndarray:
    """PyTorch's `(out, in, ...)` to Flax's `(..., in, out)`: linear maps and convolutions of any dimension."""
    return np.moveaxis(value, (0, 1), (-1, -2)) if value.ndim > 1 else value


def kernel_rows(part: int, parts: int) -> Transform:
    """One of several linear maps stored as one: `kernel_rows(0, 3)` is the query of a fused query, key, value."""
    return lambda value: kernel(np.array_split(value, parts)[part])


@dataclass(frozen=True)
class Rule:
    """Where one kind of parameter comes from and goes.

    Attributes:
      source: published name; `{i}` (any letters) stands for a number, as in `blocks.{i}.norm1.weight`.
      target: path in our parameters, as in `transformer/block_{i}/norm1/scale`; it may start with another collection.
      transform: from the published value to ours.
    """

    source: str
    target: str
    transform: Transform = same

    def path(self, name: str) -> str | None:
        """Where the entry `name` goes; None when this rule is not about it."""
        pattern = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[0-9]+)", re.escape(self.source))
        match = re.fullmatch(pattern, name)
        return self.target.format(**match.groupdict()) if match else None


def dense(source: str, target: str) -> tuple[Rule, ...]:
    """The two rules of a linear map or a convolution."""
    return Rule(f"{source}.weight", f"{target}/kernel", kernel), Rule(f"{source}.bias", f"{target}/bias")


def norm(source: str, target: str) -> tuple[Rule, ...]:
    """The two rules of a layer norm's scale and bias."""
    return Rule(f"{source}.weight", f"{target}/scale"), Rule(f"{source}.bias", f"{target}/bias")


@dataclass(frozen=True)
class Layout:
    """One published naming of a family's weights.

    Attributes:
      sign: the name of an entry that tells it from other layouts.
      prepare: from the file's entries to those that the rules name: strips prefixes, folds what we do not have.
    """

    name: str
    sign: str
    rules: tuple[Rule, ...]
    prepare: Callable[[Weights], Weights]


@dataclass(frozen=True)
class Target:
    """How weights get into one of our modules.

    Attributes:
      example: arguments, as small as may be, with which a model can be initialised.
      optional: beginnings of our paths that the weights may lack, each as a whole: a fresh head or decoder.
      surplus: beginnings of our paths that the weights may have and the module lack.
    """

    layouts: tuple[Layout, ...]
    example: Callable[[nn.Module], tuple]
    optional: tuple[str, ...] = ()
    surplus: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """What became of every parameter and of every entry of the weights; `str` tells it in a paragraph.

    Attributes:
      loaded: paths of the parameters that were filled.
      missing: paths of those that kept the value they had.
      unexpected: names of the entries that went nowhere.
    """

    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]

    def __str__(self) -> str:
        count = f"loaded {len(self.loaded)} of {len(self.loaded) + len(self.missing)} parameters"
        return "; ".join([count, *_leftovers(self.missing, self.unexpected)])


def _leftovers(missing: Sequence[str], unexpected: Sequence[str]) -> list[str]:
    missing = [f"not in the weights and left as they were: {_some(missing)}"] if missing else []
    return missing + ([f"in the weights and not used: {_some(unexpected)}"] if unexpected else [])


def _some(names: Sequence[str], most: int = 4) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def apply(
    rules: Sequence[Rule],
    weights: Weights,
    tree: dict,
    *,
    optional: Sequence[str] = (),
    surplus: Sequence[str] = (),
    fresh: Sequence[str] = (),
    unused: Sequence[str] = (),
) -> tuple[dict, Report]:
    """`tree` with every parameter that a rule finds in `weights`, in the tree's own types and placement.

    Args:
      tree: parameters, or all variables (`{"params": ..., "batch_stats": ...}`); arrays or their shapes alone.
      optional, surplus: see `Target`.
      fresh: beginnings of our paths that are left as they are, whatever the weights hold.
      unused: beginnings of published names that may go nowhere.

    Raises:
      ValueError: something was missing, left over or of another shape, and nothing above allows it.
    """
    flat = flatten_dict(tree, sep="/")
    places = {place.removeprefix("params/"): place for place in flat}
    # One name instead of a list of them would be read letter by letter.
    fresh, unused = ((names,) if isinstance(names, str) else tuple(names) for names in (fresh, unused))
    loaded, mismatched, unexpected, refused = {}, {}, [], []
    for name, value in weights.items():
        paths = [(rule, path) for rule in rules if (path := rule.path(name)) is not None]
        wanted = [(rule, path) for rule, path in paths if path in places and not path.startswith(fresh)]
        if not wanted:
            unexpected.append(name)
            allowed = paths and all(path.startswith((*surplus, *fresh)) for _, path in paths)
            if not (allowed or name.startswith(unused)):
                refused.append(name)
        for rule, path in wanted:
            ours, theirs = flat[places[path]], rule.transform(value)
            if path in loaded:
                raise ValueError(f"two entries of the weights are {path}, one of them {name}: keep one")
            if ours.shape == theirs.shape:
                loaded[path] = _like(ours, theirs)
            else:
                mismatched[path] = f"{path} is {ours.shape} in the model and {theirs.shape} in the weights"
    missing = tuple(path for path in places if path not in loaded)
    whole = [part for part in optional if not any(path.startswith(part) for path in loaded)]
    lacking = [path for path in missing if path not in mismatched and not path.startswith((*whole, *fresh))]
    if mismatched or lacking or refused:
        shapes = [_some(list(mismatched.values()), 2)] if mismatched else []
        raise ValueError(f"the weights do not fit: {'; '.join([*shapes, *_leftovers(lacking, refused)])}")
    filled = flat | {places[path]: value for path, value in loaded.items()}
    return unflatten_dict(filled, sep="/"), Report(tuple(loaded), missing, tuple(unexpected))


def _like(leaf: jax.Array | jax.ShapeDtypeStruct, value: np.ndarray) -> jax.Array:
    """`value` in the leaf's type, and on its devices where it was put on some."""
    sharding = leaf.sharding if getattr(leaf, "committed", False) else None
    return jax.device_put(np.ascontiguousarray(value, leaf.dtype), sharding)
