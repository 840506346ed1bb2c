"""Recipes of the training scripts: by name, the values of Config that differ from the defaults."""
