"""Accuracies against counting by hand and against scikit-learn's definitions written out."""

import numpy as np
import pytest

from vidjax.evaluation.recognition import calibration_error, recognition


def made(count=200, classes=7, seed=0):
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes - 1, count)  # the last class never occurs
    logits = random.normal(size=(count, classes)) + 1.2 * np.eye(classes)[labels]
    return np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True), labels


def test_every_number_equals_counting():
    probabilities, labels = made()
    found = recognition(probabilities, labels)
    order = np.argsort(-probabilities, axis=1)
    assert found.videos == 200
    assert found.top1 == pytest.approx(np.mean(order[:, 0] == labels))
    assert found.top5 == pytest.approx(np.mean([label in row[:5] for label, row in zip(labels, order, strict=True)]))
    shares = [np.mean(order[labels == c, 0] == c) for c in range(6)]
    assert found.mean_class_accuracy == pytest.approx(np.mean(shares))
    np.testing.assert_allclose(found.class_accuracy[:6], shares)
    assert np.isnan(found.class_accuracy[6])
    assert found.confusion.sum() == 200 and found.confusion.diagonal().sum() == round(found.top1 * 200)
    for true, predicted in ((0, 1), (3, 3), (5, 2)):
        assert found.confusion[true, predicted] == np.sum((labels == true) & (order[:, 0] == predicted))


def test_the_interval_is_that_of_resampled_videos_and_the_same_again():
    probabilities, labels = made()
    found = recognition(probabilities, labels)
    right = probabilities.argmax(axis=1) == labels
    random = np.random.default_rng(1)
    means = [random.choice(right, len(right)).mean() for _ in range(4000)]
    np.testing.assert_allclose(found.top1_interval, np.percentile(means, [2.5, 97.5]), atol=0.012)
    assert found.top1_interval == recognition(probabilities, labels).top1_interval


def test_equal_scores_do_not_count_as_right_in_top_one_only_for_the_first():
    flat = np.full((4, 4), 0.25)
    found = recognition(flat, np.arange(4))
    assert found.top1 == 0.25 and found.top5 == 1.0


def test_calibration_is_zero_for_honest_and_large_for_boastful_confidence():
    honest = np.repeat([0.55, 0.75], 400)
    right = np.concatenate([np.arange(400) < 220, np.arange(400) < 300])
    assert calibration_error(honest, right) == pytest.approx(0, abs=1e-12)
    assert calibration_error(np.full(100, 0.99), np.arange(100) < 50) == pytest.approx(0.49)
    # Two bins, by hand: 10 videos at 0.31 of which 5 right, 30 at 0.9 of which 15 right.
    confidence, right = np.repeat([0.31, 0.9], [10, 30]), np.concatenate([np.arange(10) < 5, np.arange(30) < 15])
    assert calibration_error(confidence, right) == pytest.approx((10 * 0.19 + 30 * 0.4) / 40)


def test_what_cannot_be_measured_is_refused():
    with pytest.raises(ValueError, match="no video with a label"):
        recognition(np.zeros((0, 3)), np.zeros(0, int))
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.2, but run from 0 to 3"):
        recognition(np.full((2, 3), 1 / 3), np.array([0, 3]))
    with pytest.raises(ValueError, match="the model gave probabilities that are not finite"):
        recognition(np.array([[np.nan, 1.0]]), np.array([0]))
