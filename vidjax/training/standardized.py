"""A linear head that learns as if its inputs were standardised, while its parameters stay those of a plain layer.

MAE's linear probe (He et al. 2022, arXiv:2111.06377; facebookresearch/mae, main_linprobe.py) and AdaptFormer
(ShoufaChen/AdaptFormer) have a batch norm without scale and bias before the head. Features that differ little about a
large mean else move the logits of all clips alike, and a head alone learns slowly.

A layer `W' x' + b'` of standardised inputs `x' = (x - mean) / std` is one of the inputs themselves, with `W = W' / std`
and `b = b' - mean W`. Here the optimiser sees `W'` and `b'`, and the model has `W` and `b`: it gets no further
variables, and is saved, merged and exported as any other. Unlike a batch norm's, the mean and the std are those of the
start, and no gradient passes through them.
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, PyTree

EPSILON = 1e-6
"""Added to the variance, as in the originals."""


class Standardized(NamedTuple):
    """The optimiser's state.

    Attributes:
      mean, std: of each input of the head; None if `head` is not a linear layer that is trained.
      inner: state of the optimiser of `W'` and `b'`.
    """

    mean: Float[Array, "d"] | None
    std: Float[Array, "d"] | None
    inner: PyTree

    def measured(self, features: Float[np.ndarray, "n d"]) -> "Standardized":
        """With the mean and the std of these inputs, computed in double precision on the host.

        An input that is constant among them, such as a unit that is silent in all, keeps its scale: it would be
        multiplied by a thousand where it is not.
        """
        features = np.asarray(features, np.float64)
        variance = features.var(axis=0)
        std = np.where(variance > EPSILON**2, np.sqrt(variance + EPSILON), 1.0)
        return self._replace(mean=features.mean(axis=0).astype(np.float32), std=std.astype(np.float32))


def standardize_head(tx: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The same optimiser, for which the parameters `head/kernel` and `head/bias` are those of standardised inputs.

    It starts with mean 0 and std 1, which changes nothing; `Standardized.measured` replaces them.
    """
    tx = optax.with_extra_args_support(tx)

    def init(params: PyTree[Array]) -> Standardized:
        head = params.get("head", {})
        if set(head) != {"kernel", "bias"} or head["kernel"].ndim != 2:
            return Standardized(None, None, tx.init(params))
        inputs = len(head["kernel"])
        return Standardized(jnp.zeros(inputs), jnp.ones(inputs), tx.init(params))

    def update(
        updates: PyTree[Array], state: Standardized, params: PyTree[Array] | None = None, **extra: Any
    ) -> tuple[PyTree[Array], Standardized]:
        if state.mean is None:
            updates, inner = tx.update(updates, state.inner, params, **extra)
            return updates, state._replace(inner=inner)
        mean, std, grad = state.mean, state.std[:, None], updates["head"]
        grad = {"kernel": (grad["kernel"] - jnp.outer(mean, grad["bias"])) / std, "bias": grad["bias"]}
        if params is not None:  # for weight decay
            head = params["head"]
            head = {"kernel": head["kernel"] * std, "bias": head["bias"] + mean @ head["kernel"]}
            params = {**params, "head": head}
        updates, inner = tx.update({**updates, "head": grad}, state.inner, params, **extra)
        kernel, bias = updates["head"]["kernel"] / std, updates["head"]["bias"]
        head = {"kernel": kernel, "bias": bias - jnp.matmul(mean, kernel, precision="highest")}
        return {**updates, "head": head}, state._replace(inner=inner)

    return optax.GradientTransformationExtraArgs(init, update)
