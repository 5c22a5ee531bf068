"""What panicd knows and decides: values in, values out.

Nothing in this package is async, reads a clock, opens a file or logs; ``tests/test_layers.py``
holds it to that. Times are seconds since the epoch and come in as arguments.
"""
