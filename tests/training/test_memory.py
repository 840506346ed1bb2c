"""The memory of a run, computed from shapes: exact for the state, and within 15 % of what a process uses."""

import dataclasses
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vidjax.training import memory
from vidjax.training.memory import BATCHES, available_memory, compile_counted, dry_run, program_memory, run_memory
from vidjax.training.optimizer import OptimizerConfig, make_optimizer
from vidjax.training.sharding import jit_step, make_mesh, state_sharding
from vidjax.training.state import create_state
from vidjax.training.step import make_train_step

ROOT = Path(__file__).resolve().parents[2]

TX = make_optimizer(OptimizerConfig(), lambda step: 1e-3)
WIDTH = 256


def test_scratch_memory_counts_what_xla_gives_to_ynnpack_on_cpus():
    """JAX 0.10.2 and 0.12.0.1 report no scratch memory for this attention; 0.10.2 needs its scores twice."""

    def attend(x):
        weights = jnp.exp(jnp.einsum("bnd,bmd->bnm", x, x))
        return jnp.einsum("bnm,bmd->bnd", weights, x) / weights.sum(axis=-1, keepdims=True)

    lowered = jax.jit(attend).lower(jax.ShapeDtypeStruct((4, 256, 64), jnp.float32))
    assert program_memory(compile_counted(lowered)).temporary >= 4 * 256 * 256 * 4


@dataclasses.dataclass(frozen=True)
class Clips:
    frames: int = 4
    size: int = 8
    repeats: int = 1


@dataclasses.dataclass(frozen=True)
class Config:
    model: str = "net"
    batch_size: int = 64
    data: Clips = Clips()
    accumulation: int = 1
    remat: str = "none"
    fsdp: int = 1


def init(key):
    return create_state({"params": {"w": jnp.zeros((WIDTH, WIDTH)), "b": jnp.zeros(WIDTH)}}, TX, key, ema=True)


def prepare(fsdp=1, batch_size=64, places=64):
    """A step with a moving average, and the shapes of its arguments."""

    def loss_fn(params, aux, batch, key):
        x = batch["video"].astype(jnp.float32) + jax.random.normal(key, (WIDTH,))
        for _ in range(4):
            x = jnp.tanh(x @ params["w"] + params["b"])
        return (jnp.square(x).mean(axis=(1, 2)) * batch["valid"]).mean(), (aux.model_state, {})

    mesh = make_mesh(fsdp)
    state = jax.eval_shape(init, jax.random.key(0))
    sharding = state_sharding(mesh, state)
    batch = {
        "video": jax.ShapeDtypeStruct((batch_size, places, WIDTH), jnp.uint8),
        "valid": jax.ShapeDtypeStruct((batch_size,), bool),
    }
    return jit_step(make_train_step(loss_fn, TX, ema_decay=0.9), sharding, mesh), state, sharding, batch, mesh


@pytest.mark.parametrize("fsdp", [1, 4])
def test_the_state_and_a_batch_equal_the_arguments_of_the_compiled_step(fsdp):
    step, state, sharding, batch, mesh = prepare(fsdp)
    needed = run_memory(step, state, sharding, batch, mesh)
    assert needed.parameters == needed.average == WIDTH * WIDTH * 4 // fsdp + WIDTH * 4
    assert needed.batches == BATCHES * (64 * 64 * WIDTH + 64) // 8
    program = program_memory(compile_counted(step.lower(state, batch)))
    given = needed.parameters + needed.optimizer + needed.average + needed.batches // BATCHES
    assert program.arguments == given - 1  # whether the last gradient was finite is written and never read
    assert program.total == program.arguments + needed.working < needed.total
    assert program.aliased == program.arguments - needed.batches // BATCHES  # the whole state is donated
    assert needed.working > 4 * (64 // 8) * 64 * WIDTH * 4  # four activations at the least


def test_no_array_is_allocated_for_a_huge_state():
    step, state, sharding, batch, mesh = prepare()
    big = jax.tree.map(lambda s: jax.ShapeDtypeStruct((2**20, *s.shape[1:]), s.dtype) if s.ndim == 2 else s, state)
    with pytest.raises(TypeError, match="dot_general"):  # it was traced; only the width is wrong
        run_memory(step, big, sharding, batch, mesh)
    before = len(jax.live_arrays())
    run_memory(step, state, sharding, batch, mesh)
    assert len(jax.live_arrays()) == before


def test_the_suggested_batch_size_fits(monkeypatch, capsys):
    step, *shapes = prepare(places=512)
    enough = dry_run(Config(), step, *shapes)
    assert enough["fits"] and enough["available"] == available_memory()
    assert "\nfits\n" in capsys.readouterr().out
    limit = enough["total"] // 2
    monkeypatch.setattr(memory, "available_memory", lambda: limit)
    assert not dry_run(Config(), step, *shapes)["fits"]
    out = capsys.readouterr().out
    match = re.search(r"does not fit: try --batch_size (\d+) or --accumulation 2 or --remat blocks or --fsdp 8\n", out)
    batch_size = int(match[1])
    assert batch_size % 8 == 0 and 8 <= batch_size < 64
    step, *shapes = prepare(batch_size=batch_size, places=512)
    assert dry_run(Config(batch_size=batch_size), step, *shapes)["fits"]
    monkeypatch.setattr(memory, "available_memory", lambda: 2**18)  # less than the state alone
    dry_run(Config(remat="blocks"), step, *shapes)
    assert "does not fit: try --accumulation 2 or --fsdp 8\n" in capsys.readouterr().out


@pytest.mark.long
def test_the_loop_keeps_as_many_batches_as_are_counted_and_one_state(tmp_path):
    from vidjax.training.loop import LoopConfig, fit  # Orbax takes seconds to import, and the process below needs none

    step, _, sharding, _, mesh = prepare()
    shape, counts = (64, 64, WIDTH), []

    def batches_from(first):
        while True:
            yield {"video": np.zeros(shape, np.uint8), "valid": np.ones(64, bool)}

    def on_device():
        return sum(array.shape == shape for array in jax.live_arrays())

    def watched(state, batch):
        expected = BATCHES - (not counts)  # the first step of a run has no previous batch
        for _ in range(3000):  # until the feeder is ahead, which takes a while on a busy machine
            if on_device() >= expected:
                break
            time.sleep(0.01)
        time.sleep(0.2)  # more batches would arrive, if the feeder prefetched more
        result = step(state, batch)
        counts.append(on_device())
        return result

    def run(steps):
        counts.clear()
        state = jax.jit(init, out_shardings=sharding)(jax.random.key(0))
        settings = {"steps": steps, "workdir": tmp_path, "mesh": mesh, "config": {}, "loop": LoopConfig(log_every=1)}
        fit(watched, state, batches_from, schedule=lambda step: 1e-3, **settings)
        return state

    run(2)
    assert max(counts) == BATCHES
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(run(3).params))  # freed when the checkpoint is restored


ALONE = """
import ctypes, sys

sys.path.insert(0, sys.argv[1])
import test_memory as t
from benchmark.process import forget_peak, resident
from vidjax.training.sharding import put_batch

t.WIDTH = 64
step, state, sharding, batch, mesh = t.prepare(places=8192)
needed = t.run_memory(step, state, sharding, batch, mesh)
step = step.lower(state, batch).compile()
make = t.jax.jit(t.init, out_shardings=sharding).lower(t.jax.random.key(0)).compile()
put = lambda: put_batch({name: t.np.ones(s.shape, s.dtype) for name, s in batch.items()}, mesh)
ctypes.CDLL(None).malloc_trim(0)  # excludes the memory of compilation
forget_peak()
before = resident("peak")
state, batches = make(t.jax.random.key(0)), [put() for _ in range(t.BATCHES)]
t.jax.block_until_ready(step(state, batches[0]))
print(needed.total, resident("peak") - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is reset through /proc")
@pytest.mark.long
def test_a_process_uses_the_predicted_memory():
    environment = os.environ | {"XLA_FLAGS": "", "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'experiments'}"}
    command = [sys.executable, "-c", ALONE, str(Path(__file__).parent)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    predicted, used = map(int, done.stdout.split())
    assert predicted > 1e9
    assert abs(predicted - used) < 0.15 * used, (predicted, used)
