"""What is served over HTTP: metrics, health, pages.

::

    http           the server, in a thread of its own, plain or with TLS
    web            what is answered, and to whom
    basic_auth     by name and password; turns: one at a time
    html           elements, so that no text can become markup
    page/          what a browser shows

Enters: requests. Leaves: ``fleet.snapshot``, ``incident.records`` and the metrics, as text.
"""
