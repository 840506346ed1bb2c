#!/usr/bin/env bash
# The FLOPs of a compiled program count the body of a scan once, however often it runs.
#
# JAX 0.10.2 on a CPU, and likewise compiled for a TPU v5e with libtpu 0.0.42.1 (not run here: it takes 700 MB).
# `compiled.cost_analysis()["flops"]` of twelve matrix products in `jax.lax.scan` is that of one product, although the
# number of iterations is a constant of the program; unrolled, it is that of twelve. A utilisation computed from it for a
# model with scanned layers is too low by the number of layers. "bytes accessed" behaves in the same way.
#
# Seen, in products of 512 x 512 matrices: scan 1.0, unrolled 12.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.0
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp

x, kernels = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((512, 512), (12, 512, 512)))


def scanned(x, kernels):
    return jax.lax.scan(lambda x, kernel: (jnp.tanh(x @ kernel), None), x, kernels)[0]


def unrolled(x, kernels):
    for kernel in kernels:
        x = jnp.tanh(x @ kernel)
    return x


counts = [jax.jit(f).lower(x, kernels).compile().cost_analysis()["flops"] / (2 * 512**3) for f in (scanned, unrolled)]
print(jax.__version__, "scan %.1f, unrolled %.1f" % tuple(counts))
assert counts[0] < 1.1 and counts[1] > 11.9
PYTHON
