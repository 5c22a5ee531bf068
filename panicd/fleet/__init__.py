"""Which VMs there are, who is connected to them, and how they stand.

::

    discovery      monitor sockets by a pattern, kept up to date by watches (inotify)
    connector      makes the connections to monitors, and keeps them
    libvirt_domains  keeps a session with each domain that only libvirt can reach
    supervision    a connected domain: identified, and given to its driver
    plugging       gives a running VM a panic device, and removes it again
    backoff        how long to wait before the next try; pacer: how many begin at once
    unidentified   connections that dialled in and have said nothing yet
    snapshot       the domains as plain values, for ``status`` and a scrape
    audit          which domains panicd could not act on

Enters: sockets, and connections that dial in. Leaves: sessions, each given to ``incident.driver``.
"""
