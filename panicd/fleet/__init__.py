"""Which VMs there are, who is connected to them, and how they stand.

::

    discovery      monitor sockets by a pattern, kept true by watches (inotify)
    connector      makes the connections to monitors, and keeps them
    libvirt_domains  looks after the domains that libvirt alone can reach
    supervision    a domain that is connected: identified, and given to its driver
    plugging       gives a running VM a panic device, and takes it away again
    backoff        how long to wait before the next try
    unidentified   who dialled in and said nothing yet
    snapshot       the domains as plain values, for ``status`` and a scrape
    audit          which of them could not be acted on

Enters: sockets and those that dial in. Leaves: sessions, each given to ``incident.driver``.
"""
