import pytest

from vidjax.data.config import AugmentConfig, ClipConfig, DataConfig, GivenClipConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("frames", 0),
        ("size", -1),
        ("stride", 0),
        ("fps", 0.0),
        ("short_side", 0),
        ("workers", -1),
        ("max_bad_share", 1.5),
        ("source", ""),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=rf"^data\.{field} is .*: it must be "):
        DataConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("grey", 1.1),
        ("random_erasing", -0.1),
        ("color_jitter", -1.0),
        ("rand_augment_ops", -1),
        ("rand_augment_magnitude", 11.0),
    ],
)
def test_an_augmentation_out_of_range_is_refused_by_name(field, value):
    with pytest.raises(ValueError, match=rf"^augment\.{field} is .*: it must be "):
        AugmentConfig(**{field: value})


def test_decoding_leaves_room_for_cropping_unless_told():
    assert DataConfig(size=224).decode_short_side == 256
    assert DataConfig(size=224, short_side=320).decode_short_side == 320


def test_what_is_given_takes_the_place_of_what_is_usual():
    usual = {"frames": 8, "size": 56, "short_side": 64, "stride": 4, "fps": 8.0, "sampling": "dense"}
    assert GivenClipConfig().clips(usual) == ClipConfig(**usual)
    assert GivenClipConfig(frames=16).clips(usual).frames == 16
    # A stride and frames a second mean the same: the one that is given counts.
    stride = GivenClipConfig(stride=2).clips(usual)
    assert (stride.stride, stride.fps) == (2, None)
    assert GivenClipConfig(fps=4.0).clips(usual).fps == 4.0
    with pytest.raises(ValueError, match=r"data\.stride and data\.fps both say"):
        GivenClipConfig(fps=4.0, stride=2).clips(usual)
    # Another size is cut from a picture as much larger, not enlarged from the usual one.
    assert GivenClipConfig(size=112).clips(usual).short_side == 128
    assert GivenClipConfig(size=112, short_side=112).clips(usual).short_side == 112
