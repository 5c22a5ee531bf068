"""What a browser shows: the host with its domains and incidents, and each incident."""

from panicd.web.page.pages import Pages

__all__ = ["Pages"]
