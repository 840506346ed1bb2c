"""Recurrent layers with PyTorch's gates, parameters and initialisation: LSTM and GRU over time.

Gates are columns of the kernels, in PyTorch's order. The projection of all inputs is one matrix product before the scan
over time. States are float32 or higher for inputs of any dtype.
"""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from vidjax.layers.convolution import pytorch_bias


def _scan(
    step: Callable, state: PyTree[Float[Array, "b h"]], projected: Float[Array, "b t g"]
) -> tuple[PyTree[Float[Array, "b h"]], Float[Array, "b t h"]]:
    """The last state, and the outputs of all times."""
    state, outputs = jax.lax.scan(step, state, jnp.swapaxes(projected, 0, 1))
    return state, jnp.swapaxes(outputs, 0, 1)


class LSTM(nn.Module):
    """Long short-term memory (Hochreiter and Schmidhuber 1997), with forget gates (Gers et al. 2000).

    Gates are input, forget, cell and output. PyTorch has two biases, of which only the sum matters.

    Attributes:
      features: width of the hidden and of the cell state.
      state_bias: whether there is the second bias; Caffe has only the first.
    """

    features: int
    state_bias: bool = True

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t c"], state: tuple[Float[Array, "b h"], Float[Array, "b h"]] | None = None
    ) -> tuple[Float[Array, "b t h"], tuple[Float[Array, "b h"], Float[Array, "b h"]]]:
        """The hidden states of all times, and the last hidden and cell state.

        Args:
          state: hidden and cell state before the first time; zeros by default.
        """
        width = self.features
        uniform = pytorch_bias(width)  # of all parameters: U(+-1/sqrt(features))
        input_kernel = self.param("input_kernel", uniform, (x.shape[-1], 4 * width))
        state_kernel = self.param("state_kernel", uniform, (width, 4 * width))
        bias = self.param("input_bias", uniform, (4 * width,))
        bias = bias + self.param("state_bias", uniform, (4 * width,)) if self.state_bias else bias

        def step(state: tuple[Array, Array], projected: Float[Array, "b g"]) -> tuple[tuple[Array, Array], Array]:
            hidden, cell = state
            input_gate, forget_gate, candidate, output_gate = jnp.split(projected + hidden @ state_kernel, 4, axis=-1)
            cell = nn.sigmoid(forget_gate) * cell + nn.sigmoid(input_gate) * jnp.tanh(candidate)
            hidden = nn.sigmoid(output_gate) * jnp.tanh(cell)
            return (hidden, cell), hidden

        projected = x.astype(jnp.promote_types(x.dtype, jnp.float32)) @ input_kernel + bias
        zeros = jnp.zeros((len(x), width), projected.dtype)
        state, hidden = _scan(step, (zeros, zeros) if state is None else state, projected)
        return hidden, state


class GRU(nn.Module):
    """Gated recurrent unit (Cho et al. 2014, arXiv:1406.1078), as in PyTorch and cuDNN.

    Gates are reset, update and new. The state's bias of the new gate is inside the product with the reset gate, so that
    the two biases are not interchangeable.

    Attributes:
      features: width of the state.
    """

    features: int

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t c"], state: Float[Array, "b h"] | None = None
    ) -> tuple[Float[Array, "b t h"], Float[Array, "b h"]]:
        """The states of all times, and the last one.

        Args:
          state: before the first time; zeros by default.
        """
        width = self.features
        uniform = pytorch_bias(width)  # of all parameters: U(+-1/sqrt(features))
        input_kernel = self.param("input_kernel", uniform, (x.shape[-1], 3 * width))
        state_kernel = self.param("state_kernel", uniform, (width, 3 * width))
        input_bias, state_bias = (self.param(name, uniform, (3 * width,)) for name in ("input_bias", "state_bias"))

        def step(state: Float[Array, "b h"], projected: Float[Array, "b g"]) -> tuple[Array, Array]:
            split = partial(jnp.split, indices_or_sections=3, axis=-1)
            (reset, update, new), (own_reset, own_update, own_new) = (
                split(projected),
                split(state @ state_kernel + state_bias),
            )
            update = nn.sigmoid(update + own_update)
            new = jnp.tanh(new + nn.sigmoid(reset + own_reset) * own_new)
            state = (1 - update) * new + update * state
            return state, state

        projected = x.astype(jnp.promote_types(x.dtype, jnp.float32)) @ input_kernel + input_bias
        state = jnp.zeros((len(x), width), projected.dtype) if state is None else state
        state, states = _scan(step, state, projected)
        return states, state
