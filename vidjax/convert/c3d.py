"""C3D: published weights."""

LAYOUTS = {}
