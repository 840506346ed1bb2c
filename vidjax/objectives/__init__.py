"""Pre-training objectives: pure functions on arrays."""
