"""What is served over HTTP: metrics, health, pages.

::

    http           the server, in a thread of its own, plain or with TLS
    web            which answers there are, and who gets them
    basic_auth     checks names and passwords; turns: one check at a time
    html           elements, so that no text can become markup
    page/          what a browser shows

Enters: requests. Leaves: ``fleet.snapshot``, ``incident.records`` and the metrics, as text.
"""
