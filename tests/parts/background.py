"""A nursery for what runs beside a test: the demonstration's."""

from panicd.demo.background import background

__all__ = ["background"]
