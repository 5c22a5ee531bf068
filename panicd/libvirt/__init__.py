"""The libvirt of this host: which domains it runs, and what it is told to do with them.

::

    known_domains  what libvirt says of its domains; takes their panics over
    own_monitor    libvirt's own monitors, which are never dialled
    virsh          one question, asked by virsh(1)
"""
