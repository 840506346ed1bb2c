"""Small modules that are trained inside the blocks of a frozen transformer, and the blocks' branches with them.

All but the prompts start as the identity, so that an adapted model starts as its base. Their parameters are under names
that begin with, or end in, `adapter`, or begin with `prompt`.

  adapter: Houlsby et al. 2019 (arXiv:1902.00751), a residual bottleneck after attention and another after the MLP.
  adaptformer: Chen et al. 2022 (arXiv:2205.13535; ShoufaChen/AdaptFormer), a bottleneck beside the MLP.
  st_adapter: Pan et al. 2022 (arXiv:2206.13559; linziyi96/st-adapter), a bottleneck with a convolution over time before
    the MLP, or also before attention; for image towers.
  aim: Yang et al. 2023 (arXiv:2302.03024; taoyang1122/adapt-image-models), the block's own attention over time before
    that over space, with adapters after both and beside the MLP; for image towers, with trained positions in time.
  prompt: Jia et al. 2022 (arXiv:2203.12119; KMnP/vpt), trained tokens beside those of the patches, before each block or
    only before the first; see `transformer.Encoder`.

Pitfalls, all as in the original code: AdaptFormer's bottleneck reads the tokens before the norm, AIM's beside the MLP
those after it; ST-Adapter has no activation, leaves the class token as it is, and is the identity because of its
convolution; drop path does not act on AdaptFormer's bottleneck, and in AIM acts only on what was added over time and
beside the MLP. The originals train no norms but AIM's of the head; Houlsby's trains all, `also` of `runs.adapting`. In
TimeSformer's blocks of two attentions, drop path acts before Houlsby's adapter, whose biases remain. Layer decay counts
the blocks that have trained parameters, so that with prompts before the first alone there is one.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

import einops
import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float

from vidjax.errors import UserError
from vidjax.layers.activations import exact_gelu
from vidjax.layers.convolution import DepthwiseConv3D, pytorch_kernel

Method = Literal["adapter", "adaptformer", "st_adapter", "aim", "prompt"]
METHODS: tuple[Method, ...] = get_args(Method)
Branch = Callable[[Array], Array]

ZEROS = nn.initializers.zeros_init()


@dataclass(frozen=True)
class Adapter:
    """What is added to the blocks of a model.

    Attributes:
      width: of the bottlenecks; the number of prompts.
      everywhere: ST-Adapter also before attention, prompts before each block instead of only before the first.
    """

    method: Method
    width: int
    everywhere: bool = False


def is_added(path: str) -> bool:
    """Whether a parameter belongs to an adapter or a prompt rather than to the model that they are added to."""
    names = path.split("/")
    return any(name.startswith(("adapter", "prompt_")) or name.endswith("_adapter") for name in names)


def require_method(adapter: Adapter | None, model: nn.Module, *methods: Method) -> None:
    """Checks that the adapter, if any, fits the model.

    Raises:
      UserError: it does not.
    """
    if adapter is not None and adapter.method not in methods:
        raise UserError(
            f"{adapter.method} does not fit this {type(model).__name__}: choose {' or '.join(methods)}"
            f"{', or an image tower such as vit_base_16' if adapter.method in ('st_adapter', 'aim') else ''}"
        )


class Bottleneck(nn.Module):
    """Two linear layers with an activation between them; zero at first."""

    width: int
    activation: Callable[[Array], Array] = exact_gelu

    @nn.compact
    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """The output has the shape and the type of `x`."""
        hidden = nn.Dense(self.width, kernel_init=pytorch_kernel, dtype=x.dtype, name="down")(x)
        return nn.Dense(x.shape[-1], kernel_init=ZEROS, dtype=x.dtype, name="up")(self.activation(hidden))


class OverTime(nn.Module):
    """ST-Adapter: a residual bottleneck with a depthwise convolution over three frames; the identity at first."""

    width: int

    @nn.compact
    def __call__(self, x: Float[Array, "bt n d"], frames: int) -> Float[Array, "bt n d"]:
        """The output has the shape of `x`: tokens of each frame, class token first; it does not change."""
        dense = partial(nn.Dense, kernel_init=pytorch_kernel, dtype=x.dtype)
        convolution = DepthwiseConv3D((3, 1, 1), kernel_init=ZEROS, bias_init=ZEROS, dtype=x.dtype, name="convolution")
        hidden = einops.rearrange(dense(self.width, name="down")(x[:, 1:]), "(b t) m c -> b t m 1 c", t=frames)
        hidden = einops.rearrange(convolution(hidden), "b t m 1 c -> (b t) m c")
        return x + jnp.pad(dense(x.shape[-1], name="up")(hidden), ((0, 0), (1, 0), (0, 0)))


def attention_branch(
    adapter: Adapter | None,
    x: Float[Array, "b *n d"],
    attend: Branch,
    drop: Branch,
    frames: int = 1,
    name: str = "attention",
) -> Float[Array, "b *n d"]:
    """The tokens after a residual branch of attention, to be called in a block's `__call__`.

    Args:
      attend: norm and attention, over the second to last axis of the tokens.
      drop: drop path.
      frames: of a clip; for image towers, whose first axis has the frames of all clips.
      name: of the adapter, before `_adapter`, in a block with several such branches.
    """
    if adapter is None or adapter.method in ("adaptformer", "prompt"):
        return x + drop(attend(x))
    if adapter.method == "st_adapter":
        x = OverTime(adapter.width, name=f"{name}_adapter")(x, frames) if adapter.everywhere else x
        return x + drop(attend(x))
    if adapter.method == "aim":
        over_time = attend(einops.rearrange(x, "(b t) n d -> b n t d", t=frames))
        over_time = einops.rearrange(over_time, "b n t d -> (b t) n d")
        x = x + drop(Bottleneck(adapter.width, name="time_adapter")(over_time))
        out = attend(x)
        return x + out + Bottleneck(adapter.width, name=f"{name}_adapter")(out)
    out = attend(x)
    return x + drop(out + Bottleneck(adapter.width, name=f"{name}_adapter")(out))


def mlp_branch(
    adapter: Adapter | None, x: Float[Array, "b *n d"], norm: Branch, mlp: Branch, drop: Branch, frames: int = 1
) -> Float[Array, "b *n d"]:
    """The tokens after the residual branch of the MLP; see `attention_branch`."""
    if adapter is None or adapter.method == "prompt":
        return x + drop(mlp(norm(x)))
    if adapter.method == "st_adapter":
        x = OverTime(adapter.width, name="mlp_adapter")(x, frames)
        return x + drop(mlp(norm(x)))
    bottleneck = partial(Bottleneck, adapter.width, name="mlp_adapter")
    if adapter.method == "adaptformer":
        return x + drop(mlp(norm(x))) + 0.1 * bottleneck(nn.relu)(x)
    if adapter.method == "aim":
        normed = norm(x)
        return x + mlp(normed) + drop(0.5 * bottleneck()(normed))
    out = mlp(norm(x))
    return x + drop(out + bottleneck()(out))
