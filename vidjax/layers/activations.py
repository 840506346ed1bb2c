"""Activations of the published models: ReLU, and GELU: exact, by a tanh, and by CLIP's sigmoid."""

from types import MappingProxyType
from typing import Literal

import jax

from vidjax.kernels.activations import exact_gelu, quick_gelu, tanh_gelu

__all__ = ["ACTIVATIONS", "Activation", "exact_gelu", "quick_gelu", "tanh_gelu"]

Activation = Literal["quick_gelu", "gelu", "tanh_gelu", "relu"]
ACTIVATIONS = MappingProxyType(
    {"quick_gelu": quick_gelu, "gelu": exact_gelu, "tanh_gelu": tanh_gelu, "relu": jax.nn.relu}
)
