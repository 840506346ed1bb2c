"""The model families. A family is one file; this is the one list of them."""

import difflib
from types import MappingProxyType

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

    Example:
      >>> model = create_model("videomae_tiny", num_classes=8)

    Raises:
      ValueError: no such model (the nearest names are given), or no such field.
    """
    if name not in VARIANTS:
        nearest = difflib.get_close_matches(name, VARIANTS, n=3, cutoff=0.3) or list_models()
        raise ValueError(f"there is no model '{name}': the nearest names are {', '.join(nearest)}")
    fields = VARIANTS[name].func.__dataclass_fields__
    if unknown := [field for field in overrides if field not in fields]:
        known = ", ".join(field for field in fields if field not in ("parent", "name"))
        raise ValueError(f"model '{name}' has no field '{unknown[0]}': its fields are {known}")
    return VARIANTS[name](**overrides)


def example_inputs(model: nn.Module) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Shapes of what the model is called with, for one clip of the size that its variant is meant for."""
    shape = (1, model.num_frames, model.image_size, model.image_size, model.channels)
    video = jax.ShapeDtypeStruct(shape, jnp.float32)
    return model.example_inputs(video) if hasattr(model, "example_inputs") else (video,)
