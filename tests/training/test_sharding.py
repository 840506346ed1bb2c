"""The same losses on one device, on eight, and on eight with sharded parameters or clips."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vidjax.errors import UserError
from vidjax.models import create_model
from vidjax.objectives import masking, reconstruction
from vidjax.training.optimizer import OptimizerConfig, make_optimizer
from vidjax.training.sharding import (
    check_batch_size,
    compiler_options,
    jit_into,
    jit_step,
    join_processes,
    make_mesh,
    put_batch,
    state_sharding,
)
from vidjax.training.state import create_state
from vidjax.training.step import make_train_step

GRID = (2, 4, 4)


def run(fsdp, devices, sequence=1, implementation="auto", steps=3):
    """The losses of a tiny masked pre-training on `devices` devices, and the state."""
    model = create_model(
        "videomae_tiny_pretrain",
        patch_size=(2, 8, 8),
        width=64,
        depth=1,
        heads=2,
        decoder_width=32,
        decoder_depth=1,
        decoder_heads=2,
        implementation=implementation,
    )
    config = dataclasses.replace(OptimizerConfig(), learning_rate=0.02, warmup_epochs=0)
    tx = make_optimizer(config, config.schedule(8, 10, 10))
    mesh = make_mesh(fsdp, sequence, devices=jax.devices()[:devices])

    def draw(key):
        return jax.vmap(lambda key: masking.tube(key, GRID, 0.75))(jax.random.split(key, 8))

    def loss_fn(params, aux, batch, key):
        video = batch["video"] / 255.0
        kept, masked = draw(key)
        target = reconstruction.pixel_targets(video, model.patch_size)
        target = jnp.take_along_axis(target, masked[..., None], axis=1)
        loss = reconstruction.reconstruction_loss(model.apply({"params": params}, video, kept, masked), target)
        return (loss * batch["valid"]).sum() / batch["valid"].sum(), (aux.model_state, {})

    def init(key):
        variables = model.init(key, jnp.zeros((8, 4, 32, 32, 3)), *draw(key))
        return create_state(variables, tx, key)

    with jax.set_mesh(mesh):
        sharding = state_sharding(mesh, jax.eval_shape(init, jax.random.key(0)))
        state = jax.jit(init, out_shardings=sharding)(jax.random.key(0))
    step = jit_step(make_train_step(loss_fn, tx), sharding, mesh)
    losses = []
    rng = np.random.default_rng(0)
    for _ in range(steps):
        batch = {"video": rng.integers(0, 256, (8, 4, 32, 32, 3), np.uint8), "valid": np.arange(8) != 5}
        state, metrics = step(state, put_batch(batch, mesh))
        losses.append(float(metrics["loss"]))
    return losses, state


@pytest.fixture(scope="module")
def on_one_device():
    return run(fsdp=1, devices=1)[0]


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
@pytest.mark.parametrize("fsdp", [pytest.param(1, marks=pytest.mark.long), 4])
def test_eight_devices_give_the_losses_of_one(on_one_device, fsdp):
    losses, state = run(fsdp, devices=8)
    np.testing.assert_allclose(losses, on_one_device, atol=1e-5)
    kernel = state.params["encoder"]["transformer"]["block_0"]["mlp"]["fc1"]["kernel"]
    moment = state.opt_state[1][0].mu["encoder"]["transformer"]["block_0"]["mlp"]["fc1"]["kernel"]
    assert kernel.addressable_shards[0].data.size == kernel.size // fsdp
    assert moment.sharding == kernel.sharding


@pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")
def test_eight_devices_with_sharded_clips_give_the_losses_of_one(on_one_device):
    losses, _ = run(fsdp=2, devices=8, sequence=2, implementation="ring")
    np.testing.assert_allclose(losses, on_one_device, atol=1e-5)


def test_frames_are_split_over_the_sequence_axis():
    mesh = make_mesh(sequence=4)
    clips = {"video": np.zeros((2, 8, 2, 2, 3), np.uint8), "label": np.zeros((2, 8))}
    put = put_batch(clips, mesh)
    assert {name: x.addressable_shards[0].data.shape for name, x in put.items()} == {
        "video": (1, 2, 2, 2, 3),
        "label": (1, 8),
    }
    assert put_batch({"video": clips["video"][:, :6]}, mesh)["video"].addressable_shards[0].data.shape[1] == 6


def test_a_mesh_that_does_not_divide_the_devices_raises():
    with pytest.raises(ValueError, match="fsdp 3 does not divide the 8 devices: choose one of"):
        make_mesh(3)
    with pytest.raises(ValueError, match="sequence 5 does not divide the 8 devices: choose one of"):
        make_mesh(sequence=5)
    with pytest.raises(ValueError, match="fsdp 4 times sequence 4 does not divide the 8 devices"):
        make_mesh(4, 4)


def test_a_clip_is_not_split_over_processes(monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    monkeypatch.setattr(jax, "local_device_count", lambda: 2)
    with pytest.raises(ValueError, match="sequence 4 does not divide the 2 devices of a process"):
        make_mesh(sequence=4)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"COORDINATOR_ADDRESS": "localhost"}, "JAX_COORDINATOR_ADDRESS is localhost: give HOST:PORT of process 0"),
        ({"NUM_PROCESSES": "two"}, "JAX_NUM_PROCESSES is 'two': give a number"),
        ({"NUM_PROCESSES": "2", "PROCESS_ID": "2"}, "JAX_PROCESS_ID is 2 of 2 processes: it is counted from 0"),
        ({}, r"no cluster was detected \(coordinator_address should be defined"),
    ],
)
def test_a_process_that_cannot_join_raises(variables, message, monkeypatch):
    for name in ("COORDINATOR_ADDRESS", "NUM_PROCESSES", "PROCESS_ID"):
        monkeypatch.delenv(f"JAX_{name}", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(f"JAX_{name}", value)

    def initialize(**numbers):
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(ValueError, match=message):
        join_processes()


def test_a_batch_that_cannot_be_split_raises():
    with pytest.raises(ValueError, match="a batch of 12 cannot be split over 8 devices: make it a multiple of 8"):
        check_batch_size(12)
    with pytest.raises(ValueError, match="times 2 micro-batches: make it a multiple of 16"):
        check_batch_size(8, accumulation=2)
    check_batch_size(16, accumulation=2)
    with pytest.raises(
        ValueError, match="a batch of 3 cannot be split over 2 groups of 4 devices: make it a multiple of 2"
    ):
        check_batch_size(3, sequence=4)
    check_batch_size(2, sequence=4)
    with pytest.raises(UserError, match="a batch of 3 cannot be split over 2 devices: make it a multiple of 2"):
        put_batch({"x": np.zeros((3, 2))}, make_mesh(sequence=4))


def test_programs_compile_for_cpus_at_a_lower_level_unless_xla_flags_says_another(monkeypatch):
    mesh = make_mesh(devices=jax.devices()[:1])
    assert compiler_options(mesh) == {}  # conftest.py sets a level
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    assert compiler_options(mesh) == {"xla_backend_optimization_level": 1}
    double = jit_into(NamedSharding(mesh, PartitionSpec()), lambda x: 2 * x, mesh)
    assert double(jnp.ones(3)).tolist() == [2, 2, 2]
