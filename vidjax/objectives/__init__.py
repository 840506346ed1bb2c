"""Training objectives as pure functions on arrays."""
