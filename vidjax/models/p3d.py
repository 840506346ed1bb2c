"""P3D."""

from types import MappingProxyType

VARIANTS = MappingProxyType({})
