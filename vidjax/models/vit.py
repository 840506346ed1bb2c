"""Image ViT."""

from types import MappingProxyType

VARIANTS = MappingProxyType({})
