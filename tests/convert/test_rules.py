import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidjax.convert import conversion
from vidjax.convert.fits import inflate, table
from vidjax.convert.rules import Layout, Rule, dense, fold_layer_scale, kernel, kernel_rows
from vidjax.layers.embedding import resize_table

RULES = (
    *dense("stages.{s}.blocks.{i}.fc", "stage_{s}/block_{i}/fc"),
    *dense("head", "head"),
    Rule("bn.running_mean", "batch_stats/bn/mean"),
)


def apply(given, weights, tree, optional=(), surplus=(), **how):
    return conversion.apply(Layout("x", "x", tuple(given), optional=optional, surplus=surplus), weights, tree, **how)


def value(*shape: int) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.float32).reshape(shape)


@pytest.fixture
def weights():
    return {
        "stages.0.blocks.11.fc.weight": value(4, 3),
        "stages.0.blocks.11.fc.bias": value(4),
        "head.weight": value(2, 4),
        "head.bias": value(2),
    }


@pytest.fixture
def tree():
    fc, head = {"kernel": jnp.zeros((3, 4)), "bias": jnp.zeros(4)}, {"kernel": jnp.zeros((4, 2)), "bias": jnp.zeros(2)}
    return {"stage_0": {"block_11": {"fc": fc}}, "head": head}


def test_numbers_in_names_are_inserted_into_paths(weights, tree):
    filled, report = apply(RULES, weights, tree)
    np.testing.assert_array_equal(filled["stage_0"]["block_11"]["fc"]["kernel"], value(4, 3).T)
    np.testing.assert_array_equal(filled["head"]["bias"], value(2))
    assert len(report.loaded) == 4 and str(report) == "loaded 4 of 4 parameters"
    assert not tree["head"]["kernel"].any()  # the input is not modified


def test_a_placeholder_is_a_number_and_a_dot_is_a_dot():
    rule = Rule("blocks.{i}.fc", "b_{i}")
    assert rule.path("blocks.3.fc") == "b_3"
    assert rule.path("blocks.x.fc") is rule.path("blocks.3xfc") is rule.path("blocks.3.fc.more") is None


@pytest.mark.parametrize("spatial", [(), (5,), (5, 6), (5, 6, 7)])
def test_kernels_of_any_dimension_put_channels_last(spatial):
    turned = kernel(value(2, 3, *spatial))
    assert turned.shape == (*spatial, 3, 2)
    np.testing.assert_array_equal(turned[..., 1, 0], value(2, 3, *spatial)[0, 1])


def test_rows_of_a_fused_kernel():
    fused = value(6, 4)
    for part in range(3):
        np.testing.assert_array_equal(kernel_rows(part, 3)(fused), fused[2 * part : 2 * part + 2].T)


def test_a_tree_of_shapes_can_be_filled(weights, tree):
    filled, _ = apply(RULES, weights, jax.eval_shape(lambda: tree))
    np.testing.assert_array_equal(filled["head"]["kernel"], value(2, 4).T)


def test_dtype_and_sharding_are_those_of_the_tree(weights, tree):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    tree["head"]["kernel"] = jax.device_put(tree["head"]["kernel"].astype(jnp.bfloat16), sharding)
    filled, _ = apply(RULES, weights, tree)
    assert filled["head"]["kernel"].dtype == jnp.bfloat16 and filled["head"]["kernel"].sharding == sharding
    assert not filled["head"]["bias"].committed  # jit may place it


def test_whole_variables_are_filled(weights, tree):
    variables = {"params": tree, "batch_stats": {"bn": {"mean": jnp.zeros(5)}}}
    filled, report = apply(RULES, weights | {"bn.running_mean": value(5)}, variables)
    np.testing.assert_array_equal(filled["batch_stats"]["bn"]["mean"], value(5))
    assert "batch_stats/bn/mean" in report.loaded and "head/bias" in report.loaded


def test_a_missing_entry_is_an_error(weights, tree):
    del weights["head.bias"]
    with pytest.raises(ValueError, match=r"do not fit: not in the weights: head/bias; choose the matching model$"):
        apply(RULES, weights, tree)


def test_an_unknown_entry_is_reported_and_an_error_if_strict(weights, tree):
    weights["ema.decay"] = value(1)
    _, report = apply(RULES, weights, tree)
    assert report.unused == ("ema.decay",) and "in the weights but unused: ema.decay" in str(report)
    with pytest.raises(ValueError, match=r"in the weights and not in the model: ema\.decay; choose"):
        apply(RULES, weights, tree, strict=True)


def test_an_unknown_entry_inside_a_block_is_an_error(weights, tree):
    weights["stages.0.blocks.11.gate.weight"] = value(4)  # would change what the block computes
    with pytest.raises(ValueError, match=r"not in the model: stages\.0\.blocks\.11\.gate\.weight; choose"):
        apply(RULES, weights, tree)


def test_a_known_entry_without_parameter_is_an_error(weights, tree):
    weights["stages.0.blocks.12.fc.bias"] = value(4)  # a deeper network than the model
    with pytest.raises(ValueError, match=r"not in the model: stages\.0\.blocks\.12\.fc\.bias; choose"):
        apply(RULES, weights, tree)


def test_step_counters_are_ignored(weights, tree):
    _, report = apply(RULES, weights | {"bn.num_batches_tracked": value(1)}, tree, strict=True)
    assert not report.unused


def test_values_that_are_not_finite_are_an_error(weights, tree):
    weights["head.bias"] = np.array([1, np.nan], np.float32)
    with pytest.raises(ValueError, match=r"head\.bias in the weights is not finite"):
        apply(RULES, weights, tree)


def test_the_error_for_another_shape_has_both_shapes(weights, tree):
    weights["stages.0.blocks.11.fc.weight"] = value(7, 3)
    with pytest.raises(ValueError, match=r"fc/kernel is \(3, 4\) in the model and \(3, 7\) in the weights; choose"):
        apply(RULES, weights, tree)


def test_a_head_of_other_classes_is_kept_and_reported_unless_strict(weights, tree):
    weights |= {"head.weight": value(7, 4), "head.bias": value(7)}
    filled, report = apply(RULES, weights, tree)
    assert filled["head"] == tree["head"] and report.new == ("head/kernel", "head/bias")
    assert str(report) == "loaded 2 of 4 parameters; newly initialised: head/kernel, head/bias"
    with pytest.raises(ValueError, match=r"7 classes in the weights and 2 in the model: set num_classes, or .* head$"):
        apply(RULES, weights, tree, strict=True)


def test_an_optional_part_may_only_be_missing_as_a_whole(weights, tree):
    del weights["head.bias"]
    with pytest.raises(ValueError, match="head/bias"):
        apply(RULES, weights, tree, optional=("head/",))
    del weights["head.weight"]
    filled, report = apply(RULES, weights, tree, optional=("head/",))
    assert filled["head"]["kernel"] is tree["head"]["kernel"]
    assert report.new == ("head/kernel", "head/bias")
    with pytest.raises(ValueError, match="not in the weights: head/kernel"):
        apply(RULES, weights, tree, optional=("head/",), strict=True)


def test_a_surplus_part_is_ignored_and_reported(weights, tree):
    del tree["head"]
    with pytest.raises(ValueError, match=r"head\.weight, head\.bias"):
        apply(RULES, weights, tree)
    _, report = apply(RULES, weights, tree, surplus=("head/",))
    assert report.unused == ("head.weight", "head.bias")


def test_a_new_part_is_kept_even_if_the_weights_contain_it(weights, tree):
    weights["head.weight"] = value(7, 4)
    filled, report = apply(RULES, weights, tree, new=["head"])
    assert filled["head"] == tree["head"]
    assert report.new == ("head/kernel", "head/bias") and report.unused == ("head.weight", "head.bias")


def test_a_single_string_is_one_prefix(weights, tree):
    weights = {name: value for name, value in weights.items() if name.startswith("head")}
    with pytest.raises(ValueError, match="stage_0/block_11/fc/kernel"):
        apply(RULES, weights, tree, new="head/bias")  # its letters would match "stage_0"


def test_two_entries_for_one_parameter_are_an_error(weights, tree):
    rules = (*RULES, Rule("classifier.bias", "head/bias"))
    with pytest.raises(ValueError, match=r"two entries of the weights map to head/bias, one of them classifier\.bias"):
        apply(rules, weights | {"classifier.bias": value(2)}, tree)


def test_long_lists_are_shortened(tree):
    with pytest.raises(ValueError, match=r"e\.0, e\.1, e\.2, e\.3 and 96 more; choose"):
        apply(RULES, {f"e.{i}": value(1) for i in range(100)}, tree, new=["head", "stage_0"], strict=True)


@pytest.mark.parametrize("gammas", [("gamma_1", "gamma_2"), ("ls1.gamma", "ls2.gamma")])
def test_layer_scale_is_folded_into_the_preceding_linear_layers(gammas):
    scales = (value(2) + 2, value(2) - 5)
    weights = {}
    for scale, gamma, linear in zip(scales, gammas, ("attn.proj", "mlp.fc2"), strict=True):
        weights |= {f"b.0.{linear}.weight": value(2, 3), f"b.0.{linear}.bias": value(2), f"b.0.{gamma}": scale}
    folded = fold_layer_scale(weights)
    assert len(folded) == 4 and len(weights) == 6
    for scale, linear in zip(scales, ("attn.proj", "mlp.fc2"), strict=True):
        np.testing.assert_array_equal(folded[f"b.0.{linear}.weight"], np.diag(scale) @ value(2, 3))
        np.testing.assert_array_equal(folded[f"b.0.{linear}.bias"], scale * value(2))
    assert fold_layer_scale({"b.0.ls2.gamma": value(2)}).keys() == {"b.0.ls2.gamma"}  # not next to a known linear layer


def test_an_inflated_kernel_gives_the_image_output_for_a_still_clip():
    image, shape = value(2, 2, 3, 4), (5, 2, 2, 3, 4)
    np.testing.assert_allclose(inflate(image, shape, "average").sum(0), image, rtol=1e-5)
    central = inflate(image, shape, "central")
    np.testing.assert_array_equal(central[2], image)
    assert not central[[0, 1, 3, 4]].any()
    assert inflate(image, (5, 3, 3, 3, 4), "average").shape == (
        1,
        2,
        2,
        3,
        4,
    )  # another size is not inflated, and rejected later


@pytest.mark.parametrize(
    ("tokens", "ours", "image", "read_as"),
    [
        (7, (9,), False, (7,)),
        (16, (6, 6), False, (4, 4)),
        (2 * 16, (2, 6, 6), False, (2, 4, 4)),
        (4 * 36, (2, 6, 6), False, (4, 6, 6)),
        (16, (3, 6, 6), True, (1, 4, 4)),
        (4, (1, 4, 4), True, (1, 2, 2)),
    ],
)
def test_the_grid_of_published_tables_is_inferred(tokens, ours, image, read_as):
    corners = np.zeros((*read_as, 1), np.float32)
    corners[(-1,) * len(read_as)] = 1.0
    fitted = table("linear", image)(corners.reshape(tokens, 1), (*ours, 1), "average")
    assert fitted.shape == (*ours, 1) and fitted.max() == fitted[(-1,) * len(ours)] == 1.0


OTHERS = [(4, 14, 14), (8, 14, 14), (32, 14, 14), (64, 14, 14), (8, 7, 7), (16, 20, 20), (4, 10, 10), (64, 7, 7)]


@pytest.mark.parametrize("ours", [*OTHERS, (4, 28, 28)])
def test_a_configuration_determines_the_grid(ours):
    true = np.random.default_rng(0).standard_normal((16, 14, 14, 2)).astype(np.float32)
    flat = true.reshape(-1, 2)
    expected = resize_table(jnp.asarray(true), ours, "linear")
    fitted = table("linear", usual=(4, 28, 28))(flat, (*ours, 2), "average", true.shape)
    np.testing.assert_array_equal(fitted, expected)
    if (
        ours in OTHERS[:-1]
    ):  # without one, the usual grid is the only one with so many entries, or the model's is as well
        np.testing.assert_array_equal(table("linear", usual=true.shape[:-1])(flat, (*ours, 2), "average"), expected)


@pytest.mark.parametrize("ours", [(4, 28, 28), (64, 7, 7)])
def test_an_ambiguous_grid_is_an_error(ours):
    message = r"3136 positions may be one of (4x28x28 or 16x14x14|16x14x14 or 64x7x7): load it with the num_frames"
    with pytest.raises(ValueError, match=message):
        table("linear", usual=(16, 14, 14))(value(3136, 1), (*ours, 1), "average")
    with pytest.raises(ValueError, match="784 positions may be one of 4x14x14 or 16x7x7"):
        table("linear")(value(784, 1), (16, 14, 14, 1), "average")


def test_a_table_without_matching_grid_is_not_resized():
    assert table("linear")(value(7, 1), (6, 6, 1), "average").shape == (7, 1)


def test_resized_parameters_are_reported():
    rule = Rule("pos", "head/kernel", fit=table("linear"))
    _, report = apply([rule], {"pos": value(3, 2)}, {"head": {"kernel": jnp.zeros((4, 2))}})
    assert report.resized == ("head/kernel (3, 2) -> (4, 2)",) and "resized: head/kernel" in str(report)


def test_an_unknown_inflation_is_an_error(weights, tree, unchecked):
    with pytest.raises(ValueError, match="inflation is 'last': choose average or central"):
        apply(RULES, weights, tree, inflation="last")
