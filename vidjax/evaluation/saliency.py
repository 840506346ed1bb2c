"""Saliency maps: attention roll-out, attention maps of single heads, class-activation maps.

They work for any model of the library. The model itself is called, with some of its layers replaced during the call
(Linen's `intercept_methods`), so that rearrangements of tokens around the attention are taken into account.
"""

import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict
from jaxtyping import Array, Float, Int

from vidjax.errors import UserError
from vidjax.layers.adapters import Bottleneck
from vidjax.layers.attention import GridDotProduct
from vidjax.layers.convolution import Conv3D, DepthwiseConv3D, MaxPool
from vidjax.layers.embedding import PatchEmbedding
from vidjax.layers.normalization import BatchNorm, LayerNorm
from vidjax.layers.patches import grid
from vidjax.layers.transformer import Mlp

Path = tuple[str, ...]
LEAST_ROWS = 7
"""Minimum height and width of the default feature map of `class_activation`: that of networks for 112 to 224 pixels."""


def attention_weights(
    model: nn.Module, variables: dict, video: Float[Array, "b t h w c"]
) -> dict[Path, Float[Array, "... _ _ _"]]:
    """The attention weights `*b k q n` of every dot product that the pooled feature depends on, by module path."""
    return _sown(model, variables, video, "weights")


def _sown(model: nn.Module, variables: dict, video: Float[Array, "b t h w c"], name: str) -> dict[Path, Array]:
    """What the modules that the pooled feature depends on sow under a name, by module path."""
    _, state = _features(model, variables, video, mutable=["intermediates"])
    flat = flatten_dict(state.get("intermediates", {}))
    sown = {path[:-1]: values for path, values in flat.items() if path[-1] == name}
    if twice := [path for path, values in sown.items() if len(values) > 1]:
        raise UserError(
            f"{'/'.join(twice[0])} is called twice, over time and over space (AIM): its attention cannot be shown"
        )
    return {path: value for path, (value,) in sown.items()}


def rollout(model: nn.Module, variables: dict, video: Float[Array, "b t h w c"]) -> Float[Array, "b f y x"]:
    """Attention roll-out (Abnar and Zuidema 2020, arXiv:2005.00928): contribution of each token to the pooled feature.

    Each attention layer is reduced to its weights, averaged over the heads and then equally with the residual
    connection; norms are the identity, MLPs and position encodings are zero. The resulting model is linear in its
    tokens, and the roll-out is its derivative: the paper's product of matrices in a plain transformer, and the
    corresponding product for divided or factorised attention.

    For UniFormer, Video Swin and MViT, tokens are those of the first embedding; later embeddings, mergings and pools
    average them, and local blocks are the identity. In UniFormer's split blocks, where the residual connection bypasses
    attention over time, weights can be slightly negative and are clipped to zero. The queries that MViTv2 adds to the
    attended values are left out.

    Returns:
      The contribution of every token of the grid (frames, rows and columns of patches). Together with those of class
      tokens, if any, they sum to one.

    Raises:
      UserError: the model has no attention.
    """
    weights = {path: w.mean(axis=-3) for path, w in attention_weights(model, variables, video).items()}
    if not weights:
        raise UserError(f"{type(model).__name__} has no attention to roll out: use class activation instead")
    pooled, tokens = _linear(model, variables, video, weights)
    return jnp.maximum(jax.grad(lambda tokens: pooled(tokens).mean(axis=-1).sum())(tokens), 0)


def head_maps(
    model: nn.Module, variables: dict, video: Float[Array, "b t h w c"], block: int = -1
) -> dict[str, Float[Array, "b _ f y x"]]:
    """The attention that each token receives from each head of one block.

    It is the attention of the class token if it takes part, otherwise the average over all tokens. Divided and
    factorised attention give one map for time and one for space; models with several transformers (ViViT 2, UniFormer)
    give maps for a block of each. If tokens represent whole frames (the temporal transformer of ViViT 2), the attention
    to a frame is distributed over its patches by the roll-out of the preceding layers.

    Args:
      block: index of the block; negative indices count from the last.

    Returns:
      For each attention layer, by its path in the model, the maps of all heads over the grid of tokens.

    Raises:
      UserError: the model has no such block, or no attention.
    """
    weights = attention_weights(model, variables, video)
    averaged = {path: w.mean(axis=-3) for path, w in weights.items()}
    maps = {}
    for path in _of_block(list(weights), block):
        # Without other attention layers, each row is a single patch or, for class tokens, empty. All rows are empty if
        # the tokens are themselves outputs of attention; then they are traced back through the other layers.
        direct, traced = (_trace_back(model, variables, video, path, weights[path], w) for w in ({}, averaged))
        maps["/".join(path)] = jnp.where(direct.any(), direct, traced)
    return maps


def class_activation(
    model: nn.Module,
    variables: dict,
    video: Float[Array, "b t h w c"],
    target: int | Int[Array, "b"] | None = None,
    layer: str | None = None,
) -> Float[Array, "b f y x"]:
    """Grad-CAM (Selvaraju et al. 2017, arXiv:1610.02391) of a convolutional model: evidence for a class by position.

    The channels of a layer's feature map are weighted by the gradient of the class's logit, averaged over the
    positions, and summed. For the last feature map before average pooling and a linear head, this is the
    class-activation map of Zhou et al. (2016, arXiv:1512.04150), which sums to the logit without its bias. Negative
    values are evidence against the class; the paper clips them, here this is left to the visualisation.

    Args:
      target: the class; by default the one with the highest logit.
      layer: one of `map_layers`; by default the last with at least 7 rows and columns, because the last map of a small
        clip may be too coarse.

    Raises:
      UserError: the model has no classes, no feature maps or no such layer.
    """
    layers = map_layers(model, variables, video)
    if getattr(model, "num_classes", None) is None or not layers:
        missing = "convolutional feature map" if not layers else "classes"
        raise UserError(
            f"{type(model).__name__} has no {missing}: class activation needs a classifier with convolutional features"
        )
    if layer is None:
        fine = [name for name, shape in layers.items() if min(shape[2:4]) >= LEAST_ROWS]
        layer = fine[-1] if fine else max(layers, key=lambda name: min(layers[name][2:4]))
    if layer not in layers:
        raise UserError(f"there is no feature map '{layer}': choose one of {', '.join(layers)}")

    def score(change: Array) -> tuple[Array, Array]:
        outputs = []

        def add(next_fun: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
            out = next_fun(*args, **kwargs)
            if context.method_name != "__call__" or context.module.path != (layer,):
                return out
            outputs.append(out)
            return out + change.astype(out.dtype)

        with nn.intercept_methods(add):
            logits = model.apply(variables, video).astype(jnp.float32)
        chosen = logits.argmax(axis=-1) if target is None else jnp.broadcast_to(target, len(logits))
        return jnp.take_along_axis(logits, chosen[:, None], axis=-1).sum(), outputs[0].astype(jnp.float32)

    gradient, features = jax.grad(score, has_aux=True)(jnp.zeros(layers[layer]))
    return (gradient.mean(axis=(1, 2, 3), keepdims=True) * features).sum(axis=-1)


def map_layers(model: nn.Module, variables: dict, video: Float[Array, "b t h w c"]) -> dict[str, tuple[int, ...]]:
    """The model's top-level layers that return feature maps, in order of computation, with shapes `b t h w d`."""
    layers = {}

    def record(next_fun: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        out = next_fun(*args, **kwargs)
        if context.method_name == "__call__" and len(context.module.path) == 1 and getattr(out, "ndim", 0) == 5:
            layers[context.module.path[0]] = out.shape
        return out

    with nn.intercept_methods(record):
        jax.eval_shape(lambda v, x: _features(model, v, x), variables, video)
    return layers


def _features(model: nn.Module, variables: dict, video: Float[Array, "b t h w c"], **settings: Any) -> Any:
    """Pooled features `b d`; the mean token of an encoder without pooling."""
    fields = type(model).__dataclass_fields__
    if "num_classes" in fields:
        headless = {"num_classes": None} | ({"head": None} if "head" in fields else {})
        return model.clone(**headless).apply(variables, video, **settings)
    out = model.apply(variables, video, method="encode", **settings)
    grid, *state = out if settings else (out,)
    mean = grid.reshape(len(grid), -1, grid.shape[-1]).mean(axis=1)
    return (mean, *state) if settings else mean


def _first_layer(model: nn.Module, variables: dict, video: Float[Array, "b t h w c"]) -> tuple[Path, tuple[int, ...]]:
    """The path of the layer that embeds pixels as tokens, and the shape `b f y x` of the grid of tokens."""
    layers = []

    def record(next_fun: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        out, module = next_fun(*args, **kwargs), context.module
        if context.method_name == "__call__" and isinstance(module, PatchEmbedding):
            layers.append((module.path, (len(video), *grid(video.shape[1:4], model.patch_size))))
        elif context.method_name == "__call__" and isinstance(module, Conv3D):
            layers.append((module.path, out.shape[:4]))
        return out

    with nn.intercept_methods(record):
        jax.eval_shape(lambda v, x: _features(model, v, x), variables, video)
    return layers[0]


def _linear(
    model: nn.Module,
    variables: dict,
    video: Float[Array, "b t h w c"],
    weights: dict[Path, Float[Array, "... _ _"]],
    at: Path | None = None,
) -> tuple[Callable[[Float[Array, "b f y x"]], Array], Float[Array, "b f y x"]]:
    """The linearised model of `rollout` as a function of one value per token, and zeros of its input's shape.

    All channels of a token have the same value; linear layers average them, as the roll-out averages heads. Attention
    layers without weights return zero.

    Args:
      weights: attention weights `*b q n`, averaged over the heads.
      at: path of a dot product whose input, the queries `*b q` and values `*b n`, is returned instead of the pooled
        feature.
    """
    first, shape = _first_layer(model, variables, video)
    sown, kept = (_sown(model, variables, video, name) for name in ("weights", "kept"))
    pooling, attending = ({path[:-1] for path in paths} for paths in (sown, weights))

    def run(tokens: Array) -> Any:
        inputs, halved = [], set()

        def attend(module: nn.Module, query: Array, _: Array, value: Array, *more: Any) -> Any:
            if module.path == at:
                inputs.append((query.mean(axis=(-2, -1)), value.mean(axis=(-2, -1))))
            rows = weights.get(module.path, jnp.zeros(sown[module.path].mean(axis=-3).shape))
            out = jnp.einsum("...qn,...nkd->...qkd", rows, value)
            if isinstance(module, GridDotProduct):  # to which the model adds the queries of places
                before = value.shape[-3] - math.prod(term.shape[-1] for term in more[0])
                out = out - query.at[..., :before, :, :].set(0)
            return (out, kept[module.path]) if module.path in kept else out

        def linearise(next_fun: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
            module, x = context.module, (*args, None)[0]
            if context.method_name != "__call__":
                return next_fun(*args, **kwargs)
            if module.path == first:
                out = next_fun(*args, **kwargs)
                return jnp.broadcast_to(tokens.reshape(*out.shape[:-1], 1), out.shape)
            if isinstance(module, nn.LayerNorm | LayerNorm | BatchNorm):
                return x
            if isinstance(module, nn.Dense):
                in_mlp = module.name in ("fc1", "fc2")
                mean = x.mean(axis=-1, keepdims=True) * (not in_mlp)
                return jnp.broadcast_to(mean, (*x.shape[:-1], module.features))
            if isinstance(module, Conv3D):  # an embedding between two UniFormer stages
                mean = _average(module, x.mean(axis=-1, keepdims=True))
                return jnp.broadcast_to(mean, (*mean.shape[:-1], module.features))
            if isinstance(module, MaxPool) or (isinstance(module, DepthwiseConv3D) and module.path[:-1] in pooling):
                return _average(module, x)
            if isinstance(module, Mlp | Bottleneck | DepthwiseConv3D):
                return jnp.zeros_like(x)
            if module.path in sown:
                return attend(module, *args)
            out = next_fun(*args, **kwargs)
            if module.path in attending and getattr(out, "shape", None) == x.shape:
                return (out - x) / 2  # the model adds x
            if module.path in attending:  # it adds what is left of x: both are halved at the end of the block
                halved.add(module.path[:-1])
            return out / 2 if module.path in halved else out

        with nn.intercept_methods(linearise):
            pooled = _features(model, variables, video)
        return pooled if at is None else inputs[0]

    return run, jnp.zeros(shape)


def _average(layer: Conv3D | DepthwiseConv3D | MaxPool, x: Float[Array, "b t h w c"]) -> Float[Array, "b _ _ _ c"]:
    """The mean of the cells that the layer sees."""
    padding = layer.padding or [size // 2 for size in layer.kernel_size]
    sides = [(cells, cells) for cells in padding]
    return nn.avg_pool(x, layer.kernel_size, layer.strides, sides, count_include_pad=False)


def _trace_back(
    model: nn.Module,
    variables: dict,
    video: Float[Array, "b t h w c"],
    path: Path,
    weights: Float[Array, "*b k q n"],
    others: dict[Path, Float[Array, "... _ _"]],
) -> Float[Array, "b k f y x"]:
    """The attention that tokens receive from each head of one dot product, by the class token or on average.

    Args:
      others: weights `*b q n` of the preceding attention layers.
    """
    inputs, tokens = _linear(model, variables, video, others, at=path)
    _, (from_patches, _) = jax.jvp(inputs, (tokens,), (jnp.ones_like(tokens),))
    is_class = from_patches == 0  # it depends on no patch
    if is_class.shape[-1] != weights.shape[-2]:  # some queries are dropped, and none of them is a class token
        is_class = jnp.zeros((*is_class.shape[:-1], weights.shape[-2]), bool)
    queries = (is_class | ~is_class.any(axis=-1, keepdims=True)).astype(weights.dtype)
    queries /= queries.sum(axis=-1, keepdims=True)
    received = jnp.einsum("...kqn,...q->k...n", weights, queries)
    _, back = jax.vjp(lambda tokens: inputs(tokens)[1], tokens)
    return jnp.moveaxis(jax.vmap(lambda one: back(one)[0])(received), 0, 1)


def _of_block(paths: list[Path], block: int) -> list[Path]:
    """The paths of the dot products in the given block of each transformer.

    Raises:
      UserError: no transformer has this block.
    """
    stacks: dict[tuple[Path, Path], dict[int, Path]] = {}
    for path in paths:
        at = next((i for i, name in enumerate(path) if name.startswith("block_")), None)
        if at is None:  # a pooling of tokens after the blocks
            continue
        stacks.setdefault((path[:at], path[at + 1 :]), {})[int(path[at].removeprefix("block_"))] = path
    depth = max(map(len, stacks.values()), default=0)
    if not -depth <= block < depth:
        raise UserError(
            f"there is no block {block} with attention: choose one of the {depth} blocks, counted from 0, "
            "or from -1 backwards"
        )
    return [stack[sorted(stack)[block]] for stack in stacks.values() if -len(stack) <= block < len(stack)]
