"""I3D and S3D."""

from types import MappingProxyType

VARIANTS = MappingProxyType({})
