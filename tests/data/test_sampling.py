import numpy as np
import pytest

from vidjax.data import sampling
from vidjax.data.config import DataConfig


def random(seed):
    return np.random.default_rng(seed)


def test_dense_takes_every_stride_th_frame_from_any_start():
    clips = np.stack([sampling.dense(70, 16, 4, u) for u in np.linspace(0, 1, 500, endpoint=False)])
    assert (np.diff(clips) == 4).all()
    assert set(clips[:, 0]) == set(range(10))  # all 70 - 60 possible starts
    assert clips.max() == 69
    np.testing.assert_array_equal(np.bincount(clips[:, 0]), 50)  # equally often


def test_dense_without_an_offset_is_central():
    clip = sampling.dense(101, 16, 4)
    assert clip[0] == 100 - clip[-1] == 20


@pytest.mark.parametrize("num_frames", [1, 2, 15, 60])
def test_a_short_video_is_read_from_its_start_and_its_last_frame_is_repeated(num_frames):
    for offset in (None, 0.0, 0.999):
        clip = sampling.dense(num_frames, 16, 4, offset)
        np.testing.assert_array_equal(clip, np.minimum(np.arange(16) * 4, num_frames - 1))


def test_fps_gives_the_same_time_step_at_any_frame_rate():
    config = DataConfig(frames=16, fps=7.5)
    for rate in (12.0, 24.0, 30000 / 1001, 60.0):
        clip = sampling.sample(config, 1000, rate, random(0))
        np.testing.assert_allclose((clip - clip[0]) / rate, np.arange(16) / 7.5, atol=0.5 / rate + 1e-9)


def test_fps_above_the_frame_rate_repeats_frames():
    clip = sampling.dense(100, 8, 0.5, 0.0)
    np.testing.assert_array_equal(clip, [0, 1, 1, 2, 2, 3, 3, 4])


def test_fps_is_refused_if_the_rate_is_unknown():
    with pytest.raises(ValueError, match=r"data.fps .* use data.stride"):
        sampling.sample(DataConfig(fps=5.0), 100, float("nan"), None)


@pytest.mark.parametrize("num_frames", [1, 5, 8, 9, 100])
def test_segments_takes_one_frame_from_each_part(num_frames):
    for rng in (None, random(1)):
        clip = sampling.sample(DataConfig(frames=8, sampling="segments"), num_frames, 25.0, rng)
        edges = np.arange(9) * num_frames / 8
        assert (np.floor(edges[:-1]) <= clip).all() and (clip <= edges[1:]).all()
        assert clip.max() < num_frames


def test_segments_are_random_in_training_and_central_in_evaluation():
    config = DataConfig(frames=8, sampling="segments")
    seen = {int(i) for seed in range(400) for i in sampling.sample(config, 50, 25.0, random(seed))}
    assert seen == set(range(50))
    np.testing.assert_array_equal(sampling.sample(config, 80, 25.0, None), np.arange(5, 80, 10))


def test_uniform_includes_the_first_and_the_last_frame():
    config = DataConfig(frames=5, sampling="uniform")
    np.testing.assert_array_equal(sampling.sample(config, 101, 25.0, random(0)), [0, 25, 50, 75, 100])
    np.testing.assert_array_equal(sampling.sample(config, 1, 25.0, None), 0)
    assert sampling.uniform(11, 1) == [5]


def test_views_are_evenly_spaced_from_start_to_end():
    clips = sampling.views(200, 25.0, DataConfig(frames=16, stride=4), 4)
    np.testing.assert_array_equal(clips[:, 0], [0, 46, 93, 139])
    assert clips[-1, -1] == 199
    starts = sampling.views(300, 25.0, DataConfig(frames=16, stride=4), 240)[:, 0]
    np.testing.assert_array_equal(starts, np.arange(240))


@pytest.mark.parametrize("how", ["dense", "segments", "uniform"])
def test_one_view_is_the_clip_of_the_evaluation(how):
    config = DataConfig(frames=8, sampling=how)
    np.testing.assert_array_equal(sampling.views(90, 25.0, config, 1)[0], sampling.sample(config, 90, 25.0, None))


def test_views_of_segments_differ_and_stay_in_their_segments():
    clips = sampling.views(80, 25.0, DataConfig(frames=8, sampling="segments"), 2)
    np.testing.assert_array_equal(clips, [np.arange(2, 80, 10), np.arange(7, 80, 10)])


def test_invalid_numbers_of_views_are_refused():
    with pytest.raises(ValueError, match="uniform sampling covers the whole video in one view: use segments"):
        sampling.views(80, 25.0, DataConfig(sampling="uniform"), 2)
    with pytest.raises(ValueError, match="the number of views is 0: it must be 1 or more"):
        sampling.views(80, 25.0, DataConfig(), 0)


def test_seconds_covered():
    assert sampling.seconds_covered(DataConfig(frames=16, stride=4), 300, 30.0) == pytest.approx(64 / 30)
    assert sampling.seconds_covered(DataConfig(frames=16, fps=8.0), 300, 30.0) == pytest.approx(2)
    assert sampling.seconds_covered(DataConfig(frames=16, stride=4), 30, 30.0) == 1
    assert sampling.seconds_covered(DataConfig(sampling="segments"), 300, 30.0) == 10
