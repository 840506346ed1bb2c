"""The non-local block (Wang et al. 2018, arXiv:1711.07971): every place of a clip sees every other.

    y_i = sum_j f(x_i, x_j) g(x_j),    output = x + norm(out(y))

The affinity f of a place i (query) and a place j (key) is one of four, with 1x1x1 convolutions theta and phi:
  embedded_gaussian  softmax over j of theta(x_i) . phi(x_j)
  gaussian           softmax over j of x_i . x_j
  dot_product        theta(x_i) . phi(x_j), divided by the number of keys
  concatenation      relu(w . [theta(x_i), phi(x_j)]), divided by the number of keys

The published forms differ. facebookresearch/SlowFast halves the keys' height and width before their convolutions, has a
bias in all four convolutions and batch norm after the last, and scales the embedded Gaussian by 1 / sqrt(width). mmcv
halves after the convolutions (as written in the paper), has no bias in the last convolution if a norm follows, and
the scale is an option. The paper's own has no scale and no norm.
"""

from functools import partial
from typing import Literal

import einops
import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from vidjax.errors import UserError
from vidjax.kernels import attention
from vidjax.layers.convolution import Conv3D, kaiming_normal
from vidjax.layers.normalization import BatchNorm

Affinity = Literal["embedded_gaussian", "gaussian", "dot_product", "concatenation"]


def halve(x: Float[Array, "b t h w c"]) -> Float[Array, "b t _ _ c"]:
    """The maximum of each 2x2 places; an axis of one place stays as it is."""
    window = (1, *(min(side, 2) for side in x.shape[2:4]))
    return nn.max_pool(x, window, window)


class NonLocal(nn.Module):
    """A residual branch that attends over time and space; the output has the shape of the input.

    Attributes:
      affinity: see above.
      width: channels of theta, phi and g; half of the input's by default.
      pool: halves the height and width of the keys `before` their convolutions (SlowFast) or `after` (mmcv).
      scale: divides the scores of the embedded Gaussian by the root of the width.
      norm: batch norm after the last convolution.
      out_bias: whether the last convolution has a bias; theta, phi and g always have one.
      groups: blocks of consecutive frames; places see only those of their own block.
    """

    affinity: Affinity = "embedded_gaussian"
    width: int | None = None
    pool: Literal["before", "after"] | None = None
    scale: bool = True
    norm: bool = True
    out_bias: bool = True
    groups: int = 1
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Float[Array, "b t h w c"], train: bool) -> Float[Array, "b t h w c"]:
        """The block starts as the identity: the last scale, or without a norm the last kernel, is zero at first.

        Raises:
          UserError: an unknown affinity, or frames that cannot be cut into the groups.
        """
        frames, height, width = x.shape[1:4]
        if self.affinity not in ("embedded_gaussian", "gaussian", "dot_product", "concatenation"):
            raise UserError(
                f"affinity is '{self.affinity}': choose embedded_gaussian, gaussian, dot_product or concatenation"
            )
        if frames % self.groups:
            raise UserError(
                f"{frames} frames cannot be cut into {self.groups} groups before a non-local block: "
                f"use a multiple of {self.groups} there"
            )
        conv = partial(
            Conv3D, kernel_size=(1, 1, 1), use_bias=True, bias_init=nn.initializers.zeros_init(), dtype=self.dtype
        )
        inner = partial(conv, self.width or x.shape[-1] // 2, kernel_init=kaiming_normal)

        def of_keys(name: str) -> Array:
            if self.pool == "before":
                return inner(name=name)(halve(x))
            return halve(inner(name=name)(x)) if self.pool == "after" else inner(name=name)(x)

        if self.affinity == "gaussian":
            theta, phi = x, halve(x) if self.pool else x
        else:
            theta, phi = inner(name="theta")(x), of_keys("phi")
        values = of_keys("g")
        theta, phi, values = (
            einops.rearrange(y, "b (s t) h w c -> (b s) (t h w) c", s=self.groups) for y in (theta, phi, values)
        )
        y = self.attend(theta, phi, values)
        y = einops.rearrange(y, "(b s) (t h w) c -> b (s t) h w c", s=self.groups, h=height, w=width)
        out_init = kaiming_normal if self.norm else nn.initializers.zeros_init()
        y = conv(x.shape[-1], use_bias=self.out_bias, kernel_init=out_init, name="out")(y)
        if self.norm:
            zeros = nn.initializers.zeros_init()
            y = BatchNorm(use_running_average=not train, scale_init=zeros, dtype=self.dtype, name="norm")(y)
        return x + y

    def attend(
        self, theta: Float[Array, "b q d"], phi: Float[Array, "b n d"], values: Float[Array, "b n e"]
    ) -> Float[Array, "b q e"]:
        """The sum of the values, weighted by their affinity to each query."""
        if self.affinity == "embedded_gaussian":  # memory-lean
            theta = theta if self.scale else theta * theta.shape[-1] ** 0.5
            one_head = (y[..., None, :] for y in (theta, phi, values))
            return attention.attend(*one_head)[..., 0, :]
        if self.affinity == "concatenation":
            pair = self.param("pair", kaiming_normal, (theta.shape[-1] + phi.shape[-1], 1))
            theta, phi, pair = nn.dtypes.promote_dtype(theta, phi, pair, dtype=self.dtype)
            of_theta, of_phi = jnp.split(pair, [theta.shape[-1]])
            weights = nn.relu(theta @ of_theta + jnp.swapaxes(phi @ of_phi, 1, 2)) / phi.shape[1]
        else:
            scores = jnp.einsum("bqd,bnd->bqn", theta, phi, preferred_element_type=jnp.float32)
            weights = jax.nn.softmax(scores) if self.affinity == "gaussian" else scores / phi.shape[1]
        return jnp.einsum("bqn,bne->bqe", weights.astype(values.dtype), values)
