"""A reward model of captions: a captioner with one number in place of the words (Ouyang et al. 2022, arXiv:2203.02155).

The number is read at the last token of a caption, which has seen all others and the video. Only differences between
rewards of captions of the same video have a meaning.
"""

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from vidjax.layers.card import Card
from vidjax.layers.tower import ClipsOfTower


class RewardModel(ClipsOfTower, nn.Module):
    """The captioner's tokens, and a linear head.

    Attributes:
      tower: the captioner, a `Blip` or its `Captioner`; its head of words is not used.
    """

    tower: nn.Module
    card: Card = Card()

    def setup(self) -> None:
        """Creates the submodules, whose attribute names are the parameter names."""
        # Small at first, as in InstructGPT's reward models: no caption is preferred.
        self.reward_head = nn.Dense(1, kernel_init=nn.initializers.normal((self.tower.text.width + 1) ** -0.5))

    def seen(self, video: Float[Array, "b t h w c"], train: bool = False) -> Float[Array, "b n d"]:
        """The tokens of a video that captions attend to."""
        return self.tower.seen(video, train)

    def rewards(self, ids: Int[Array, "b m"], seen: Float[Array, "b n d"]) -> Float[Array, "b m"]:
        """Rewards after each token, in float32; that of a caption is the one at its last token."""
        tokens = self.tower.text.written(self.tower.text.started(ids), seen)
        return self.reward_head(tokens.astype(jnp.float32))[..., 0]

    def __call__(
        self, video: Float[Array, "b t h w c"], ids: Int[Array, "b m"] | None = None, train: bool = False
    ) -> Float[Array, "b m"]:
        """See `rewards`; by default of an empty caption."""
        if self.is_initializing():  # the captioner's other parameters too
            self.tower(video)
        ids = jnp.ones((len(video), 1), jnp.int32) if ids is None else ids
        return self.rewards(ids, self.seen(video, train))
