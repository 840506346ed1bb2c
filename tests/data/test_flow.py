"""Flow as bytes, and OpenCV's methods against recorded outputs of OpenCV 5; without it the latter are skipped."""

import builtins
import json

import numpy as np
import pytest
import recipe

from vidjax.data.flow import from_bytes, opencv_flow, to_bytes
from vidjax.errors import UserError

WITHIN = {"tvl1": 1e-5, "farneback": 1e-5, "dis": 1e-5}


def test_bytes_are_those_of_two_stream_networks():
    flow = np.array([-25.0, -20, -0.04, 0, 0.2, 19.99, 30], np.float32)
    assert to_bytes(flow).tolist() == [0, 0, 127, 128, 129, 255, 255]
    steps = np.arange(-20, 20, 0.01, np.float32)
    assert np.abs(from_bytes(to_bytes(steps)) - steps).max() < 0.0785
    assert (to_bytes(from_bytes(np.arange(256, dtype=np.uint8))) == np.arange(256)).all()


@pytest.mark.parametrize("method", ["tvl1", "farneback", "dis"])
def test_methods_equal_opencv_5(method):
    cv2 = pytest.importorskip("cv2")
    if not cv2.__version__.startswith("5.") or (method == "tvl1" and not hasattr(cv2, "optflow")):
        pytest.skip("recorded with OpenCV 5 and its contributed modules")
    description = json.loads((recipe.HERE / f"{method}.json").read_text())
    stored = np.load(recipe.HERE / f"{method}.npz")
    for number, output in enumerate(description["outputs"]):
        parameters = output["parameters"] | ({"preset": output["preset"]} if method == "dis" else {})
        flow = opencv_flow(method, **parameters)(stored["frame0"], stored["frame1"])
        np.testing.assert_allclose(flow[::3, ::3], stored[f"output{number}"], atol=WITHIN[method])


def test_missing_opencv_and_unknown_methods_are_one_line(monkeypatch):
    with pytest.raises(UserError, match="method is 'lk': choose one of tvl1, farneback, dis"):
        opencv_flow("lk")
    import_ = builtins.__import__

    def without(name, *args):
        if name == "cv2":
            raise ImportError
        return import_(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"method tvl1 needs OpenCV: pip install 'vidjax\[flow\]'"):
        opencv_flow("tvl1")
