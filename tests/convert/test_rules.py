import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidjax.convert.rules import Rule, apply, dense, kernel, kernel_rows

RULES = (
    *dense("stages.{s}.blocks.{i}.fc", "stage_{s}/block_{i}/fc"),
    *dense("head", "head"),
    Rule("bn.running_mean", "batch_stats/bn/mean"),
)


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


def test_numbers_in_names_are_carried_over(weights, tree):
    filled, report = apply(RULES, weights, tree)
    np.testing.assert_array_equal(filled["stage_0"]["block_11"]["fc"]["kernel"], value(4, 3).T)
    np.testing.assert_array_equal(filled["head"]["bias"], value(2))
    assert len(report.loaded) == 4 and str(report) == "loaded 4 of 4 parameters"
    assert not tree["head"]["kernel"].any()  # the tree given is left alone


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


def test_shapes_alone_are_filled(weights, tree):
    filled, _ = apply(RULES, weights, jax.eval_shape(lambda: tree))
    np.testing.assert_array_equal(filled["head"]["kernel"], value(2, 4).T)


def test_type_and_placement_are_those_of_the_tree(weights, tree):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    tree["head"]["kernel"] = jax.device_put(tree["head"]["kernel"].astype(jnp.bfloat16), sharding)
    filled, _ = apply(RULES, weights, tree)
    assert filled["head"]["kernel"].dtype == jnp.bfloat16 and filled["head"]["kernel"].sharding == sharding
    assert not filled["head"]["bias"].committed  # free to go where jit wants it


def test_whole_variables_are_filled(weights, tree):
    variables = {"params": tree, "batch_stats": {"bn": {"mean": jnp.zeros(5)}}}
    filled, report = apply(RULES, weights | {"bn.running_mean": value(5)}, variables)
    np.testing.assert_array_equal(filled["batch_stats"]["bn"]["mean"], value(5))
    assert "batch_stats/bn/mean" in report.loaded and "head/bias" in report.loaded


def test_a_missing_entry_is_refused(weights, tree):
    del weights["head.bias"]
    with pytest.raises(ValueError, match=r"do not fit: not in the weights and left as they were: head/bias$"):
        apply(RULES, weights, tree)


def test_a_leftover_entry_is_refused_unless_allowed(weights, tree):
    weights["ema.decay"] = value(1)
    with pytest.raises(ValueError, match=r"in the weights and not used: ema\.decay$"):
        apply(RULES, weights, tree)
    _, report = apply(RULES, weights, tree, unused="ema.")
    assert report.unexpected == ("ema.decay",) and "not used: ema.decay" in str(report)


def test_another_shape_is_refused_with_both(weights, tree):
    weights["head.weight"] = value(7, 4)
    with pytest.raises(ValueError, match=r"head/kernel is \(4, 2\) in the model and \(4, 7\) in the weights$"):
        apply(RULES, weights, tree, optional=["head"])


def test_an_optional_part_is_missing_as_a_whole_or_not_at_all(weights, tree):
    del weights["head.bias"]
    with pytest.raises(ValueError, match="head/bias"):
        apply(RULES, weights, tree, optional=["head"])
    del weights["head.weight"]
    filled, report = apply(RULES, weights, tree, optional=["head"])
    assert filled["head"]["kernel"] is tree["head"]["kernel"]
    assert report.missing == ("head/kernel", "head/bias")
    assert str(report) == "loaded 2 of 4 parameters; not in the weights and left as they were: head/kernel, head/bias"


def test_a_surplus_part_is_left_out_and_told(weights, tree):
    del tree["head"]
    with pytest.raises(ValueError, match=r"head\.weight, head\.bias"):
        apply(RULES, weights, tree)
    _, report = apply(RULES, weights, tree, surplus=["head"])
    assert report.unexpected == ("head.weight", "head.bias")


def test_a_fresh_part_stays_whatever_the_weights_hold(weights, tree):
    weights["head.weight"] = value(7, 4)
    filled, report = apply(RULES, weights, tree, fresh=["head"])
    assert filled["head"] == tree["head"]
    assert report.missing == ("head/kernel", "head/bias") and report.unexpected == ("head.weight", "head.bias")


def test_one_word_is_not_read_letter_by_letter(weights, tree):
    weights = {name: value for name, value in weights.items() if name.startswith("head")}
    with pytest.raises(ValueError, match="stage_0/block_11/fc/kernel"):
        apply(RULES, weights, tree, fresh="head/bias")  # of whose letters one begins "stage_0"


def test_two_entries_for_one_parameter_are_refused(weights, tree):
    rules = (*RULES, Rule("classifier.bias", "head/bias"))
    with pytest.raises(ValueError, match=r"two entries of the weights are head/bias, one of them classifier\.bias"):
        apply(rules, weights | {"classifier.bias": value(2)}, tree)


def test_long_lists_are_cut(tree):
    with pytest.raises(ValueError, match=r"e\.0, e\.1, e\.2, e\.3 and 96 more$"):
        apply(RULES, {f"e.{i}": value(1) for i in range(100)}, tree, fresh=["head", "stage_0"])
