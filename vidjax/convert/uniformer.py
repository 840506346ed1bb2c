"""UniFormer: published weights."""

LAYOUTS = {}
