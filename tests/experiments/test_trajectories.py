import dataclasses
import json

import flax.linen as nn
import numpy as np
import pytest
import trajectories
import videos

import vidjax
from vidjax.data.sources import open_source
from vidjax.data.trajectories import TrackConfig
from vidjax.errors import UserError
from vidjax.runs.results import read_scores
from vidjax.runs.trajectories import PICTURES, TrackedVideos, pool_along, require_maps

SMALL = dataclasses.replace(
    trajectories.DEMO,
    data=TrackedVideos(train_examples=24, validation_examples=8, short_side=48, max_frames=10),
    track=TrackConfig(length=6, step=4, patch=16, scales=1),
    features=("dt", "tdd"),
    gaussians=2,
    fitted_on=500,
    workers=1,
)


@pytest.mark.long
def test_dt_and_tdd_are_classified_drawn_and_resumed(tmp_path, monkeypatch, capsys):
    pytest.importorskip("cv2")
    config = dataclasses.replace(SMALL, out=str(tmp_path))
    accuracy = trajectories.main(config)
    assert set(accuracy) == {"dt", "tdd"} and "tracks of 24 videos" in capsys.readouterr().out
    scores = read_scores(str(tmp_path / "dt"))
    assert scores["probabilities"].shape == (8, 8) and len(scores["videos"]) == 8
    np.testing.assert_allclose(scores["probabilities"].sum(axis=1), 1, rtol=1e-5)
    assert accuracy["dt"] == (scores["logits"].argmax(axis=1) == scores["labels"]).mean()
    assert json.loads((tmp_path / "dt" / "results.json").read_text())["top1"] == accuracy["dt"]
    assert len(list((tmp_path / "pictures").glob("tracks_dt_*.png"))) == PICTURES
    stored = tmp_path / "tracks_dt" / "train" / "0000003.npz"
    with np.load(stored) as tracks:
        before = tracks["descriptors"]
    stored.unlink()  # as if the run was killed
    assert trajectories.main(config) == accuracy
    with np.load(stored) as tracks:
        np.testing.assert_array_equal(tracks["descriptors"], before)
    words = dataclasses.replace(config, encoding="bag_of_words", words=5, features=("dt",), model=None)
    trajectories.main(words)
    other = dataclasses.replace(words, track=TrackConfig(length=6, step=3, patch=16, scales=1))
    with pytest.raises(UserError, match=r"contains features made in another way \(step was 4, is 3\)"):
        trajectories.main(other)
    many = dataclasses.replace(words, words=10_000)
    with pytest.raises(UserError, match=r"descriptors for 10,000 words: give more videos, or fewer words"):
        trajectories.main(many)


def test_maps_are_normalised_over_space_time_and_over_channels_and_summed_along_tracks():
    maps = np.arange(1, 25, dtype=np.float32).reshape(2, 2, 2, 3)
    places = np.array([[[0.1, 0.1, 0.6], [0.9, 0.9, 0.1]]])
    one, two = maps[0, 0, 1], maps[1, 1, 0]
    by_time = (one + two) / [22, 23, 24]
    by_channel = one / one.max() + two / two.max()
    np.testing.assert_allclose(pool_along(maps, places), [[*by_time, *by_channel]], rtol=1e-6)


def test_videos_that_are_too_short_and_wrong_settings_are_one_line(tmp_path):
    pytest.importorskip("cv2")
    for name in ("a", "b"):
        videos.write_video(tmp_path / "videos" / name / "1.mp4", videos.numbered(4, 32, 32))
    data = TrackedVideos(train=str(tmp_path / "videos"), validation=str(tmp_path / "videos"))
    config = dataclasses.replace(SMALL, data=data, out=str(tmp_path / "out"), features=("idt",), model=None)
    message = r"none of the 2 videos of .* has a track: they have fewer than 7 frames"
    with pytest.raises(UserError, match=message):
        trajectories.main(config)
    for settings, message in (
        ({"features": ()}, "features is empty: give dt, idt or tdd"),
        ({"features": ("tdd",)}, "tdd needs a network, and only tdd does: give --features tdd with --run"),
        ({"model": "r3d_tiny"}, "tdd needs a network, and only tdd does"),
        ({"gaussians": 0}, "gaussians is 0: it must be above 0"),
    ):
        with pytest.raises(UserError, match=message):
            trajectories.Config(**settings)
    for model, stream, message in (
        (vidjax.create_model("r3d_tiny"), "flow", "stream flow of .* has 2 channels, the model takes 3"),
        (nn.Dense(1), "video", r"a Dense has no maps of clips to pool"),
    ):
        with pytest.raises(UserError, match=message):
            require_maps(model, stream, [open_source("synthetic:moving_shapes")])
    with pytest.raises(UserError, match=r"there are no videos to measure on: give --data\.validation"):
        TrackedVideos(validation=None)
