"""Which parameters of a video-text pair are trained."""

from flax.traverse_util import flatten_dict

import vidjax
from vidjax.data.text import open_tokenizer
from vidjax.runs.pairs import make_pair, trained_mask

VIT = tuple(f"video/tower/{part}" for part in ("class_", "norm_pre/", "patch_embedding/", "position/", "transformer/"))


def trained(frozen_tower, model):
    return {path for path, chosen in flatten_dict(trained_mask(frozen_tower, model), sep="/").items() if chosen}


def test_a_pair_does_not_train_what_its_video_tower_freezes():
    fields = {"num_classes": None, "num_frames": 2, "image_size": 32}
    model = make_pair("uniformerv2_tiny", "text_tiny", open_tokenizer("bytes"), frozen=True, **fields)
    paths = trained("none", model)
    assert not [path for path in paths if path.startswith(VIT)]
    assert {path.split("/")[2] for path in paths if path.startswith("video/tower/")} == {"norm", "video_transformer"}
    assert {path.split("/")[0] for path in paths} == {"logit_scale", "text", "video"}
    assert {path.split("/")[0] for path in trained("text", model)} == {"logit_scale", "video"}
    assert {path.split("/")[0] for path in trained("video", model)} == {"logit_scale", "text"}


def test_without_frozen_parts_all_is_trained():
    assert trained_mask("none", vidjax.create_model("internvideo_tiny")) is None
