"""Where a model looks: attention roll-out, the attention of single heads, class-activation maps.

They know no family. A model is called as it is, with some of its layers exchanged for the call (Linen's
`intercept_methods`), so that whatever a model rearranges around its attention is followed by its own code.
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float, Int

from vidjax.errors import UserError
from vidjax.layers.attention import DotProduct
from vidjax.layers.convolution import Conv3D, DepthwiseConv3D
from vidjax.layers.embedding import PatchEmbedding
from vidjax.layers.normalization import BatchNorm, LayerNorm
from vidjax.layers.patches import grid
from vidjax.layers.transformer import Mlp

Path = tuple[str, ...]
LEAST_ROWS = 7
"""Of the map that class activation looks at: what networks of 112 to 224 pixels end in."""


def attention_weights(
    model: nn.Module, variables: dict, video: Float[Array, "b t h w c"]
) -> dict[Path, Float[Array, "... _ _ _"]]:
    """The weights `*b k q n` of every dot product behind the pooled feature, by its path; none without attention."""
    _, state = _features(model, variables, video, mutable=["intermediates"])
    sown = flatten_dict(state.get("intermediates", {}))
    return {path[:-1]: weights for path, (weights,) in sown.items() if path[-1] == "weights"}


def rollout(model: nn.Module, variables: dict, video: Float[Array, "b t h w c"]) -> Float[Array, "b f y x"]:
    """Attention roll-out (Abnar and Zuidema 2020, arXiv:2005.00928): what the pooled feature is mixed from.

    Each attention is taken for its weights alone, averaged over the heads and then with the residual connection, half
    and half; norms do nothing, MLPs and position encodings add nothing. What is left of the model is linear in its
    tokens, and the roll-out is its derivative: in a plain transformer the paper's product of matrices, in divided or
    factorised attention what this product becomes there.

    UniFormer's tokens are those of its first embedding; the later ones average theirs, local blocks let them be. In its
    split blocks, whose residual connection passes attention over time by, weights may come out slightly negative: they
    are raised to zero.

    Returns:
      The share of every token of the grid (frames, rows, columns of patches). All shares and those of class tokens, if
      there are any, add up to one.

    Raises:
      UserError: there is no attention in the model.
    """
    weights = {path: w.mean(axis=-3) for path, w in attention_weights(model, variables, video).items()}
    if not weights:
        raise UserError(f"{type(model).__name__} has no attention to roll out: look at its class activation")
    pooled, tokens = _linear(model, variables, video, weights)
    return jnp.maximum(jax.grad(lambda tokens: pooled(tokens).mean(axis=-1).sum())(tokens), 0)


def head_maps(
    model: nn.Module, variables: dict, video: Float[Array, "b t h w c"], block: int = -1
) -> dict[str, Float[Array, "b _ f y x"]]:
    """How much attention each token gets from each head of one block.

    From the class token, where the attention is among tokens of which one is; else on average over all tokens. Divided
    and factorised attention gives a map for time and one for space; a model of several transformers (ViViT 2,
    UniFormer) some for the block of each. Where tokens stand for whole frames (the second transformer of ViViT 2), the
    attention to a frame is handed to its patches by the roll-out of what came before.

    Args:
      block: counted from the first (0) or the last (-1).

    Returns:
      For each attention, by its name in the model, the maps of all heads over the grid of tokens.

    Raises:
      UserError: there is no such block, or no attention in the model.
    """
    weights = attention_weights(model, variables, video)
    averaged = {path: w.mean(axis=-3) for path, w in weights.items()}
    maps = {}
    for path in _of_block(list(weights), block):
        # Without the others, a row is one token, or none: a class token. But for tokens made by attention.
        alone, mixed = (_handed_back(model, variables, video, path, weights[path], w) for w in ({}, averaged))
        maps["/".join(path)] = jnp.where(alone.any(), alone, mixed)
    return maps


def class_activation(
    model: nn.Module,
    variables: dict,
    video: Float[Array, "b t h w c"],
    target: int | Int[Array, "b"] | None = None,
    layer: str | None = None,
) -> Float[Array, "b f y x"]:
    """Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391) of a convolutional model: what speaks for a class, and where.

    The channels of a layer's feature map are weighted by the gradient of the class's logit, averaged over the cells,
    and added up. Of the last map before an average and a linear head this is the class-activation map of Zhou et al.
    (2016, arXiv:1512.04150), whose cells add up to the logit without its bias. Values below zero speak against the
    class; the paper cuts them off, here that is left to who paints.

    Args:
      target: the class; that of the highest logit where not given.
      layer: one of `map_layers`; the last with 7 rows and columns or more, where not given: of a small clip, the last
        map may be too coarse to show a place.

    Raises:
      UserError: the model has no classes, or no such layer.
    """
    layers = map_layers(model, variables, video)
    if getattr(model, "num_classes", None) is None or not layers:
        lack = "convolutional feature map" if not layers else "classes"
        raise UserError(
            f"{type(model).__name__} has no {lack}: class activation needs a classifier of convolutional feature maps"
        )
    if layer is None:
        fine = [name for name, shape in layers.items() if min(shape[2:4]) >= LEAST_ROWS]
        layer = fine[-1] if fine else max(layers, key=lambda name: min(layers[name][2:4]))
    if layer not in layers:
        raise UserError(f"there is no feature map '{layer}': choose one of {', '.join(layers)}")

    def score(change: Array) -> tuple[Array, Array]:
        seen = []

        def add(next_fun: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
            out = next_fun(*args, **kwargs)
            if context.method_name != "__call__" or context.module.path != (layer,):
                return out
            seen.append(out)
            return out + change.astype(out.dtype)

        with nn.intercept_methods(add):
            logits = model.apply(variables, video).astype(jnp.float32)
        chosen = logits.argmax(axis=-1) if target is None else jnp.broadcast_to(target, len(logits))
        return jnp.take_along_axis(logits, chosen[:, None], axis=-1).sum(), seen[0].astype(jnp.float32)

    gradient, features = jax.grad(score, has_aux=True)(jnp.zeros(layers[layer]))
    return (gradient.mean(axis=(1, 2, 3), keepdims=True) * features).sum(axis=-1)


def map_layers(model: nn.Module, variables: dict, video: Float[Array, "b t h w c"]) -> dict[str, tuple[int, ...]]:
    """The model's own layers that give feature maps, in order of computation, and the maps' shapes `b t h w d`."""
    found = {}

    def note(next_fun: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        out = next_fun(*args, **kwargs)
        if context.method_name == "__call__" and len(context.module.path) == 1 and getattr(out, "ndim", 0) == 5:
            found[context.module.path[0]] = out.shape
        return out

    with nn.intercept_methods(note):
        jax.eval_shape(lambda v, x: _features(model, v, x), variables, video)
    return found


def _features(model: nn.Module, variables: dict, video: Float[Array, "b t h w c"], **settings: Any) -> Any:
    """Pooled features `b d`; of an encoder that is trained without pooling, the mean token."""
    fields = type(model).__dataclass_fields__
    if "num_classes" in fields:
        headless = {"num_classes": None} | ({"head": None} if "head" in fields else {})
        return model.clone(**headless).apply(variables, video, **settings)
    out = model.apply(variables, video, method="encode", **settings)
    grid, *state = out if settings else (out,)
    mean = grid.reshape(len(grid), -1, grid.shape[-1]).mean(axis=1)
    return (mean, *state) if settings else mean


def _first_layer(model: nn.Module, variables: dict, video: Float[Array, "b t h w c"]) -> tuple[Path, tuple[int, ...]]:
    """The layer that makes tokens of pixels, by its path, and the shape `b f y x` of the grid of tokens."""
    found = []

    def note(next_fun: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        out, module = next_fun(*args, **kwargs), context.module
        if context.method_name == "__call__" and isinstance(module, PatchEmbedding):
            found.append((module.path, (len(video), *grid(video.shape[1:4], model.patch_size))))
        elif context.method_name == "__call__" and isinstance(module, Conv3D):
            found.append((module.path, out.shape[:4]))
        return out

    with nn.intercept_methods(note):
        jax.eval_shape(lambda v, x: _features(model, v, x), variables, video)
    return found[0]


def _linear(
    model: nn.Module,
    variables: dict,
    video: Float[Array, "b t h w c"],
    weights: dict[Path, Float[Array, "... _ _"]],
    at: Path | None = None,
) -> tuple[Callable[[Float[Array, "b f y x"]], Array], Float[Array, "b f y x"]]:
    """The model as `rollout` sees it, a function of what stands in the place of each token, and zeros to give it.

    Channels stand for nothing here: those that come in are equal, and linear maps average them, as the roll-out does
    heads. Attention without weights adds nothing.

    Args:
      weights: `*b q n`, averaged over the heads.
      at: a dot product; the function then gives what this is given as values, `*b n`, instead of the pooled feature.
    """
    first, shape = _first_layer(model, variables, video)
    attending = {path[:-1] for path in weights}

    def run(tokens: Array) -> Array:
        values = []

        def exchange(next_fun: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
            module, x = context.module, (*args, None)[0]
            if context.method_name != "__call__":
                return next_fun(*args, **kwargs)
            if module.path == first:
                out = next_fun(*args, **kwargs)
                return jnp.broadcast_to(tokens.reshape(*out.shape[:-1], 1), out.shape)
            if isinstance(module, nn.LayerNorm | LayerNorm | BatchNorm):
                return x
            if isinstance(module, Mlp | DepthwiseConv3D):
                return jnp.zeros_like(x)
            if isinstance(module, nn.Dense):  # of the same width: a projection; of another: part of an MLP
                mean = x.mean(axis=-1, keepdims=True) * (module.features == x.shape[-1])
                return jnp.broadcast_to(mean, (*x.shape[:-1], module.features))
            if isinstance(module, Conv3D):  # an embedding between two stages of UniFormer
                sides = [(cells, cells) for cells in module.padding]
                mean = x.mean(axis=-1, keepdims=True)
                mean = nn.avg_pool(mean, module.kernel_size, module.strides, sides, count_include_pad=False)
                return jnp.broadcast_to(mean, (*mean.shape[:-1], module.features))
            if isinstance(module, DotProduct):
                value = args[2]
                if module.path == at:
                    values.append(value.mean(axis=(-2, -1)))
                if module.path not in weights:
                    return jnp.zeros_like(value)
                return jnp.einsum("...qn,...nkd->...qkd", weights[module.path], value)
            out = next_fun(*args, **kwargs)
            return (out - x) / 2 if module.path in attending else out  # the model adds x

        with nn.intercept_methods(exchange):
            pooled = _features(model, variables, video)
        return pooled if at is None else values[0]

    return run, jnp.zeros(shape)


def _handed_back(
    model: nn.Module,
    variables: dict,
    video: Float[Array, "b t h w c"],
    path: Path,
    weights: Float[Array, "*b k q n"],
    others: dict[Path, Float[Array, "... _ _"]],
) -> Float[Array, "b k f y x"]:
    """The attention that the tokens get from each head of one dot product, by the class token or else on average.

    Args:
      others: weights `*b q n` of the attention that the tokens have gone through before.
    """
    values, tokens = _linear(model, variables, video, others, at=path)
    _, of_patches = jax.jvp(values, (tokens,), (jnp.ones_like(tokens),))
    is_class = of_patches == 0  # nothing of any patch is in it
    asking = (is_class | ~is_class.any(axis=-1, keepdims=True)).astype(weights.dtype)
    asking /= asking.sum(axis=-1, keepdims=True)
    received = jnp.einsum("...kqn,...q->k...n", weights, asking)
    _, back = jax.vjp(values, tokens)
    return jnp.moveaxis(jax.vmap(lambda one: back(one)[0])(received), 0, 1)


def _of_block(paths: list[Path], block: int) -> list[Path]:
    """Of each transformer, the dot products of one of its blocks.

    Raises:
      UserError: none has it.
    """
    stacks: dict[tuple[Path, Path], dict[int, Path]] = {}
    for path in paths:
        at = next(i for i, name in enumerate(path) if name.startswith("block_"))
        stacks.setdefault((path[:at], path[at + 1 :]), {})[int(path[at].removeprefix("block_"))] = path
    depth = max(map(len, stacks.values()), default=0)
    if not -depth <= block < depth:
        raise UserError(
            f"there is no block {block} with attention: there are {depth} to choose from, counted from 0, "
            "or from -1 backwards"
        )
    return [stack[sorted(stack)[block]] for stack in stacks.values() if -len(stack) <= block < len(stack)]
