"""Frame mAP against recorded outputs of SlowFast's, ActivityNet's and mmaction2's evaluation of AVA."""

import json
from pathlib import Path

import numpy as np
import pytest

from vidjax.errors import UserError
from vidjax.evaluation.detection import Boxes, box_iou, detection

GOLDEN = json.loads((Path(__file__).parents[1] / "goldens" / "eval_ava.json").read_text())
CLASSES = np.array(GOLDEN["classes"])
FRAMES = {frame: number for number, frame in enumerate(sorted({(row[0], row[1]) for row in GOLDEN["detections"]}))}


def boxes(rows, scored):
    frame = np.array([FRAMES.setdefault((row[0], row[1]), len(FRAMES)) for row in rows])
    box = np.array([row[2:6] for row in rows], float)
    return Boxes(frame, box, np.array([row[6] for row in rows]), np.array([row[7] for row in rows]) if scored else None)


@pytest.fixture(scope="module")
def rows():
    truth = boxes([row for row in GOLDEN["ground_truth"] if len(row) == 7], False)
    excluded = np.array([FRAMES.setdefault(tuple(frame), len(FRAMES)) for frame in GOLDEN["excluded"]])
    return truth, boxes(GOLDEN["detections"], True), excluded


@pytest.mark.parametrize("dialect", ["slowfast", "activitynet", "mmaction2"])
def test_equals_the_published_programs(rows, dialect):
    truth, detections, excluded = rows
    result = detection(truth, detections, CLASSES, excluded, dialect)
    expected = GOLDEN[dialect]
    assert result.map == pytest.approx(expected["overall" if dialect == "mmaction2" else "mAP"], abs=1e-9)
    if dialect != "mmaction2":
        values = [expected["per_class"][str(kind)] for kind in CLASSES]
        np.testing.assert_allclose(result.ap, [np.nan if v is None else v for v in values], atol=1e-9)


def test_iou_of_boxes_by_hand():
    iou = box_iou(np.array([[0.0, 0.0, 2.0, 2.0]]), np.array([[1.0, 1.0, 3.0, 3.0], [2.0, 0.0, 3.0, 1.0]]))
    np.testing.assert_allclose(iou, [[1 / 7, 0]])


def test_wrong_input_is_one_line(rows):
    truth, detections, _ = rows
    with pytest.raises(UserError, match="no scores"):
        detection(truth, truth, CLASSES)
    with pytest.raises(UserError, match="no annotation has one of the classes"):
        detection(truth, detections, np.array([80]))
    with pytest.raises(UserError, match="dialect is 'ava'"):
        detection(truth, detections, CLASSES, dialect="ava")
