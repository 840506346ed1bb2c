"""Moment retrieval and highlights against recorded outputs of Moment-DETR's evaluation of QVHighlights."""

import json
from pathlib import Path

import numpy as np
import pytest

from vidjax.errors import UserError
from vidjax.evaluation.moments import CLIP, LENGTHS, RATINGS, THRESHOLDS, Moments, highlights, moment_retrieval

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens" / "eval_qvhighlights.json").read_text())


def percent(value):
    return round(100 * value, 2)


@pytest.fixture(scope="module")
def retrieved():
    truth = [Moments(np.array(row["relevant_windows"], float)) for row in GOLDEN["ground_truth"]]
    rows = [np.array(row["pred_relevant_windows"], float) for row in GOLDEN["predictions"]]
    return moment_retrieval(truth, [Moments(row[:, :2], row[:, 2]) for row in rows])


@pytest.mark.parametrize("length", LENGTHS)
def test_retrieval_equals_the_published_program(retrieved, length):
    expected, result = GOLDEN["results"][length], retrieved[length]
    for place, threshold in enumerate(THRESHOLDS):
        key = f"{threshold:.2f}".rstrip("0")
        assert percent(result.map[place]) == pytest.approx(expected["MR-mAP"][key], abs=0.011)
        assert percent(result.r1[place]) == pytest.approx(expected["MR-R1"][key], abs=0.011)
    assert percent(result.average_map) == pytest.approx(expected["MR-mAP"]["average"], abs=0.011)


def test_highlights_equal_the_published_program():
    ratings, saliency = [], []
    for row, guess in zip(GOLDEN["ground_truth"], GOLDEN["predictions"], strict=True):
        rated = np.zeros((int(row["duration"] / CLIP), 3), int)
        rated[row["relevant_clip_ids"]] = row["saliency_scores"]
        ratings.append(rated)
        saliency.append(np.array(guess["pred_saliency_scores"]))
    results = highlights(ratings, saliency)
    for name, key in zip(RATINGS, ("Fair", "Good", "VeryGood"), strict=True):
        expected = GOLDEN["results"][f"HL-min-{key}"]
        assert percent(results[name].map) == pytest.approx(expected["HL-mAP"], abs=0.011)
        assert percent(results[name].hit1) == pytest.approx(expected["HL-Hit1"], abs=0.011)


def test_the_first_listed_window_counts_for_recall_whatever_its_score():
    truth = [Moments(np.array([[0.0, 20.0]]))]
    windows = np.array([[100.0, 120.0], [0.0, 20.0]])
    result = moment_retrieval(truth, [Moments(windows, np.array([0.1, 0.9]))])["full"]
    assert result.r1[0] == 0 and result.average_map == 1


def test_wrong_input_is_one_line():
    one = Moments(np.array([[0.0, 20.0]]))
    with pytest.raises(UserError, match="1 annotated queries and 0 predicted"):
        moment_retrieval([one], [])
    with pytest.raises(UserError, match="query 0 has no predicted windows with scores"):
        moment_retrieval([one], [one])
