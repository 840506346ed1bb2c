"""Modules shared by the model families, independent of any family, data set or objective."""
