"""Measurements of vidjax on the machine at hand, beside what it is to be compared with, in one run."""
