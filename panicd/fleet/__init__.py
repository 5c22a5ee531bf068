"""Which VMs there are, who is connected to them, and how they stand.

::

    discovery      monitor sockets by a pattern, kept true by watches (inotify)
    connector      makes the connections and keeps them, and has each one driven
    unidentified   who dialled in and said nothing yet
    snapshot       the domains as plain values, for ``status`` and a scrape
    audit          which of them could not be acted on

Enters: sockets and those that dial in. Leaves: sessions, each given to ``incident.driver``.
"""
