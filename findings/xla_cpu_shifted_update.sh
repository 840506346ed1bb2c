#!/usr/bin/env bash
# XLA on CPUs overwrites what it still has to read when a shifted slice of an array is written onto the array itself.
#
# JAX 0.10.2 and 0.12.0.1; openxla/xla#49176 (2026-09-21, open). `x.at[1:].set(x[:-1])` followed by a reshape becomes one
# fusion that writes in place, and every value is the first. GPUs are not affected, nor is code outside of `jit`.
# `jnp.concatenate([x[:1], x[:-1]])` is right.
#
# jax-ml/jax#40101 (2026-08-20, open) is about time alone: jaxlib 0.11.1 copies the whole array for each small slice that
# a loop writes into it. With 0.12.0.1 a scan of 100,000 steps with stacked scalars takes under a millisecond again.
#
# Seen with both versions: under jit [1 1 1 1], without [1 1 2 3]
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'PYTHON'
import jax
import jax.numpy as jnp


def shifted(x):
    x = x + 1
    return x.at[1:].set(x[:-1]).reshape(1, 4, 1)


x = jnp.arange(4).reshape(4, 1, 1)
print(jax.__version__, "under jit", jax.jit(shifted)(x).ravel(), "without", shifted(x).ravel())
assert (shifted(x).ravel() == jnp.array([1, 1, 2, 3])).all()
assert not (jax.jit(shifted)(x) == shifted(x)).all()
PYTHON
