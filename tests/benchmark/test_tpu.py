"""What programs compiled for TPUs write is read from their text, and the largest batch from two of them."""

import json
from unittest.mock import Mock

import jax
import pytest

from benchmark import commands, tpu
from benchmark.layouts import array_bytes, read_written
from benchmark.tpu import Tpu, describe_slice, largest_batch, traced_for_tpu

PROGRAM = """HloModule jit_step, entry_computation_layout={(f32[8,128]{1,0})->f32[8,128]{1,0}}

%moving (p: bf16[2,196,64]) -> bf16[2,64,196] {
  %p = bf16[2,196,64]{2,1,0:T(8,128)(2,1)} parameter(0)
  ROOT %transpose.1 = bf16[2,64,196]{2,1,0:T(8,128)(2,1)} transpose(%p), dimensions={0,2,1}
}

%working (p.1: f32[8,128]) -> f32[8,128] {
  %p.1 = f32[8,128]{1,0:T(8,128)} parameter(0)
  %copy.9 = f32[8,128]{1,0:T(8,128)} copy(%p.1)
  ROOT %add.1 = f32[8,128]{1,0:T(8,128)} add(%copy.9, %copy.9)
}

%placing (p.2: f32[12,8,128], p.3: f32[1,8,128], p.4: s32[]) -> (f32[12,8,128], f32[8,128]) {
  %p.2 = f32[12,8,128]{2,1,0:T(8,128)} parameter(0)
  %p.3 = f32[1,8,128]{2,1,0:T(8,128)} parameter(1)
  %p.4 = s32[]{:T(128)} parameter(2)
  %put = f32[12,8,128]{2,1,0:T(8,128)} dynamic-update-slice(%p.2, %p.3, %p.4, %p.4, %p.4)
  %bits = f32[12,8,128]{2,1,0:T(8,128)} bitcast(%put)
  %other = f32[8,128]{1,0:T(8,128)} negate(%p.3)
  ROOT %tuple.2 = (f32[12,8,128]{2,1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)}) tuple(%bits, %other)
}

%body (state: (s32[], f32[8,128])) -> (s32[], f32[8,128]) {
  %state = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %gte = f32[8,128]{1,0:T(8,128)} get-tuple-element(%state), index=1
  %copy.2 = f32[8,128]{0,1:T(8,128)} copy(%gte), metadata={op_name="jit(step)/jvp()/block/attention/transpose"}
  ROOT %tuple.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%gte, %copy.2)
}

%condition (state.1: (s32[], f32[8,128])) -> pred[] {
  %state.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) parameter(0)
  %count = s32[]{:T(128)} get-tuple-element(%state.1), index=0
  %constant.1 = s32[]{:T(128)} constant(12)
  ROOT %lt = pred[]{:T(512)} compare(%count, %constant.1), direction=LT
}

ENTRY %main (x: f32[8,128]) -> f32[8,128] {
  %x = f32[8,128]{1,0:T(8,128)} parameter(0)
  %fusion.1 = bf16[2,64,196]{2,1,0:T(8,128)(2,1)} fusion(%x), kind=kLoop, calls=%moving
  %fusion.2 = f32[8,128]{1,0:T(8,128)} fusion(%x), kind=kLoop, calls=%working
  %fusion.3 = (f32[12,8,128]{2,1,0:T(8,128)}, f32[8,128]{1,0:T(8,128)}) fusion(%x, %x, %x), kind=kLoop, calls=%placing
  %init = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) tuple(%x, %fusion.2)
  %while.1 = (s32[]{:T(128)}, f32[8,128]{1,0:T(8,128)}) while(%init), condition=%condition, body=%body
  ROOT %out = f32[8,128]{1,0:T(8,128)} get-tuple-element(%while.1), index=1
}
"""


@pytest.mark.parametrize(
    ("shape", "values", "padded"),
    [
        ("f32[8,128]{1,0:T(8,128)}", 4096, 4096),
        ("bf16[2,196,64]{2,1,0:T(8,128)(2,1)}", 2 * 2 * 196 * 64, 2 * 2 * 200 * 128),
        ("bf16[2,196,64]{1,2,0:T(8,128)(2,1)S(1)}", 2 * 2 * 196 * 64, 2 * 2 * 64 * 256),
        ("f32[16,224,224,3]{3,2,1,0:T(4,128)}", 4 * 16 * 224 * 224 * 3, 4 * 16 * 224 * 224 * 128),
        ("f32[768]{0:T(1024)}", 3072, 4096),
        ("(s32[]{:T(128)}, pred[8,128]{1,0})", 4 + 1024, 4 + 1024),
    ],
)
def test_the_innermost_axes_are_padded_to_tiles(shape, values, padded):
    assert array_bytes(shape) == (values, padded)


def test_moved_and_padding_bytes_are_those_of_the_program():
    written = read_written(PROGRAM)
    moving, block = 2 * 2 * 64 * 256, 8 * 128 * 4  # bytes; the second array has 128 rows of 128 when it is transposed
    transposed = 128 * 128 * 4
    assert written.moved == moving + 12 * transposed
    assert written.total == moving + block + 2 * block + 12 * transposed  # `placing` writes a slice and another
    assert written.padding == 2 * 2 * 64 * (256 - 196) + 12 * (transposed - block)
    assert next(iter(written.most_moved)) == "block/attention/transpose f32[8,128]{0,1}"


def test_the_largest_batch_lies_on_the_line_through_two_needs():
    assert largest_batch([(8, 5_000), (4, 3_000)], 10_000) == 18
    assert largest_batch([(4, 3_000), (8, 5_000)], 1_400) == 0


def test_kernels_choose_as_on_a_tpu_while_traced_for_one():
    with traced_for_tpu():
        assert jax.default_backend() == "tpu"
    assert jax.default_backend() == jax.devices()[0].platform


def test_the_largest_batch_of_each_chip_is_on_the_line_and_compiled_for_the_first(tmp_path, capsys, monkeypatch):
    """0.5 GiB and 1.5 for each clip, of 15.75 on a v5e and 95.74 on a v5p, on which the small batches are compiled."""
    compiled = []

    def compile_for(device, job):
        compiled.append((device.device_kind, job.batch_size))
        if job.model == "r3d_tiny":
            raise RuntimeError("RESOURCE_EXHAUSTED: Ran out of memory\nand more")
        most = {"most_moved": {"attention/transpose bf16[8,2]{0,1}": int(2e9)}, "most_padding": {}}
        program = int((0.5 + 1.5 * job.batch_size) * 2**30)
        row = {"program_bytes": program, "written_bytes": int(3e9) * job.batch_size}
        return {**row, "moved": 0.25, "padding": 0.5, **most, "compile_seconds": 7.0}

    names = ("videomae_tiny_pretrain", "r3d_tiny")
    kinds = {"v5e:2x2": "TPU v5 lite", "v5p:2x2x1": "TPU v5"}
    monkeypatch.setattr(tpu, "compile_for", compile_for)
    monkeypatch.setattr(tpu, "describe_slice", lambda topology: [Mock(spec=jax.Device, device_kind=kinds[topology])])
    monkeypatch.setattr(tpu, "version", lambda library: "1.2")
    monkeypatch.setattr(tpu, "describe", lambda *_: {"models": {name: {"macs": 25 * 10**9} for name in names}})
    file = tmp_path / "numbers.json"
    rows = commands.main(Tpu(names, tuple(kinds), json=str(file)))
    assert json.loads(file.read_text())["rows"] == rows and len(rows) == 4
    small = [("TPU v5", 4), ("TPU v5", 8)]
    assert compiled == [*small, ("TPU v5 lite", 10), *small]
    title, *lines = capsys.readouterr().out.splitlines()
    assert title.endswith("jax 1.2, libtpu 1.2")
    v5e, v5p, failed = lines[3:6]
    assert v5e == "| videomae_tiny_pretrain | v5e:2x2 | 0.537 | 1.61 | 10 | 16.6 | 0.150 | 3.00 | 25.0 | 50.0 | 7.00 |"
    assert v5p == "| videomae_tiny_pretrain | v5p:2x2x1 | 0.537 | 1.61 | 63 |  | 0.150 |  |  |  |  |"
    assert failed == "| r3d_tiny | v5e:2x2 | RuntimeError: RESOURCE_EXHAUSTED: Ran out of memory |"
    assert lines[9] == "    moved 2.00 GB: attention/transpose bf16[8,2]{0,1}"


def test_what_cannot_be_compiled_is_refused(monkeypatch):
    from jax.experimental import topologies

    def unknown(name, platform):
        raise RuntimeError("no such library\nand more")

    monkeypatch.setenv("TPU_SKIP_MDS_QUERY", "1")
    monkeypatch.setenv("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    monkeypatch.setattr(topologies, "get_topology_desc", unknown)
    monkeypatch.setattr(jax.config, "update", lambda name, value: None)
    with pytest.raises(ValueError, match=r"cannot compile for v5e:2x2 \(no such library\): pip install libtpu"):
        describe_slice("v5e:2x2")
    with pytest.raises(ValueError, match=r"batch_sizes is \(4, 4\): give two different numbers"):
        Tpu(batch_sizes=(4, 4))
