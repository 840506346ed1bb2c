"""What a computation costs: multiply-accumulates counted from the traced program, and devices' peaks."""

from collections.abc import Callable
from math import prod

import jax

# Dense bfloat16 peak of one device in FLOP/s, by a part of `device_kind`, most specific first. From the makers' data
# sheets (NVIDIA without sparsity; Google Cloud's TPU pages, per chip).
PEAK_FLOPS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A10G": 70e12,
    "L40S": 362e12,
    "L4": 121e12,
    "V100": 125e12,
    "T4": 65e12,
    "TPU v6 lite": 918e12,
    "TPU v5 lite": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v4": 275e12,
    "TPU v3": 123e12,
    "TPU v2": 45e12,
}


def peak_flops(device_kind: str) -> float | None:
    """Peak bfloat16 FLOP/s of a device by its `device_kind`, None where it is not known."""
    return next((peak for name, peak in PEAK_FLOPS.items() if name.lower() in device_kind.lower()), None)


def count_macs(function: Callable, *args, **kwargs) -> int:
    """Multiply-accumulates of the matrix products and convolutions in `function(*args)`.

    Counted from the traced program, before any compiler; norms, softmax and the like are not counted, as is the custom
    of published "FLOPs". Arguments may be shapes (`jax.ShapeDtypeStruct`).
    """
    return _count(jax.make_jaxpr(function)(*args, **kwargs).jaxpr)


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
        elif _is_depthwise(equation):
            total += prod(equation.outvars[0].aval.shape) * prod(equation.invars[1].aval.shape[:3])
        else:
            times = equation.params["length"] if equation.primitive.name == "scan" else 1
            total += times * sum(_count(inner) for inner in _inner(equation.params))
    return total


def _is_depthwise(equation: jax.extend.core.JaxprEqn) -> bool:
    """Whether this is `layers.convolution.depthwise_conv3d`: traced as shifted products, it is known by its name."""
    inner = equation.params.get("call_jaxpr")
    return inner is not None and inner.jaxpr.debug_info.func_src_info.startswith("depthwise_conv3d ")


def _inner(params: dict) -> list[jax.extend.core.Jaxpr]:
    """The programs inside an equation (jit, scan, remat, custom derivatives); of branches, the dearest."""
    found = []
    for value in params.values():
        values = value if isinstance(value, (tuple, list)) else (value,)
        programs = [getattr(v, "jaxpr", v) for v in values if hasattr(getattr(v, "jaxpr", v), "eqns")]
        found += programs if len(programs) < 2 else [max(programs, key=_count)]
    return found
