"""ViViT: published weights."""

LAYOUTS = {}
