"""The libvirt of this host: which domains it runs, and what it is told to do with them.

::

    client         the connections that are kept to it: what is asked, and what is heard
    connection     one of them
    requests       what may be asked; protocol: what that and the events mean
    wire, xdr      messages, and the values in them
    sockets        where it is reached
    errors         what may go wrong, and whether it was told by then
    known_domains  what libvirt says of its domains; takes their panics over
    own_monitor    libvirt's own monitors, which are never dialled
    virsh          one question, asked by virsh(1)
"""
