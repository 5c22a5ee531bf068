"""What a browser shows: the host with its domains and incidents, and each incident.

::

    pages          which there are; overview, incident, evidence, panics: each one's content
    parts, style   what they are put together from
"""

from panicd.web.page.pages import Pages

__all__ = ["Pages"]
