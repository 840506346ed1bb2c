"""Studies of compare_models.py that fill a file of their own."""
