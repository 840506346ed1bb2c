"""ViViT."""

from types import MappingProxyType

VARIANTS = MappingProxyType({})
