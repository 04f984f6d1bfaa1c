"""Measure what critic and regenerator add, and what adapters lose against full models."""
