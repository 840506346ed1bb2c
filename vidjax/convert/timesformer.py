"""TimeSformer: published weights."""

LAYOUTS = {}
