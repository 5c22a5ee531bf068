"""Benchmarks: see docs/benchmarks.md."""

AS_THE_SERVICE = ("chrt", "--reset-on-fork", "--other", "0", "nice", "-n", "-5")
"""Runs a program with the priority that panicd's unit gives it."""
