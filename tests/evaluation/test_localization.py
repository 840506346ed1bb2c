"""Temporal localisation against recorded outputs of ActivityNet's evaluation, ActionFormer's and OpenTAD's."""

import json
from pathlib import Path

import numpy as np
import pytest

from vidjax.errors import UserError
from vidjax.evaluation.localization import ACTIVITYNET, THUMOS, Instances, localization

GOLDENS = Path(__file__).parents[1] / "goldens"


def read(name):
    golden = json.loads((GOLDENS / f"{name}.json").read_text())
    videos = {video: number for number, video in enumerate({**golden["ground_truth"], **golden["predictions"]})}

    def instances(rows, scored):
        return Instances(
            np.array([videos[video] for video, _ in rows]),
            np.array([row["segment"] for _, row in rows], float),
            np.array([int(row["label"].removeprefix("class")) for _, row in rows]),
            np.array([row["score"] for _, row in rows]) if scored else None,
        )

    truth = [(video, row) for video, entry in golden["ground_truth"].items() for row in entry["annotations"]]
    guesses = [(video, row) for video, rows in golden["predictions"].items() for row in rows]
    return golden, instances(truth, False), instances(guesses, True)


@pytest.mark.parametrize(("name", "thresholds"), [("eval_activitynet", ACTIVITYNET), ("eval_thumos", THUMOS)])
@pytest.mark.parametrize(("dialect", "key"), [("activitynet", "official"), ("opentad", "duplicates_removed")])
def test_equals_the_published_programs(name, thresholds, dialect, key):
    golden, truth, predictions = read(name)
    expected = golden[key]
    result = localization(truth, predictions, thresholds, dialect)
    per_class = {f"class{kind}": ap for kind, ap in zip(result.classes, result.ap, strict=True)}
    assert per_class.keys() == expected["per_class"].keys()
    for kind, ap in expected["per_class"].items():
        np.testing.assert_allclose(per_class[kind], ap, atol=1e-12)
    np.testing.assert_allclose(result.map, expected["mAP"], atol=1e-12)
    assert result.average_map == pytest.approx(expected["average_mAP"], abs=1e-12)
    for k, recall in result.recall.items():
        if f"recall_at_{k}x" in expected:
            np.testing.assert_allclose(recall, expected[f"recall_at_{k}x"], atol=1e-12)


def test_actionformer_counts_an_unknown_class_as_the_one_that_has_its_new_number():
    truth = Instances(np.array([0, 1]), np.array([[0.0, 1.0], [0.0, 1.0]]), np.array([3, 7]))
    segment = np.array([[0.0, 1.0], [0.0, 1.0], [5.0, 6.0]])
    predictions = Instances(np.array([0, 1, 1]), segment, np.array([3, 7, 1]), np.array([0.9, 0.5, 0.8]))
    assert localization(truth, predictions, THUMOS).average_map == 1
    assert localization(truth, predictions, THUMOS, "actionformer").average_map == 0.75  # 1 is the new number of 7


def test_classes_without_predictions_are_missed_and_videos_without_annotations_hold_false_positives():
    truth = Instances(np.array([0, 0]), np.array([[0.0, 2.0], [4.0, 6.0]]), np.array([0, 1]))
    predictions = Instances(
        np.array([9, 0]), np.array([[0.0, 2.0], [0.0, 2.0]]), np.zeros(2, int), np.array([0.9, 0.8])
    )
    result = localization(truth, predictions, THUMOS, recall_at=(1,))
    np.testing.assert_allclose(result.ap, [[0.5] * 5, [0] * 5])
    np.testing.assert_allclose(result.recall[1], 0.5)


def test_wrong_input_is_one_line():
    truth = Instances(np.array([0]), np.array([[0.0, 2.0]]), np.array([0]))
    with pytest.raises(UserError, match="no annotation"):
        localization(truth[np.zeros(0, int)], truth)
    with pytest.raises(UserError, match="no scores"):
        localization(truth, truth)
    with pytest.raises(UserError, match="dialect is 'thumos'"):
        localization(truth, truth, dialect="thumos")
    with pytest.raises(UserError, match="1 and 2 entries"):
        Instances(np.array([0, 1]), np.array([[0.0, 2.0]]), np.array([0]))
