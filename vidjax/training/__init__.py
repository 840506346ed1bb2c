"""Optimiser, state, step, loop, sharding, checkpoints, metrics and cost. They know no model and no objective."""
