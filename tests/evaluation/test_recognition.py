"""Recognition metrics against direct counting."""

import numpy as np
import pytest

from vidjax.evaluation.recognition import calibration_error, recognition, wilson_interval


def make_predictions(count=200, classes=7, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes - 1, count)  # the last class never occurs
    logits = random.normal(size=(count, classes)) + 1.2 * np.eye(classes)[labels]
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), labels


def test_every_number_equals_counting():
    probabilities, labels = make_predictions()
    result = recognition(probabilities, labels)
    order = np.argsort(-probabilities, axis=1)
    assert result.videos == 200
    assert result.top1 == pytest.approx(np.mean(order[:, 0] == labels))
    assert result.top5 == pytest.approx(np.mean([label in row[:5] for label, row in zip(labels, order, strict=True)]))
    accuracies = [np.mean(order[labels == c, 0] == c) for c in range(6)]
    assert result.mean_class_accuracy == pytest.approx(np.mean(accuracies))
    np.testing.assert_allclose(result.class_accuracy[:6], accuracies)
    assert np.isnan(result.class_accuracy[6])
    assert result.confusion.sum() == 200 and result.confusion.diagonal().sum() == round(result.top1 * 200)
    for true, predicted in ((0, 1), (3, 3), (5, 2)):
        assert result.confusion[true, predicted] == np.sum((labels == true) & (order[:, 0] == predicted))


def test_the_interval_equals_resampling_videos_and_is_reproducible():
    probabilities, labels = make_predictions()
    result = recognition(probabilities, labels)
    correct = probabilities.argmax(axis=1) == labels
    random = np.random.default_rng(1)
    means = [random.choice(correct, len(correct)).mean() for _ in range(4000)]
    np.testing.assert_allclose(result.top1_interval, np.percentile(means, [2.5, 97.5]), atol=0.012)
    assert result.top1_interval == recognition(probabilities, labels).top1_interval


def test_of_equal_scores_only_the_first_class_counts_in_top_one():
    flat = np.full((4, 4), 0.25)
    result = recognition(flat, np.arange(4))
    assert result.top1 == 0.25 and result.top5 == 1.0


def test_calibration_error_is_zero_when_calibrated_and_large_when_overconfident():
    calibrated = np.repeat([0.55, 0.75], 400)
    correct = np.concatenate([np.arange(400) < 220, np.arange(400) < 300])
    assert calibration_error(calibrated, correct) == pytest.approx(0, abs=1e-12)
    assert calibration_error(np.full(100, 0.99), np.arange(100) < 50) == pytest.approx(0.49)
    # Two bins by hand: 10 videos at 0.31 with 5 correct, 30 at 0.9 with 15 correct.
    confidence, correct = np.repeat([0.31, 0.9], [10, 30]), np.concatenate([np.arange(10) < 5, np.arange(30) < 15])
    assert calibration_error(confidence, correct) == pytest.approx((10 * 0.19 + 30 * 0.4) / 40)


def test_invalid_inputs_are_refused():
    with pytest.raises(ValueError, match="there are no labelled videos"):
        recognition(np.zeros((0, 3)), np.zeros(0, int))
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.2, but range from 0 to 3"):
        recognition(np.full((2, 3), 1 / 3), np.array([0, 3]))
    with pytest.raises(ValueError, match="the model's probabilities are not finite"):
        recognition(np.array([[np.nan, 1.0]]), np.array([0]))


def test_wilsons_interval_solves_its_equation():
    """Its ends are the accuracies whose standard error explains the difference to the measured one, 1.96 times."""
    for correct, count in ((8, 10), (1, 3), (500, 1000)):
        for end in wilson_interval(correct, count):
            assert abs(correct / count - end) == pytest.approx(1.959964 * (end * (1 - end) / count) ** 0.5)
    assert wilson_interval(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert wilson_interval(10, 10) == pytest.approx((0.7225, 1.0), abs=1e-4)
    with pytest.raises(ValueError, match="no labelled videos"):
        wilson_interval(0, 0)
