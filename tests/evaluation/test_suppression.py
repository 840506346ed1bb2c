"""Suppression of segments against recorded outputs of ActionFormer's and Moment-DETR's."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from vidjax.evaluation.suppression import hard_nms, nms_of_moments, per_class, soft_nms, vote

GOLDENS = Path(__file__).parents[1] / "goldens"
SETTINGS = json.loads((GOLDENS / "temporal_nms.json").read_text())["outputs"]
ARRAYS = np.load(GOLDENS / "temporal_nms.npz")
SEGMENTS, SCORES, LABELS = (ARRAYS[name] for name in ("segments", "scores", "labels"))


@pytest.mark.parametrize("number", range(4))
def test_equals_actionformers(number):
    setting = SETTINGS[number]
    settings = {"least": setting["min_score"], "most": setting["max_seg_num"]}
    if setting["use_soft_nms"]:
        suppress = partial(soft_nms, sigma=setting["sigma"], **settings)
    else:
        suppress = partial(hard_nms, threshold=setting["iou_threshold"], **settings)
    if setting["multiclass"]:
        kept, scores = per_class(suppress, SEGMENTS, SCORES, LABELS, settings["most"])
    else:
        kept, scores = suppress(SEGMENTS, SCORES)
    segments = SEGMENTS[kept]
    if not setting["multiclass"] and setting["voting_thresh"]:
        segments = vote(segments, SEGMENTS, SCORES, setting["voting_thresh"])
    expected = [ARRAYS[f"output{3 * number + place}"] for place in range(3)]
    np.testing.assert_allclose(scores, expected[1], rtol=1e-6)
    np.testing.assert_allclose(segments, expected[0], rtol=1e-6)
    np.testing.assert_array_equal(LABELS[kept], expected[2])


def test_equals_moment_detrs():
    kept, scores = nms_of_moments(SEGMENTS, SCORES, 0.4, 10)
    np.testing.assert_allclose(np.column_stack([SEGMENTS[kept], scores]), ARRAYS["output12"], rtol=1e-6)
