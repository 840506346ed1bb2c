"""GELU and its approximations, with custom derivatives that save only one array for the backward pass.

Equal `jax.nn.gelu(x, approximate=False)`, `jax.nn.gelu(x, approximate=True)` and `x * jax.nn.sigmoid(1.702 * x)`.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array


def _with_slope(function: Callable[[Array], Array], slope: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """An elementwise function with the given derivative, which saves one array of its dtype for the backward pass.

    This array is the derivative, or its input if XLA moves the computation into the backward pass. Autodiff saves up to
    four arrays. XLA also saves more when function and derivative have a common subexpression such as `erfc`, which it
    computes once and keeps; the derivatives below are therefore written with different primitives.
    """

    @jax.custom_jvp
    def activation(x: Array) -> Array:
        return function(x)

    @activation.defjvp
    def derivative(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
        wide = primals[0].astype(jnp.promote_types(primals[0].dtype, jnp.float32))
        return activation(*primals), slope(wide).astype(primals[0].dtype) * tangents[0]

    return jax.jit(activation)  # so that layers of equal shapes are traced once


def _exact_slope(x: Array) -> Array:
    return 0.5 * (1 + jax.lax.erf(x * 0.5**0.5)) + x * jnp.exp(-0.5 * x * x) * (2 * np.pi) ** -0.5


def _tanh_slope(x: Array) -> Array:
    factor = (8 / np.pi) ** 0.5
    gate = jax.nn.sigmoid(factor * (x + 0.044715 * x**3))
    return gate + x * gate * (1 - gate) * factor * (1 + 3 * 0.044715 * x * x)


def _quick_slope(x: Array) -> Array:
    gate = 0.5 * (1 + jnp.tanh(0.851 * x))
    return gate + x * gate * (1 - gate) * 1.702


exact_gelu = _with_slope(partial(jax.nn.gelu, approximate=False), _exact_slope)  # PyTorch's default
tanh_gelu = _with_slope(partial(jax.nn.gelu, approximate=True), _tanh_slope)  # Flax's default
quick_gelu = _with_slope(lambda x: x * jax.nn.sigmoid(1.702 * x), _quick_slope)  # used by OpenAI's CLIP
