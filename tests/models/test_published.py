"""Every variant has its published number of parameters, to the last one, and its published cost within 2 %.

Counts and GMACs are of SYSTEMS.md, part C, and its sheets: 400 classes where the row names no other. GMACs are
multiply-accumulates of convolutions and matrix products in the traced program, of one clip. What no one published is
our own count, held so that it does not change unseen: those rows have no GMACs.
"""

import re
from math import prod

import jax
import pytest
from flax.traverse_util import flatten_dict

import vidjax
from vidjax.models import example_inputs
from vidjax.training.cost import count_macs

# name: (parameters, GMACs, overrides)
PUBLISHED = {
    "c3d": (79_991_015, 38.549, {}),
    "fr2d_18": (11_381_712, None, {}),
    "i3d_flow": (12_668_032, 102.341, {}),
    "i3d_rgb": (12_689_984, 111.153, {}),
    "mc2_18": (11_400_528, None, {}),
    "mc3_18": (11_695_440, 43.343, {}),
    "mc4_18": (12_727_632, None, {}),
    "mc5_18": (16_856_400, None, {}),
    "p3d_63": (25_745_232, 8.44, {}),
    "p3d_131": (48_088_400, 12.90, {}),
    "p3d_199": (66_492_240, 18.403, {}),
    "r2d_18": (11_522_832, None, {}),
    "r2plus1d_18": (31_505_325, 40.519, {}),
    "r2plus1d_18_paper": (33_370_839, 41.496, {}),
    "r2plus1d_34": (63_697_175, 152.356, {"num_frames": 32}),
    "r2plus1d_34_mmaction2": (63_759_281, 40.5, {}),  # 63.8 M published
    "r3d_18": (33_371_472, 40.697, {}),
    "rmc2_18": (33_352_656, None, {}),
    "rmc3_18": (33_057_744, None, {}),
    "rmc4_18": (32_025_552, None, {}),
    "rmc5_18": (27_896_784, None, {}),
    "s3d": (8_320_048, 17.979, {"num_frames": 16}),
    "s3dg": (9_508_000, 71.92, {"num_frames": 64}),
    "timesformer_base_divided": (121_566_352, 195.83, {}),
    "timesformer_base_joint": (86_112_400, 179.56, {}),
    "timesformer_base_space": (86_106_256, 140.51, {}),
    "timesformer_hr_divided": (122_024_080, 1702.7, {}),
    "timesformer_large_divided": (121_633_936, 2379.9, {}),
    "uniformer_base": (49_813_200, 96.554, {}),
    "uniformer_base_16": (49_813_200, 96.554, {}),
    "uniformer_base_8": (49_813_200, 40.134, {}),
    "uniformer_base_32": (49_813_200, 258.251, {}),
    "uniformer_base_split": (65_405_136, 83.959, {}),
    "uniformer_small": (21_400_400, 41.663, {}),
    "uniformer_small_16": (21_400_400, 41.663, {}),
    "uniformer_small_8": (21_400_400, 17.566, {}),
    "uniformer_small_32": (21_400_400, 109.445, {}),
    "uniformer_small_split": (27_847_504, 36.680, {}),
    "videomae_base": (86_534_800, 180.345, {}),
    "videomae_huge": (632_119_440, 1190.994, {}),
    "videomae_large": (304_270_736, 596.833, {}),
    "videomae_small": (22_033_936, 56.878, {}),
    # The published cost less the embedding of masked patches (1408 x 1536 x width), which is never computed here.
    "videomae_base_pretrain": (94_210_944, 33.779, {}),
    "videomae_huge_pretrain": (692_487_296, 234.839, {}),
    "videomae_large_pretrain": (342_996_992, 140.421, {}),
    "videomae_small_pretrain": (24_029_376, 10.705, {}),
    "vit_base_16": (86_567_656, 17.564, {}),  # timm: 86.57 M, with 1000 classes
    "vivit_base_16x2_joint": (88_954_000, 451.5, {}),
    "vivit_base_16x2_factorized_encoder": (115_062_928, 283.3, {}),
    "vivit_base_16x2_factorized_self_attention": (117_319_312, 371.1, {}),
    "vivit_base_16x2_factorized_dot_product": (88_952_464, 276.2, {}),
    "vivit_large_16x2_joint": (307_508_624, 1436, {}),
    "vivit_large_16x2_factorized_encoder": (354_903_440, 988.2, {}),
    "vivit_large_16x2_factorized_encoder_24": (606_827_920, 992.5, {}),
}


# Rows of the same tables that are a variant with other fields.
WITH_FIELDS = {
    "c3d of 400 classes": ("c3d", 79_634_576, None, {"num_classes": 400}),
    "c3d of 101 classes": ("c3d", 78_409_573, 38.547, {"num_classes": 101}),
    "i3d_rgb with scales": ("i3d_rgb", 12_697_264, 111.153, {"norm_scale": True}),
    "i3d_flow with scales": ("i3d_flow", 12_675_312, 102.341, {"norm_scale": True}),
    "r2d_18 of 8 frames": ("r2d_18", 11_447_568, None, {"num_frames": 8}),
    "r2plus1d_34 of 8 frames": ("r2plus1d_34", 63_697_175, 38.089, {"num_frames": 8}),
    "s3d of 64 frames": ("s3d", 8_320_048, 71.916, {"num_frames": 64}),
    "s3dg gated after the branches": ("s3dg", 12_119_712, 71.92, {"gating": "concat"}),
    "uniformer_small of 174 classes": ("uniformer_small", 21_284_462, None, {"num_classes": 174}),
}


def shapes_of(name: str, overrides: dict):
    model = vidjax.create_model(name, **overrides)
    inputs = example_inputs(model)
    return model, inputs, jax.eval_shape(model.init, jax.random.key(0), *inputs)


@pytest.mark.parametrize("row", [*vidjax.list_models(), *WITH_FIELDS])
def test_parameters_and_cost_are_the_published_ones(row):
    name, parameters, gmacs, overrides = WITH_FIELDS.get(row, (row, *PUBLISHED.get(row, (None, None, {}))))
    model, inputs, shapes = shapes_of(name, overrides)
    flat = {path: leaf.shape for path, leaf in flatten_dict(shapes["params"], sep="/").items()}
    assert not [path for path in flat if re.search(r"(^|/)[A-Z]\w*_\d+(/|$)", path)]  # no name is made by Linen
    if parameters:
        assert sum(map(prod, flat.values())) == parameters
    if gmacs:
        assert count_macs(model.apply, shapes, *inputs) / 1e9 == pytest.approx(gmacs, rel=0.02)


def test_every_published_row_is_a_variant():
    assert not set(PUBLISHED) - set(vidjax.list_models())
