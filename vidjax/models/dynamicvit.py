"""DynamicViT (Rao et al. 2021, arXiv:2106.02034): a ViT that drops tokens between its blocks.

Before some of the blocks, a small network scores the tokens that are left, and those with the highest scores are kept.
In training no token is dropped: which are kept is drawn from the scores, and nothing attends to the others. In
evaluation they are dropped, a fixed number at each place, so that shapes are static. Dropping gives what masking gives
for the same decisions (`method="masked"`).

It wraps a model whose blocks attend to all tokens of a clip or of a frame: an image ViT, a VideoMAE, a TimeSformer with
joint attention. Parameters keep the names of that model's, so that its weights load; those of the predictors are new.

Pitfalls of the original: the shares that are kept are of all tokens, not of those that are left; its number of tokens
is that of 224x224 pixels, whatever the image (here it is that of the clip); class tokens always stay; the mean over
tokens before a head, which the original's models do not have, is here that of the tokens that are kept; a draw that
keeps no token of a clip makes the original's mean NaN, here it is that of all tokens.
"""

from collections.abc import Callable
from functools import partial
from types import MappingProxyType, SimpleNamespace
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PyTree

from vidjax.layers.attention import DotProduct
from vidjax.layers.card import Card
from vidjax.layers.selection import ScorePredictor, attend_to_kept, before_blocks, shares_of_kept
from vidjax.layers.transformer import VIT_SIZES
from vidjax.models.timesformer import TimeSformer
from vidjax.models.videomae import VideoMAE
from vidjax.models.vit import ViT

How = Literal["pruned", "masked", "sampled"]


class Pruned(NamedTuple):
    """What is learned from in training; see `objectives.pruning`.

    Attributes:
      logits: output of the head.
      tokens: normalised tokens of all patches, also of those that nothing attended to: as the model ends, or, of a
        VideoMAE, by the norm that its head applies to the mean token.
      kept: 1 for the tokens that are kept from each place of dropping on, else 0.
      log_probabilities: of keeping and of dropping each token, at each place.
    """

    logits: Float[Array, "b classes"]
    tokens: Float[Array, "n m d"]
    kept: tuple[Float[Array, "n m"], ...]
    log_probabilities: tuple[Float[Array, "n _ 2"], ...]


class DynamicViT(nn.Module):
    """A model whose tokens are dropped.

    Attributes:
      model: the model, without `remat` and `scan`.
      locations: numbers of the blocks before which tokens are dropped.
      keep: share of the tokens that is kept at the first of them; of all tokens, its powers are at the others.
      class_token: whether a token comes before those of the patches, which is never dropped.
    """

    model: nn.Module
    locations: tuple[int, ...] = (3, 6, 9)
    keep: float = 0.7
    class_token: bool = True
    card: Card = Card()
    dtype: DTypeLike | None = None

    def setup(self) -> None:
        """Creates the predictors; all parameters are in one scope."""
        nn.share_scope(self, self.model)
        self.predictor = [ScorePredictor(2, self.dtype) for _ in self.locations]

    @property
    def num_frames(self) -> int:
        """Frames of the clips that the model is meant for."""
        return self.model.num_frames

    @property
    def image_size(self) -> int:
        """Height and width of these clips."""
        return self.model.image_size

    @property
    def channels(self) -> int:
        """Channels of these clips."""
        return self.model.channels

    @property
    def num_classes(self) -> int | None:
        """Classes of the model's head."""
        return self.model.num_classes

    @property
    def shares(self) -> tuple[float, ...]:
        """Share of all tokens that is kept at each location."""
        return tuple(self.keep ** (stage + 1) for stage in range(len(self.locations)))

    def _run(self, video: Array, train: bool, how: How, method: str = "__call__") -> tuple[Any, SimpleNamespace]:
        """The output of a method of the model, and what was decided on the way."""
        state = SimpleNamespace(all=None, kept=None, decisions=[], log_probabilities=[], tokens=None)

        def change(block: nn.Module, number: int, x: Array, settings: dict[str, Any]) -> tuple[Array, dict[str, Any]]:
            if state.all is None:
                state.all = x.shape[1] - int(self.class_token)
            if number in self.locations:
                x = self._decide(self.locations.index(number), x, state, how)
            return x, settings

        def masking(call: Any, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
            called = context.method_name == "__call__"
            if called and isinstance(context.module, DotProduct) and state.kept is not None:
                ones = jnp.ones((len(state.kept), int(self.class_token)))
                return attend_to_kept(*args[:3], jnp.concatenate([ones, state.kept], axis=1))
            if context.method_name == "pool" and state.kept is not None:  # of a family that takes the mean of tokens
                weights = state.all * shares_of_kept(state.kept)
                args = (args[0] * weights[..., None].astype(args[0].dtype), *args[1:])
            outputs = call(*args, **kwargs)
            if context.method_name == "tokens":
                state.tokens = outputs.reshape(-1, *outputs.shape[-2:])[:, int(self.class_token) :]
            return outputs

        with before_blocks(self.model, change), nn.intercept_methods(masking):
            return getattr(self.model, method)(video, train=train), state

    def _decide(self, stage: int, x: Array, state: SimpleNamespace, how: How) -> Array:
        """Drops tokens, or only changes which are kept."""
        head, x = x[:, : int(self.class_token)], x[:, int(self.class_token) :]
        log_probabilities = nn.log_softmax(self.predictor[stage](x, state.kept))
        state.log_probabilities.append(log_probabilities)
        score, count = log_probabilities[..., 0], int(state.all * self.shares[stage])
        if how == "pruned":
            chosen = jax.lax.top_k(score, count)[1]
            return jnp.concatenate([head, jnp.take_along_axis(x, chosen[..., None], axis=1)], axis=1)
        before = jnp.ones_like(score) if state.kept is None else state.kept
        if how == "masked":
            chosen = jax.lax.top_k(jnp.where(before > 0, score, -jnp.inf), count)[1]
            decision = jax.nn.one_hot(chosen, x.shape[1]).sum(axis=1)
        else:  # the straight-through Gumbel softmax
            noise = jax.random.gumbel(self.make_rng("pruning"), log_probabilities.shape)
            soft = nn.softmax(log_probabilities + noise)[..., 0]
            decision = jax.lax.stop_gradient((soft > 0.5) - soft) + soft
        state.kept = decision * before
        state.decisions.append(state.kept)
        return jnp.concatenate([head, x], axis=1)

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b _ _ _ d"]:
        """Tokens of all patches on their grid; nothing attended to those that evaluation drops."""
        return self._run(video, train, "sampled" if train else "masked", "encode")[0]

    def embed(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b d"]:
        """The input of the model's head."""
        return self._run(video, train, "sampled" if train else "pruned", "embed")[0]

    def masked(self, video: Float[Array, "b t h w c"], train: bool = False) -> Pruned:
        """The pass of training; without `train` with the decisions of evaluation instead of drawn ones."""
        logits, state = self._run(video, train, "sampled" if train else "masked")
        norm = getattr(self.model, "head_norm", lambda tokens: tokens)  # VideoMAE's; the others normalise all tokens
        return Pruned(logits, norm(state.tokens), tuple(state.decisions), tuple(state.log_probabilities))

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> PyTree[Float[Array, "b ..."]]:
        """What the model returns, by default logits `b classes`; training draws decisions by the PRNG key `pruning`."""
        return self._run(video, train, "sampled" if train else "pruned")[0]


def reaching(accuracy: float) -> Card:
    """The card of a published classifier."""
    return Card(source="raoyongming/DynamicViT", accuracy=f"ImageNet {accuracy}, 1x1 views", views="1x1")


def around(model: Callable[[], nn.Module], **fields: Any) -> DynamicViT:
    """A DynamicViT of this model."""
    return DynamicViT(model(), **fields)


TINY = {"width": 96, "depth": 4, "heads": 6, "image_size": 64}
TINY_8 = {"width": 64, "depth": 6, "heads": 4, "patch_size": (2, 8, 8), "num_frames": 8, "image_size": 32}
VIDEO = {**VIT_SIZES["base"], "num_classes": 400}

VARIANTS = MappingProxyType(
    {
        "dynamicvit_tiny": partial(around, partial(VideoMAE, **TINY), locations=(1, 2, 3), class_token=False),
        "dynamicvit_tiny_8": partial(around, partial(VideoMAE, **TINY_8), locations=(1, 2, 4), class_token=False),
        "dynamicvit_256_16": partial(
            around, partial(ViT, width=256, depth=12, heads=4, num_classes=1000), card=reaching(76.532)
        ),
        "dynamicvit_small_16": partial(
            around, partial(ViT, **VIT_SIZES["small"], num_classes=1000), card=reaching(79.316)
        ),
        "dynamicvit_base_16": partial(
            around, partial(ViT, **VIT_SIZES["base"], num_classes=1000), card=reaching(81.43)
        ),
        "dynamicvit_videomae_base": partial(around, partial(VideoMAE, **VIDEO), class_token=False),
        "dynamicvit_timesformer_base": partial(around, partial(TimeSformer, **VIDEO, attention="joint")),
    }
)
