"""Preferences by hand, case by case, and equal to the losses of trl, if it is installed."""

from types import SimpleNamespace
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidjax.objectives import preferences

RANDOM = np.random.default_rng(0)
IDS = np.array([[9, 3, 0, 5, 8, 0], [9, 6, 8, 0, 0, 0]], np.int32)  # start, words, end, padding
LOGITS = RANDOM.normal(size=(2, 6, 10)).astype(np.float32)


def log_sigmoid(x):
    return -np.log1p(np.exp(-np.asarray(x, np.float64)))


def test_a_text_has_the_sum_of_its_words_and_its_end_without_prompt_and_padding():
    likelihood = LOGITS - np.log(np.exp(LOGITS).sum(axis=-1, keepdims=True))
    words = [[likelihood[row, i, IDS[row, i + 1]] for i in range(count)] for row, count in enumerate((4, 2))]
    computed = preferences.word_log_probabilities(jnp.asarray(LOGITS), jnp.asarray(IDS))
    for prompt in (1, 2):
        answer = preferences.answer_mask(jnp.asarray(IDS), prompt)
        found = preferences.text_log_probability(computed, answer)
        np.testing.assert_allclose(found, [sum(row[prompt - 1 :]) for row in words], rtol=1e-5)
        np.testing.assert_array_equal(answer.sum(axis=1), [5 - prompt, 3 - prompt])


def test_dpo_compares_log_ratios_to_the_reference():
    chosen, rejected, by_reference, and_rejected = np.array([[-1.0, -5.0], [-3.0, -4.0], [-2.0, -3.0], [-2.5, -6.0]])
    margins = 0.5 * ((chosen - by_reference) - (rejected - and_rejected))
    np.testing.assert_allclose(margins, [0.75, -2.0])
    given = tuple(map(jnp.float32, (chosen, rejected, by_reference, and_rejected)))
    for smoothing in (0.0, 0.1):
        losses, found = preferences.dpo(*given, 0.5, smoothing)
        np.testing.assert_allclose(found, margins, rtol=1e-6)
        expected = -(1 - smoothing) * log_sigmoid(margins) - smoothing * log_sigmoid(-margins)
        np.testing.assert_allclose(losses, expected, rtol=1e-5)
    # Section 4: the gradient is beta times the sigmoid of minus the margin, and none reaches the reference.
    total = lambda *values: preferences.dpo(*values, 0.5)[0].sum()  # noqa: E731
    gradients = jax.grad(total, (0, 1, 2, 3))(*given)
    slope = 0.5 * np.exp(log_sigmoid(-margins))
    np.testing.assert_allclose(gradients, [-slope, slope, [0, 0], [0, 0]], rtol=1e-5)


def test_a_reward_is_read_at_the_last_token_that_is_no_padding():
    values = jnp.arange(12.0).reshape(2, 6)
    np.testing.assert_array_equal(preferences.at_the_end(values, jnp.asarray(IDS)), [4, 8])
    full = jnp.ones((2, 6), jnp.int32)
    np.testing.assert_array_equal(preferences.at_the_end(values, full), [5, 11])
    losses = preferences.bradley_terry(jnp.array([2.0, -1.0]), jnp.array([0.5, 3.0]))
    np.testing.assert_allclose(losses, [np.log1p(np.exp(-1.5)), np.log1p(np.exp(4.0))], rtol=1e-6)


def test_advantages_are_relative_to_the_group():
    found = preferences.group_advantages(jnp.array([[1.0, 0.0, 0.0, 1.0], [2.0, 2.0, 2.0, 2.0], [0.0, 3.0, 0.0, 1.0]]))
    deviation = np.sqrt((1 + 4 + 1 + 0) / 3)
    expected = [[0.5 / np.sqrt(1 / 3), -0.5 / np.sqrt(1 / 3)], [0, 0], [-1 / deviation, 2 / deviation]]
    np.testing.assert_allclose(found[:, :2], expected, rtol=5e-4)  # 1e-4 is added to the deviation


@pytest.mark.parametrize(
    ("ratio", "advantage", "gained", "slope"),
    [
        (1.5, 2.0, 1.2 * 2.0, 0.0),  # clipped from above
        (1.5, -2.0, 1.5 * -2.0, 1.5 * -2.0),  # a worse word that became likelier is not
        (0.5, -2.0, 0.8 * -2.0, 0.0),  # clipped from below
        (0.5, 2.0, 0.5 * 2.0, 0.5 * 2.0),
        (1.1, 2.0, 1.1 * 2.0, 1.1 * 2.0),
    ],
)
def test_a_ratio_is_clipped_only_where_its_advantage_leads(ratio, advantage, gained, slope):
    words = jnp.log(jnp.array([[0.2, 0.3, 0.9]]))
    old = words - jnp.log(jnp.array([[ratio, 1.0, 7.0]]))
    answer, advantages = jnp.array([[True, True, False]]), jnp.array([advantage])
    loss = lambda words: preferences.clipped_policy_gradient(words, old, words, advantages, answer, beta=0.0)[0]  # noqa: E731
    value, gradient = jax.value_and_grad(loss)(words)
    np.testing.assert_allclose(value, -(gained + advantage) / 2, rtol=1e-5)
    np.testing.assert_allclose(gradient[0], [-slope / 2, -advantage / 2, 0], rtol=1e-5, atol=1e-7)


def test_the_divergence_of_drawn_words_is_estimated_without_bias_and_penalised():
    policy, reference = np.array([0.2, 0.5, 0.3]), np.array([0.6, 0.3, 0.1])
    each = preferences.divergence(jnp.log(policy)[None], jnp.log(reference)[None])[0]
    assert (each > 0).all()
    np.testing.assert_allclose((policy * each).sum(), (policy * np.log(policy / reference)).sum(), rtol=1e-5)
    words, mask = jnp.log(policy)[None], jnp.array([[True, False, True]])
    loss = preferences.clipped_policy_gradient(words, words, jnp.log(reference)[None], jnp.zeros(1), mask, beta=0.5)
    np.testing.assert_allclose(loss, [0.5 * (each[0] + each[2]) / 2], rtol=1e-5)
    nothing = preferences.clipped_policy_gradient(words, words, words, jnp.ones(1), jnp.zeros((1, 3), bool))
    np.testing.assert_array_equal(nothing, [0])


@pytest.fixture
def trainer():
    """Stands for a trainer of trl, whose loss functions are called without the models and data that it would load."""
    fake = mock.MagicMock()
    fake.accelerator.gather = fake.accelerator.gather_for_metrics = lambda x: x
    fake.aux_loss_enabled, fake.model.training, fake.ld_alpha = False, True, None
    return fake


def draw(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


@pytest.mark.long
def test_dpo_and_the_reward_models_loss_are_those_of_trl(trainer):
    torch = pytest.importorskip("torch")
    DPOTrainer = pytest.importorskip("trl.trainer.dpo_trainer").DPOTrainer
    RewardTrainer = pytest.importorskip("trl.trainer.reward_trainer").RewardTrainer
    ids, mask = torch.tensor(np.tile(IDS, (2, 1))), torch.tensor(np.tile(IDS != 0, (2, 1)))
    mask[:, :2] = False  # a prompt
    logits, (by_reference, and_rejected) = draw(4, 6, 10), draw(2, 2)

    def model(input_ids, labels, **_):
        words = torch.tensor(logits).log_softmax(-1)[:, :-1].gather(-1, input_ids[:, 1:, None].long())[..., 0]
        words = words * (labels[:, 1:] != -100)
        return SimpleNamespace(log_probs=words, entropy=words, mean_logits=words, is_top1=words > -1)

    trainer.beta, trainer.loss_types, trainer.loss_weights = 0.3, ["sigmoid"], [1.0]
    trainer.f_divergence_type, trainer.precompute_ref_logps, trainer.use_weighting = "reverse_kl", True, False
    given = {"input_ids": ids, "completion_mask": mask.long(), "attention_mask": mask.long()}
    given |= {"ref_chosen_logps": torch.tensor(by_reference), "ref_rejected_logps": torch.tensor(and_rejected)}
    expected = DPOTrainer._compute_loss(trainer, model, given, False)
    words = preferences.word_log_probabilities(jnp.asarray(logits), jnp.asarray(ids))
    texts = preferences.text_log_probability(words, preferences.answer_mask(jnp.asarray(ids), 2))
    losses, _ = preferences.dpo(*jnp.split(texts, 2), jnp.asarray(by_reference), jnp.asarray(and_rejected), 0.3)
    np.testing.assert_allclose(losses.mean(), expected, rtol=1e-5)

    trainer.args.center_rewards_coefficient = None
    rewards = draw(6, 1)
    given = {"input_ids": ids, "attention_mask": mask}
    expected = RewardTrainer.compute_loss(trainer, lambda **_: SimpleNamespace(logits=torch.tensor(rewards)), given)
    losses = preferences.bradley_terry(*jnp.split(jnp.asarray(rewards[:, 0]), 2))
    np.testing.assert_allclose(losses.mean(), expected, rtol=1e-5)


@pytest.mark.long
def test_the_clipped_policy_gradient_is_that_of_trl(trainer):
    torch = pytest.importorskip("torch")
    GRPOTrainer = pytest.importorskip("trl.trainer.grpo_trainer").GRPOTrainer
    words, old, reference = draw(3, 8, 5) * 0.5
    advantages, answer = draw(8), np.arange(5)[None] < RANDOM.integers(1, 6, size=8)[:, None]
    trainer._get_per_token_logps_and_entropies.return_value = torch.tensor(words), torch.zeros(8, 5), None
    trainer.beta, trainer.epsilon_low, trainer.epsilon_high, trainer.loss_type = 0.3, 0.2, 0.2, "grpo"
    trainer.args.delta, trainer.args.use_bias_correction_kl, trainer.top_entropy_quantile = None, False, 1.0
    trainer.importance_sampling_level, trainer.use_vllm, trainer.off_policy_mask_threshold = "token", False, None
    trainer.current_gradient_accumulation_steps, trainer._entropy_bonus_enabled = 1, False
    given = {"prompt_ids": np.zeros((8, 1)), "prompt_mask": np.zeros((8, 1)), "completion_ids": np.zeros((8, 5))}
    given |= {"completion_mask": answer.astype(int), "advantages": advantages}
    given |= {"old_per_token_logps": old, "ref_per_token_logps": reference}
    expected = GRPOTrainer._compute_loss(trainer, None, {name: torch.tensor(x) for name, x in given.items()})
    arrays = (jnp.asarray(x) for x in (words, old, reference, advantages, answer))
    losses = preferences.clipped_policy_gradient(*arrays, clip=0.2, beta=0.3)
    np.testing.assert_allclose(losses.mean(), expected, rtol=1e-5)
