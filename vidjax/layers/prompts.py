"""Prompts that are trained in front of a frozen language model: prompt tuning, P-tuning and prefix tuning.

Prompt tuning (Lester et al. 2021, arXiv:2104.08691) trains embeddings in front of those of the words. P-tuning (Liu et
al. 2021, arXiv:2103.10385) trains an MLP that computes them. Prefix tuning (Li and Liang 2021, arXiv:2101.00190) trains
keys and values in front of those of every block, itself or through an MLP; without it, it is P-tuning v2 (Liu et al.
2022, arXiv:2110.07602). The names are peft's; what its files hold is the prompt, not how it is computed.

The words' positions follow those of the prompt. A prompt of embeddings has logits of its own, which come first.
"""

from typing import Any

import einops
import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Prompt(nn.Module):
    """Embeddings of virtual tokens, or the keys and values of a prefix, `2 * depth * width` for each.

    Attributes:
      count: number of virtual tokens.
      features: of each, as returned.
      width: of the embeddings that an MLP transforms; None returns the embeddings.
      hidden: width of that MLP.
      layers: linear layers of that MLP: 2 with a tanh between them (prefix tuning), or 3 with ReLU (P-tuning).
    """

    count: int
    features: int
    width: int | None = None
    hidden: int = 0
    layers: int = 2

    @nn.compact
    def __call__(self) -> Float[Array, "n d"]:
        """The prompt, which is what peft saves."""
        x = nn.Embed(self.count, self.width or self.features, name="embedding")(jnp.arange(self.count))
        if self.width is None:
            return x
        activation = jnp.tanh if self.layers == 2 else nn.relu
        for i in range(self.layers - 1):
            x = activation(nn.Dense(self.hidden, name=f"fc{i}")(x))
        return nn.Dense(self.features, name=f"fc{self.layers - 1}")(x)


def with_prompt(
    model: nn.Module,
    variables: dict[str, Any],
    prompt: Float[Array, "n d"],
    ids: Int[Array, "b m"],
    valid: Bool[Array, "b m"],
) -> Float[Array, "b n+m v"]:
    """Logits of the word after each virtual token and each word, for prompt tuning and P-tuning.

    Args:
      model: a `LanguageModel`.
      prompt: embeddings.
      valid: false for padding.
    """
    bound = model.bind(variables)
    shown = jnp.ones((len(ids), len(prompt)), bool)
    words = bound.embed(ids)
    embedded = jnp.concatenate([jnp.tile(prompt.astype(words.dtype), (len(ids), 1, 1)), words], axis=1)
    return bound.words(bound.tokens(embedded, jnp.concatenate([shown, valid], axis=1)))


def with_prefix(
    model: nn.Module,
    variables: dict[str, Any],
    prefix: Float[Array, "n f"],
    ids: Int[Array, "b m"],
    valid: Bool[Array, "b m"],
) -> Float[Array, "b m v"]:
    """Logits of the word after each word, for prefix tuning and P-tuning v2.

    Args:
      model: a `LanguageModel`, whose blocks read the keys and values of the prefix from their cache.
      prefix: keys and values of each block, in this order, block by block.
      valid: false for padding.
    """
    count, room = len(prefix), ((0, 0), (0, ids.shape[1]), (0, 0), (0, 0))
    pairs = einops.rearrange(prefix, "n (l two h d) -> l two n h d", l=model.depth, two=2, h=model.heads)
    pairs = jnp.tile(pairs[:, :, None], (1, 1, len(ids), 1, 1, 1)).astype(model.dtype or pairs.dtype)
    kept = {
        f"block_{i}": {"attention": {name: jnp.pad(pair[k], room) for k, name in enumerate(("keys", "values"))}}
        for i, pair in enumerate(pairs)
    }
    shown = jnp.concatenate([jnp.ones((len(ids), count), bool), valid], axis=1)

    def read(bound: nn.Module) -> Float[Array, "b m v"]:
        return bound.words(bound.tokens(bound.embed(ids), shown, place=count))

    return model.apply(variables | {"cache": {"transformer": kept}}, method=read, mutable=["cache"])[0]
