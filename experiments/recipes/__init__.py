"""The recipes of the training scripts: by their names, the values of Config that differ from its defaults."""
