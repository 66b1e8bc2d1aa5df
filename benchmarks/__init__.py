"""Measurements; their results stand in ``results/``."""
