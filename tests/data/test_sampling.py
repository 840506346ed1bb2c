from fractions import Fraction
from itertools import pairwise
from math import floor
from typing import get_args

import numpy as np
import pytest

from vidjax.data import sampling
from vidjax.data.config import ClipConfig, DataConfig, Protocol
from vidjax.models.internvideo import CARD


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


# The rules of published test code, worked out here once more with whole numbers and fractions.


def view(num_frames, frames, stride, count, protocol, rate=30.0, **changes):
    config = ClipConfig(frames=frames, stride=stride, protocol=protocol, **changes)
    return sampling.views(num_frames, rate, config, count).tolist()


def spread(first, last, frames, num_frames):
    """Frames evenly spaced from one to the other, rounded down, within the video."""
    return [min(floor(first + (last - first) * Fraction(k, frames - 1)), num_frames - 1) for k in range(frames)]


def test_slowfast_spreads_frames_over_the_whole_span():
    """8 x 8 takes every ninth frame, and the first of several clips starts with the video."""
    clips = view(300, 8, 8, 10, "slowfast")
    assert clips[0] == [0, 9, 18, 27, 36, 45, 54, 63]
    assert clips[5] == [118, 127, 136, 145, 154, 163, 172, 181]  # 236 * 5 / 10
    assert clips[9] == [212, 221, 230, 239, 248, 257, 266, 275]  # 236 * 9 / 10 = 212.4: 24 frames before the end
    assert view(300, 4, 16, 1, "slowfast") == [[0, 21, 42, 63]]
    assert view(300, 32, 2, 1, "slowfast")[0][:8] == [0, 2, 4, 6, 8, 10, 12, 14]
    assert view(300, 32, 2, 1, "slowfast")[0][-4:] == [56, 58, 60, 63]
    for i, clip in enumerate(view(251, 16, 5, 7, "slowfast")):
        start = Fraction((251 - 80) * i, 7)
        assert clip == spread(start, start + 79, 16, 251)


def test_slowfast_counts_the_stride_at_30_frames_per_second():
    """A card's rate becomes data.fps: at 25 frames per second, 8 x 8 spans 53 1/3 frames."""
    clips = view(250, 8, 1, 3, "slowfast", rate=25.0, fps=30 / 8)
    span = Fraction(8 * 8 * 25, 30)
    starts = [(250 - span) * Fraction(i, 3) for i in range(3)]
    assert clips == [spread(start, start + span - 1, 8, 250) for start in starts]
    assert clips[0] == [0, 7, 14, 22, 29, 37, 44, 52]


def test_offset_clips_are_a_whole_number_of_frames_apart():
    clips = view(300, 16, 4, 5, "slowfast_offset")
    assert [clip[0] for clip in clips] == [0, 59, 118, 177, 236]
    assert clips[1] == spread(Fraction(59), Fraction(59 + 63), 16, 300)
    assert [clip[0] for clip in view(303, 16, 4, 5, "slowfast_offset")] == [0, 59, 118, 177, 236]  # 239 // 4
    assert view(301, 16, 4, 1, "slowfast_offset")[0][0] == 118  # the middle: 237 // 2


def test_pytorchvideo_takes_the_frames_of_a_span_of_time():
    """Clips from the start to the end; frames at or after the start and before the end of each."""
    for num_frames, rate in ((300, 30.0), (251, 25.0), (270, 24.0)):
        clips = view(num_frames, 8, 1, 10, "pytorchvideo", rate=rate, fps=30 / 8)
        span = Fraction(64, 30) * int(rate)
        for i, clip in enumerate(clips):
            start = (num_frames - span) * Fraction(i, 9)
            inside = [frame for frame in range(num_frames) if start <= frame < start + span]
            assert clip == [inside[k] for k in spread(Fraction(0), Fraction(len(inside) - 1), 8, len(inside))]
    assert view(20, 8, 8, 1, "pytorchvideo") == [[0, 2, 5, 8, 10, 13, 16, 19]]  # a short video is spread


def test_mmaction2_takes_true_strides_and_begins_short_videos_again():
    clips = view(300, 8, 8, 10, "mmaction2")
    assert [clip[0] for clip in clips] == [0, 27, 54, 81, 108, 135, 162, 189, 216, 243]
    assert clips[1] == list(range(27, 27 + 64, 8)) and clips[9][-1] == 299
    assert [clip[0] for clip in view(300, 32, 2, 3, "mmaction2")] == [0, 118, 237]  # 118.5 is rounded to even
    assert [clip[0] for clip in view(300, 32, 2, 3, "vidjax")] == [0, 119, 237]
    assert view(300, 32, 2, 1, "mmaction2")[0][0] == 118
    assert view(20, 8, 8, 2, "mmaction2") == [[0, 8, 16, 4, 12, 0, 8, 16]] * 2
    assert view(20, 8, 8, 1, "vidjax") == [[0, 8, 16, 19, 19, 19, 19, 19]]


def test_video_swin_takes_the_middles_of_equal_parts():
    clips = view(300, 32, 2, 4, "video_swin")
    assert [clip[0] for clip in clips] == [29, 88, 148, 207]  # 237 / 4 * (i + 1 / 2)
    assert clips[0] == list(range(29, 29 + 64, 2))
    assert view(40, 32, 2, 4, "video_swin") == [[2 * k % 40 for k in range(32)]] * 4


def test_videomae_chooses_among_every_stride_th_frame():
    clips = view(300, 16, 4, 5, "videomae")
    assert [clip[0] for clip in clips] == [4 * (59 * i // 4) for i in range(5)]  # 75 frames, of which a clip has 16
    assert clips[1] == list(range(56, 56 + 64, 4)) and clips[4][-1] == 296
    assert view(9, 4, 4, 2, "videomae") == [[0, 4, 8, 8]] * 2
    assert view(300, 16, 4, 1, "videomae") == view(300, 16, 4, 1, "vidjax")


def test_segments_of_published_code():
    """SlowFast's and UniFormer's on Something-Something, UniFormerV2's, and the two clips of TSM and VideoMAE."""
    segments = {"frames": 8, "stride": 1, "sampling": "segments"}
    bounds = [round(Fraction(99 * i, 8)) for i in range(9)]
    middles = [(first + last) // 2 for first, last in pairwise(bounds)]
    assert view(100, count=1, protocol="slowfast", **segments) == [middles]
    assert middles == [6, 18, 31, 43, 56, 68, 80, 93]
    assert view(30, count=1, protocol="slowfast", **segments) == [[2, 5, 9, 12, 16, 20, 23, 27]]
    starts = [0, 4, 7, 11, 14, 18, 22, 25]  # from there, 29 / 8 / 2 frames, rounded down
    assert view(30, count=1, protocol="slowfast_offset", **segments) == [[start + 1 for start in starts]]
    within = [floor(Fraction(99, 8) * Fraction(i + 1, 5)) for i in range(4)]
    assert view(100, count=4, protocol="slowfast", **segments) == [[b + w for b in bounds[:-1]] for w in within]
    ours = [floor(Fraction(100 * (2 * i + 1), 16)) for i in range(8)]
    first = [floor(Fraction(100 * i, 8)) for i in range(8)]
    for protocol in ("mmaction2", "videomae"):
        assert view(100, count=1, protocol=protocol, **segments) == [ours]
        assert view(100, count=2, protocol=protocol, **segments) == [ours, first]


def test_stacks_of_consecutive_frames_are_placed_as_in_published_code():
    """MIT's TSM takes middles of parts of the possible starts; mmaction2 spreads the starts from end to end."""
    stacks = {"stride": 1, "sampling": "segments", "consecutive": 5}
    middles = [floor(Fraction(96 * (2 * i + 1), 16)) for i in range(8)]
    (mit,), (mmaction2,) = (view(100, 40, count=1, protocol=name, **stacks) for name in ("vidjax", "mmaction2"))
    assert mit == [start + k for start in middles for k in range(5)]
    assert mmaction2 == [round(Fraction(95 * i, 7)) + k for i in range(8) for k in range(5)]
    assert view(3, 5, count=1, protocol="vidjax", **stacks) == [[0, 1, 2, 2, 2]]
    assert view(3, 5, count=1, protocol="mmaction2", **stacks) == [[0, 1, 2, 0, 1]]  # begins again
    config = ClipConfig(frames=40, **stacks)
    drawn = np.stack([sampling.sample(config, 100, 30.0, random(seed)).reshape(8, 5) for seed in range(300)])
    assert (np.diff(drawn) == 1).all() and set(drawn[..., 0].ravel().tolist()) == set(range(96))


def test_uniform_frames_of_viclip_are_a_whole_number_apart():
    """As `frames[:: n // 8][:8]` (InternVideo 3965eef, viclip/__init__.py), also in training."""
    for num_frames in (8, 15, 16, 100, 301):
        expected = list(range(num_frames))[:: num_frames // 8][:8]
        assert view(num_frames, 8, 1, 1, "viclip", sampling="uniform") == [expected]
        config = ClipConfig(frames=8, sampling="uniform", protocol="viclip")
        assert sampling.sample(config, num_frames, 30.0, random(0)).tolist() == expected
    assert view(3, 5, 1, 1, "viclip", sampling="uniform") == [[0, 1, 2, 2, 2]]  # fewer than 8 are refused there


def test_uniform_frames_of_internvideo_are_rounded_down():
    """As `np.linspace(0, n - 1, 8).astype(np.intc)` (InternVideo 3965eef, InternVideo/internvideo.py)."""
    for num_frames in (3, 8, 100, 301):
        expected = np.linspace(0, num_frames - 1, 8).astype(np.intc).tolist()
        assert view(num_frames, 8, 1, 1, CARD.protocol, sampling=CARD.sampling) == [expected]
    assert view(100, 1, 1, 1, CARD.protocol, sampling=CARD.sampling) == [[49]]  # the middle, as for all others


@pytest.mark.parametrize("protocol", get_args(Protocol))
@pytest.mark.parametrize("how", ["dense", "segments"])
def test_clips_of_every_protocol_lie_in_the_video(protocol, how):
    for num_frames in (1, 2, 7, 31, 64, 65, 200):
        for count in (1, 2, 10):
            for fps in (None, 11.0):
                row = 4 if how == "segments" and fps else 1
                config = ClipConfig(
                    frames=8, stride=8, fps=fps, sampling=how, consecutive=row, protocol=protocol
                )  # fmt: skip
                clips = sampling.views(num_frames, 30.0, config, count)
                assert clips.shape == (count, 8) and clips.dtype == np.int64
                assert clips.min() >= 0 and clips.max() < num_frames
                for clip in (sampling.sample(config, num_frames, 30.0, random(seed)) for seed in range(3)):
                    assert (np.diff(clip) >= 0).all() or row > 1
                    assert clip.min() >= 0 and clip.max() < num_frames


def test_training_clips_are_spaced_as_test_clips():
    config = ClipConfig(frames=8, stride=8, protocol="slowfast")
    clips = np.stack([sampling.sample(config, 100, 30.0, random(seed)) for seed in range(300)])
    assert set((clips[:, -1] - clips[:, 0]).tolist()) == {63} and set(np.diff(clips).ravel().tolist()) == {9}
    assert set(clips[:, 0]) == set(range(36))
    plain = ClipConfig(frames=8, stride=8)
    for protocol in ("mmaction2", "video_swin", "videomae"):
        other = ClipConfig(frames=8, stride=8, protocol=protocol)
        drawn = [sampling.sample(each, 100, 30.0, random(5)) for each in (plain, other)]
        np.testing.assert_array_equal(*drawn)
