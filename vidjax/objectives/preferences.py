"""Learning from preferences: a reward model, DPO, and a policy gradient with advantages relative to a group (GRPO).

Texts are ids such as those of `data.text.tokenize`, padded with id 0; the logits at place `i` predict token `i + 1`.
Every function returns a value for each text or pair, whose mean over the valid ones is the loss. The policy, whose
parameters are trained, starts as a copy of the reference, whose log-probabilities get no gradient.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vidjax.objectives.language_modeling import within_text

EPSILON = 1e-4
"""Added to the standard deviation of a group, as in trl."""


def answer_mask(ids: Int[Array, "b m"], prompt: int = 1) -> Bool[Array, "b n"]:
    """Which tokens are predicted and counted, for the tokens from the second: those after the prompt up to the padding.

    Args:
      prompt: number of tokens at the start that are given, such as the start token.
    """
    return within_text(ids)[:, 1:] & (jnp.arange(1, ids.shape[1]) >= prompt)


def word_log_probabilities(logits: Float[Array, "b m v"], ids: Int[Array, "b m"]) -> Float[Array, "b n"]:
    """Log-probability of each token from the second, given those before it, in float32."""
    log_likelihood = jax.nn.log_softmax(logits[:, :-1].astype(jnp.float32))
    return jnp.take_along_axis(log_likelihood, ids[:, 1:, None], axis=-1)[..., 0]


def text_log_probability(words: Float[Array, "b n"], answer: Bool[Array, "b n"]) -> Float[Array, "b"]:
    """Log-probability of the answers: the sum of those of their words.

    Args:
      words: see `word_log_probabilities`.
      answer: see `answer_mask`.
    """
    return jnp.where(answer, words, 0).sum(axis=1)


def dpo(
    chosen: Float[Array, "b"],
    rejected: Float[Array, "b"],
    reference_chosen: Float[Array, "b"],
    reference_rejected: Float[Array, "b"],
    beta: float = 0.1,
    smoothing: float = 0.0,
) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
    """Direct preference optimisation (Rafailov et al. 2023, arXiv:2305.18290, eq. 7).

    The policy's implicit reward of a text is `beta` times the log-ratio of its probability to the reference's, and the
    loss that of a reward model, `bradley_terry`. It only sees the difference: both texts can become unlikely.

    Example:
      >>> dpo(jnp.array([-1.0]), jnp.array([-3.0]), jnp.array([-2.0]), jnp.array([-2.0]), beta=1.0)
      (Array([0.126928], dtype=float32), Array([2.], dtype=float32))

    Args:
      chosen, rejected: log-probabilities of the preferred and the other texts (`text_log_probability`).
      reference_chosen, reference_rejected: the same of the reference.
      beta: weight of the divergence from the reference.
      smoothing: probability that a preference is wrong (conservative DPO; Mitchell 2023).

    Returns:
      The losses, and the margins: the differences of the implicit rewards.
    """
    reference = jax.lax.stop_gradient(reference_chosen - reference_rejected)
    margins = beta * (chosen - rejected - reference)
    return -(1 - smoothing) * jax.nn.log_sigmoid(margins) - smoothing * jax.nn.log_sigmoid(-margins), margins


def bradley_terry(chosen: Float[Array, "b"], rejected: Float[Array, "b"]) -> Float[Array, "b"]:
    """Loss of a reward model: minus the log-probability of the preferences (Ouyang et al. 2022, arXiv:2203.02155).

    Args:
      chosen, rejected: rewards of the preferred and the other texts.
    """
    return -jax.nn.log_sigmoid(chosen - rejected)


def at_the_end(values: Float[Array, "b m *d"], ids: Int[Array, "b m"]) -> Float[Array, "b *d"]:
    """The value at the last token of each text that is no padding, where a reward model is read."""
    last = ids.shape[1] - 1 - jnp.argmax(ids[:, ::-1] != 0, axis=1)
    return values[jnp.arange(len(ids)), last]


def group_advantages(rewards: Float[Array, "b g"]) -> Float[Array, "b g"]:
    """Rewards of a group of texts about the same clip, less their mean and over their standard deviation.

    The baseline of GRPO (Shao et al. 2024, arXiv:2402.03300, section 4.1.2), which needs no value function. The
    deviation is that of a sample (over g - 1), as in trl. Equal rewards have advantages of 0.
    """
    centered = rewards - rewards.mean(axis=1, keepdims=True)
    return centered / (rewards.std(axis=1, keepdims=True, ddof=1) + EPSILON)


def divergence(words: Float[Array, "b n"], reference: Float[Array, "b n"]) -> Float[Array, "b n"]:
    """Estimate of KL(policy, reference) from each word that the policy has drawn: `r - log r - 1`, never negative.

    `r` is the probability of the word with the reference over that with the policy (k3 in Schulman 2020,
    "Approximating KL divergence"; GRPO, eq. 4).
    """
    log_ratio = jax.lax.stop_gradient(reference) - words
    return jnp.exp(log_ratio) - log_ratio - 1


def clipped_policy_gradient(
    words: Float[Array, "b n"],
    old: Float[Array, "b n"],
    reference: Float[Array, "b n"],
    advantages: Float[Array, "b"],
    answer: Bool[Array, "b n"],
    clip: float = 0.2,
    beta: float = 0.04,
) -> Float[Array, "b"]:
    """PPO's clipped objective with a penalty of the divergence from the reference, mean over words (GRPO, eq. 3).

    A ratio that has left [1 - clip, 1 + clip] in the direction of its advantage gets no gradient from the first part.
    With `old` equal to `words`, as in the first update after texts were drawn, that part is REINFORCE with a baseline.

    Args:
      words: log-probabilities of the drawn words with the policy.
      old: the same with the policy that drew them.
      reference: the same with the reference.
      advantages: of each text.
      answer: see `answer_mask`; texts without such words have a loss of 0.
      clip: distance of the ratio from 1 (PPO; Schulman et al. 2017, arXiv:1707.06347, eq. 7).
      beta: weight of the divergence.
    """
    ratio, advantages = jnp.exp(words - jax.lax.stop_gradient(old)), jax.lax.stop_gradient(advantages)[:, None]
    gained = jnp.minimum(ratio * advantages, jnp.clip(ratio, 1 - clip, 1 + clip) * advantages)
    losses = beta * divergence(words, reference) - gained
    return jnp.where(answer, losses, 0).sum(axis=1) / jnp.maximum(answer.sum(axis=1), 1)
