"""Layer decay, partial training and SGD, compared with their definitions."""

import dataclasses
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

import vidjax
from vidjax.errors import UserError
from vidjax.models import FAMILIES, VARIANTS, variable_shapes
from vidjax.training.optimizer import OptimizerConfig, layer_numbers, make_optimizer, trained_parameters


def shapes(name):
    model = vidjax.create_model(name, num_classes=4)
    return variable_shapes(model)["params"]


def numbered(name):
    return flatten_dict(layer_numbers(shapes(name)), sep="/")


def test_layers_of_a_vision_transformer_are_those_of_the_original_recipe():
    """MCG-NJU/VideoMAE, optim_factory.py: the embedding is layer 0, block i layer i + 1, norm and head the last."""
    for name, depth in (("videomae_base", 12), ("timesformer_base_divided", 12), ("vit_base_16", 12)):
        layers = numbered(name)
        for path, layer in layers.items():
            block = next((part for part in path.split("/") if part.startswith("block_")), None)
            if block is not None:
                assert layer == int(block.removeprefix("block_")) + 1, path
            elif any(word in path for word in ("embedding", "position", "token", "time/table")):
                assert layer == 0, path
            else:
                assert layer == depth + 1, path
        assert max(layers.values()) == depth + 1 and layers["head/kernel"] == depth + 1


@pytest.mark.parametrize(
    ("name", "order"),
    [
        ("vivit_tiny_factorized_encoder", ("patch_embedding", "spatial_transformer/block_0",
                                           "spatial_transformer/block_3", "temporal_transformer/block_0",
                                           "temporal_transformer/block_1", "head")),
        ("uniformer_tiny", ("patch_embedding_0", "stage_0/block_0", "patch_embedding_1", "stage_1/block_0",
                            "stage_3/block_0", "head")),
        ("uniformerv2_tiny", ("patch_embedding", "transformer/block_0", "transformer/block_1",
                              "video_transformer/block_0/query", "video_transformer/block_1", "head")),
        ("r2plus1d_tiny", ("stem", "group_0_0", "group_1_0", "group_3_0", "head")),
        ("i3d_tiny", ("conv_1a", "mixed_3b", "mixed_3c", "mixed_4b", "mixed_5c", "head")),
        ("c3d_tiny", ("conv1a", "conv2a", "conv3a", "conv3b", "fc6", "head")),
    ],
)  # fmt: skip
def test_layers_of_every_family_rise_from_input_to_head(name, order):
    layers = numbered(name)
    positions = []
    for beginning in order:  # a prefix of parameter paths
        matches = {layer for path, layer in layers.items() if path.startswith(beginning)}
        assert matches, f"no parameter {beginning} among {sorted(layers)}"
        positions.append(min(matches))
    assert positions == sorted(positions) and positions[0] < positions[1] and positions[-1] == max(layers.values())


CLASSIFIERS = [name for name in vidjax.list_models("_tiny") if "num_classes" in VARIANTS[name]().__dataclass_fields__]
# Layers by prefix of the parameter path, recorded when the rules were compared with the original code.
KNOWN = json.loads((Path(__file__).parent / "layer_numbers.json").read_text())


FIRST = {min(name for name in family.VARIANTS if "_tiny" in name) for family in FAMILIES}


@pytest.mark.parametrize(
    "name", [name if name in FIRST else pytest.param(name, marks=pytest.mark.long) for name in CLASSIFIERS]
)
def test_layer_numbers_of_every_family(name):
    """No name is unknown in any family, and the recorded numbers are unchanged."""
    layers = numbered(name)
    known = KNOWN.get(name, {})
    for path, layer in layers.items():
        beginning = next((start for start in known if f"{path}/".startswith(f"{start}/")), None)
        if known and not path.startswith("head"):
            assert layer == known[beginning], path
    assert max(layers.values()) == layers["head/kernel"]


def test_a_name_without_a_layer_raises():
    for path in ("adapter", "block_first", "transformer/adapter"):
        params = unflatten_dict({("transformer", "block_0", "kernel"): 0, (*path.split("/"), "kernel"): 0})
        with pytest.raises(UserError, match=f"the layer of the parameter {path}/kernel is unknown"):
            layer_numbers(params)
    pair = {"video": {"head": {"kernel": 0}}, "logit_scale": 0}
    with pytest.raises(UserError, match="the layer of the parameter logit_scale is unknown"):
        layer_numbers(pair)


def test_updates_decrease_by_the_decay_from_layer_to_layer():
    params = {
        "patch_embedding": {"kernel": jnp.ones((2, 2))},
        "transformer": {f"block_{i}": {"kernel": jnp.ones((2, 2))} for i in range(3)},
        "head": {"kernel": jnp.ones((2, 2))},
    }
    config = OptimizerConfig(kind="sgd", learning_rate=1.0, warmup_epochs=0, weight_decay=0.0, layer_decay=0.5)
    tx = make_optimizer(config, optax.constant_schedule(1.0))
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)
    sizes = {path.rsplit("/", 1)[0]: -float(value[0, 0]) for path, value in flatten_dict(updates, sep="/").items()}
    blocks = {f"transformer/block_{i}": 0.5 ** (3 - i) for i in range(3)}
    assert sizes == {"patch_embedding": 0.5**4, **blocks, "head": 1.0}


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_equals_pytorchs_update_rule(nesterov):
    """v = momentum v + (g + decay w); w -= rate v, or with Nesterov's momentum w -= rate (g + decay w + momentum v)."""
    params = {"w": jnp.array([[1.0, -2.0], [3.0, 0.5]]), "b": jnp.array([1.0, 2.0])}
    config = OptimizerConfig(kind="sgd", learning_rate=1.0, warmup_epochs=0, weight_decay=0.1, beta1=0.9)
    config = dataclasses.replace(config, nesterov=nesterov)
    tx = make_optimizer(config, optax.constant_schedule(0.2))
    state, velocity, expected = tx.init(params), jax.tree.map(jnp.zeros_like, params), dict(params)
    for step in range(4):
        gradient = jax.tree.map(lambda p, step=step: jnp.cos(p + step), expected)
        updates, state = tx.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        for name in ("w", "b"):
            decayed = gradient[name] + (0.1 * expected[name] if name == "w" else 0)
            velocity[name] = 0.9 * velocity[name] + decayed
            direction = decayed + 0.9 * velocity[name] if nesterov else velocity[name]
            expected[name] = expected[name] - 0.2 * direction
        for name in expected:
            np.testing.assert_allclose(params[name], expected[name], atol=1e-6)


def test_milestones_divide_the_rate_by_ten_after_a_warm_up():
    config = OptimizerConfig(learning_rate=0.16, warmup_learning_rate=0.0, warmup_epochs=2, milestones=(5, 8))
    rate = config.schedule(batch_size=8, steps=100, steps_per_epoch=10)
    peak = 0.16 * 8 / 256
    rates = [float(rate(step)) for step in (0, 10, 20, 49, 51, 79, 81, 99)]
    np.testing.assert_allclose(np.array(rates) / peak, [0, 0.5, 1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-5)


def test_a_cosine_from_the_start_is_slowfasts():
    """Warm-up rises to where the cosine is by then, which is below the peak."""
    given = {"learning_rate": 0.4, "warmup_learning_rate": 0.04, "warmup_epochs": 3, "final_learning_rate": 0.08}
    rate = OptimizerConfig(**given, cosine_from_start=True).schedule(64, 100, 10)

    def cosine(step: int) -> float:
        return 0.02 + (0.1 - 0.02) * (1 + np.cos(np.pi * step / 100)) / 2

    expected = [0.01, 0.01 + (cosine(30) - 0.01) / 2, cosine(30), cosine(31), cosine(75), 0.02]
    np.testing.assert_allclose([float(rate(step)) for step in (0, 15, 30, 31, 75, 100)], expected, rtol=1e-5)


def test_frozen_parameters_do_not_change_and_have_no_moments():
    params = {
        "patch_embedding": {"kernel": jnp.ones((2, 2))},
        "transformer": {f"block_{i}": {"kernel": jnp.ones((2, 2)), "norm1": {"scale": jnp.ones(2)}} for i in range(3)},
        "head": {"kernel": jnp.ones((2, 2))},
    }
    trained = trained_parameters(params, 1)
    chosen = {path for path, value in flatten_dict(trained, sep="/").items() if value}
    norms = {f"transformer/block_{i}/norm1/scale" for i in range(3)}
    assert chosen == norms | {"transformer/block_2/kernel", "head/kernel"}
    config = OptimizerConfig(learning_rate=0.5, warmup_epochs=0, weight_decay=0.1, layer_decay=0.9)
    tx = make_optimizer(config, optax.constant_schedule(0.5), trained)
    state = tx.init(params)
    moments = [leaf for leaf in jax.tree.leaves(state) if leaf.shape == (2, 2)]
    assert len(moments) == 2 * 2  # two for each of the two trained kernels
    updates, _ = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
    moved = {path for path, value in flatten_dict(updates, sep="/").items() if jnp.any(value != 0)}
    assert moved == chosen
    with pytest.raises(ValueError, match="4 blocks cannot be trained: the model has 3"):
        trained_parameters(params, 4)


def test_invalid_values_raise():
    for field, value, message in (
        ("learning_rate", 0.0, "optim.learning_rate is 0.0: it must be above 0"),
        ("warmup_epochs", -1.0, "optim.warmup_epochs is -1.0: it must be 0 or more"),
        ("clip_norm", 0.0, "optim.clip_norm is 0.0: it must be above 0, or omitted"),
        ("layer_decay", 1.5, "optim.layer_decay is 1.5: it must be above 0 and at most 1"),
    ):
        with pytest.raises(ValueError, match=message):
            OptimizerConfig(**{field: value})


def test_learning_rate_factors_apply_below_a_path():
    params = {"video": {"temporal": {"kernel": jnp.ones((2, 2))}, "image": {"kernel": jnp.ones((2, 2))}}}
    config = OptimizerConfig(weight_decay=0.2)
    changes = []
    for factors in ({}, {"video/temporal/": 10.0}):
        tx = make_optimizer(config, lambda step: 0.01, factors=factors)
        changes.append(tx.update(jax.tree.map(jnp.ones_like, params), tx.init(params), params)[0]["video"])
    plain, faster = changes
    np.testing.assert_allclose(faster["temporal"]["kernel"], 10 * plain["temporal"]["kernel"], rtol=1e-6)
    np.testing.assert_array_equal(faster["image"]["kernel"], plain["image"]["kernel"])


def test_a_merging_follows_the_blocks_of_its_stage():
    layers = layer_numbers(shapes("video_swin_tiny"))
    first = {name: {*jax.tree.leaves(part)} for name, part in layers.items()}
    assert first["merging_0"] == {max(first["stage_0"]) + 1} and min(first["stage_1"]) == max(first["merging_0"]) + 1


def test_nesterov_without_sgd_is_an_error():
    with pytest.raises(UserError, match="nesterov is for SGD"):
        OptimizerConfig(nesterov=True)


def test_weight_decay_may_follow_a_cosine():
    config = OptimizerConfig(
        kind="sgd", learning_rate=1.0, warmup_epochs=0, weight_decay=0.1, final_weight_decay=0.5, beta1=0.0
    )
    tx = make_optimizer(config, lambda step: 1.0, weight_decay=config.weight_decay_by_step(4))
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
    state, zeros = tx.init(params), jax.tree.map(jnp.zeros_like, params)
    for step in range(6):
        updates, state = tx.update(zeros, state, params)
        expected = 0.5 - 0.4 * 0.5 * (1 + np.cos(np.pi * min(step, 4) / 4))
        np.testing.assert_allclose(updates["kernel"], -expected, rtol=1e-5)
        assert not updates["bias"].any()
    assert OptimizerConfig(weight_decay=0.2).weight_decay_by_step(4) == 0.2


def test_the_learning_rate_may_decay_linearly():
    config = OptimizerConfig(
        learning_rate=1.0, warmup_learning_rate=0.0, final_learning_rate=0.2, warmup_epochs=1, linear=True
    )
    rate = config.schedule(256, 10, 2)
    np.testing.assert_allclose([rate(step) for step in (0, 1, 2, 6, 10)], [0.0, 0.5, 1.0, 0.6, 0.2], rtol=1e-6)
