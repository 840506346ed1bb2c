"""Evaluation measures: functions from arrays to numbers."""
