"""How an operation is computed well on a device: plain functions of arrays, which `vidjax.layers` calls.

Each says in its docstring which line of JAX it equals ("Equals ..."), and tests/kernels holds it to that line, with its
gradients. A kernel stands here for a measured reason (docs/kernels.md): less time, less memory, or fewer bytes between
devices than that line takes.
"""
