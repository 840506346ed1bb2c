"""Optimisers with the schedules and rules of the published recipes, from a config."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import jax
import numpy as np
import optax
from jaxtyping import Array, PyTree

from vidjax.errors import UserError
from vidjax.fields import check_values


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW or SGD, linear warm-up, cosine decay or steps. Learning rates are for a batch of 256 and scaled by it."""

    kind: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or stochastic gradient descent with momentum."""
    learning_rate: float = 1.5e-4
    """Peak learning rate of a batch of 256; what is used is this times batch size / 256."""
    warmup_learning_rate: float = 1e-6
    """Learning rate at step 0, scaled likewise."""
    final_learning_rate: float = 1e-5
    """Learning rate at the last step of a cosine, scaled likewise."""
    warmup_epochs: float = 40.0
    """Epochs of linear warm-up."""
    milestones: tuple[float, ...] = ()
    """Epochs at which the learning rate falls to a tenth, instead of a cosine."""
    weight_decay: float = 0.05
    """Decoupled in AdamW, added to the gradient in SGD; not applied to biases, norms and tokens (one axis)."""
    beta1: float = 0.9
    """Decay of AdamW's first moment, or SGD's momentum."""
    beta2: float = 0.95
    """Decay of AdamW's second moment."""
    clip_norm: float | None = None
    """Clip the gradient to this global norm."""
    layer_decay: float = 1.0
    """Factor of the learning rate from each layer to the one before it, 1 = all alike."""

    def __post_init__(self) -> None:
        """Refuses values that cannot be meant."""
        check_values(self, "optim.")
        if self.learning_rate <= 0:
            raise UserError(f"optim.learning_rate is {self.learning_rate}: it must be above 0")
        if self.warmup_epochs < 0:
            raise UserError(f"optim.warmup_epochs is {self.warmup_epochs}: it must be 0 or more")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise UserError(f"optim.clip_norm is {self.clip_norm}: it must be above 0 (leave it out for none)")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"optim.{name} is {getattr(self, name)}: it must be at least 0 and below 1")
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"optim.layer_decay is {self.layer_decay}: it must be above 0 and at most 1")

    def schedule(self, batch_size: int, steps: int, steps_per_epoch: float) -> optax.Schedule:
        """Learning rate as a function of the step, for `steps` steps in all."""
        scale = batch_size / 256
        peak, first = self.learning_rate * scale, self.warmup_learning_rate * scale
        warmup = min(round(self.warmup_epochs * steps_per_epoch), max(steps - 1, 0))
        if self.milestones:
            at = {round(epoch * steps_per_epoch) - warmup: 0.1 for epoch in self.milestones}
            falling = optax.piecewise_constant_schedule(peak, at)
            return optax.join_schedules([optax.linear_schedule(first, peak, max(warmup, 1)), falling], [warmup])
        return optax.warmup_cosine_decay_schedule(
            first if warmup else peak, peak, warmup, max(steps, 1), self.final_learning_rate * scale
        )


def decays(params: PyTree[Array]) -> PyTree[bool]:
    """True for matrices and kernels; False for biases, norm scales and tokens, which have one axis longer than 1."""
    return jax.tree.map(lambda p: int(np.sum(np.array(p.shape) > 1)) > 1, params)


def make_optimizer(
    config: OptimizerConfig,
    schedule: optax.Schedule,
    trained: PyTree[bool] | None = None,
    factors: Mapping[str, float] = MappingProxyType({}),
) -> optax.GradientTransformation:
    """The optimiser of a config; steps whose gradient is not finite are skipped by `training.step`.

    Args:
      trained: False for parameters that stay as they are; all are trained when None.
      factors: of the learning rate of parameters whose path begins so, as in `{"video/temporal/": 10.0}`.
    """
    clip = optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)
    decay = optax.add_decayed_weights(config.weight_decay, mask=decays)
    if config.kind == "adamw":
        rule = optax.chain(optax.scale_by_adam(config.beta1, config.beta2), decay)
    else:
        rule = optax.chain(decay, optax.trace(config.beta1))
    tx = optax.chain(clip, rule, optax.scale_by_learning_rate(schedule))
    if trained is not None:
        kinds = jax.tree.map(lambda t: "trained" if t else "frozen", trained)
        tx = optax.partition({"trained": tx, "frozen": optax.set_to_zero()}, kinds)
    if config.layer_decay != 1:
        tx = optax.chain(tx, scale_by_layer(config.layer_decay))
    if any(factor != 1 for factor in factors.values()):
        tx = optax.chain(tx, scale_by_path(factors))
    return tx


def scale_by_layer(decay: float) -> optax.GradientTransformation:
    """Updates of layer i times `decay` to the power of the layers after it (ELECTRA; BEiT's layer-wise decay)."""

    def scale(updates: PyTree[Array], _: PyTree[Array] | None = None) -> PyTree[Array]:
        layers = layer_numbers(updates)
        last = max(jax.tree.leaves(layers))
        return jax.tree.map(lambda update, layer: update * decay ** (last - layer), updates, layers)

    return optax.stateless(scale)


def scale_by_path(factors: Mapping[str, float]) -> optax.GradientTransformation:
    """Updates times the factor of the beginning that their path has, if any."""

    def scale(updates: PyTree[Array], _: PyTree[Array] | None = None) -> PyTree[Array]:
        def one(path: tuple, update: Array) -> Array:
            name = "/".join(_names(path))
            return update * next((factor for start, factor in factors.items() if name.startswith(start)), 1.0)

        return jax.tree_util.tree_map_with_path(one, updates)

    return optax.stateless(scale)


# A model says by its parameters' names which layer each belongs to; these are the words of what has no number.
BEFORE_BLOCKS = ("embedding", "position", "token", "stem", "time")
AFTER_BLOCKS = ("norm", "head", "projection")


def layer_numbers(params: PyTree[Any]) -> PyTree[int]:
    """The layer of each parameter: 0 what comes before the first block, then one for each block, last what comes after.

    Blocks are known by the numbers in their names, which order them: `transformer/block_3`, `stage_2/block_0`,
    `group_1_0`, `mixed_4b`, `conv3a`. What has no number says by a word of its name where it stands, such as
    `patch_embedding` (`BEFORE_BLOCKS`) or `head_norm` (`AFTER_BLOCKS`).

    Raises:
      UserError: a name says neither.
    """
    paths = [_names(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    blocks = sorted({block for path in paths if (block := _block(path)) is not None})

    def number(path: tuple, _: Any) -> int:
        names = _names(path)
        block, words = _block(names), names[0].split("_")
        if block is not None:
            return 1 + blocks.index(block)
        if not set(words) & {*BEFORE_BLOCKS, *AFTER_BLOCKS}:
            raise UserError(
                f"the layer of the parameter {'/'.join(names)} is not known, by which layer decay and partial training "
                f"go: its name should end in a number, as in block_0, or have a word of {', '.join(BEFORE_BLOCKS)} "
                f"(before the blocks) or {', '.join(AFTER_BLOCKS)} (after them)"
            )
        return 0 if set(words) & set(BEFORE_BLOCKS) else 1 + len(blocks)

    return jax.tree_util.tree_map_with_path(number, params)


def trained_parameters(params: PyTree[Any], blocks: int) -> PyTree[bool]:
    """True for the parameters of the last `blocks` blocks, what comes after them, and every norm.

    Raises:
      UserError: the model has fewer blocks.
    """
    layers = layer_numbers(params)
    last = max(jax.tree.leaves(layers))
    if not 0 <= blocks < last:
        raise UserError(f"{blocks} blocks cannot be trained: the model has {last - 1}, give so many or fewer")

    def is_trained(path: tuple, layer: int) -> bool:
        return layer > last - 1 - blocks or any("norm" in name for name in _names(path))

    return jax.tree_util.tree_map_with_path(is_trained, layers)


def _names(path: tuple) -> tuple[str, ...]:
    return tuple(str(key.key) for key in path)


def _block(names: Sequence[str]) -> tuple | None:
    """What orders the block that a parameter belongs to among the others; None outside of blocks."""
    inside = names[0].startswith("stage") or names[0].endswith("transformer")
    *outer, last = names[: 1 + inside]
    if not re.fullmatch(r"[a-z_]*[a-z]_?\d+[a-z]?(_\d+)*", last):
        return None
    found = re.findall(r"(\d+)([a-z]*)", "/".join([*outer, last]))
    # Of two transformers in a row, spatial comes before temporal.
    stack = names[0] if names[0].endswith("transformer") else ""
    return (stack, *((int(number), letter) for number, letter in found))
