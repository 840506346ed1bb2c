"""Depthwise convolutions are measured as the models have them, and both sides compute the same."""

import importlib.util
import json

import numpy as np
import pytest

from benchmark import commands, depthwise
from benchmark.depthwise import Convolution, Depthwise, convolutions_of
from vidjax.errors import UserError

SIDES = ["vidjax", "PyTorch"] if importlib.util.find_spec("torch") else ["vidjax"]


def test_the_convolutions_of_a_model_are_found():
    """X3D-M has a temporal one in its stem and one in each of its blocks, with a stride in the first of a stage."""
    found = convolutions_of("x3d_m", frames=4, size=64, batch_size=2)
    kernels, ones, first = (3, 3, 3), (1, 1, 1), (1, 2, 2)
    expected = {Convolution((2, 4, 32, 32, 24), (5, 1, 1), ones, (2, 0, 0)): 1}
    for side, width, depth in zip((32, 16, 8, 4), (54, 108, 216, 432), (3, 5, 11, 7), strict=True):
        expected[Convolution((2, 4, side, side, width), kernels, first, ones)] = 1
        expected[Convolution((2, 4, side // 2, side // 2, width), kernels, ones, ones)] = depth - 1
    assert dict(found) == expected
    assert next(iter(found)).name == "24 x 4 x 32 x 32, 5x1x1 / 1,1,1"
    with pytest.raises(UserError, match="r3d_tiny has no depthwise convolution: choose another model"):
        convolutions_of("r3d_tiny", None, None, 1)


@pytest.mark.skipif(SIDES == ["vidjax"], reason="needs PyTorch")
def test_both_sides_compute_the_same():
    convolution = Convolution((2, 4, 7, 6, 5), (3, 3, 3), (1, 2, 2), (1, 1, 1))
    ours, peers = depthwise.ours(convolution), depthwise.pytorch(convolution)
    back = (0, 2, 3, 4, 1), (0, 2, 3, 4, 1), (2, 3, 4, 1, 0)  # output, gradients of input and kernel
    for part in depthwise.PARTS:
        for mine, other, axes in zip(ours[part](), peers[part](), back, strict=False):
            np.testing.assert_allclose(mine, other.numpy().transpose(axes), rtol=1e-4, atol=1e-4)


def test_the_rows_are_the_convolutions_and_their_sum(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(depthwise, "in_process", lambda function, *args: function(*args))
    config = Depthwise(("x3d_tiny",), frames=2, size=16, steps=1, rounds=1, json=str(tmp_path / "numbers.json"))
    *rows, total = commands.main(config)
    title, _, titles, *lines = capsys.readouterr().out.splitlines()
    assert title.startswith("depthwise convolutions of 1 clips on ") and len(lines) == len(rows) + 1
    assert titles.split()[:3] == ["model", "convolution", "times"] and lines[-1].startswith("x3d_tiny  all")
    assert json.loads((tmp_path / "numbers.json").read_text())["rows"] == [*rows, total]
    for prefix in ("", "other_")[: len(SIDES)]:
        for part in depthwise.PARTS:
            assert min(row[prefix + part] for row in rows) > 0
            assert total[prefix + part] == pytest.approx(sum(row["count"] * row[prefix + part] for row in rows))
