"""P3D: published weights."""

LAYOUTS = {}
