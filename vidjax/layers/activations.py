"""The GELU variants of the published models: exact, tanh approximation, and the sigmoid approximation of CLIP."""

from types import MappingProxyType
from typing import Literal

from vidjax.kernels.activations import exact_gelu, quick_gelu, tanh_gelu

__all__ = ["ACTIVATIONS", "Activation", "exact_gelu", "quick_gelu", "tanh_gelu"]

Activation = Literal["quick_gelu", "gelu"]
ACTIVATIONS = MappingProxyType({"quick_gelu": quick_gelu, "gelu": exact_gelu})
