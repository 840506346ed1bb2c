"""Residual family of R(2+1)D: published weights."""

LAYOUTS = {}
