#!/usr/bin/env bash
# XLA compiles 3-D convolutions in bfloat16 for NVIDIA GPUs with channels first, whatever the order of the arrays.
#
# JAX 0.10.2 with its CUDA 12 plugin, compiled for an H200 without a GPU or a driver. A 2-D convolution has channels last
# (b01f), the layout of tensor cores; a 3-D one, its input's and its kernel's gradient have channels first (bf012), and
# the arrays are transposed around it: only results of four axes may have channels last (`HeuristicLayoutAssignment` in
# xla/service/gpu/transforms/layout_assignment.cc). If the output has fewer frames than the kernel, the gradient of the
# kernel is not even compiled as one, but as a forward convolution with a window of the output's size. openxla/xla#34273
# and jax-ml/jax#31662 (open on 2026-12-01) measure gradients of 3-D kernels that take over 30 times as long as PyTorch's.
#
# Seen: 2-D convForward b01f_o01i->b01f; 3-D convForward bf012_oi012->bf012; its gradients convBackwardFilter and
# convBackwardInput bf012_oi012->bf012; the kernel's gradient for outputs of 2 x 7 x 7: convForward with window 2x7x7
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.0
"$folder/venv/bin/pip" install --quiet --no-deps jax-cuda12-plugin==0.10.2 jax-cuda12-pjrt==0.10.2 \
  nvidia-cuda-nvcc-cu12==12.9.86 nvidia-cudnn-cu12==9.10.2.21
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import re

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

# The figures of an H200 that XLA asks for.
H200 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535 block_dim_limit_z: 65535 memory_bandwidth: 4800000000000 l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: 151397597184 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 } registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 2 }
device_description_str: "NVIDIA H200"
"""
(device,) = topologies.get_topology_desc("1x1x1", "cuda", target_config=H200, topology="1x1x1").devices


def convolutions(sides, gradients):
    """Which cuDNN convolutions a convolution with a kernel of size 3 becomes, with their layouts and windows."""
    axes = len(sides)
    letters = "THW"[3 - axes :]
    names = (f"N{letters}C", f"{letters}IO", f"N{letters}C")

    def loss(x, kernel):
        y = lax.conv_general_dilated(x, kernel, (1,) * axes, "SAME", dimension_numbers=names)
        return (y.astype(jnp.float32) ** 2).sum()

    inputs = (jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=SingleDeviceSharding(device))
              for shape in ((8, *sides, 128), (*[3] * axes, 128, 128)))
    program = jax.jit(jax.grad(loss, (0, 1)) if gradients else loss).lower(*inputs)
    text = program.compile(compiler_options={"xla_gpu_autotune_level": 0}).as_text()
    pattern = r'size=([\dx]+).*dim_labels=(\S+), custom_call_target="__cudnn\$(\w+)"'
    return sorted((kind, layout, window) for window, layout, kind in re.findall(pattern, text))


flat, solid = convolutions((28, 28), False), convolutions((8, 28, 28), True)
short = convolutions((2, 7, 7), True)
print(jax.__version__, "2-D:", flat, "3-D:", solid, "with few frames:", short, sep="\n")
assert flat == [("convForward", "b01f_o01i->b01f", "3x3")]
kinds = "convBackwardFilter", "convBackwardInput", "convForward"
assert solid == [(kind, "bf012_oi012->bf012", "3x3x3") for kind in kinds]
assert [window for kind, _, window in short if kind == "convForward"] == ["2x7x7", "3x3x3"]
assert not any(kind == "convBackwardFilter" for kind, _, _ in short)
PYTHON
