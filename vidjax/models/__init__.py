"""The model families. A family is one file; this is the one list of them."""

import difflib
from numbers import Integral, Real
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Union, get_args, get_origin

import flax.linen as nn
import jax
import jax.numpy as jnp

from vidjax.models import c3d, inception3d, p3d, resnet3d, timesformer, uniformer, videomae, vit, vivit

FAMILIES = (vit, vivit, timesformer, uniformer, resnet3d, c3d, inception3d, p3d, videomae)

VARIANTS = MappingProxyType({name: make for family in FAMILIES for name, make in family.VARIANTS.items()})

# Every module that is a whole model, as checkpoints name it.
MODULES = MappingProxyType(
    {f"{make.func.__module__.rsplit('.', 1)[-1]}.{make.func.__name__}": make.func for make in VARIANTS.values()}
)


def list_models(contains: str = "") -> list[str]:
    """Names that `create_model` knows, those containing `contains`, sorted."""
    return sorted(name for name in VARIANTS if contains in name)


def create_model(name: str, **overrides) -> nn.Module:
    """A model by its name; any of its fields can be given another value.

    Its card stays that of the published variant, accuracy and all, whatever the fields are.

    Example:
      >>> model = create_model("videomae_tiny", num_classes=8)

    Raises:
      ValueError: no such model (the nearest names are given), no such field, or a field of the wrong kind.
    """
    if name not in VARIANTS:
        nearest = difflib.get_close_matches(name, VARIANTS, n=3, cutoff=0.3) or list_models()
        raise ValueError(f"there is no model '{name}': the nearest names are {', '.join(nearest)}")
    check_fields(name, VARIANTS[name].func, overrides)
    return VARIANTS[name](**overrides)


def check_fields(name: str, module: type[nn.Module], overrides: dict[str, Any]) -> None:
    """Refuses what is no field of the module, or not of the kind that the field is declared as.

    Args:
      name: what the sentence calls the model.
    """
    fields = module.__dataclass_fields__
    for field, value in overrides.items():
        if field not in fields:
            known = ", ".join(field for field in fields if field not in ("parent", "name"))
            raise ValueError(f"model '{name}' has no field '{field}': its fields are {known}")
        kind = fields[field].type
        if not _is_of(value, kind):
            kind = kind.__name__ if isinstance(kind, type) else kind
            raise ValueError(f"{field} of model '{name}' is {value!r}: it must be {kind}")
        if isinstance(value, Integral) and kind is not float and not isinstance(value, bool) and value < 1:
            features = ", or None for features" if field == "num_classes" else ""
            raise ValueError(f"{field} of model '{name}' is {value}: it must be 1 or more{features}")


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a number, a truth value or a tuple of them is as declared; the models themselves see to the rest."""
    if get_origin(kind) in (Union, UnionType):
        return any(_is_of(value, one) for one in get_args(kind))
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        return isinstance(value, tuple | list) and len(value) == len(kinds) and all(map(_is_of, value, kinds))
    if kind in (int, float):
        return isinstance(value, Integral if kind is int else Real) and not isinstance(value, bool)
    return isinstance(value, kind) if kind in (bool, NoneType) else True


def example_inputs(model: nn.Module) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shapes of what the model is called with, for one clip of the size that its variant is meant for."""
    shape = (1, model.num_frames, model.image_size, model.image_size, model.channels)
    video = jax.ShapeDtypeStruct(shape, jnp.float32)
    return model.example_inputs(video) if hasattr(model, "example_inputs") else (video,)
