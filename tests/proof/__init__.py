"""Every interleaving, up to a bound: the machine against a model of QEMU.

``python -m tests.proof`` says how far it looks, and what it found.
"""
