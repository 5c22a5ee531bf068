"""What a browser shows: the host with its domains and incidents, and each incident."""

from panicd.page.pages import Pages

__all__ = ["Pages"]
