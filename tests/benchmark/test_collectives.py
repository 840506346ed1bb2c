"""The collectives of small compiled programs, compared with bytes computed by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from benchmark.collectives import Collective, read_collectives

pytestmark = pytest.mark.skipif(jax.device_count() < 8, reason="needs eight devices")

FSDP, DATA, ALL = (0, 1, 2, 3), (0, 4), tuple(range(8))


@pytest.fixture(scope="module")
def mesh():
    axes = (AxisType.Auto, AxisType.Auto)
    return jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=axes, devices=jax.devices()[:8])


def read(function, *shapes, **shardings):
    values = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return read_collectives(jax.jit(function, **shardings).lower(*values).compile().as_text())


def summary(collectives):
    return {(c.kind, c.group, c.times, c.sliced, c.operand_bytes, c.result_bytes, c.wire_bytes) for c in collectives}


def test_each_kind_by_hand(mesh):
    def communicate(x):  # 8 rows of 1000 float32 on a device: 32,000 bytes
        return (
            jax.lax.psum(x, ("data", "fsdp")),
            jax.lax.all_gather(x, "data"),
            jax.lax.psum_scatter(x, "fsdp", tiled=True),
            jax.lax.all_to_all(x, "fsdp", 1, 0, tiled=True),
            jax.lax.ppermute(x, "fsdp", [(i, (i + 1) % 4) for i in range(4)]),
        )

    split = P(("data", "fsdp"))
    communicate = jax.shard_map(communicate, mesh=mesh, in_specs=split, out_specs=(P(), split, split, split, split))
    assert summary(read(communicate, (64, 1000))) == {
        ("all-reduce", ALL, 1, False, 32_000, 32_000, 2 * 7 / 8 * 32_000),
        ("all-gather", DATA, 1, False, 32_000, 64_000, 32_000),
        ("reduce-scatter", FSDP, 1, False, 32_000, 8_000, 3 / 4 * 32_000),
        ("all-to-all", FSDP, 1, False, 32_000, 32_000, 3 / 4 * 32_000),
        ("collective-permute", FSDP, 1, False, 32_000, 32_000, 32_000),
    }


def test_fsdp_of_a_dense_layer_gathers_scatters_and_reduces_between_copies(mesh):
    def step(kernel, x):
        return kernel - jax.grad(lambda kernel: jnp.square(x @ kernel).mean())(kernel)

    kernel, x = NamedSharding(mesh, P("fsdp")), NamedSharding(mesh, P(("data", "fsdp")))
    collectives = read(step, (256, 512), (16, 256), in_shardings=(kernel, x), out_shardings=kernel)
    whole, shard = 256 * 512 * 4, 64 * 512 * 4
    assert summary(collectives) == {
        ("all-gather", FSDP, 1, False, shard, whole, 3 * shard),
        ("all-reduce", FSDP, 1, True, whole, whole, 3 * shard),  # as a reduce-scatter: XLA on CPUs has none
        ("all-reduce", DATA, 1, False, shard, shard, shard),  # 2 (n - 1) / n of two is once
    }


def test_collectives_in_a_scan_are_counted_once_per_iteration(mesh):
    def loss(kernels, x):
        return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0].sum()

    kernels, x = NamedSharding(mesh, P(None, "fsdp")), NamedSharding(mesh, P(("data", "fsdp")))
    whole = NamedSharding(mesh, P())
    collectives = read(
        jax.value_and_grad(loss), (5, 256, 256), (16, 256), in_shardings=(kernels, x), out_shardings=(whole, kernels)
    )
    gathers = [c for c in collectives if c.kind == "all-gather"]
    assert [c.times for c in gathers] == [5, 5]  # forward and backward
    assert {c.times for c in collectives if c.kind == "all-reduce" and c.operand_bytes > 4} == {5}
    assert {c.times for c in collectives if c.operand_bytes == 4} == {1}  # the loss

    def until(kernel, x):
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: jnp.tanh(x @ kernel), x)

    kernel = NamedSharding(mesh, P("fsdp"))
    unbounded = read(until, (256, 256), (16, 256), in_shardings=(kernel, x), out_shardings=x)
    assert None in {c.times for c in unbounded}


TEXT = """HloModule jit_f, is_scheduled=true, num_partitions=8

ENTRY %main (p: bf16[64,10]) -> bf16[64,10] {{
  %p = bf16[64,10]{{1,0:T(8,128)(2,1)}} parameter(0)
  %s = (bf16[64,10]{{1,0}}, bf16[64,10]{{1,0}}) all-reduce-start(%p), channel_id=1, {groups}, to_apply=%add
  ROOT %d = bf16[64,10]{{1,0}} all-reduce-done(%s)
}}
"""


@pytest.mark.parametrize(
    ("groups", "group"),
    [
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", DATA),
        ("replica_groups=[2,4]<=[8]", FSDP),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", DATA),
        ("replica_groups=[1,8]<=[8]", ALL),
        ("replica_groups={}", ALL),
        ("replica_groups=mesh['a'=8] {'a'}", ALL),
        ("replica_groups=mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'a'}", FSDP),
        ("replica_groups=mesh['a'=4,'b'=1,'c'=2], device_ids=([2,4]T(1,0)) {'c'}", DATA),
    ],
)
def test_groups_are_parsed_in_every_notation_and_asynchronous_collectives_count_once(groups, group):
    (collective,) = read_collectives(TEXT.format(groups=groups))
    n = len(group)
    assert (collective.kind, collective.group, collective.operand_bytes) == ("all-reduce", group, 64 * 10 * 2)
    assert collective.wire_bytes == 2 * (n - 1) / n * 1280


OVERLAPPED = """HloModule jit_f, is_scheduled=true, num_partitions=8

%start (a: f32[64]) -> (f32[64], f32[256]) {
  %a = f32[64]{0} parameter(0)
  %g.1 = f32[256]{0} all-gather(%a), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %c.1 = (f32[64]{0}, f32[256]{0}) custom-call(%g.1), custom_call_target="AsyncCollectiveStart"
}

%carry_on (b: f32[64]) -> f32[256] {
  %b = f32[64]{0} parameter(0)
  ROOT %g.2 = f32[256]{0} all-gather(%b), channel_id=7, replica_groups=[2,4]<=[8], dimensions={0}
}

ENTRY %main (p: f32[64]) -> f32[256] {
  %p = f32[64]{0} parameter(0)
  %s = (f32[64]{0}, f32[256]{0}) fusion(%p), kind=kCustom, calls=%start
  %f = f32[256]{0} fusion(%p), kind=kOutput, calls=%carry_on
  ROOT %g.3 = f32[256]{0} all-gather(%p), channel_id=8, replica_groups=[2,4]<=[8], dimensions={0}
}
"""


def test_a_collective_that_a_tpu_overlaps_with_computation_counts_once():
    assert [(c.kind, c.operand_bytes, c.group) for c in read_collectives(OVERLAPPED)] == [("all-gather", 256, FSDP)] * 2


def test_wire_bytes_of_larger_groups_follow_the_ring():
    gather, reduce = (Collective(kind, 80, tuple(range(8)), 1) for kind in ("all-gather", "all-reduce"))
    assert gather.wire_bytes_among(2) == 80 and gather.wire_bytes == 7 * 80
    assert reduce.wire_bytes == 140 and reduce.wire_bytes_among(16) == 150


def test_other_text_and_unknown_groups_are_rejected():
    with pytest.raises(ValueError, match="this is not the text of a compiled program"):
        read_collectives("hello")
    with pytest.raises(ValueError, match="cannot parse the group of s"):
        read_collectives(TEXT.format(groups="replica_groups=everyone"))
