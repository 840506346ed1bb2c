#!/usr/bin/env bash
# On a CPU, a compiled program's scratch memory is mapped and zeroed by the kernel again at every call.
#
# JAX 0.10.2 with glibc 2.36 (Debian 12), x86-64, two cores. XLA allocates the scratch memory of a program when it is
# called and frees it at the end; glibc takes blocks above 32 MB straight from the kernel and returns them. Each page costs
# a page fault in each call. In a virtual machine whose host takes freed memory back, those of a training step of V-JEPA
# 2-L (2.6 GB) took two thirds of its time: 20 s, or 7 s with the settings below. Two of them alone do not
# help, as XLA's threads have arenas of their own, which hold no such blocks; mallopt(3) with the same settings after JAX
# has started threads needs several calls and three times the memory before the pages are reused.
#
# Seen, page faults per call of a program with 537 MB of scratch memory, once warm:
# default 196610, without arena_max 196653, all three settings 0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet jax==0.10.2 jaxlib==0.10.2 numpy==2.4.0
cat > "$folder/faults.py" <<'PYTHON'
import resource

import jax
import jax.numpy as jnp

step = jax.jit(lambda x: jnp.cumsum(jnp.outer(x, x), axis=0).sum())
x, counts = jnp.ones(8192), []
for _ in range(8):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
print(sorted(counts[3:])[2])
PYTHON
kept=glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=34359738368
export JAX_PLATFORMS=cpu
default=$(env -u GLIBC_TUNABLES "$folder/venv/bin/python" "$folder/faults.py")
two=$(GLIBC_TUNABLES=$kept "$folder/venv/bin/python" "$folder/faults.py")
three=$(GLIBC_TUNABLES=$kept:glibc.malloc.arena_max=1 "$folder/venv/bin/python" "$folder/faults.py")
echo "default $default, without arena_max $two, all three settings $three"
[ "$default" -gt 130000 ] && [ "$two" -gt 130000 ] && [ "$three" -lt 1000 ]
