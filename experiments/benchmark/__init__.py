"""Benchmarks of vidjax on the current machine, compared with PyTorch and other libraries."""
