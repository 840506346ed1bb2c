"""Fields of a clip against hand-computed values, and boxes against a rectangle drawn in the frames."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from vidjax.data.config import AugmentConfig
from vidjax.data.crop import cut, random_crop, view_crops
from vidjax.data.example import Field
from vidjax.data.rows import boxes_at, boxes_in_crop, clip_segments, cut_samples, cut_value

QUICK = settings(max_examples=25, deadline=None, derandomize=True, database=None)
BOXES = np.array([[0.2, 0.4, 0.6, 0.8], [0.0, 0.0, 0.1, 0.1], [-1, -1, -1, -1]], np.float32)


def test_boxes_are_transformed_to_the_crop_clipped_and_dropped():
    """The frame is 100 x 200 pixels; the crop is rows 20 to 70 and columns 60 to 160. The first box spans rows 40 to 80
    and columns 40 to 120 of the frame."""
    crop = np.array([20, 60, 50, 100, 100, 200, 0])
    expected = [[0, 0.4, 0.6, 1], [-1] * 4, [-1] * 4]
    np.testing.assert_allclose(boxes_in_crop(BOXES, crop[None]), expected, atol=1e-6)
    crop[6] = 1
    expected = [[0.4, 0.4, 1, 1], [-1] * 4, [-1] * 4]
    np.testing.assert_allclose(boxes_in_crop(BOXES, crop[None]), expected, atol=1e-6)
    empty = np.zeros((1, 7), np.int64)  # the crop of an invalid row
    assert (boxes_in_crop(BOXES[2:], empty) == -1).all()


def test_boxes_of_every_frame_and_view_use_their_crop():
    crops = np.array([[[0, 0, 50, 50, 50, 100, 0], [0, 50, 50, 50, 50, 100, 1]]])  # b v 7
    boxes = np.broadcast_to(np.array([0.25, 0, 0.75, 1], np.float32), (1, 2, 3, 1, 4))  # b v t n 4
    moved = boxes_in_crop(boxes, crops[:, :, None, None])
    np.testing.assert_allclose(moved[0, 0], np.broadcast_to([0.5, 0, 1, 1], (3, 1, 4)))
    np.testing.assert_allclose(moved[0, 1], np.broadcast_to([0.5, 0, 1, 1], (3, 1, 4)))


@QUICK
@given(
    height=st.integers(24, 90),
    width=st.integers(24, 90),
    corner=st.tuples(st.floats(0, 0.7), st.floats(0, 0.7)),
    sides=st.tuples(st.floats(0.25, 0.9), st.floats(0.25, 0.9)),
    kind=st.sampled_from(["multi_scale", "random_resized", "center", "views"]),
    seed=st.integers(0, 1000),
)
def test_boxes_match_a_rectangle_drawn_in_the_frames(height, width, corner, sides, kind, seed):
    size = 32
    top, left = int(corner[0] * height), int(corner[1] * width)
    bottom = min(top + max(int(sides[0] * height), 1), height)
    right = min(left + max(int(sides[1] * width), 1), width)
    frames = np.zeros((2, height, width, 1), np.uint8)
    frames[:, top:bottom, left:right] = 255
    box = np.array([[left / width, top / height, right / width, bottom / height]], np.float32)
    if kind == "views":
        crop = view_crops(height, width, 3, 0.9)[seed % 3]
    else:
        config = AugmentConfig(crop=kind, flip=True)
        crop = random_crop(height, width, config, size, (0, seed))
    drawn = cut(frames, crop, size)[:, :, :, 0] > 127
    (moved,) = boxes_in_crop(box, crop[None]) * size
    assert (drawn[0] == drawn[1]).all()
    if (moved < 0).all():
        assert not drawn.any()
    elif min(moved[2:] - moved[:2]) > 2:  # thinner boxes may fall between pixels
        rows, columns = np.flatnonzero(drawn[0].any(1)), np.flatnonzero(drawn[0].any(0))
        np.testing.assert_allclose(moved, [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], atol=1.01)


def test_crops_scale_with_the_frame_size_and_mirroring_inverts_channels():
    ramp = np.broadcast_to(np.arange(100, dtype=np.uint8)[:, None] * 2, (1, 50, 100, 2)).copy()
    crop = np.array([10, 40, 20, 20, 100, 200, 0], np.int32)  # of frames twice as large
    result = cut(ramp, crop, 10)
    np.testing.assert_array_equal(result, ramp[:, 5:15, 20:30])
    crop = np.array([10, 40, 20, 20, 100, 200, 1], np.int32)
    result = cut(ramp, crop, 10, mirrored=(0,))
    np.testing.assert_array_equal(result[..., 0], 255 - ramp[:, 5:15, 20:30, 0][:, :, ::-1])
    np.testing.assert_array_equal(result[..., 1], ramp[:, 5:15, 20:30, 1][:, :, ::-1])


SEGMENTS = np.array([[0, 1, 7], [0.5, 2.5, 8], [2.9, 9, 9], [4, 5, 10]], np.float32)


def test_segments_are_clipped_to_the_clip_or_dropped():
    """Four frames, half a second apart, from 1 s: the clip ends at 3 s."""
    times = np.array([1, 1.5, 2, 2.5])
    np.testing.assert_allclose(clip_segments(SEGMENTS, times), [[1, 2.5, 8], [2.9, 3, 9]])
    np.testing.assert_allclose(clip_segments(SEGMENTS, np.array([4.0])), [[4, 4, 9], [4, 4, 10]])
    assert clip_segments(SEGMENTS, np.array([9.0])).shape == (0, 3)
    spec = Field("segments", (3, 3))
    result = cut_value(spec, SEGMENTS, np.stack([times, times + 10]))
    np.testing.assert_allclose(result[0], [[1, 2.5, 8], [2.9, 3, 9], [-1, -1, -1]])
    assert result.dtype == np.float32 and (result[1] == -1).all()
    assert len(cut_value(Field("segments", (1, 3)), SEGMENTS, times[None])[0]) == 1  # the first


TRACKS = np.array([[0, 1, 0, 0, 0.2, 0.2], [0, 2, 0.4, 0, 0.6, 0.2], [2, 1.5, 0, 0, 1, 1]], np.float32)


def test_tracks_are_interpolated_to_one_box_per_frame():
    result = boxes_at(TRACKS, np.array([0.9, 1, 1.25, 2, 2.1]), 2)
    assert result.shape == (5, 2, 4) and (result[[0, 4]] == -1).all() and (result[:, 1] == -1).all()
    np.testing.assert_allclose(result[1:4, 0], [[0, 0, 0.2, 0.2], [0.1, 0, 0.3, 0.2], [0.4, 0, 0.6, 0.2]], atol=1e-6)
    assert (boxes_at(TRACKS, np.array([1.5]), 3)[0, 2] == [0, 0, 1, 1]).all()
    assert cut_value(Field("tracks", (2, 4)), None, np.zeros((3, 5))).shape == (3, 5, 2, 4)


def test_samples_start_at_the_first_frame_are_padded_and_valid_if_half_are_there():
    spec, sound = Field("samples", (4, 1), rate=10), np.arange(8, dtype=np.float32)[:, None]
    result, valid = cut_samples(spec, sound, np.array([[0.2, 0.4], [0.6, 0.8], [0.7, 0.9]]))
    np.testing.assert_array_equal(result[..., 0], [[2, 3, 4, 5], [6, 7, 0, 0], [7, 0, 0, 0]])
    assert valid.tolist() == [True, True, False]
    assert not cut_samples(spec, None, np.zeros((1, 2)))[1].any()


def test_numbers_are_truncated_or_padded_and_missing_values_are_filled():
    times = np.zeros((1, 2))
    assert cut_value(Field("numbers"), np.array(3.0), times) == 3
    assert cut_value(Field("numbers", (3,), "int32", fill=-1), np.array([4, 5]), times).tolist() == [4, 5, -1]
    assert cut_value(Field("numbers", (2,), "int32"), np.array([4, 5, 6]), times).tolist() == [4, 5]
    assert cut_value(Field("numbers", (), fill=-1), None, times) == -1
    assert (cut_value(Field("boxes", (2, 4)), None, times) == -1).all()
