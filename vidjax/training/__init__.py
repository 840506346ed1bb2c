"""Optimiser, state, step, loop, sharding, checkpoints, metrics and cost, independent of models and objectives."""
