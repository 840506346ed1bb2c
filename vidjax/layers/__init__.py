"""Shared modules of every model family. They know no family, no data and no objective."""
