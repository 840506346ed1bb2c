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


def test_short_side_defaults_to_eight_sevenths_of_size():
    assert DataConfig(size=224).decode_short_side == 256
    assert DataConfig(size=224, short_side=320).decode_short_side == 320


def test_given_values_override_defaults():
    defaults = {"frames": 8, "size": 56, "short_side": 64, "stride": 4, "fps": 8.0, "sampling": "dense"}
    assert GivenClipConfig().clips(defaults) == ClipConfig(**defaults)
    assert GivenClipConfig(frames=16).clips(defaults).frames == 16
    # stride and fps are alternatives: a given one replaces the other.
    stride = GivenClipConfig(stride=2).clips(defaults)
    assert (stride.stride, stride.fps) == (2, None)
    assert GivenClipConfig(fps=4.0).clips(defaults).fps == 4.0
    with pytest.raises(ValueError, match=r"data\.stride and data\.fps exclude each other"):
        GivenClipConfig(fps=4.0, stride=2).clips(defaults)
    # With another size, the short side is scaled too.
    assert GivenClipConfig(size=112).clips(defaults).short_side == 128
    assert GivenClipConfig(size=112, short_side=112).clips(defaults).short_side == 112
