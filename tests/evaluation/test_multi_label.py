"""Metrics of videos with several labels against numbers worked out by hand."""

import numpy as np
import pytest

from vidjax.errors import UserError
from vidjax.evaluation.multi_label import multi_label

PROBABILITIES = np.array(
    [
        [0.4, 0.3, 0.1, 0.1, 0.05, 0.04, 0.01],
        [0.1, 0.5, 0.2, 0.1, 0.05, 0.04, 0.01],
        [0.3, 0.1, 0.1, 0.1, 0.2, 0.15, 0.05],
    ]
)
LABELS = np.zeros((3, 7), bool)
LABELS[[0, 0, 1, 2], [0, 2, 2, 6]] = True


def test_accuracy_and_average_precision_equal_those_by_hand():
    result = multi_label(PROBABILITIES, LABELS)
    assert result.videos == 3
    assert result.top1 == pytest.approx(1 / 3)  # of the first video alone, the most probable class is a label
    assert result.top5 == pytest.approx(2 / 3)  # the third's label is the least probable of seven
    # All rank their videos first: class 2 its second, and its first before an equal one.
    np.testing.assert_allclose(result.average_precision, [1, np.nan, 1, np.nan, np.nan, np.nan, 1])
    assert result.mean_average_precision == pytest.approx(1)
    swapped = multi_label(PROBABILITIES[[2, 1, 0]], LABELS)
    # Class 0 now ranks its video second, class 6 last.
    np.testing.assert_allclose(swapped.average_precision[[0, 2, 6]], [1 / 2, 1, 1 / 3])


def test_the_mean_average_precision_of_one_class_per_video_does_not_depend_on_the_order_of_videos():
    draw = np.random.default_rng(0)
    probabilities = draw.dirichlet(np.ones(5), 60)
    labels = np.eye(5, dtype=bool)[draw.integers(0, 5, 60)]
    order = draw.permutation(60)
    one, other = multi_label(probabilities, labels), multi_label(probabilities[order], labels[order])
    assert one.mean_average_precision == pytest.approx(other.mean_average_precision)
    assert one.top1 == pytest.approx((probabilities.argmax(axis=1) == labels.argmax(axis=1)).mean())
    assert 0.15 < one.mean_average_precision < 0.4  # chance is the share of a class


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (PROBABILITIES, np.zeros((3, 7), bool), "there are no videos, or some without a label"),
        (PROBABILITIES[:0], LABELS[:0], "there are no videos"),
        (PROBABILITIES * np.nan, LABELS, "the model's probabilities are not finite"),
    ],
)
def test_what_cannot_be_measured_is_one_line(probabilities, labels, message):
    with pytest.raises(UserError, match=message):
        multi_label(probabilities, labels)
