"""AdamW with the learning-rate schedule of masked autoencoders, from a config."""

import dataclasses

import jax
import numpy as np
import optax
from jaxtyping import Array, PyTree


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, linear warm-up, cosine decay. Learning rates are for a batch of 256 and scaled by batch / 256."""

    learning_rate: float = 1.5e-4
    """Peak learning rate of a batch of 256; what is used is this times batch size / 256."""
    warmup_learning_rate: float = 1e-6
    """Learning rate at step 0, scaled likewise."""
    final_learning_rate: float = 1e-5
    """Learning rate at the last step, scaled likewise."""
    warmup_epochs: float = 40.0
    """Epochs of linear warm-up."""
    weight_decay: float = 0.05
    """Decoupled weight decay, not applied to biases, norms and tokens (parameters of one axis)."""
    beta1: float = 0.9
    """Decay of AdamW's first moment."""
    beta2: float = 0.95
    """Decay of AdamW's second moment."""
    clip_norm: float | None = None
    """Clip the gradient to this global norm."""

    def __post_init__(self) -> None:
        """Refuses values that cannot be meant."""
        if self.learning_rate <= 0:
            raise ValueError(f"optim.learning_rate is {self.learning_rate}: it must be above 0")
        if self.warmup_epochs < 0:
            raise ValueError(f"optim.warmup_epochs is {self.warmup_epochs}: it must be 0 or more")
        if self.clip_norm is not None and self.clip_norm <= 0:
            raise ValueError(f"optim.clip_norm is {self.clip_norm}: it must be above 0 (leave it out for none)")

    def schedule(self, batch_size: int, steps: int, steps_per_epoch: float) -> optax.Schedule:
        """Learning rate as a function of the step, for `steps` steps in all."""
        scale = batch_size / 256
        warmup = min(round(self.warmup_epochs * steps_per_epoch), max(steps - 1, 0))
        return optax.warmup_cosine_decay_schedule(
            self.warmup_learning_rate * scale if warmup else self.learning_rate * scale,
            self.learning_rate * scale,
            warmup,
            max(steps, 1),
            self.final_learning_rate * scale,
        )


def decays(params: PyTree[Array]) -> PyTree[bool]:
    """True for matrices and kernels; False for biases, norm scales and tokens, which have one axis longer than 1."""
    return jax.tree.map(lambda p: int(np.sum(np.array(p.shape) > 1)) > 1, params)


def make_optimizer(config: OptimizerConfig, schedule: optax.Schedule) -> optax.GradientTransformation:
    """AdamW that skips a step whose gradient is not finite, and counts it.

    The outermost state is `optax.ApplyIfFiniteState`: `training.step` reads its counters. Optax would apply a bad
    gradient after too many in a row; here it never does, and the loop stops the run instead.
    """
    clip = optax.identity() if config.clip_norm is None else optax.clip_by_global_norm(config.clip_norm)
    adamw = optax.adamw(schedule, config.beta1, config.beta2, weight_decay=config.weight_decay, mask=decays)
    return optax.apply_if_finite(optax.chain(clip, adamw), max_consecutive_errors=np.iinfo(np.int32).max)
