"""Cost of a computation: multiply-accumulates counted in the traced program, and the peak FLOP/s of devices."""

from collections.abc import Callable
from math import prod
from typing import Literal, NamedTuple

import jax


class Peak(NamedTuple):
    """Peak FLOP/s of one device for dense matrix multiplication, and the manufacturer's document that states it.

    Attributes:
      bfloat16: with float32 accumulation; float16 for devices without bfloat16 (V100, T4).
      float32: in XLA's default precision for float32: TF32 on GPUs that support it, bfloat16 on TPUs.
      source: the document.
    """

    bfloat16: float
    float32: float
    source: str


H100 = "NVIDIA H100 data sheet, halved (stated with sparsity)"
H200 = "NVIDIA H200 data sheet, halved (stated with sparsity)"
BLACKWELL = "NVIDIA Blackwell architecture brief, halved (stated with sparsity)"
AMPERE = "NVIDIA GA102 white paper"
ADA = "NVIDIA Ada white paper"
TPU = "cloud.google.com/tpu/docs, by version"

# By a substring of JAX's `device_kind`, most specific first.
PEAKS = {
    "GB200": Peak(2500e12, 1250e12, BLACKWELL),
    "B200": Peak(2250e12, 1125e12, BLACKWELL),
    "H200 NVL": Peak(835e12, 418e12, H200),
    "H200": Peak(989e12, 494e12, H200),
    "H100 PCIe": Peak(756e12, 378e12, H100),
    "H100 NVL": Peak(835e12, 418e12, H100),
    "H100": Peak(989e12, 494e12, H100),
    "A100": Peak(312e12, 156e12, "NVIDIA A100 data sheet"),
    "A10G": Peak(70e12, 35e12, "NVIDIA A10G data sheet (Amazon EC2 G5)"),
    "A10": Peak(125e12, 62.5e12, "NVIDIA A10 data sheet"),
    "A30": Peak(165e12, 82e12, "NVIDIA A30 data sheet"),
    "A40": Peak(149.7e12, 74.8e12, "NVIDIA A40 data sheet"),
    "RTX A6000": Peak(154.8e12, 77.4e12, AMPERE),
    "RTX 6000 Ada": Peak(364.2e12, 182.1e12, ADA),
    "L40S": Peak(362e12, 183e12, "NVIDIA L40S data sheet"),
    "L40": Peak(181e12, 90.5e12, "NVIDIA L40 data sheet"),
    "L4": Peak(121e12, 60e12, "NVIDIA L4 data sheet, halved (stated with sparsity)"),
    "RTX 4090": Peak(165.2e12, 82.6e12, ADA),
    "RTX 3090": Peak(71e12, 35.6e12, AMPERE),
    "V100-PCIE": Peak(112e12, 14e12, "NVIDIA V100 data sheet, PCIe"),
    "V100": Peak(125e12, 15.7e12, "NVIDIA V100 data sheet, SXM2"),
    "T4": Peak(65e12, 8.1e12, "NVIDIA T4 data sheet"),
    "TPU v6 lite": Peak(918e12, 918e12, TPU),
    "TPU v5 lite": Peak(197e12, 197e12, TPU),
    "TPU v5": Peak(459e12, 459e12, TPU),  # v5p
    "TPU v4": Peak(275e12, 275e12, TPU),
    "TPU v3": Peak(61.5e12, 61.5e12, f"{TPU}; half a chip, which is JAX's device"),
    "TPU v2": Peak(22.5e12, 22.5e12, f"{TPU}; half a chip, which is JAX's device"),
}


def peak_flops(device_kind: str, dtype: Literal["bfloat16", "float32"] = "bfloat16") -> float | None:
    """Peak FLOP/s of a device by its `device_kind`; None if unknown, as for all CPUs."""
    peak = next((peak for name, peak in PEAKS.items() if name.lower() in device_kind.lower()), None)
    return None if peak is None else getattr(peak, dtype)


def count_macs(function: Callable | jax.extend.core.ClosedJaxpr, *args, **kwargs) -> int:
    """Multiply-accumulates of the matrix products and convolutions in `function(*args)`, or in a traced program.

    They are counted in the traced program, before compilation; convolutions count as direct ones. Norms, softmax and
    other elementwise operations are not counted, as in published "FLOPs". Arguments may be `jax.ShapeDtypeStruct`.
    """
    traced = (
        function if isinstance(function, jax.extend.core.ClosedJaxpr) else jax.make_jaxpr(function)(*args, **kwargs)
    )
    return _count(traced.jaxpr)


def _count(jaxpr: jax.extend.core.Jaxpr) -> int:
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += prod(equation.outvars[0].aval.shape) * prod(shape[axis] for axis in contracted)
        elif equation.primitive.name == "conv_general_dilated":
            kernel = equation.invars[1].aval.shape
            spec = equation.params["dimension_numbers"].rhs_spec  # (out, in, space...)
            total += prod(equation.outvars[0].aval.shape) * prod(kernel[axis] for axis in spec[1:])
        elif equation.params.get("name") in ("_sum_over_taps", "_with_fourth_input", "winograd_convolution"):
            # Functions of vidjax.kernels, counted as the direct convolution: one skips frames of padding, one adds an
            # input of zeros, one needs fewer products.
            total += prod(equation.outvars[0].aval.shape) * prod(equation.invars[1].aval.shape[:-1])
        elif equation.params.get("name") == "winograd_kernel_gradient":
            total += prod(equation.invars[1].aval.shape) * prod(equation.outvars[0].aval.shape[:-1])
        elif _is_depthwise(equation):
            total += prod(equation.outvars[0].aval.shape) * prod(equation.invars[1].aval.shape[:3])
        else:
            times = equation.params["length"] if equation.primitive.name == "scan" else 1
            if equation.primitive.name == "shard_map":  # traced once, with the shapes of one device
                times = equation.params["mesh"].size
            total += times * sum(_count(inner) for inner in _inner(equation.params))
    return total


def _is_depthwise(equation: jax.extend.core.JaxprEqn) -> bool:
    """Whether this is a depthwise convolution of `kernels`, which is traced as shifted products: identified by name."""
    inner = equation.params.get("call_jaxpr")
    return inner is not None and inner.jaxpr.debug_info.func_src_info.startswith("_depthwise_conv3d ")


def _inner(params: dict) -> list[jax.extend.core.Jaxpr]:
    """The programs inside an equation (jit, scan, remat, custom derivatives); of branches, the most expensive one."""
    inner = []
    for value in params.values():
        values = value if isinstance(value, (tuple, list)) else (value,)
        programs = [getattr(v, "jaxpr", v) for v in values if hasattr(getattr(v, "jaxpr", v), "eqns")]
        inner += programs if len(programs) < 2 else [max(programs, key=_count)]
    return inner
