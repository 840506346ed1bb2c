"""AdaFrame (Wu et al. 2019, arXiv:1811.12432): an LSTM that chooses which frame of a clip to look at next.

A light network sees all frames at low resolution: the memory. At each step a network of full size sees one frame; the
LSTM takes its feature and what it attends to in the memory, and predicts the classes, the place of the next frame and
the utility, the gain that it expects from further frames. A clip ends when the utility has lagged its best by `lag` for
`patience` times. In training all `steps` are taken, with the features of all frames, as places are drawn from a normal
distribution around the prediction. In evaluation clips are seen one after the other, and only the frames that are
chosen before a clip ends pass the large network: a clip of `n` steps costs `n` frames and the memory.

No code was published: this is the paper as we read it. Our choices: the first frame is that in the middle, the memory
has all frames, what is attended to includes the positions, the query has a bias, without which the first step would
attend to all frames alike, and both networks are the ResNets of TSN (`models.tsn`).
"""

from collections.abc import Callable
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PyTree

from vidjax.errors import UserError
from vidjax.layers.card import Card
from vidjax.layers.embedding import sinusoid_table
from vidjax.layers.head import linear_unless_passed
from vidjax.layers.patches import check_video
from vidjax.layers.recurrent import LSTM
from vidjax.models.tsn import SegmentNetwork

State = tuple[Float[Array, "b u"], Float[Array, "b u"]]


class Episode(NamedTuple):
    """All steps of a batch of clips; see `objectives.adaptive`.

    Attributes:
      logits: after each step.
      places: of the frames, from 0 (the first) to 1 (the last).
      log_probabilities: of the place that was chosen after each step.
      utilities: predicted gain of the steps that follow.
      steps: until the clip ends in evaluation.
    """

    logits: Float[Array, "b s classes"]
    places: Float[Array, "b s"]
    log_probabilities: Float[Array, "b s"]
    utilities: Float[Array, "b s"]
    steps: Int[Array, "b"]


class Agent(nn.Module):
    """The LSTM with its attention to the memory, and the predictions of the next place and of the utility."""

    units: int

    @nn.compact
    def __call__(
        self, state: State, feature: Float[Array, "b d"], memory: Float[Array, "b t e"]
    ) -> tuple[State, Float[Array, "b"], Float[Array, "b"]]:
        """The next state, whose first part is the output, the mean of the next place (0 to 1) and the utility."""
        width = memory.shape[-1]
        keys = memory + sinusoid_table(memory.shape[1], width)
        query = nn.Dense(width, name="query")(state[0])
        weights = nn.softmax(jnp.einsum("be,bte->bt", query, keys))
        context = jnp.einsum("bt,bte->be", weights, keys)
        _, state = LSTM(self.units, name="lstm")(jnp.concatenate([feature, context], axis=-1)[:, None], state)
        place = nn.sigmoid(nn.Dense(1, name="place")(state[0])[:, 0])
        return state, place, nn.Dense(1, name="utility")(state[0])[:, 0]


def frame_at(place: Float[Array, "*b"], length: int) -> Int[Array, "*b"]:
    """The number of the frame at a place."""
    return jnp.round(jnp.clip(place, 0, 1) * (length - 1)).astype(jnp.int32)


def steps_until_end(utilities: Float[Array, "b s"], lag: float, patience: int) -> Int[Array, "b"]:
    """Steps until a utility has been lower than the best so far by more than `lag` for `patience` times, or all."""
    lags = jax.lax.cummax(utilities, axis=1) - utilities > lag
    return jnp.minimum((lags.cumsum(axis=1) < patience).sum(axis=1) + 1, utilities.shape[1])


class AdaFrame(nn.Module):
    """The classifier.

    Attributes:
      features: the network of the chosen frames, without classes and shift.
      glance: that of the memory.
      shrink: factor by which height and width are reduced for the memory.
      steps: the most frames that are chosen.
      units: width of the LSTM.
      deviation: standard deviation of the places that are drawn in training.
      lag, patience: when a clip ends, see above.
      num_classes: None returns the output of the LSTM.
      head: replaces the linear classifier; any module that takes features `b d`.
    """

    features: SegmentNetwork
    glance: SegmentNetwork
    shrink: int = 2
    steps: int = 8
    units: int = 512
    deviation: float = 0.1
    lag: float = 0.7
    patience: int = 2
    num_classes: int | None = None
    head: nn.Module | None = None
    num_frames: int = 32
    image_size: int = 224
    channels: int = 3
    card: Card = Card()
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        # `create_model` sets a head and classes in all parts, and a module belongs to the first part that has it.
        for part in ("features", "glance"):
            setattr(self, part, getattr(self, part).clone(num_classes=None, head=None))
        super().__post_init__()

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        if self.features.shift != "none" or self.glance.shift != "none":
            raise UserError("features and glance see single frames: give networks with shift='none'")
        bare = {"num_classes": None, "head": None, "parent": None, "name": None}  # `create_model` sets them for all
        self.network, self.memory_stem = self.features.clone(**bare), self.glance.clone(**bare)
        nn.share_scope(self, self.network)  # whose parameters keep their names, so that weights of TSN load
        self.agent_head = Agent(self.units)
        self.classifier = linear_unless_passed(self.head, self.num_classes, dtype=self.dtype)

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b t _ _ d"]:
        """The maps of all frames, also of those that are not chosen."""
        check_video(video, self.channels)
        return self.network.encode(video, train)

    def memory(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b t e"]:
        """Features of all frames at low resolution."""
        check_video(video, self.channels)
        size = (1, self.shrink, self.shrink)
        small = nn.avg_pool(video, size, size)
        return self.memory_stem.encode(small, train).mean(axis=(2, 3)).astype(jnp.float32)

    def episode(
        self, video: Float[Array, "b t h w c"], train: bool = False, places: Float[Array, "b s"] | None = None
    ) -> Episode:
        """All steps, with the features of all frames; see `search`."""
        return self.search(*self.see(video, train), train, places)

    def see(
        self, video: Float[Array, "b t h w c"], train: bool = False
    ) -> tuple[Float[Array, "b t d"], Float[Array, "b t e"]]:
        """Features of all frames, in full and at low resolution: what `search` takes."""
        features = self.encode(video, train).mean(axis=(2, 3)).astype(jnp.float32)
        return features, self.memory(video, train)

    def search(
        self,
        features: Float[Array, "b t d"],
        memory: Float[Array, "b m e"],
        train: bool = False,
        places: Float[Array, "b s"] | None = None,
    ) -> Episode:
        """All steps, from what `see` returns: once for all epochs where both networks are frozen.

        Args:
          features: places are among their frames, which may be fewer than those of the memory.
          train: places are drawn, by the PRNG key `places`; else they are the predicted ones.
          places: of the frames, instead of those that are chosen, such as random ones for a comparison.
        """
        if self.classifier is None:
            raise UserError("the model has no classes: set num_classes")
        hidden, *rest = self._search(features, memory, train, places)
        return Episode(self.classifier(hidden.astype(self.dtype or hidden.dtype)), *rest)

    def _search(self, features: Array, memory: Array, train: bool, places: Array | None = None) -> tuple[Array, ...]:
        """The output of the LSTM after each step, and the other fields of an `Episode`."""
        state, place, outputs = self._start(len(memory)), jnp.full(len(memory), 0.5), []
        for step in range(self.steps):
            place = place if places is None else places[:, step]
            feature = jnp.take_along_axis(features, frame_at(place, features.shape[1])[:, None, None], axis=1)[:, 0]
            state, mean, utility = self.agent_head(state, feature, memory)
            noise = self.deviation * jax.random.normal(self.make_rng("places"), mean.shape) if train else 0.0
            following = jax.lax.stop_gradient(mean + noise)
            likelihood = jax.scipy.stats.norm.logpdf(following, mean, self.deviation)
            outputs.append((state[0], place, likelihood, utility))
            place = jnp.clip(following, 0, 1)
        hidden, used, likelihoods, utilities = (jnp.stack(each, axis=1) for each in zip(*outputs, strict=True))
        return hidden, used, likelihoods, utilities, steps_until_end(utilities, self.lag, self.patience)

    def watch(self, video: Float[Array, "b t h w c"]) -> tuple[Float[Array, "b u"], Int[Array, "b"]]:
        """The LSTM's output at the end of each clip and the number of steps; only the chosen frames are computed."""
        memory = self.memory(video)
        features, agent = self.network.clone(parent=None, name=None), self.agent_head.clone(parent=None, name=None)
        seeing, acting = self.network.variables, self.agent_head.variables

        def clip(inputs: tuple[Array, Array]) -> tuple[Array, Array]:
            frames, memory = inputs

            def look(carry: tuple) -> tuple:
                step, state, place, best, lags = carry
                frame = frames[frame_at(place, len(frames))][None, None]
                feature = features.apply(seeing, frame, method="encode").mean(axis=(1, 2, 3)).astype(jnp.float32)
                state, mean, utility = agent.apply(acting, state, feature, memory[None])
                best = jnp.maximum(best, utility[0])
                return step + 1, state, mean[0], best, lags + (best - utility[0] > self.lag)

            def unless_ended(carry: tuple, _: None) -> tuple[tuple, None]:
                return jax.lax.cond(carry[-1] < self.patience, look, lambda carry: carry, carry), None

            lowest = jnp.asarray(-jnp.inf, jnp.float32)
            start = (jnp.asarray(0), self._start(1), jnp.asarray(0.5, jnp.float32), lowest, jnp.asarray(0))
            step, state, *_ = jax.lax.scan(unless_ended, start, length=self.steps)[0]
            return state[0][0], step

        return jax.lax.map(clip, (video, memory))

    def _start(self, batch: int) -> State:
        return jnp.zeros((batch, self.units)), jnp.zeros((batch, self.units))

    def embed(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b d"]:
        """The LSTM's output at the end of each clip, in training after all steps."""
        if train or self.is_initializing():
            hidden = self._search(*self.see(video, train), train)[0][:, -1]
        else:
            hidden = self.watch(video)[0]
        return hidden.astype(self.dtype or hidden.dtype)

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> PyTree[Float[Array, "b ..."]]:
        """What the head returns at the end of each clip, by default logits `b classes`; without a head, `embed`."""
        features = self.embed(video, train)
        return features if self.classifier is None else self.classifier(features)


def built(features: Callable[[], SegmentNetwork], glance: Callable[[], SegmentNetwork], **fields: Any) -> AdaFrame:
    """An AdaFrame of these networks."""
    return AdaFrame(features(), glance(), **fields)


SMALL = partial(SegmentNetwork, depths=(1, 1, 1, 1), width=4, dropout=0.0)

VARIANTS = MappingProxyType(
    {
        "adaframe_tiny": partial(built, partial(SMALL, width=8), SMALL, steps=4, units=32, num_frames=8, image_size=32),
        "adaframe_50": partial(built, SegmentNetwork, partial(SMALL, width=16), shrink=2, num_classes=400),
    }
)
