"""What a browser shows: the host with its domains and incidents, and each incident.

::

    pages          which pages there are; overview, domain, incident, evidence, panics: their
    content filtering      which domains are shown; download: files that are sent as they are
    parts, style   what pages are made of; script: renews a page while somebody looks at it
    operating      what operators ask for by forms, with tokens against forgery
"""

from panicd.web.page.pages import Pages

__all__ = ["Pages"]
