"""Ada3D (Li et al. 2021, arXiv:2012.14950): a 3-D ResNet that sees only some frames, with 3-D or 2-D convolutions.

A light 2-D network sees all frames of a clip at low resolution and decides at once which frames are kept, and for each
convolution over several frames whether it is used as it is or only its kernel's central frame, a 2-D convolution. The
frames that are kept follow each other, as in a shorter clip, with zeros after the last one. In training decisions are
drawn, everything is computed and what is not used is masked; batch norms count only frames that are kept. In evaluation
clips are seen one after the other: each convolution runs in 3-D or in 2-D, and frames are left out in steps of a
quarter of the clip, as shapes are static under jit (`STEPS`). This gives what masking gives (`method="masked"`).

Parameters keep the names of the 3-D network's, so that its weights load; those of the policy are new.

No code was published, and we could read only the paper's abstract and the caption of its figure 2; a kernel's central
frame and the rewards are as we remember them. Our choices: the 3-D network is a ResNet of I3D or Slow without non-local
blocks, the light one a narrow ResNet of TSN; a frame is judged by its own feature and the mean of all frames', and
convolutions by the mean; the most probable frame is always kept, two of them if the network halves time.
"""

from collections.abc import Callable
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from vidjax.errors import UserError
from vidjax.layers.card import Card
from vidjax.layers.convolution import Conv3D
from vidjax.layers.kept_frames import choosing, mean_of_kept
from vidjax.layers.patches import check_video
from vidjax.models import slow
from vidjax.models.slow import SlowNetwork
from vidjax.models.tsn import SegmentNetwork

STEPS = (0.25, 0.5, 0.75, 1.0)
"""Shares of a clip's frames for which evaluation has a program; the smallest that suffices runs."""


class Layer(NamedTuple):
    """Cost of a convolution.

    Attributes:
      macs: multiply-accumulates of its kernel's central frame for one frame.
      frames: of the kernel.
      halved: whether it sees half of the kept frames.
    """

    macs: int
    frames: int
    halved: bool


class Usage(NamedTuple):
    """What is used, 1 or 0.

    Attributes:
      frames: that are kept.
      convolutions: that are 3-D, in the order in which they are computed.
    """

    frames: Float[Array, "b t"]
    convolutions: Float[Array, "b k"]

    def macs(self, layers: tuple[Layer, ...]) -> Float[Array, "b"]:
        """Multiply-accumulates of the 3-D network's convolutions for each clip; for `layers` see `layers_of`."""
        frames, choices = self.frames.sum(axis=1), iter(self.convolutions.T)
        total = jnp.zeros(len(frames))
        for layer in layers:
            kernel = jnp.where(next(choices) > 0, layer.frames, 1) if layer.frames > 1 else 1
            total += layer.macs * kernel * (frames // 2 if layer.halved else frames)
        return total


class Adaptive(NamedTuple):
    """What is learned from in training; see `objectives.adaptive`.

    Attributes:
      logits: of the clips.
      usage: what was used.
      log_probabilities: of the decisions about frames and about convolutions; 0 where a clip uses everything.
      entropies: of their distributions, summed over frames and over convolutions.
    """

    logits: Float[Array, "b classes"]
    usage: Usage
    log_probabilities: Float[Array, "b 2"]
    entropies: Float[Array, "b 2"]


def layers_of(network: SlowNetwork) -> tuple[Layer, ...]:
    """The convolutions of a network for clips of its size, in the order in which they are computed."""
    layers = []

    def record(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        outputs, conv = call(*args, **kwargs), context.module
        if isinstance(conv, Conv3D) and context.method_name == "__call__":
            (_, frames, height, width, features), (depth, *sides) = outputs.shape, conv.kernel_size
            macs = height * width * features * sides[0] * sides[1] * args[0].shape[-1]
            layers.append(Layer(macs, depth, frames < network.num_frames))
        return outputs

    shape = (1, network.num_frames, network.image_size, network.image_size, network.channels)
    with nn.intercept_methods(record):
        jax.eval_shape(network.clone(parent=None, name=None).init, jax.random.key(0), jnp.zeros(shape))
    return tuple(layers)


def convolutions_over_time(network: SlowNetwork) -> int:
    """How many convolutions of a network see several frames."""
    (stem,), *stages = network.kernels
    stages = zip(stages, network.depths, strict=True)
    repeated = [kernels[i % len(kernels)] for kernels, depth in stages for i in range(depth)]
    return sum(kernel > 1 for kernel in (stem, *repeated))


class Policy(nn.Module):
    """Logits of keeping each frame, and of using each convolution in 3-D."""

    network: SegmentNetwork
    convolutions: int

    @nn.compact
    def __call__(
        self, video: Float[Array, "b t h w c"], train: bool
    ) -> tuple[Float[Array, "b t"], Float[Array, "b k"]]:
        """From all frames, at low resolution."""
        features = self.network.encode(video, train).mean(axis=(2, 3)).astype(jnp.float32)
        mean = features.mean(axis=1)
        both = jnp.concatenate([features, jnp.broadcast_to(mean[:, None], features.shape)], axis=-1)
        return nn.Dense(1, name="frames")(both)[..., 0], nn.Dense(self.convolutions, name="convolutions")(mean)


class Ada3D(nn.Module):
    """The classifier.

    Attributes:
      model: the 3-D network.
      glance: the network of the policy, without classes and shift.
      shrink: factor by which height and width are reduced for the policy.
    """

    model: SlowNetwork
    glance: SegmentNetwork
    shrink: int = 2
    card: Card = Card()

    def setup(self) -> None:
        """Creates the policy; the other parameters are the 3-D network's, in one scope."""
        network, convolutions = self.model, convolutions_over_time(self.model)
        if network.temporal_strides != (1, 1) or any(network.nonlocal_after) or not convolutions:
            raise UserError(
                "Ada3D drops frames and chooses among convolutions over time: give a network that has some, "
                "without non-local blocks and with temporal_strides=(1, 1)"
            )
        if self.glance.shift != "none":
            raise UserError("the glance sees single frames: give a network with shift='none'")
        nn.share_scope(self, self.model)
        glance = self.glance.clone(num_classes=None, head=None, parent=None, name=None)  # `create_model` sets them
        self.policy_stem = Policy(glance, convolutions)

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

    def decide(
        self, video: Float[Array, "b t h w c"], train: bool = False
    ) -> tuple[Usage, Float[Array, "b 2"], Float[Array, "b 2"]]:
        """What is used, log-probabilities of both kinds of decisions, and the entropies of their distributions.

        Decisions are drawn in training, by the PRNG key `usage`; in evaluation they are the more probable ones.
        """
        check_video(video, self.channels)
        size = (1, self.shrink, self.shrink)
        used, likelihoods, entropies = [], [], []
        for logits in self.policy_stem(nn.avg_pool(video, size, size), train):
            noise = jax.random.logistic(self.make_rng("usage"), logits.shape) if train else 0.0
            used.append((logits + noise > 0).astype(jnp.float32))
            likelihoods.append(jnp.where(used[-1] > 0, nn.log_sigmoid(logits), nn.log_sigmoid(-logits)).sum(axis=1))
            entropies.append((nn.softplus(logits) - logits * nn.sigmoid(logits)).sum(axis=1))
            if len(used) == 1:
                rank = jnp.argsort(jnp.argsort(-logits))
                used[0] = jnp.maximum(used[0], rank < self._least())
        return Usage(*used), jnp.stack(likelihoods, axis=1), jnp.stack(entropies, axis=1)

    def _least(self) -> int:
        """The fewest frames that the network takes."""
        return 2 if self.model.pool else 1

    def _run(
        self,
        video: Array,
        train: bool,
        pruned: bool,
        method: str = "__call__",
        usage: Usage | None = None,
        whole: Array | None = None,
    ) -> tuple[Any, Usage, Array, Array]:
        """The output of a method of the network, what was used, the decisions' log-probabilities and entropies."""
        decided, likelihoods, entropies = self.decide(video, train)
        usage = decided if usage is None else usage
        if whole is not None:
            usage = Usage(*(jnp.where(all_of[:, None], 1.0, each) for all_of, each in zip(whole.T, usage, strict=True)))
            likelihoods = jnp.where(whole, 0.0, likelihoods)
        order, counts = jnp.argsort(usage.frames <= 0, axis=1), usage.frames.sum(axis=1).astype(jnp.int32)
        kept = jnp.take_along_axis(video, order[..., None, None, None], axis=1)  # in order, the others after them

        def intercept(call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
            if not isinstance(context.module, SlowNetwork) or context.method_name != "encode":
                return call(*args, **kwargs)
            if pruned and not self.is_initializing():
                return self._skip(kept, counts, usage.convolutions)
            with choosing(usage.convolutions, counts, video.shape[1], train):
                return mean_of_kept(call(kept, train), counts, video.shape[1])

        with nn.intercept_methods(intercept):
            outputs = getattr(self.model, method)(kept, train)
        return outputs, usage, likelihoods, entropies

    def _skip(
        self, kept: Float[Array, "b t h w c"], counts: Int[Array, "b"], convolutions: Float[Array, "b k"]
    ) -> Float[Array, "b 1 _ _ d"]:
        """The map of each clip, averaged over time; only what is used is computed."""
        network, variables, length = self.model.clone(parent=None, name=None), self.model.variables, kept.shape[1]
        capacities = sorted({max(int(length * share + 0.999), self._least()) for share in STEPS})

        def clip(inputs: tuple[Array, Array, Array]) -> Array:
            frames, count, used = inputs

            def of(capacity: int) -> Callable[[Array], Array]:
                def run(frames: Array) -> Array:
                    with choosing(used[None], count[None], capacity, train=False):
                        x = network.apply(variables, frames[None, :capacity], method="stages")[-1]
                    return mean_of_kept(x, count[None], capacity)[0]

                return run

            return jax.lax.switch((count > jnp.asarray(capacities)).sum(), [of(each) for each in capacities], frames)

        return jax.lax.map(clip, (kept, counts, convolutions))

    def encode(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b 1 _ _ d"]:
        """The last map, averaged over the frames that are kept."""
        return self._run(video, train, not train, "encode")[0]

    def embed(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b d"]:
        """What the head sees, averaged over the positions."""
        return self._run(video, train, not train, "embed")[0]

    def masked(
        self,
        video: Float[Array, "b t h w c"],
        train: bool = False,
        usage: Usage | None = None,
        whole: Bool[Array, "b 2"] | None = None,
    ) -> Adaptive:
        """The pass of training; without `train` with the decisions of evaluation instead of drawn ones.

        Args:
          usage: instead of what the policy decides, such as random choices for a comparison; at least one frame, two
            if the network halves time.
          whole: clips that keep all frames, and clips whose convolutions are all 3-D, whatever is decided.
        """
        return Adaptive(*self._run(video, train, False, usage=usage, whole=whole))

    def pruned(self, video: Float[Array, "b t h w c"], usage: Usage | None = None) -> Adaptive:
        """The pass of evaluation, with what was used."""
        return Adaptive(*self._run(video, False, True, usage=usage))

    def __call__(self, video: Float[Array, "b t h w c"], train: bool = False) -> PyTree[Float[Array, "b ..."]]:
        """What the 3-D network returns, by default logits `b classes`; training draws by the PRNG key `usage`."""
        return self._run(video, train, not train)[0]


def around(model: Callable[[], SlowNetwork], glance: Callable[[], SegmentNetwork], **fields: Any) -> Ada3D:
    """An Ada3D of these networks."""
    network = model()
    return Ada3D(network, glance(), card=network.card, **fields)


SMALL = partial(SegmentNetwork, depths=(1, 1, 1, 1), width=4, dropout=0.0)

VARIANTS = MappingProxyType(
    {
        "ada3d_tiny": partial(around, partial(SlowNetwork, slow.I3D, **slow.TINY, pool=True), SMALL),
        "ada3d_i3d_50": partial(
            around, partial(SlowNetwork, slow.I3D, pool=True, num_classes=400, card=slow.kinetics(8)),
            partial(SMALL, width=16),
        ),
    }
)  # fmt: skip
