"""Discrete tokens: training a discrete VAE, and predicting its tokens at masked places (BEiT, BEVT)."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int, Key

from vidjax.objectives.language_modeling import within_text


def masked_token_loss(
    logits: Float[Array, "b *n v"], tokens: Int[Array, "b *n"], counted: Bool[Array, "b *n"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Cross-entropy of the tokens at the counted places, and the share that is predicted correctly.

    Both are means over all counted places of the batch, as in the originals, and 0 without any.

    Args:
      counted: True for the masked places of valid clips.

    Example:
      >>> tokens = tokenizer.apply(frozen, half_of_the_size, method="tokens")
      >>> loss, accuracy = masked_token_loss(model.apply(variables, images, masked), tokens, masked)
    """
    losses = optax.losses.softmax_cross_entropy_with_integer_labels(logits.astype(jnp.float32), tokens)
    count = jnp.maximum(counted.sum(), 1)
    correct = (logits.argmax(axis=-1) == tokens) & counted
    return jnp.where(counted, losses, 0.0).sum() / count, correct.sum() / count


def relaxed_tokens(
    key: Key[Array, ""], logits: Float[Array, "*b v"], temperature: Float[Array, ""] | float
) -> Float[Array, "*b v"]:
    """A sample of the Gumbel-softmax (Jang et al. 2017, arXiv:1611.01144): nearly one-hot at a low temperature."""
    noise = jax.random.gumbel(key, logits.shape, jnp.float32)
    return jax.nn.softmax((logits.astype(jnp.float32) + noise) / temperature)


def divergence_from_uniform(logits: Float[Array, "*b v"]) -> Float[Array, "*b"]:
    """Kullback-Leibler divergence of the softmax from the uniform distribution, from 0 to the logarithm of `v`."""
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32))
    return (jnp.exp(log_probabilities) * log_probabilities).sum(axis=-1) + np.log(logits.shape[-1])


def logit_laplace_loss(statistics: Float[Array, "*b p"], pixels: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    """Negative log-likelihood of pixels under a logit-Laplace distribution (DALL-E, arXiv:2102.12092, appendix A.3).

    Args:
      statistics: means of the channels, then logarithms of their scales.
      pixels: between 0 and 1, without both.
    """
    mean, log_scale = jnp.split(statistics.astype(jnp.float32), 2, axis=-1)
    pixels = pixels.astype(jnp.float32)
    distance = jnp.abs(jnp.log(pixels) - jnp.log1p(-pixels) - mean)
    return jnp.log(2 * pixels * (1 - pixels)) + log_scale + distance * jnp.exp(-log_scale)


def autoencoder_loss(
    logits: Float[Array, "b t h w v"],
    statistics: Float[Array, "b t y x p"],
    pixels: Float[Array, "b t y x c"],
    weight: Float[Array, ""] | float,
) -> tuple[Float[Array, "b"], Float[Array, "b"], Float[Array, "b"]]:
    """The negative evidence lower bound of a discrete VAE with a uniform prior, per value of a pixel.

    Args:
      logits: of the tokens.
      statistics: of the pixels, from the decoder; see `logit_laplace_loss`.
      weight: of the divergence, the paper's beta; with 8x8x3 values for a token, it is divided by 192.

    Returns:
      The loss of each clip, and its parts: the mean over values of the reconstruction loss, and the mean over tokens of
      the divergence from the prior.
    """
    reconstruction = logit_laplace_loss(statistics, pixels).mean(axis=(1, 2, 3, 4))
    divergence = divergence_from_uniform(logits)
    tokens_per_value = divergence[0].size / pixels[0].size
    divergence = divergence.mean(axis=(1, 2, 3))
    return reconstruction + weight * tokens_per_value * divergence, reconstruction, divergence


def annealed(step: Int[Array, ""] | int, first: float, last: float, steps: int) -> Float[Array, ""]:
    """A temperature that falls from the first value to the last as half a cosine, and then stays."""
    done = jnp.minimum(step / steps, 1.0)
    return last + (first - last) * (1 + jnp.cos(jnp.pi * done)) / 2


def warmed_up(step: Int[Array, ""] | int, last: float, steps: int) -> Float[Array, ""]:
    """A weight that rises linearly from 0 to the last value, and then stays."""
    return last * jnp.minimum(step / steps, 1.0)


def text_to_image_loss(
    words: Float[Array, "b k v"],
    image: Float[Array, "b n t"],
    ids: Int[Array, "b m"],
    tokens: Int[Array, "b n"],
    text_weight: float = 1 / 8,
) -> tuple[Float[Array, "b"], Float[Array, "b"], Float[Array, "b"]]:
    """DALL-E's loss of each example, and its parts: the mean cross-entropies of words and of image tokens.

    Args:
      words: logits of the words after the first.
      image: logits of the image's tokens.
      ids: words, with zeros after the end of a text, which do not count.
      tokens: of the image.
      text_weight: weight of the words; the rest is that of the image.
    """
    cross_entropy = optax.losses.softmax_cross_entropy_with_integer_labels
    counted = within_text(ids)[:, 1:]
    of_words = jnp.where(counted, cross_entropy(words.astype(jnp.float32), ids[:, 1:]), 0.0).sum(axis=1)
    of_words /= jnp.maximum(counted.sum(axis=1), 1)
    of_image = cross_entropy(image.astype(jnp.float32), tokens).mean(axis=1)
    return text_weight * of_words + (1 - text_weight) * of_image, of_words, of_image
