"""Invalid fields are rejected when a model is created by name, with a message that names the field."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vidjax
from vidjax.errors import UserError
from vidjax.models import VARIANTS, check_fields, create_model
from vidjax.models.actionclip import VideoTower
from vidjax.models.text import check_ids


@pytest.mark.parametrize(
    ("name", "field", "value", "kind"),
    [
        ("vit_tiny", "patch_size", 16, "tuple[int, int, int]"),
        ("vit_tiny", "patch_size", (16, 16), "tuple[int, int, int]"),
        ("vit_tiny", "num_classes", 0, "1 or more, or None for features"),
        ("i3d_tiny", "num_classes", -1, "1 or more, or None for features"),
        ("vit_tiny", "depth", 0, "1 or more"),
        ("uniformer_tiny", "head_width", -8, "1 or more"),
        ("c3d_tiny", "num_classes", "5", "int | None"),
        ("c3d_tiny", "num_classes", True, "int | None"),
        ("r2plus1d_tiny", "depths", (1, 1, 1), "tuple[int, int, int, int]"),
        ("uniformer_tiny", "widths", (16, 32, 48, 64.5), "tuple[int, int, int, int]"),
        ("uniformer_tiny", "drop_path", "0.1", "float"),
        ("p3d_tiny", "width", 8.0, "int"),
        ("s3d_tiny", "separable", 1, "bool"),
    ],
)
def test_a_field_of_the_wrong_type_is_rejected(name, field, value, kind):
    with pytest.raises(ValueError) as refused:
        vidjax.create_model(name, **{field: value})
    assert str(refused.value) == f"{field} of model '{name}' is {value!r}: it must be {kind}"


CLIPS = [  # name, fields, frames and side of the clip (by default those of the fields), message
    ("slowfast_tiny", {}, (3, 32), "3 frames are too few: the model needs at least 4"),
    ("slowfast_tiny", {}, (10, 32), "10 frames cannot be shared .* use a multiple of 4, such as 8 or 12"),
    ("slowfast_tiny", {"lateral": "sum"}, None, "lateral is 'sum': choose time_strided_convolution, time_to_channel"),
    ("slowfast_tiny", {"dialect": "sum"}, None, "dialect is 'sum': choose slowfast, pytorchvideo or mmaction2"),
    ("slowfast_tiny", {"lateral_kernel": 4}, None, "lateral_kernel is 4: a kernel over time has a centre, use 5 or 7"),
    ("i3d_50_32x2_mmaction2", {}, (4, 32), "4 frames are too few: the model needs at least 5"),
    ("tsn_tiny_flow", {}, (3, 32), "3 frames cannot be stacked by 2: use a multiple of 2, such as 2"),
    ("tsn_tiny_difference", {"stack": 1}, None, "stack is 1, but a difference needs two frames: set stack to 2"),
    ("tsm_tiny_pool", {}, (3, 32), "temporal_pool halves the frames, but the clip has 3: use an even number"),
    ("mvit_tiny", {"heads": 3}, None, "width 16 cannot be split into 3 heads: use a divisor of the width"),
    ("mvitv2_tiny", {"kernel": 4}, None, r"a pooling kernel of \(4, 4, 4\) cells has no centre: set kernel to an odd"),
    ("mvitv2_tiny", {"image_size": 28}, None, "image_size 28 is too small for 4 scales, .* use at least 32"),
    ("video_swin_tiny", {"width": 15}, None, "width 15 cannot be split into 2 heads: use a divisor of the width"),
    ("video_swin_tiny", {"heads": (2, 4, 8)}, None, "there are 2 depths and 3 heads: give one of each for every stage"),
    ("video_swin_tiny", {"window": (0, 3, 3)}, None, r"window is \(0, 3, 3\): it needs at least one token in time"),
    ("vidtr_tiny", {"heads": 3}, None, "width 32 cannot be split into 3 heads: use a divisor of the width"),
    ("vidtr_tiny", {}, (4, 32), "has 4 frames of 32x32 pixels: the model takes 8 of 32x32, its fields num_frames and"),
    ("vidtr_tiny_compact", {"num_frames": 4}, None, r"drops is \(0, 4\): a clip of 4 frames .* must keep a frame"),
    ("lrcn_tiny", {}, (4, 64), r"size \(64, 64\), but the model takes \(67, 67\): resize them, or set its field image"),
    ("lrcn_tiny", {"image_size": 20}, None, "20 pixels of height are too few for this network: use more, such as 227"),
    ("lrcn_tiny", {"width": 5}, None, "width 5 cannot be divided among the layers: use a multiple of 6, such as 96"),
    ("deepvideo_tiny_slow", {}, (9, 32), "has 9 frames, but for slow fusion the model takes 10: give as many, or"),
    ("deepvideo_tiny_slow", {}, (10, 40), r"size \(40, 40\), but the model takes \(32, 32\): resize them, or set"),
    ("deepvideo_tiny_slow", {"image_size": 16}, None, "16 pixels of height are too few: the model needs at least 22"),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("name", "fields", "size", "message"), CLIPS)
def test_clips_and_fields_that_do_not_suit_a_model_are_a_one_line_error(name, fields, size, message):
    model = create_model(name).clone(**fields)
    frames, side = size or (model.num_frames, model.image_size)
    video = jax.ShapeDtypeStruct((1, frames, side, side, model.channels), jnp.float32)
    with pytest.raises(UserError, match=message) as error:
        jax.eval_shape(model.init, jax.random.key(0), video)
    assert "\n" not in str(error.value)


def test_an_unknown_field_is_rejected():
    with pytest.raises(ValueError, match="model 'vit_tiny' has no field 'classes': its fields are width, depth"):
        vidjax.create_model("vit_tiny", classes=3)


def test_a_field_is_set_in_every_tower_that_has_it():
    pair = create_model("clip_base_16", num_frames=8, dtype=jnp.bfloat16)
    assert pair.video.num_frames == 8 and pair.video.dtype == pair.text.dtype == jnp.bfloat16
    deep = create_model("actionclip_base_16", num_frames=16, head="mean", drop_path=0.1)
    assert deep.video.image.num_frames == 16 and deep.video.head == "mean"
    assert deep.video.image.drop_path == deep.text.drop_path == 0.1


def test_a_dictionary_sets_fields_of_one_tower():
    pair = create_model("clip_tiny", drop_path=0.1, text={"depth": 1, "drop_path": 0.0})
    assert (pair.video.depth, pair.text.depth) == (4, 1)
    assert (pair.video.drop_path, pair.text.drop_path) == (0.1, 0.0)
    tower = create_model("clip_tiny").text
    assert create_model("clip_tiny", text=tower.clone(depth=2)).text.depth == 2
    with pytest.raises(ValueError, match=r"depth of model 'clip_tiny's text' is 0: it must be 1 or more"):
        create_model("clip_tiny", text={"depth": 0})


def test_the_message_for_an_unknown_field_lists_those_of_the_towers():
    with pytest.raises(ValueError, match="model 'actionclip_tiny' has no field 'frames': its fields are ") as refused:
        create_model("actionclip_tiny", frames=3)
    listed = str(refused.value).rpartition(" are ")[2].split(", ")
    assert listed[:4] == ["video", "text", "card", "bias"] and len(listed) == len(set(listed))
    assert {"head", "num_frames", "shift", "vocabulary"} <= set(listed)
    with pytest.raises(ValueError, match="model 'clip_tiny's text' has no field 'joint': its fields are vocabulary, "):
        create_model("clip_tiny", text={"joint": True})


def test_numbers_of_compatible_types_are_accepted():
    made = {"num_classes": np.int64(4), "drop_path": np.float32(0.1), "mlp_ratio": 2, "patch_size": [1, 8, 8]}
    check_fields("vit_tiny", VARIANTS["vit_tiny"].func, made | {"dtype": jnp.bfloat16})
    model = vidjax.create_model("r2plus1d_18", num_classes=None, stem_planes=None, inner_epsilon=1e-3)
    assert model.num_classes is None
    assert vidjax.create_model("s3dg", gating=None).gating is None


def test_fields_of_every_variant_have_the_declared_types():
    for name, make in VARIANTS.items():
        model = make()
        own = [field for field in model.__dataclass_fields__ if field not in ("parent", "name")]
        check_fields(name, type(model), {field: getattr(model, field) for field in own})


def test_invalid_values_are_rejected():
    with pytest.raises(ValueError, match=r"depth of model 'vit_tiny' is 1.5: it must be int$"):
        vidjax.create_model("vit_tiny", depth=1.5)
    with pytest.raises(ValueError, match=r"heads of model 'vit_tiny' is 0: it must be 1 or more$"):
        vidjax.create_model("vit_tiny", heads=0)
    with pytest.raises(ValueError, match=r"drop_path of model 'vit_tiny' is 2.0: it must be at least 0 and below 1$"):
        vidjax.create_model("vit_tiny", drop_path=2.0)
    with pytest.raises(ValueError, match=r"remat of model 'vit_tiny' is 'all': it must be one of none, dots, blocks$"):
        vidjax.create_model("vit_tiny", remat="all")


@pytest.mark.parametrize(
    ("name", "field", "value", "message"),
    [
        ("s3d_tiny", "padding", "none", "padding is 'none': choose one of "),
        ("r2plus1d_tiny", "midplanes", "all", "midplanes is 'all': choose per_convolution or per_block"),
        ("r2plus1d_tiny", "groups", ("4d",) * 5, "a group of convolutions is '4d': choose 2d, 3d or 2plus1d"),
        ("timesformer_tiny_joint", "attention", "all", "attention is 'all': choose joint, space, "),
        ("vivit_tiny_joint", "attention", "some", "attention is 'some': choose joint, factorized"),
        ("vivit_tiny_joint", "embedding", "all", "embedding is 'all': choose tubelet or uniform_frames"),
        ("VideoTower", "head", "max", "head is 'max': choose one of mean, conv1d"),
        ("lrcn_tiny", "network", "vgg", "network is 'vgg': choose one of hybrid, caffenet"),
        ("deepvideo_tiny_slow", "fusion", "mid", "fusion is 'mid': choose one of single, early, late, slow"),
        (
            "two_stream_tiny_sum",
            "fusion",
            "mean",
            "fusion is 'mean': choose one of sum, max, concatenation, convolution",
        ),
        ("tsm_tiny", "shift", "left", "shift is 'left': choose one of none, both, past"),
    ],
)
def test_an_unknown_choice_is_rejected_by_the_module(name, field, value, message, unchecked):
    model = VideoTower(create_model("clip_tiny").video) if name == "VideoTower" else create_model(name)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.clone(**{field: value}).init, jax.random.key(0), jnp.zeros((1, 4, 32, 32, 3)))


def test_ids_of_a_wrong_shape_are_rejected(unchecked):
    with pytest.raises(ValueError, match=r"ids have shape \(5,\) and dtype int32: the tower takes integers \(batch"):
        check_ids(jnp.zeros(5, jnp.int32), 8)
