"""Open-set metrics against counting every pair and threshold, and uncertainties against their formulas."""

import numpy as np
import pytest

from vidjax.evaluation import open_set as module
from vidjax.evaluation.open_set import auroc, false_positive_rate, open_macro_f1, open_set, uncertainties
from vidjax.objectives import classification

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("values", [4, 1000])
def test_auroc_equals_counting_every_pair_and_half_of_the_ties(values):
    known, unknown = RANDOM.integers(0, values, 83) / 7, RANDOM.integers(values // 4, values + 1, 59) / 7
    pairs = [1.0 if v > u else 0.5 if v == u else 0.0 for u in known for v in unknown]
    assert auroc(known, unknown) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert auroc(known, unknown) + auroc(unknown, known) == pytest.approx(1)
    assert auroc(np.ones(3), np.ones(4)) == 0.5


@pytest.mark.parametrize("count", [1, 19, 20, 59, 60])
def test_the_false_positive_rate_is_the_smallest_that_detects_95_of_100(count):
    known, unknown = RANDOM.integers(0, 9, 83) / 7, RANDOM.integers(2, 11, count) / 7
    rates = [
        (known >= threshold).mean() for threshold in np.arange(11) / 7 if sum(unknown >= threshold) * 100 >= 95 * count
    ]
    assert false_positive_rate(known, unknown) == min(rates)


def test_uncertainties_equal_their_formulas():
    logits = RANDOM.normal(size=(20, 5)) * 3
    logits[0] = [40, -40, 0, 0, 12]
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    results = uncertainties(logits.astype(np.float32))
    expected = {
        "softmax": 1 - probabilities.max(axis=1),
        "entropy": -(probabilities * np.log(probabilities)).sum(axis=1),
        "energy": -np.log(np.exp(logits).sum(axis=1)),
        "evidential": [5 / sum(1 + np.exp(min(max(x, -10), 10)) for x in row) for row in logits],
    }
    assert results.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(results[name], values, atol=1e-6, err_msg=name)
    confident = uncertainties(np.array([[50, 0, 0], [60, 0, 0]], np.float32))  # probabilities of 1 in float64
    assert all(np.diff(confident[name]) < 0 for name in ("softmax", "entropy", "energy"))


def test_metrics_equal_a_case_counted_by_hand():
    # The threshold accepts all known videos but the last, and of the unknown ones the first two, as class 0.
    certainty, unknown_certainty = np.r_[np.linspace(9, 6, 19), 1], np.array([8.1, 7.1, 2, 1.5, 3, 2.5])
    labels, predicted = np.arange(20) % 2, np.array([0, 0, 0, 0, 1, 1])
    logits, unknown_logits = np.eye(2)[labels] * certainty[:, None], np.eye(2)[predicted] * unknown_certainty[:, None]
    classes = np.array([5, 9, 5, 9, 5, 9])  # of each, one video is accepted and two are rejected
    result = open_set(logits, labels, unknown_logits, classes)["softmax"]
    assert result.threshold == pytest.approx(1 / (1 + np.exp(6)))
    assert result.auroc == pytest.approx(np.mean([u < k for u in unknown_certainty for k in certainty]))
    assert result.fpr95 == np.mean(certainty <= 8.1)
    one, two = (20 / 21 + 18 / 19 + 4 / 6) / 3, (20 / 22 + 18 / 19 + 8 / 11) / 3  # F1 of 0, 1 and unknown
    weights = 1 - np.sqrt(4 / 5), 1 - np.sqrt(4 / 6)
    assert result.macro_f1 == pytest.approx(np.average([one, two], weights=weights))
    assert open_set(logits, labels, unknown_logits)["softmax"].macro_f1 == pytest.approx(two)


def test_openness_averages_over_draws_of_the_unknown_classes():
    """Of two unknown classes one is recognised and one not: with one class, the F1 is that of either."""
    predicted = labels = np.array([0, 1])
    values = {
        open_macro_f1(predicted, labels, np.array([2, 0]), np.array([0, 1]), classes=2, draws=1, seed=seed)
        for seed in range(8)
    }
    either = 1.0, (2 / 3 + 1 + 0) / 3
    both = (2 / 3 + 1 + 2 / 3) / 3
    weights = 1 - np.sqrt(4 / 5), 1 - np.sqrt(4 / 6)
    assert sorted(values) == pytest.approx(sorted(np.average([one, both], weights=weights) for one in either))


def test_invalid_inputs_are_refused():
    logits = np.zeros((3, 2))
    with pytest.raises(ValueError, match="recognition on 3 known and 0 unknown videos: give at least one of each"):
        open_set(logits, np.zeros(3, int), logits[:0])
    with pytest.raises(ValueError, match="logits are not finite"):
        open_set(logits, np.zeros(3, int), np.full((2, 2), np.inf))


def test_evidence_is_bounded_as_in_the_loss():
    assert module.EVIDENCE == classification.EVIDENCE
