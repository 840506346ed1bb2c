"""Optimised implementations of operations: plain functions of arrays, called by `vidjax.layers`.

The docstring of each kernel gives the JAX expression that it is equal to ("Equals ..."); tests/kernels compares the
values and gradients of the two. Each kernel is here because it was measured to need less time, less memory or less
communication between devices than that expression (docs/kernels.md).
"""
