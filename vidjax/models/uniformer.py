"""UniFormer."""

from types import MappingProxyType

VARIANTS = MappingProxyType({})
