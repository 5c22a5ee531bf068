"""What a browser shows: the host with its domains and incidents, and each incident.

::

    pages          which there are; overview, domain, incident, evidence, panics: each one's content
    filtering      which domains are shown; download: files that are sent as they are
    parts, style   what they are put together from; script: renews them while they are shown
    operating      what operators ask for by forms, with tokens against forgery
"""

from panicd.web.page.pages import Pages

__all__ = ["Pages"]
