"""Images and clips in one step, through one network (OmniSource's joint training, Duan et al. 2020, arXiv:2003.13042).

The rules are those of mmaction2's `RecognizerOmni`. A step has a batch of each data set, each data set has a softmax of
its own, and the losses, each the mean over its data set's batch, are added. Images pass through the kernels summed over
time (`layers.stills`). They share the weights of the batch norms; in training each kind is normalised by its own batch,
and images do not change the running statistics, by which both are normalised in evaluation.

Different from it: each head is a linear layer on the mean features (there, `OmniHead`: for images batch norm, dropout
of 0.2 and a linear layer; for clips a linear layer to twice the classes, batch norm, ReLU, dropout of 0.5 and a linear
layer), and a data set is gone through in its own epochs (there: an epoch ends with the shortest one).

The recipes of the paper on Mini-Kinetics in mmaction2 (`configs/recognition/omnisource`) are simpler: one linear layer
after dropout of 0.5 for all sources, which have the same classes, and an image is a clip that stands still. That is a
mix without heads and stills.
"""

from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vidjax.errors import UserError
from vidjax.layers.normalization import valid_clips
from vidjax.layers.stills import require_stills, sum_over_time
from vidjax.runs.teacher import TaughtConfig, with_features


@dataclass(frozen=True)
class JointConfig(TaughtConfig):
    """Base config of a training script that learns from several data sets, some of which may be of images."""

    heads: tuple[str, ...] = ()
    """Names of the data sets in a mix that keep their own classes, with a softmax each (multi-task learning)."""
    stills: tuple[str, ...] = ()
    """Those heads whose data sets are images, which 3-D kernels see summed over time (OmniSource's joint training)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.stills:
            return
        if not {*self.stills} < {*self.heads}:
            heads = f"the heads are {', '.join(self.heads)}" if self.heads else "there are no heads"
            raise UserError(f"stills are {', '.join(self.stills)} and {heads}: name some of them, and one of clips")
        if self.mixup or self.cutmix:
            raise UserError("stills cannot be mixed with clips: give --mixup 0 --cutmix 0")
        if self.teacher is not None or self.sequence > 1:
            flag = "sequence" if self.teacher is None else "teacher"
            raise UserError(f"stills are no clips, as {flag} needs them: omit --{flag}")


def count_stills(config: Any) -> int:
    """How many rows of each batch are images, 0 without stills.

    Args:
      config: a `JointConfig` with `data.train`, a mix of the data sets in the order of the heads.

    Raises:
      UserError: batches cannot have the same number of each kind.
    """
    if not config.stills:
        return 0
    from vidjax.data.mixing import read_mix

    weights, repeats = read_mix(config.data.train), config.data.repeats
    total = sum(weights.values())
    if (config.batch_size // repeats) % total:
        raise UserError(
            f"with stills each batch has the same number of images: give a --batch_size that is a multiple of "
            f"{total * repeats}, the sum of the weights of the mix{' times the repeats' if repeats > 1 else ''}"
        )
    images = sum(weight for head, weight in zip(config.heads, weights.values(), strict=True) if head in config.stills)
    return config.batch_size * images // total


def of_stills(model: nn.Module, stills: tuple[str, ...]) -> Bool[np.ndarray, "classes"]:
    """Whether each class of a model is one of images."""
    heads, sizes = model.card.heads or ("",), model.card.head_sizes or (model.num_classes,)
    return np.repeat([head in stills for head in heads], sizes)


class Joint:
    """How a classifier sees batches, of clips only or of images as well.

    Attributes:
      model: the classifier.
      count: of the images in each training batch.
      images: whether each class is one of images.
    """

    def __init__(self, config: Any, model: nn.Module):
        """Checks the batches and the model.

        Args:
          config: a `JointConfig` with `data`.

        Raises:
          UserError: there are stills that the model cannot see, or the batches have no fixed number of them.
        """
        self.model, self.count, self.images = model, count_stills(config), of_stills(model, config.stills)
        if self.count:
            require_stills(config.model, model, config.data.size)

    def train(
        self, variables: dict[str, Any], video: Float[Array, "b t h w c"], batch: dict[str, Array], **settings: Any
    ) -> tuple[tuple[Float[Array, "b classes"], dict], Float[Array, "b d"] | None]:
        """What `with_features` returns, for the batch of a training step.

        Args:
          video: the normalised clips; an image is the first frame of its clip.
          batch: with `label` and `valid`; unreadable and unlabelled clips are invalid.
          settings: of `model.apply`, with `mutable` and `rngs`.
        """
        labels, valid, count = jnp.asarray(batch["label"]), jnp.asarray(batch["valid"]), self.count
        if not count:
            with valid_clips(valid):
                return with_features(self.model.apply, variables, video, **settings)
        # Valid images first, valid clips last: what lies between fills the places of images or clips that are missing.
        place = jnp.where(valid, jnp.where(jnp.asarray(self.images)[labels], 0, 2), 1)
        order = jnp.argsort(place, stable=True)
        video, valid = video[order], valid[order]
        keys = {name: jax.random.fold_in(key, 1) for name, key in settings["rngs"].items()}
        with valid_clips(valid[:count]):
            of_images, _ = self.model.apply(summed(variables), video[:count, :1], **settings | {"rngs": keys})
        with valid_clips(valid[count:]):
            of_clips, changed = self.model.apply(variables, video[count:], **settings)
        return (jnp.concatenate([of_images, of_clips])[jnp.argsort(order)], changed), None

    def evaluate(
        self, variables: dict[str, Any], video: Float[Array, "b t h w c"], labels: Array
    ) -> Float[Array, "b classes"]:
        """Logits in evaluation, of images where the labels are theirs."""
        logits = self.model.apply(variables, video)
        if not self.count:
            return logits
        of_images = self.model.apply(summed(variables), video[:, :1])
        return jnp.where(jnp.asarray(self.images)[labels][:, None], of_images, logits)


def summed(variables: dict[str, Any]) -> dict[str, Any]:
    """The variables with which a network sees images, see `layers.stills.sum_over_time`."""
    return variables | {"params": sum_over_time(variables["params"])}
