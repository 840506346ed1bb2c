"""MViT and MViTv2 against recorded outputs of SlowFast, PyTorchVideo and mmaction2, and torchvision."""

import re
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import peers
import pytest
import recipe
from flax.traverse_util import flatten_dict, unflatten_dict
from small_models import perturbed

import vidjax
from vidjax.convert import from_state_dict, layouts
from vidjax.convert.export import entries
from vidjax.convert.mvit import PYTORCHVIDEO
from vidjax.layers.embedding import resize_table
from vidjax.models.mvit import Block, MViT, distances

# Parameters, and GMACs of one clip where they are published (SYSTEMS-2.md); see test_published.py.
COUNTS = {
    "mvit_base_16x4": (36_610_672, 70.599),
    "mvit_base_32x3": (53_115_280, 235.776),
    "mvit_base_32x3_pytorchvideo": (36_611_440, 169.958),
    "mvitv2_small_16x4": (34_537_744, 64.224),
    "mvitv2_base_32x3": (51_230_128, 224.473),
    "mvitv2_large_40x3": (213_390_112, 2823.404),
    # Counted here; mmaction2 gives 36.4 M and 71 G.
    "mvitv2_small_16x4_maskfeat": (36_475_120, 71.162),
    "mvit_tiny": (512_656, None),
    "mvit_tiny_32x3": (508_368, None),
    "mvitv2_tiny": (458_144, None),
    "mvitv2_tiny_maskfeat": (512_240, None),
}

V1 = {"relative": False, "expand_in_attention": False}
# The goldens of SlowFast: 5 blocks, of which the second and the last begin a scale.
SMALL = {"depths": (1, 3, 1), "width": 32, "key_stride": 4, "num_frames": 6, "image_size": 48, "num_classes": 7}
# The other peers. 40 pixels are 10, 5 and 3 tokens a side, with tables of relative positions for 10, 5 and 2.
PEER = {"depths": (1, 2, 1), "width": 16, "key_stride": 4, "num_frames": 6, "image_size": 40, "num_classes": 7}


def depthwise_of_xla(x, kernel, strides=(1, 1, 1), padding=None):
    sides = [(size // 2, size // 2) for size in kernel.shape[:3]] if padding is None else [(n, n) for n in padding]
    axes = {"dimension_numbers": ("NTHWC", "THWIO", "NTHWC"), "feature_group_count": x.shape[-1]}
    return jax.lax.conv_general_dilated(x, kernel, strides, sides, **axes)


@pytest.fixture(autouse=True, scope="module")
def quick_to_compile():
    """Pools by XLA's convolution, which ours equals (tests/kernels), as it is slow to run but quick to compile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vidjax.layers.convolution.depthwise_conv3d", depthwise_of_xla)
        yield


@partial(jax.jit, static_argnums=0)
def logits_of(model, variables, video):
    return model.apply(variables, jnp.moveaxis(video, 1, -1))


def assert_equals(golden, output: str, **fields) -> None:
    model = MViT(**fields)
    ours = logits_of(model, from_state_dict(model, golden.weights, strict=True), golden.inputs[0])
    expected = golden.outputs[output]
    np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("name", "fields", "output"),
    [
        ("mvit_b", SMALL | V1, "output1"),
        ("mvit_b_32x3_style", {**SMALL, **V1, "kernel": None}, "output1"),
        pytest.param("mvitv2_s", SMALL, "output1", marks=pytest.mark.long),
        # 18, 9 and 5 tokens a side, tables for 18, 9 and 4. Two blocks are equal, and scanned.
        ("mvitv2_odd", {**SMALL, "image_size": 72, "scan": True}, "output1"),
        ("mvit_pytorchvideo", PEER | V1, "output0"),
        ("mm_mvit", PEER, "output0"),
    ],
)
def test_equals_the_original(name, fields, output):
    assert_equals(recipe.load(name), output, **fields)


@pytest.mark.long
def test_equal_blocks_whose_inputs_differ_in_width_are_not_scanned_together():
    """The width doubles at the end of a scale (MViTv1), so that the next blocks have equal fields."""
    model = vidjax.create_model("mvit_tiny", num_classes=4)
    video = jnp.asarray(recipe.floats("video", (2, model.num_frames, model.image_size, model.image_size, 3)))
    variables = jax.jit(model.init)(jax.random.key(0), video)
    expected, scanned = (jax.jit(model.clone(scan=scan).apply)(variables, video) for scan in (False, True))
    np.testing.assert_allclose(scanned, expected, atol=1e-5)


@pytest.mark.parametrize("relative", [False, True])
def test_equals_torchvision(relative):
    """MViTv1; and MViTv2 that expands in the MLP, as MaskFeat's does, which no golden has."""
    torch, mvit = pytest.importorskip("torch"), peers.torchvision().models.video.mvit
    outputs = (32, 32, 64, 64)
    blocks = []
    for i, (stride, key_stride, heads) in enumerate(((1, 4, 1), (2, 2, 2), (1, 2, 2), (2, 1, 4))):
        pooled = relative or stride > 1
        blocks.append(
            mvit.MSBlockConfig(
                heads, (16, *outputs)[i], outputs[i], [3] * 3 if pooled else [], [3] * 3,
                [1, stride, stride] if pooled else [], [1, key_stride, key_stride],
            )
        )  # fmt: skip
    peer = mvit.MViT(
        (40, 40), 6, blocks, residual_pool=relative, residual_with_cls_embed=False, rel_pos_embed=relative,
        proj_after_attn=False, num_classes=7,
    ).eval()  # fmt: skip
    weights, images = peers.perturb(peer), recipe.floats("video", (2, 3, 6, 40, 40))
    with torch.no_grad():
        expected = peer(torch.from_numpy(images)).numpy()
    peer = SimpleNamespace(weights=weights, inputs=[images], outputs={"logits": expected})
    assert_equals(peer, "logits", **PEER, relative=relative, expand_in_attention=False)


TINY = {"depths": (1, 1), "width": 8, "key_stride": 2, "num_frames": 2, "image_size": 32, "dropout": 0.0}


@pytest.fixture(scope="module")
def tiny():
    """An MViTv2 of two blocks that sees a clip of 4x4 tokens at the end: its logits and attention, and variables."""
    model, video = MViT(**TINY), jnp.asarray(recipe.floats("video", (2, 2, 32, 32, 3)))
    run = jax.jit(lambda variables, video: model.apply(variables, video, mutable=["intermediates"]))
    return partial(run, video=video), perturbed(model)


def changed(variables: dict, ending: str, change) -> dict:
    """The variables with `change` applied to those whose path ends in this way."""
    flat = flatten_dict(variables, sep="/")
    assert any(re.search(ending, path) for path in flat)
    return unflatten_dict({p: change(x) if re.search(ending, p) else x for p, x in flat.items()}, sep="/")


def test_the_class_token_is_not_pooled(tiny):
    """Pooling by zeros hides the video from it, but not itself."""
    (run, variables), video = tiny, tiny[0].keywords["video"]
    blind = changed(variables, "pool_(key|value)/kernel", jnp.zeros_like)
    other = changed(blind, "class_token", lambda token: token + recipe.floats("token", token.shape))
    np.testing.assert_allclose(run(blind)[0], run(blind, video=-video)[0], atol=1e-6)
    assert np.abs(run(variables)[0] - run(variables, video=-video)[0]).max() > 1e-4
    assert np.abs(run(blind)[0] - run(other)[0]).max() > 1e-2


def test_relative_positions_are_not_those_of_the_class_token(tiny):
    run, variables = tiny
    other = changed(variables, "block_0/attention/relative_", lambda table: 10 * table)
    one, two = (
        run(v)[1]["intermediates"]["block_0"]["attention"]["dot_product"]["weights"][0] for v in (variables, other)
    )
    assert one.shape == (2, 1, 1 + 8 * 8, 1 + 4 * 4)
    np.testing.assert_allclose(one.sum(axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(one[..., 0, :], two[..., 0, :], atol=1e-6)  # the class token as the query
    assert np.abs(one[..., 1:, :] - two[..., 1:, :]).max() > 1e-3


def test_the_head_sees_all_but_the_queries_of_patches_in_the_last_block(tiny):
    """Which are those that are pooled and have relative positions: the class token is neither.

    In no block does it matter what is added to all keys.
    """
    run, variables = tiny
    logits, unseen = run(variables)[0], set()
    for path in flatten_dict(variables["params"], sep="/"):
        other = changed(variables, f"params/{path}$", lambda leaf: leaf + recipe.floats("change", leaf.shape))
        unseen |= {path} if np.allclose(logits, run(other)[0], atol=1e-6) else set()
    names = ("pool_query/kernel", "relative_time", "relative_height", "relative_width")
    assert unseen == {f"block_1/attention/{n}" for n in names} | {f"block_{i}/attention/norm_key/bias" for i in (0, 1)}


def test_distances_are_those_of_the_original():
    """By hand for 4 queries and 2 keys, a coarser grid; in its float32 for the sizes of MViTv2-L."""
    np.testing.assert_array_equal(distances(4, 2), [[2, 0], [3, 1], [4, 2], [5, 3]])
    np.testing.assert_array_equal(distances(2, 4), [[3, 2, 1, 0], [5, 4, 3, 2]])
    torch = pytest.importorskip("torch")
    for queries, keys in ((78, 10), (39, 10), (20, 10), (10, 10), (18, 5), (5, 18)):
        steps = max(keys / queries, 1.0), max(queries / keys, 1.0)
        expected = torch.arange(queries)[:, None] * steps[0] - torch.arange(keys)[None, :] * steps[1]
        expected += (keys - 1) * steps[1]
        np.testing.assert_array_equal(distances(queries, keys), expected.long().numpy())


@pytest.mark.parametrize("fields", [V1, {}], ids=["MViT", "MViTv2"])
def test_weights_for_another_clip_are_those_that_the_model_interpolates(fields):
    model = MViT(**TINY, **fields)
    variables, larger = perturbed(model), model.clone(num_frames=4, image_size=64)
    given = flatten_dict(variables["params"], sep="/")
    for layout in layouts(model)[0], layouts(model)[2]:
        loaded = from_state_dict(larger, entries(layout, model, variables), layout=layout.key)["params"]
        tables = 0
        for path, value in flatten_dict(loaded, sep="/").items():
            method = "half_pixel_cubic" if path == "spatial_position/table" else "half_pixel_linear"
            expected = given[path]
            if expected.shape != value.shape:
                tables += 1
                expected = resize_table(jnp.asarray(expected), value.shape[:-1], method)
            np.testing.assert_allclose(value, expected, atol=1e-6, err_msg=path)
        assert tables == (6 if model.relative else 2)  # three in each block; those of time and of space


def test_pytorchvideos_second_copies_are_ignored():
    """Its loader overwrites them with the first ones (version 1 of its attention)."""
    model = MViT(**TINY, **V1)
    weights = entries(PYTORCHVIDEO, model, perturbed(model))
    copies = [name for name in weights if "_attention_pool_" in name]
    assert "blocks.1.attn._attention_pool_q.pool.weight" in copies and len(copies) == 3 * 5
    other = from_state_dict(model, weights | {name: weights[name] + 1 for name in copies}, strict=True)
    jax.tree.map(np.testing.assert_array_equal, other, from_state_dict(model, weights, strict=True))


def test_stages_are_the_grids_of_the_scales_rounded_up():
    """Without fixed kernels too, and then nothing is pooled where the stride is one."""
    model = MViT(**{**TINY, "depths": (1, 1, 1, 1)}, expand_in_attention=False, kernel=None)
    video = jax.ShapeDtypeStruct((1, 5, 36, 20, 3), jnp.float32)
    maps, variables = jax.eval_shape(partial(model.init_with_output, method="stages"), jax.random.key(0), video)
    widths = (16, 32, 64, 64)  # of the next scale, as the MLP before it expands
    grids = ((3, 9, 5), (3, 5, 3), (3, 3, 2), (3, 2, 1))
    assert [stage.shape for stage in maps] == [(1, *grid, width) for grid, width in zip(grids, widths, strict=True)]
    pools = {
        path[0]: leaf.shape[:3] for path, leaf in flatten_dict(variables["params"]).items() if "pool_query" in path
    }
    assert pools == {f"block_{i}": (1, 3, 3) for i in (1, 2, 3)}


def test_biases_start_at_two_hundredths():
    def biases(key):
        params = Block(8, 8, 1, 1, kernel=1).init(key, jnp.ones((1, 2, 8)), grid=(1, 1, 1))["params"]
        return {path: leaf for path, leaf in flatten_dict(params, sep="/").items() if path.endswith("bias")}

    values = jax.jit(biases)(jax.random.key(0))
    assert len(values) == 10
    jax.tree.map(lambda leaf: np.testing.assert_array_equal(leaf, np.full(leaf.shape, 0.02, np.float32)), values)
