"""Residual family of R(2+1)D."""

from types import MappingProxyType

VARIANTS = MappingProxyType({})
