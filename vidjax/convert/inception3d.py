"""I3D and S3D: published weights."""

LAYOUTS = {}
