"""Ring attention on eight simulated devices gives the results of one device with an eighth of the memory."""

from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmark.collectives import read_collectives
from vidjax.kernels.attention import attend
from vidjax.layers.transformer import Block, Encoder
from vidjax.training.cost import count_macs
from vidjax.training.sharding import batch_sharding, make_mesh, replicated, state_sharding

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")


def normal(*shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(sum(shape)).standard_normal(shape), jnp.float32)


def attended_and_gradients(implementation, query, key, value):
    weights = normal(*query.shape)[..., ::-1]

    def loss(query, key, value):
        attended = attend(query, key, value, implementation)
        return (attended * weights).sum(), attended

    return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(query, key, value)


@cache
def on_one_device(tokens):
    """Query, key and value, and their attention and gradients on one device."""
    arrays = normal(4, tokens, 2, 6), normal(4, tokens, 2, 6), normal(4, tokens, 2, 6)[..., ::-1]
    return arrays, attended_and_gradients("xla", *arrays)


@pytest.mark.parametrize("tokens", [16, 17])  # 17 with a class token
@pytest.mark.parametrize("shape", [(1, 1, 8), (2, 1, 4), (2, 2, 2)])
def test_eight_devices_give_the_attention_and_gradients_of_one(shape, tokens):
    arrays, expected = on_one_device(tokens)
    with jax.set_mesh(make_mesh(*shape[1:])):
        ring = attended_and_gradients("ring", *arrays)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), ring, expected)


def test_any_number_of_queries_keys_and_clips():
    arrays = normal(3, 1, 3, 2, 6), normal(3, 1, 9, 2, 6), normal(3, 1, 9, 2, 6)[..., ::-1]  # some devices only padding
    with jax.set_mesh(make_mesh(sequence=4)):
        ring = attended_and_gradients("ring", *arrays)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), ring, attended_and_gradients("xla", *arrays))


def gradient_of(model, mesh, x, shard=lambda mesh, params: replicated(mesh)):
    """The compiled gradient with respect to a model's parameters, sharded by `shard`, and their shapes."""

    def loss(params, x):
        return (model.apply(params, x).astype(jnp.float32).mean(axis=1) ** 2).sum()

    with jax.set_mesh(mesh):
        params = jax.eval_shape(model.init, jax.random.key(0), x)
        sharding = shard(mesh, params)
        shardings = {"in_shardings": (sharding, batch_sharding(mesh)), "out_shardings": sharding}
        return jax.jit(jax.grad(loss), **shardings).lower(params, x).compile(), params


def test_a_scanned_and_rematerialised_stack_has_the_same_gradients():
    mesh = make_mesh(sequence=4)
    x = jax.device_put(normal(2, 17, 8), batch_sharding(mesh))

    def gradients(implementation):
        block = partial(Block, 2, mlp_ratio=1.0, key_bias=False, implementation=implementation)
        gradient, shapes = gradient_of(Encoder(block, 2, scan=True, remat="blocks"), mesh, x)
        return gradient(jax.tree.map(lambda leaf: normal(*leaf.shape) / 2, shapes), x)

    for ring, plain in zip(*map(jax.tree.leaves, map(gradients, ("ring", "xla"))), strict=True):
        assert jnp.linalg.norm(ring - plain) <= 1e-5 * jnp.linalg.norm(plain)


def test_bfloat16_is_as_accurate_as_on_one_device():
    arrays = [normal(2, 40, 2, 8)[:, ::step].astype(jnp.bfloat16) for step in (1, -1, 1)]
    exact = jax.tree.leaves(attended_and_gradients("xla", *(x.astype(jnp.float32) for x in arrays)))

    def errors(implementation):
        results = jax.tree.leaves(attended_and_gradients(implementation, *arrays))
        assert {x.dtype for x in results} == {jnp.dtype(jnp.bfloat16)}
        return [jnp.linalg.norm(x.astype(jnp.float32) - y) for x, y in zip(results, exact, strict=True)]

    with jax.set_mesh(make_mesh(sequence=4)):
        ring = errors("ring")
    assert all(ours < 2 * plain for ours, plain in zip(ring, errors("xla"), strict=True))


def test_eight_devices_need_an_eighth_of_the_memory_and_gather_no_tokens():
    encoder = Encoder(partial(Block, 2, implementation="ring"), 2)
    x = jax.ShapeDtypeStruct((1, 4096, 32), jnp.float32)
    one, eight = (gradient_of(encoder, make_mesh(sequence=n, devices=jax.devices()[:n]), x)[0] for n in (1, 8))
    assert one.memory_analysis().temp_size_in_bytes > 6 * eight.memory_analysis().temp_size_in_bytes
    assert "collective-permute" in eight.as_text() and "all-gather" not in eight.as_text()


def test_total_cost_over_all_devices_is_that_of_one():
    x = jax.ShapeDtypeStruct((2, 16, 3, 8), jnp.float32)
    with jax.set_mesh(make_mesh(2, 2)):
        ring = count_macs(lambda *x: attend(*x, "ring"), x, x, x)
    one = count_macs(lambda *x: attend(*x, "xla"), x, x, x)
    assert ring == 4 * one  # two clips cannot be split over four groups: each computes both
    with jax.set_mesh(make_mesh(sequence=4)):
        assert count_macs(lambda *x: attend(*x, "ring"), x, x, x) == one


def test_a_missing_mesh_and_a_mask_are_rejected():
    x = normal(1, 8, 1, 4)
    with pytest.raises(ValueError, match=r"run it under `with jax.set_mesh"):
        attend(x, x, x, "ring")
    with jax.set_mesh(make_mesh(sequence=8)), pytest.raises(ValueError, match="ring attention takes no mask"):
        attend(x, x, x, "ring", jnp.ones((8, 8), bool))


@pytest.mark.parametrize("scan", [False, True])
def test_sharded_parameters_are_gathered_and_clips_are_not(scan):
    # As in a model, a layer comes before the loop, and the sharding of its output is not specified.
    model = nn.Sequential([nn.Dense(64), Encoder(partial(Block, 2), 3, scan=scan)])
    x = jax.ShapeDtypeStruct((64, 512, 96), jnp.float32)
    compiled, params = gradient_of(model, make_mesh(fsdp=8), x, state_sharding)
    collectives = read_collectives(compiled.as_text())
    sent = sum(collective.times * collective.wire_bytes for collective in collectives)
    # Parameters are gathered in both passes, and their gradients reduced.
    assert sent < 3 * 4 * sum(leaf.size for leaf in jax.tree.leaves(params))
