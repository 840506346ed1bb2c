"""TimeSformer."""

from types import MappingProxyType

VARIANTS = MappingProxyType({})
