"""The longest clip that fits, read from compiled programs."""

import dataclasses

import jax
import pytest

from benchmark import clips
from benchmark.clips import Clips, measure_clips, most_frames


def test_the_most_frames_are_interpolated():
    needs = {frames: 1000 + frames**2 for frames in (16, 32, 64, 128)}
    budgets = (1000, 1000 + 17**2, 1000 + 100**2, 1000 + 300**2)
    assert [most_frames(needs, budget, 2) for budget in budgets] == [0, 16, 100, 128]


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
@pytest.mark.filterwarnings("ignore:JAX has already started")
@pytest.mark.long
def test_longer_clips_need_more_memory_and_the_longest_that_fits_is_returned(monkeypatch):
    small = (("depth", 1), ("width", 32), ("heads", 2))
    make = clips.make_program
    monkeypatch.setattr(
        clips, "make_program", lambda job, mesh: make(dataclasses.replace(job, overrides=job.overrides + small), mesh)
    )
    settings = {"frames": (12, 4, 8), "size": 16, "remat": ("blocks",), "budgets_gb": (0.001, 1)}
    machine, (row,) = measure_clips(Clips("videomae_tiny", **settings, implementations=("ring",), devices=2))
    assert machine["platform"] == jax.devices()[0].platform
    assert list(row["bytes"]) == [4, 8, 12] and sorted(row["bytes"].values()) == list(row["bytes"].values())
    assert row["fits"]["0.001"] == 0 and row["fits"]["1"] == 12


def test_invalid_values_are_rejected():
    with pytest.raises(ValueError, match="give three or more"):
        Clips(frames=(8, 16))
    with pytest.raises(ValueError, match="size is 0 and devices 8: both must be 1 or more"):
        Clips(size=0, devices=8)
    for name in ("implementations", "remat"):
        with pytest.raises(ValueError, match=f"{name} is empty: name one or more to compare"):
            Clips(**{name: ()})
    warning = pytest.warns(UserWarning, match="JAX has already started, so that devices cannot be simulated")
    message = "ring over 1024 devices on .*: simulate them by the environment variable"
    with warning, pytest.raises(ValueError, match=message):
        measure_clips(Clips(devices=1024))
