"""Optimisers, learning rate schedules and layer decay, as in the published recipes."""

import dataclasses
import re
import sys
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
    """AdamW or SGD with linear warm-up and cosine or step decay.

    Learning rates are for a batch of 256 and are multiplied by batch size / 256.
    """

    kind: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or stochastic gradient descent with momentum."""
    learning_rate: float = 1.5e-4
    """Peak learning rate for a batch of 256; it is multiplied by batch size / 256."""
    warmup_learning_rate: float = 1e-6
    """Learning rate at step 0, scaled in the same way."""
    final_learning_rate: float = 1e-5
    """Learning rate at the end of the cosine, scaled in the same way."""
    warmup_epochs: float = 40.0
    """Epochs of linear warm-up."""
    cosine_from_start: bool = False
    """Start the cosine at step 0, with a warm-up that rises to where it then is, instead of after the warm-up."""
    milestones: tuple[float, ...] = ()
    """Epochs at which the learning rate is divided by 10, instead of cosine decay."""
    linear: bool = False
    """Decay linearly to the final learning rate, instead of along a cosine."""
    weight_decay: float = 0.05
    """Decoupled for AdamW, added to the gradient for SGD; not applied to biases, norms and tokens (one axis)."""
    final_weight_decay: float | None = None
    """Weight decay at the end of a cosine that starts at weight_decay (default: constant)."""
    beta1: float = 0.9
    """Decay of AdamW's first moment, or SGD's momentum."""
    nesterov: bool = False
    """Nesterov's momentum for SGD."""
    beta2: float = 0.95
    """Decay of AdamW's second moment."""
    clip_norm: float | None = None
    """Clip the gradient to this global norm."""
    layer_decay: float = 1.0
    """Factor between the learning rates of a layer and the next one; 1 disables layer decay."""

    def __post_init__(self) -> None:
        check_values(self, "optim.")
        if self.nesterov and self.kind != "sgd":
            raise UserError("optim.nesterov is for SGD: add --optim.kind sgd, or omit it")
        if self.cosine_from_start and self.milestones:
            raise UserError("optim.cosine_from_start has no effect with optim.milestones: omit one of them")
        if self.linear and (self.cosine_from_start or self.milestones):
            raise UserError("optim.linear has no effect with optim.cosine_from_start or milestones: omit one of them")
        if self.learning_rate <= 0:
            raise UserError(f"optim.learning_rate is {self.learning_rate}: it must be above 0")
        if self.warmup_epochs < 0:
            raise UserError(f"optim.warmup_epochs is {self.warmup_epochs}: it must be 0 or more")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise UserError(f"optim.clip_norm is {self.clip_norm}: it must be above 0, or omitted")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"optim.{name} is {getattr(self, name)}: it must be at least 0 and below 1")
        if not 0 < self.layer_decay <= 1:
            raise UserError(f"optim.layer_decay is {self.layer_decay}: it must be above 0 and at most 1")

    def schedule(self, batch_size: int, steps: int, steps_per_epoch: float) -> optax.Schedule:
        """The learning rate as a function of the step, for a run of `steps` steps."""
        scale = batch_size / 256
        peak, first = self.learning_rate * scale, self.warmup_learning_rate * scale
        warmup = min(round(self.warmup_epochs * steps_per_epoch), max(steps - 1, 0))
        if self.milestones:
            at = {round(epoch * steps_per_epoch) - warmup: 0.1 for epoch in self.milestones}
            falling = optax.piecewise_constant_schedule(peak, at)
            return optax.join_schedules([optax.linear_schedule(first, peak, max(warmup, 1)), falling], [warmup])
        if self.cosine_from_start:
            cosine = optax.cosine_decay_schedule(peak, max(steps, 1), self.final_learning_rate / self.learning_rate)
            rising = optax.linear_schedule(first, float(cosine(warmup)), max(warmup, 1))
            return optax.join_schedules([rising, lambda step: cosine(step + warmup)], [warmup])
        if self.linear:
            falling = optax.linear_schedule(peak, self.final_learning_rate * scale, max(steps - warmup, 1))
            return optax.join_schedules([optax.linear_schedule(first, peak, max(warmup, 1)), falling], [warmup])
        return optax.warmup_cosine_decay_schedule(
            first if warmup else peak, peak, warmup, max(steps, 1), self.final_learning_rate * scale
        )

    def weight_decay_by_step(self, steps: int) -> optax.ScalarOrSchedule:
        """The weight decay, as a function of the step if it changes, for a run of `steps` steps."""
        last = self.final_weight_decay
        if last is None:
            return self.weight_decay
        cosine = optax.cosine_decay_schedule(1.0, max(steps, 1))
        return lambda step: last + (self.weight_decay - last) * cosine(step)


def decays(params: PyTree[Array]) -> PyTree[bool]:
    """Mask of the parameters with weight decay: False for biases, norm scales and tokens (one axis longer than 1)."""
    return jax.tree.map(lambda p: int(np.sum(np.array(p.shape) > 1)) > 1, params)


def make_optimizer(
    config: OptimizerConfig,
    schedule: optax.Schedule,
    trained: PyTree[bool] | None = None,
    factors: Mapping[str, float] = MappingProxyType({}),
    weight_decay: optax.ScalarOrSchedule | None = None,
) -> optax.GradientTransformation:
    """The optimiser of a config. Steps whose gradient is not finite are skipped by `training.step`, not here.

    Args:
      trained: mask of the trained parameters; None trains all.
      factors: factors of the learning rate by prefix of the parameter path, such as `{"video/temporal/": 10.0}`.
      weight_decay: see `OptimizerConfig.weight_decay_by_step`; None for the config's, constant.
    """
    clip = optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)
    decay = optax.add_decayed_weights(config.weight_decay if weight_decay is None else weight_decay, mask=decays)
    if config.kind == "adamw":
        rule = optax.chain(optax.scale_by_adam(config.beta1, config.beta2), decay)
    else:
        rule = optax.chain(decay, optax.trace(config.beta1, nesterov=config.nesterov))
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
    """Multiplies the updates of a layer by `decay` to the power of the number of later layers (ELECTRA, BEiT)."""

    def scale(updates: PyTree[Array], _: PyTree[Array] | None = None) -> PyTree[Array]:
        layers = layer_numbers(updates)
        last = max(jax.tree.leaves(layers))
        return jax.tree.map(lambda update, layer: update * decay ** (last - layer), updates, layers)

    return optax.stateless(scale)


def scale_by_path(factors: Mapping[str, float]) -> optax.GradientTransformation:
    """Multiplies updates by the factor of the first matching prefix of their path."""

    def scale(updates: PyTree[Array], _: PyTree[Array] | None = None) -> PyTree[Array]:
        def one(path: tuple, update: Array) -> Array:
            name = "/".join(_names(path))
            return update * next((factor for prefix, factor in factors.items() if name.startswith(prefix)), 1.0)

        return jax.tree_util.tree_map_with_path(one, updates)

    return optax.stateless(scale)


# The layer of a parameter follows from its name. Names without a number contain one of these words.
BEFORE_BLOCKS = ("embedding", "position", "token", "stem", "time")
AFTER_BLOCKS = ("norm", "head", "projection", "balance")


def layer_numbers(params: PyTree[Any]) -> PyTree[int]:
    """The layer of each parameter: 0 before the first block, then 1, 2, ... for the blocks, and the last after them.

    Blocks are identified and ordered by the numbers in their names: `transformer/block_3`, `stage_2/block_0`,
    `group_1_0`, `mixed_4b`, `conv3a`. Names without a number contain a word of `BEFORE_BLOCKS`, as in
    `patch_embedding`, or of `AFTER_BLOCKS`, as in `head_norm`.

    Raises:
      UserError: a name has neither a number nor such a word.
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
                f"the layer of the parameter {'/'.join(names)} is unknown, but layer decay and partial training need "
                f"it: end its name in a number, as in block_0, or include one of {', '.join(BEFORE_BLOCKS)} (before "
                f"the blocks) or {', '.join(AFTER_BLOCKS)} (after them)"
            )
        return 0 if set(words) & set(BEFORE_BLOCKS) else 1 + len(blocks)

    return jax.tree_util.tree_map_with_path(number, params)


def trained_parameters(params: PyTree[Any], blocks: int | None, frozen: Sequence[str] = ()) -> PyTree[bool]:
    """Mask that is True for the last `blocks` blocks, everything after them, and all norms.

    Args:
      blocks: None for all.
      frozen: beginnings of the paths of parameters for which it is False in any case.

    Raises:
      UserError: the model has fewer blocks.
    """
    layers = layer_numbers(params)
    last = max(jax.tree.leaves(layers))
    if blocks is not None and not 0 <= blocks < last:
        raise UserError(f"{blocks} blocks cannot be trained: the model has {last - 1}, give at most that many")

    def is_trained(path: tuple, layer: int) -> bool:
        names = _names(path)
        chosen = blocks is None or layer > last - 1 - blocks or any("norm" in name for name in names)
        return chosen and not "/".join(names).startswith(tuple(frozen))

    return jax.tree_util.tree_map_with_path(is_trained, layers)


def _names(path: tuple) -> tuple[str, ...]:
    return tuple(str(key.key) for key in path)


def _block(names: Sequence[str]) -> tuple | None:
    """The sort key of the block that a parameter belongs to; None outside of blocks."""
    if merging := re.fullmatch(r"merging_(\d+)", names[0]):  # after the blocks of its stage
        return "", (int(merging[1]), ""), (sys.maxsize, "")
    inside = names[0].startswith("stage") or names[0].endswith("transformer")
    *outer, last = names[: 1 + inside]
    if not re.fullmatch(r"[a-z_]*[a-z]_?\d+[a-z]?(_\d+)*", last):
        return None
    numbers = re.findall(r"(\d+)([a-z]*)", "/".join([*outer, last]))
    # Sorts the blocks of a spatial transformer before those of the temporal one that follows it.
    stack = names[0] if names[0].endswith("transformer") else ""
    return (stack, *((int(number), letter) for number, letter in numbers))
