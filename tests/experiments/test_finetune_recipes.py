"""The recipes of fine-tuning, and what a config makes of the model, without training."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax.traverse_util import flatten_dict
from small_runs import changed

import vidjax
from vidjax import cli

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments"))

import finetune


def test_only_the_flag_of_the_source_selects_the_recipe_for_user_videos():
    def parse(*flags):
        return cli.parse(finetune.Config, finetune.RECIPES, finetune.DATA_FLAG, list(flags))

    demo, own = (finetune.RECIPES[name] for name in ("demo", "videos"))
    assert parse() == demo
    few = changed(demo, data__train_examples=64)
    assert parse("--data.train_examples", "64") == parse("--data.train_examples=64") == few
    assert parse("--data.train_split", "other") == changed(demo, data__train_split="other")
    assert parse("--data.train", "mine") == parse("--data.train=mine") == changed(own, data__train="mine")
    named = changed(finetune.RECIPES["timesformer_base_k400"], data__train="mine")
    assert parse("timesformer_base_k400", "--data.train", "mine") == named


OF_EACH_SHAPE = {(c.model, c.data.frames, c.data.size): name for name, c in finetune.RECIPES.items()}
"""The last recipe of each model and shape of clips."""


@pytest.mark.long
@pytest.mark.parametrize("name", OF_EACH_SHAPE.values())
def test_every_recipe_has_a_model_that_accepts_its_clips(name, unchecked):
    config = finetune.RECIPES[name]
    model = finetune.make_model(config, tuple("abc"))
    channels = len(model.card.mean)
    video = jax.ShapeDtypeStruct((1, config.data.frames, config.data.size, config.data.size, channels), jnp.float32)
    logits, shapes = jax.eval_shape(model.init_with_output, jax.random.key(0), video)
    assert logits.shape == (1, 3)
    assert flatten_dict(shapes["params"], sep="/")["head/kernel"].shape[-1] == 3


def test_published_recipes_are_tested_by_the_rules_of_their_publishers():
    """Those of the model's card, but for Video Swin from ImageNet-1k, whose recipes are mmaction2's."""
    converted = {f"video_swin_{size}_k400" for size in "tsb"}
    for name in finetune.RECIPES.keys() - {"videos"}:
        config = finetune.RECIPES[name]
        card, data = vidjax.create_model(config.model).card, config.data
        assert data.protocol == ("mmaction2" if name in converted else card.protocol), name
        if "ssv2" not in name:
            assert (data.fps, data.sampling) == (card.rate and card.rate / card.stride, card.sampling), name
            assert data.consecutive == card.consecutive, name


def test_a_fine_tuned_model_has_the_card_of_its_own_clips_and_no_published_accuracy():
    config = finetune.RECIPES["slowfast_50_8x8_k400"]
    config = changed(config, data__stride=4, data__fps=None, data__protocol="mmaction2", data__short_side=224)
    card = finetune.make_model(config, ("a", "b")).card
    assert (card.accuracy, card.views, card.class_names) == ("", "", ("a", "b"))
    assert (card.stride, card.rate, card.protocol, card.crop_ratio, card.test_size) == (4, None, "mmaction2", 1.0, None)
    assert card.mean == vidjax.create_model("slowfast_50_8x8").card.mean


def test_published_recipes_have_the_published_learning_rates():
    """Peak learning rates of the original scripts at their batch sizes."""
    expected = {  # rate, videos per batch, epochs, layer decay, drop path, mixup, repeats, sampling, frames x stride
        "videomae_base_k400": (7.5e-4, 384, 75, 0.75, 0.1, 0.8, 2, "dense", 16, 4),  # 5e-4 per 256 videos
        "videomae_large_k400": (1e-3, 128, 35, 0.75, 0.1, 0.8, 2, "dense", 16, 4),  # 2e-3 per 256 videos
        "videomae_base_ssv2": (7.5e-4, 384, 30, 0.75, 0.1, 0.8, 2, "segments", 16, 4),
        "timesformer_base_k400": (0.005, 8, 15, 1, None, 0, 1, "dense", 8, 32),
        "vivit_base_fe_k400": (0.05, 64, 30, 1, None, 0, 1, "dense", 32, 2),
        "vivit_large_fe_ssv2": (0.4, 64, 35, 1, 0.3, 0.3, 1, "dense", 32, 1),
        "uniformer_small_k400": (1e-4, 32, 110, 1, 0.1, 0.8, 2, "dense", 16, 4),
        "uniformer_base_k400": (1e-4, 32, 110, 1, 0.3, 0.8, 2, "dense", 16, 4),
        "uniformer_small_ssv2": (2e-4, 32, 50, 1, 0.3, 0.8, 2, "segments", 16, 4),
        "uniformer_base_ssv2": (2.5e-4, 40, 50, 1, 0.4, 0.8, 2, "segments", 16, 4),
        "r2plus1d_18_k400": (0.08, 256, 225, 1, None, 0, 1, "dense", 16, 2),
        "lrcn_ucf101": (0.001, 24, 75, 1, None, 0, 1, "dense", 16, 1),
        "deepvideo_late_sports1m": (0.001, 32, 30, 1, None, 0, 1, "dense", 16, 1),
        "tsm_101_ssv2": (0.02, 128, 50, 1, None, 0, 1, "segments", 8, 4),
        "ipcsn_152_k400": (5e-4, 96, 58, 1, None, 0, 1, "dense", 32, 2),
        "i3d_50_nonlocal_k400_from_imagenet": (0.01, 64, 118, 1, None, 0, 1, "dense", 8, 8),
        "i3d_50_32x2_mmaction2_k400": (0.01, 64, 100, 1, None, 0, 1, "dense", 32, 2),
        "slow_50_mmaction2_k400": (0.2, 128, 256, 1, None, 0, 1, "dense", 8, 8),
        "slowfast_50_16x8_ssv2": (0.03, 16, 22, 1, None, 0, 1, "segments", 64, 4),
        "mvit_base_32x3_k600": (1e-4, 16, 200, 1, 0.3, 0.8, 2, "dense", 32, 3),
        "mvitv2_small_maskfeat_k400": (9.6e-3, 256, 100, 0.75, 0.1, 0.8, 2, "dense", 16, 4),
        "mvitv2_base_ssv2": (0.0015, 16, 100, 1, 0.4, 0.8, 1, "segments", 32, 4),
        "mvitv2_large_ssv2": (0.00125, 8, 40, 1, 0.75, 0, 1, "segments", 40, 4),
        "video_swin_b_ssv2": (3e-5, 64, 60, 1, 0.4, 0, 1, "segments", 32, 4),  # a tenth, but for the head
        "uniformerv2_base_k400": (1e-5, 256, 55, 1, None, 0, 1, "segments", 8, 4),
        "uniformerv2_large_336_frozen_k400": (8e-4, 512, 50, 1, None, 0, 1, "segments", 8, 4),
        "uniformerv2_base_ssv2": (4e-5, 128, 22, 1, None, 0, 2, "segments", 16, 4),
        "uniformerv2_large_ssv2": (2e-5, 128, 22, 1, None, 0, 2, "segments", 16, 4),
    }
    for name, (peak, videos_a_step, *rest) in expected.items():
        config, data = finetune.RECIPES[name], finetune.RECIPES[name].data
        rate = config.optim.schedule(config.batch_size, 100_000, 1000)
        assert float(rate(jnp.arange(0, 100_000, 100)).max()) == pytest.approx(peak, rel=2e-2), name
        assert config.batch_size == videos_a_step * data.repeats, name
        result = [config.epochs, config.optim.layer_decay, config.drop_path, config.mixup, data.repeats]
        assert [*result, data.sampling, data.frames, data.stride] == rest, name


def test_what_a_model_freezes_is_not_trained():
    model = vidjax.create_model("uniformerv2_tiny", frozen=True, num_classes=3)
    config = finetune.Config(model="uniformerv2_tiny")
    backbone = ("class_", "norm_pre/", "patch_embedding/", "position/", "transformer/")
    for tune, trained in (
        ("full", ("head/", "norm/", "video_transformer/")),
        ("partial", ("head/", "norm/", "video_transformer/block_1/", "video_transformer/block_0/norm_")),
        ("linear_probe", ("head/",)),
    ):
        mask = finetune.choose_trained(changed(config, tune=tune, tuned_blocks=1), model)
        for path, is_trained in flatten_dict(mask, sep="/").items():
            assert is_trained == path.startswith(trained) and not (is_trained and path.startswith(backbone)), path
    assert finetune.choose_trained(config, model.clone(frozen=False)) is None
