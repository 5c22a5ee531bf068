"""A nursery for what runs beside a test; the demonstration has it."""

from panicd.demo.background import background

__all__ = ["background"]
