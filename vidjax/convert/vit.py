"""Image ViT: published weights."""

LAYOUTS = {}
