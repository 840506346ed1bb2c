"""Late fusion: the mean and linear SVMs, and what is refused."""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidjax.errors import UserError
from vidjax.evaluation.fusion import linear_svm
from vidjax.evaluation.recognition import recognition
from vidjax.models import inception3d
from vidjax.runs.results import read_scores, write_scores

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))
import fuse

CLASSES = ("left", "right", "up", "down")


def write(folder, sees, count=40, seed=0, first=0, class_names=CLASSES):
    """Scores that tell the axis (0) or the sign (1) of the label, with noise."""
    draw, labels = np.random.default_rng(seed), np.arange(count) % 4
    known = labels // 2 if sees == 0 else labels % 2
    fitting = (np.arange(4)[None] // 2 if sees == 0 else np.arange(4)[None] % 2) == known[:, None]
    logits = 2 * fitting + 0.3 * draw.standard_normal((count, 4))
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    folder.mkdir()
    names = [f"{i}.mp4" for i in range(first, first + count)]
    write_scores(folder, names, labels, probabilities, logits, class_names)
    return str(folder)


def test_what_one_stream_sees_completes_the_other(tmp_path):
    pair = write(tmp_path / "axis", 0), write(tmp_path / "sign", 1, seed=1)
    numbers = fuse.main(fuse.Config(pair, out=str(tmp_path / "mean")))
    assert numbers["top1"] > 0.95 and all(accuracy < 0.8 for accuracy in numbers["alone"].values())
    assert json.loads((tmp_path / "mean" / "fusion.json").read_text())["top1"] == numbers["top1"]
    first = fuse.main(fuse.Config(pair, weights=(1.0, 0.0), out=str(tmp_path / "first")))
    assert first["top1"] == first["alone"][pair[0]]
    fit = write(tmp_path / "axis_train", 0, 80, 2), write(tmp_path / "sign_train", 1, 80, 3)
    numbers = fuse.main(fuse.Config(pair, fit=fit, out=str(tmp_path / "svm")))
    assert numbers["top1"] > 0.95


def test_logits_are_added_as_by_two_stream_i3d(tmp_path, monkeypatch):
    pair, fused = (write(tmp_path / "axis", 0), write(tmp_path / "sign", 1, seed=1)), []
    monkeypatch.setattr(fuse, "recognition", lambda scores, labels: fused.append(scores) or recognition(scores, labels))
    numbers = fuse.main(fuse.Config(pair, combine="logits", out=str(tmp_path / "sum")))
    rgb, flow = (jnp.asarray(read_scores(folder)["logits"]) for folder in pair)
    np.testing.assert_allclose(fused[0], jax.nn.softmax(inception3d.two_stream(rgb, flow)), rtol=1e-5)
    assert numbers["top1"] > 0.95 and all(accuracy < 0.8 for accuracy in numbers["alone"].values())
    assert "sum of the logits, weights 1, 1" in (tmp_path / "sum" / "fusion.txt").read_text()
    scores = dict(np.load(tmp_path / "sign" / "scores.npz"))
    np.savez(tmp_path / "sign" / "scores.npz", **{name: scores[name] for name in scores if name != "logits"})
    with pytest.raises(UserError, match="sign was written by an earlier version, without logits: evaluate again"):
        fuse.main(fuse.Config(pair, combine="logits", out=str(tmp_path / "old")))
    assert fuse.main(fuse.Config(pair, out=str(tmp_path / "mean")))["top1"] > 0.95  # which needs none


def test_margins_are_those_of_the_least_squared_hinge_loss():
    draw, cost = np.random.default_rng(0), 0.5
    labels = np.arange(60) % 3
    features = draw.standard_normal((60, 4)) + labels[:, None] * [1, -1, 0.5, 0]
    margins = linear_svm(features, labels, features, 3, cost)
    inputs = np.concatenate([features, np.ones((60, 1))], axis=1)
    weights = np.linalg.lstsq(inputs, margins, rcond=None)[0]
    np.testing.assert_allclose(inputs @ weights, margins, atol=1e-4)
    signs = np.where(labels[:, None] == np.arange(3), 1, -1)
    errors = np.maximum(1 - signs * margins, 0)
    assert 0 < (errors == 0).mean() < 1
    gradient = weights - 2 * cost * inputs.T @ (signs * errors)  # zero at the minimum of a convex function
    assert np.abs(gradient).max() < 1e-2 * np.abs(inputs.T @ (signs * errors)).max()


def test_scores_that_do_not_belong_together_are_one_line(tmp_path):
    a, shifted = write(tmp_path / "a", 0), write(tmp_path / "shifted", 1, first=4)
    others = write(tmp_path / "others", 1, class_names=("a", "b", "c", "d"))
    for settings, message in (
        ({"evaluations": (a,)}, "1 evaluations cannot be fused: give the directories of two or more"),
        ({"evaluations": (a, a), "weights": (1.0,)}, r"weights are \(1\.0,\): give 2 of 0 or more, not all 0"),
        ({"evaluations": (a, a), "fit": (a,)}, "fit has 1 evaluations: give 2, in the order of the others"),
        ({"evaluations": (a, a), "fit": (a, a), "weights": (1.0, 1.0)}, "weights and combine are of the mean"),
        ({"evaluations": (a, a), "cost": 0.0}, "cost is 0.0: it must be above 0"),
        ({"evaluations": (a, str(tmp_path))}, r"has no scores\.npz: give an output directory of evaluate\.py"),
        ({"evaluations": (a, others)}, "others has other classes than .*a: fuse classifiers of the same classes"),
        ({"evaluations": (a, shifted)}, "8 videos are not in all of .*, or leave them out with --common"),
    ):
        with pytest.raises(UserError, match=message):
            fuse.main(fuse.Config(**settings, out=str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
    numbers = fuse.main(fuse.Config((a, shifted), common=True, out=str(tmp_path / "out")))
    assert numbers["videos"] == 36
